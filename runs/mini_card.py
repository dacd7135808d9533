"""Measure kogpt-mini and write its model card: README.md and loss.png in the model's folder.

    python runs/mini_card.py RECIPE RUN CORPUS --ngram ngram.json --machine "2 cores of ..."

Bits per UTF-8 byte on every valid_*.jsonl.zst of CORPUS beside those of the edition that the package has
(--beside), `xz -9e` on the same bytes and what runs/ngram.py has measured, the course of the loss from
RUN/metrics.jsonl, and samples as they come, into RUN/model. Every other number of the card is made here.
RUN/figures.json keeps what was measured.
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kogpt import KoGPT, Sampling, checkpoint, manifest
from kogpt.model import GPTJ
from kogpt.pretraining.corpus import Reading
from kogpt.pretraining.recipe import Recipe, read_recipe
from kogpt.pretraining.run import read_documents
from kogpt.pretraining.sample import read_texts
from kogpt.tokenizer import Tokenizer
from kogpt.training.objective import ComputeSettings, Objective
from kogpt.training.report import METRICS, plot, read_metrics
from kogpt.training.validation import bits_per_byte

MEASURED = ("kowiki", "law", "nsmc", "msdocs")  # whose mean is quoted
FIGURES = "figures.json"  # name within the folder of the run

DEFAULTS = {"repetition_penalty": 1.2}  # with which its texts no longer loop, at temperature 0 either
SAMPLING = Sampling(temperature=0.8, top_p=0.95, max_tokens=64)
PROMPTS = (
    "대한민국의 수도 서울은",
    "조선 시대의",
    "1988년 서울 올림픽은",
    "독일의 물리학자",
    "이 소설은",
    "제1조(목적) 이 법은",
    "제15조(과태료)",
    "국토교통부장관은",
    "정말 재미있게 본 영화",
    "기대하고 봤는데",
    "배우들의 연기는",
    "Windows에서 앱을 설치하려면",
    "다음 예제에서는",
    "Visual Studio에서 프로젝트를 만들려면",
    "이 함수는 문자열을",
    "파이썬에서 리스트는",
    "태초에 하나님이",
    "오늘 날씨가",
    "옛날 어느 마을에",
    "축구 국가대표팀은",
)

SOURCES = {  # description and licence
    "kowiki": ("Korean Wikipedia, dump of about January 2023", "CC BY-SA 3.0"),
    "kowiki2": ("further articles of the same dump", "CC BY-SA 3.0"),
    "nsmc": ("Naver movie reviews", "CC0 1.0"),
    "law": ("acts and presidential decrees of Korea", "public domain (Copyright Act, article 7)"),
    "msdocs": ("Microsoft documentation in Korean", "CC BY 4.0"),
    "devdocs": ("programming books and guides in Korean", "CC BY 4.0, CC BY-SA 4.0, MIT, Apache 2.0"),
    "pydocs": ("Python documentation in Korean", "PSF licence, CC0"),
    "bible": ("Korean Bible, 1961", "public domain"),
    "klue_sents": ("sentences of KLUE dev sets", "CC BY-SA 4.0"),
    "chat": ("questions and answers, songys/Chatbot_data", "MIT"),
    "pytorch": ("PyTorch tutorials in Korean", "BSD 3-Clause"),
    "novels": ("short stories of the 1920s and 1930s", "public domain"),
}
MODEL = Path(__file__).parents[1] / "kogpt" / "mini"

TEMPLATE = Path(__file__).with_suffix(".md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--ngram", type=Path, required=True, help="what runs/ngram.py wrote")
    parser.add_argument("--machine", required=True)
    parser.add_argument("--beside", type=Path, default=MODEL, help="model folder (default: the package's)")
    args = parser.parse_args()
    model, metrics = args.run / "model", args.run / METRICS
    first, *_, last = read_metrics(metrics)
    recipe = read_recipe(args.recipe)
    if last["step"] != recipe.schedule.steps:
        raise SystemExit(f"{args.run} made {last['step']} steps, {args.recipe} says {recipe.schedule.steps}")
    rows = measure_beside(model, args.beside, sorted(args.corpus.glob("valid_*.jsonl.zst")))
    ngram = json.loads(args.ngram.read_text(encoding="utf-8"))
    for name, row in rows.items():
        row["kneser_ney"] = ngram["bits_per_byte"][name]
    figures = {"sets": rows, "mean": mean_of(rows), "beside": mean_of(rows, "beside")}
    (args.run / FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    plot(metrics, model / "loss.png")
    start = (
        f"{first['init']}, SHA-256 {first['init_sha256'][:16]}..." if "init" in first else "random weights"
    )
    facts = {
        **course_of(recipe),
        "recipe": args.recipe.name,
        "start": start,
        "steps": last["step"],
        "tokens": last["tokens"],
        "dtype": first.get("dtype", "bfloat16"),
        "time": duration(last["seconds"]),
        "machine": args.machine,
        "ngram_megabytes": ngram["train_bytes"] / 1e6,
    }
    write_defaults(model)
    manifest.write_manifest(model)  # the card's samples load the folder, which is checked
    (model / "README.md").write_text(card(model, rows, facts), encoding="utf-8")
    manifest.write_manifest(model)


def write_defaults(model: Path) -> None:
    """Add kogpt-mini's settings for writing to what the export wrote into generation_config.json."""
    path = model / "generation_config.json"
    document = json.loads(path.read_text(encoding="utf-8")) | DEFAULTS
    path.write_text(json.dumps(document, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def duration(seconds: float) -> str:
    """Hours, or minutes of less than one."""
    return f"{seconds / 3600:.1f} hours" if seconds >= 3600 else f"{seconds / 60:.0f} minutes"


def course_of(recipe: Recipe) -> dict[str, Any]:
    """What the card says of a recipe."""
    schedule, rule = recipe.schedule, recipe.optimizer
    stable = schedule.steps - schedule.warmup_steps - schedule.decay_steps
    parts = [f"warm-up over {schedule.warmup_steps} steps"]
    if schedule.shape == "cosine":
        parts.append("cosine")
    else:
        parts += [f"{stable} at the peak"] if stable else []
        parts.append(f"linear decay over {schedule.decay_steps}")
    if recipe.order == "epochs":
        parts.append("each window once an epoch")
    if recipe.average:
        parts.append(f"weights averaged from step {recipe.average.first_due}")
    rules = f"AdamW ({rule.adamw_rate})"
    if rule.name != "adamw":
        rules = f"Muon (matrices of the blocks, {rule.muon_rate}) and AdamW (the rest, {rule.adamw_rate})"
    total = sum(source.weight for source in recipe.sources.values())
    return {
        "data": "\n".join(
            f"| {SOURCES[name][0]} ({name}) | {SOURCES[name][1]} | {100 * source.weight / total:.2g} % |"
            for name, source in recipe.sources.items()
        ),
        "windows": ", then ".join(f"{stage.length:,}" for stage in recipe.stages),
        "course": f"{rules}; {', '.join(parts)}",
    }


def measure(folder: Path, files: Iterable[Path]) -> dict[str, dict[str, float]]:
    """Bytes, tokens, bits per byte of the model and of xz, by the name of the set; printed as JSON lines."""
    stored = checkpoint.load(folder)
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
    model = GPTJ(stored.config)
    weights = {name: torch.from_numpy(t.to("float32")) for name, t in stored.tensors.items()}
    if stored.config.tied_head:
        weights["lm_head.weight"] = weights["transformer.wte.weight"]
    model.load_state_dict(weights)
    objective = Objective(model, ComputeSettings(dtype="float32", compile="nothing"))
    rows = {}
    for file in files:
        name = file.name.removeprefix("valid_").removesuffix(".jsonl.zst")
        documents = list(read_documents(file, tokenizer))
        raw = "\n".join(read_texts([file], Reading(), max_bad_share=0.0)).encode()
        rows[name] = {
            "bytes": sum(document.n_bytes for document in documents),
            "tokens": sum(len(document.ids) for document in documents),
            "bits_per_byte": bits_per_byte(objective, {name: documents}, stored.config.n_ctx)[name],
            "xz": 8 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)) / len(raw),
        }
        print(json.dumps({"set": name, **rows[name]}), flush=True)
    return rows


def measure_beside(model: Path, beside: Path, files: Sequence[Path]) -> dict[str, dict[str, float]]:
    """`measure`, and under `beside` the bits per byte of the other model on the same bytes."""
    rows, other = measure(model, files), measure(beside, files)
    return {name: {**row, "beside": other[name]["bits_per_byte"]} for name, row in rows.items()}


def mean_of(rows: Mapping[str, Mapping[str, float]], column: str = "bits_per_byte") -> float:
    """Mean over the sets whose mean is quoted."""
    return sum(rows[name][column] for name in MEASURED) / len(MEASURED)


def card(folder: Path, rows: dict[str, dict[str, float]], facts: dict[str, Any]) -> str:
    """The text of README.md."""
    config = checkpoint.load(folder).config
    columns = ("bits_per_byte", "beside", "kneser_ney", "xz")
    table = [
        f"| {name} | {row['bytes']:,} | {' | '.join(f'{row[column]:.3f}' for column in columns)} |"
        for name, row in rows.items()
    ]
    return TEMPLATE.read_text(encoding="utf-8").format(
        config=config,
        millions=config.n_parameters / 1e6,
        mebibytes=(folder / "model.safetensors").stat().st_size / 2**20,
        bytes_per_token=_total(rows, "bytes") / _total(rows, "tokens"),
        **facts,
        table="\n".join(table),
        mean=mean_of(rows),
        beside=mean_of(rows, "beside"),
        sampling=SAMPLING,
        samples="\n".join(samples(folder)),
    )


def samples(folder: Path) -> list[str]:
    """One item of a list for each prompt."""
    model = KoGPT.from_pretrained(str(folder))
    lines = []
    for seed, prompt in enumerate(PROMPTS, start=1):
        chosen: dict[str, Any] = {"temperature": SAMPLING.temperature, "top_p": SAMPLING.top_p}
        result = model.generate(prompt, Sampling(**chosen, max_tokens=SAMPLING.max_tokens, seed=seed))
        text = result.text.replace("\n", " / ").replace("*", "\\*").replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"{seed}. **{prompt}**{text}")
    return lines


def _total(rows: dict[str, dict[str, float]], name: str) -> float:
    return sum(row[name] for row in rows.values())


if __name__ == "__main__":
    main()
