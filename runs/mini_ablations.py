"""Ablations of kogpt-mini: short runs of a recipe, each with something changed.

    python runs/mini_ablations.py WORK [NAME ...] [--recipe runs/mini3.toml] [--tokens N] [--jobs N]

WORK is that of runs/mini.sh, with its shards; a run of mini.toml with another vocabulary wants those of
mini3.toml too. `plain` is the recipe without the techniques of `Ablations.techniques`. Each of them is added
to it alone, then all together, with two seeds; `--techniques` leaves everything else out. Every run has its
folder in WORK/ablations, is resumed if it was stopped, and ends as a line of JSON in WORK/ablations.jsonl:
bits per byte of a sample of each validation set. At the end what is known of this recipe, so many tokens and
such steps is printed as a table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from mini_card import MEASURED

from kogpt.pretraining.recipe import Recipe, read_recipe
from kogpt.training.report import read_metrics

RUNS = Path(__file__).parent
# Validated at the end only, on half of the usual sample: it costs what a sixth of the training does.
LOOP = {"loop.validate_every": "1000000", "validation_bytes": "50000", "loop.save_seconds": "120.0"}
DECAY = 0.6  # of the steps after the warm-up, where a run says nothing else
INTERRUPTED = 130
Changes = dict[str, str]
Key = dict[str, Any]  # what makes figures comparable: recipe, tokens, tokens a step


def shape(layers: int, width: int, d_ff: int, tied: bool = False) -> Changes:
    """Another model, with heads of 64."""
    return {
        "model.n_layers": str(layers),
        "model.d_model": str(width),
        "model.n_heads": str(width // 64),
        "model.d_ff": str(d_ff),
        "model.tied_head": str(tied).lower(),
    }


# By recipe. Of about its size in float16, but for the heads that are only tied, and mini_cpu's other shapes
# (25.5 and 28.8 MiB instead of 32.3), which take about as long instead.
SHAPES = {
    "mini": {
        "384 wide, 15 layers": shape(15, 384, 1536),
        "640 wide, 5 layers": shape(5, 640, 2048),
        "tied head": {"model.tied_head": "true"},
        "tied head, 9 layers": shape(9, 512, 2048, tied=True),
        "vocabulary 16,384, tied": {"model.tied_head": "true"},  # as many weights as the recipe's
    },
    "mini_cpu": {
        "384 wide, 4 layers": shape(4, 384, 1536),
        "320 wide, 8 layers": shape(8, 320, 1280),
        "tied head": {"model.tied_head": "true"},
        "vocabulary 16,384, tied": {"model.tied_head": "true"},
    },
    "mini3": {},  # it has that vocabulary and head
    "mini_tiny": {},
}


# Switches a technique off. [average] has no such value: a recipe without that table averages nothing.
PLAIN = {"order": '"random"'}
SEEDS = {"": {}, ", seed 2": {"seed": "2"}}


class Ablations:
    """The runs of one recipe, each as what it changes there."""

    def __init__(self, recipe: Path, tokens: int, step_tokens: int) -> None:
        self.recipe = recipe
        self.tokens = tokens
        self.step_tokens = step_tokens
        self.document: dict[str, Any] = tomllib.loads(recipe.read_text(encoding="utf-8"))

    def all(self) -> dict[str, Changes]:
        """By name: those of the recipe, then of techniques that it may switch on."""
        return self.of_recipe() | self.of_techniques()

    def of_techniques(self) -> dict[str, Changes]:
        """By name: none, each alone, and all together; each with two seeds."""
        alone = self.techniques()
        together = {name: value for changes in alone.values() for name, value in changes.items()}
        runs = {"plain": {}, **alone, "together": together}
        return {
            f"{name}{suffix}": self.pace() | PLAIN | changes | seed
            for name, changes in runs.items()
            for suffix, seed in SEEDS.items()
        }

    def techniques(self) -> dict[str, Changes]:
        """By name; of two that set the same, the later one is in `together`."""
        steps = self.tokens // self.step_tokens
        tail = f"{{ first_step = {round(0.75 * steps)}, every = {max(1, steps // 100)}, decay = 1.0 }}"
        ema = f"{{ every = 1, decay = {1 - 1 / max(2, 0.05 * steps):.4f} }}"
        return {
            "exponential mean": {"average": ema},
            "mean of the last quarter": {"average": tail},
            "in epochs": {"order": '"epochs"'},
        }

    def of_recipe(self) -> dict[str, Changes]:
        """By name: the recipe itself first, twice more with other seeds, to see what chance alone does."""
        return {
            "recipe": self.pace(),
            "seed 2": self.pace() | {"seed": "2"},
            "seed 3": self.pace() | {"seed": "3"},
            **{name: self.pace() | changes for name, changes in self.shapes().items()},
            "decay over 30 %": self.pace(decay=0.3),
            "decay over 100 %": self.pace(decay=1.0),
            "cosine": self.pace() | {"schedule.shape": '"cosine"', "schedule.decay_steps": "0"},
            "mix flatter": self.pace() | self.mix(0.7),
            "mix steeper": self.pace() | self.mix(1.4),
            "rates x 0.6": self.pace() | self.rates(0.6),
            "rates x 1.6": self.pace() | self.rates(1.6),
            "half the tokens a step": self.pace(batch=0.5),
            "twice the tokens a step": self.pace(batch=2),
            "four times the tokens a step": self.pace(batch=4),
            "windows four times as long": self.pace(window=4),
            "documents apart": self.pace() | {"compute.within_documents": "true"},
            "z-loss": self.pace() | {"compute.z_loss": "1e-4"},
        }

    def pace(self, decay: float = DECAY, batch: float = 1, window: int = 1) -> Changes:
        """Batch and window as factors; a short warm-up, then decay over a share of the rest."""
        length = self.document["stages"][0]["length"] * window
        step_tokens = round(self.step_tokens * batch)
        steps = self.tokens // step_tokens
        warmup = steps // 25
        return {
            "stages": f"[{{ length = {length}, rows = {step_tokens // length} }}]",
            "schedule.steps": str(steps),
            "schedule.warmup_steps": str(warmup),
            "schedule.decay_steps": str(round(decay * (steps - warmup))),
        }

    def shapes(self) -> dict[str, Changes]:
        """Other models by name, one of them with another tokenizer and its shards."""
        larger = {
            "tokenizer": '"tokenizer16k"',
            **{
                f"sources.{name}.shards": f'"{source["shards"].replace("shards/", "shards16k/")}"'
                for name, source in self.document["sources"].items()
            },
        }
        return {
            name: changes | (larger if name.startswith("vocabulary") else {})
            for name, changes in SHAPES[self.recipe.stem].items()
        }

    def mix(self, power: float) -> Changes:
        """Every source's weight to a power: below 1 the small ones gain, above 1 the large one."""
        sources: Mapping[str, Any] = self.document["sources"]
        return {
            f"sources.{name}.weight": f"{source['weight'] ** power:.6f}" for name, source in sources.items()
        }

    def rates(self, factor: float) -> Changes:
        """Both learning rates times a factor."""
        rule = {"muon_rate": 0.02, "adamw_rate": 0.003} | self.document.get("optimizer", {})
        return {f"optimizer.{name}": f"{rule[name] * factor:.6f}" for name in ("muon_rate", "adamw_rate")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--recipe", type=Path, default=RUNS / "mini3.toml", help="(default: runs/mini3.toml)")
    parser.add_argument("--techniques", action="store_true", help="only those, and the plain recipe")
    parser.add_argument("--tokens", type=int, default=24_576_000, help="of each run (default: %(default)s)")
    parser.add_argument("--step-tokens", type=int, default=32_768, help="of each step (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: %(default)s)")
    args = parser.parse_intermixed_args()  # names after options too
    if args.recipe.stem not in SHAPES or not args.recipe.is_file():
        parser.error(f"--recipe {args.recipe}: there are {', '.join(f'runs/{name}.toml' for name in SHAPES)}")
    if not args.work.is_dir():
        parser.error(f"{args.work} is no folder: runs/mini.sh makes it")
    ablations = Ablations(args.recipe, args.tokens, args.step_tokens)
    planned = ablations.of_techniques() if args.techniques else ablations.all()
    if unknown := [name for name in args.names if name not in planned]:
        parser.error(f"there is no {unknown[0]!r}, but {', '.join(map(repr, planned))}")
    try:
        for changes in planned.values():
            require_measured(read_recipe(args.recipe, settings(changes)))
    except ValueError as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    series = Series(args.work, args.recipe, args.tokens, args.step_tokens)
    wanted = dict.fromkeys(args.names or planned)  # each once
    failures = series.run({name: planned[name] for name in wanted if name not in series.known()}, args.jobs)
    print("\n".join(table(series.known().values())))
    if failures:
        raise SystemExit("\n".join(failures))


class Series:
    """The runs of one recipe, length and batch in WORK."""

    def __init__(self, work: Path, recipe: Path, tokens: int, step_tokens: int) -> None:
        digest = hashlib.sha256(recipe.read_bytes()).hexdigest()[:8]
        self.key: Key = {"recipe": f"{recipe.stem} {digest}", "tokens": tokens, "step_tokens": step_tokens}
        self.results = work / "ablations.jsonl"
        self.folder = work / "ablations" / f"{recipe.stem}_{digest}_{tokens}_{step_tokens}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.recipe = work / f"{recipe.stem}_{digest}.toml"  # its paths are from there
        shutil.copy(recipe, self.recipe)
        self.processes: list[subprocess.Popen[bytes]] = []

    def known(self) -> dict[str, dict[str, Any]]:
        """What these and earlier calls found, by name."""
        lines = read_metrics(self.results, "name") if self.results.exists() else []
        return {line["name"]: line for line in lines if self.key.items() <= line.items()}

    def run(self, planned: Mapping[str, Changes], jobs: int) -> list[str]:
        """All of them, so many at a time; what stopped those that failed. A signal lets each save."""
        with ThreadPoolExecutor(jobs) as pool:
            ends: list[Future[str | None]] = [pool.submit(self.one, *item) for item in planned.items()]
            try:
                wait(ends)
            except KeyboardInterrupt:
                for end in ends:
                    end.cancel()
                for process in self.processes:
                    process.terminate()  # finishes its step and saves
                pool.shutdown()
                raise SystemExit(INTERRUPTED) from None
        return [failure for end in ends if (failure := end.result())]

    def one(self, name: str, changes: Changes) -> str | None:
        """Train to the end and note what came of it; or what stopped it."""
        out = self.folder / name.replace(" ", "_").replace(",", "")
        log_path = Path(f"{out}.log")
        command = [sys.executable, "-m", "kogpt", "pretrain", "run", str(self.recipe), "--out", str(out)]
        for change in settings(changes):
            command += ["--set", change]
        with log_path.open("a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            self.processes.append(process)
            status = process.wait()
        if status:
            *_, last = ["nothing", *log_path.read_text(encoding="utf-8").splitlines()]
            return f"{name}: status {status}, {log_path} ends with: {last}"
        found = {"name": name, **self.key, **measured(read_metrics(out / "metrics.jsonl"))}
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found, ensure_ascii=False) + "\n")
        return None


def settings(changes: Changes) -> list[str]:
    """As `kogpt pretrain run --set` takes them."""
    return [f"{name} = {value}" for name, value in (changes | LOOP).items()]


def require_measured(recipe: Recipe) -> None:
    """ValueError unless the sets that the table tells of are validated."""
    if missing := set(MEASURED) - recipe.validation.keys():
        raise ValueError(f"the recipe has no validation set {', '.join(sorted(missing))}")


def measured(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What a finished run's metrics say."""
    bits = next(line["bits_per_byte"] for line in reversed(lines) if "bits_per_byte" in line)
    return {
        "bits_per_byte": bits,
        "mean": sum(bits[name] for name in MEASURED) / len(MEASURED),
        "seconds": lines[-1]["seconds"],
    }


def table(found: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """As Markdown."""
    yield f"| run | {' | '.join(MEASURED)} | mean | of all sets |"
    yield "|---|" + "---:|" * (len(MEASURED) + 2)
    for line in found:
        bits = line["bits_per_byte"]
        figures = [*(bits[name] for name in MEASURED), line["mean"], sum(bits.values()) / len(bits)]
        yield f"| {line['name']} | {' | '.join(f'{figure:.3f}' for figure in figures)} |"


if __name__ == "__main__":
    main()
