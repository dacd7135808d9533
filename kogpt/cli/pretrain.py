"""`kogpt pretrain`: tokenizer, pack, run, plan, toy."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kogpt.cli.options import read_count, read_share
from kogpt.cli.progress import Progress
from kogpt.errors import InputError, MissingExtra, localized
from kogpt.files import parse_json, require_folder
from kogpt.memory import usable_cpus

if TYPE_CHECKING:
    from kogpt.pretraining.corpus import Reading
    from kogpt.training.loop import End

INTERRUPTED = 130
MEGABYTE = 10**6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The five things that `kogpt pretrain` does."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (summary, add, _) in ACTIONS.items():
        add(actions.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."))


def run(args: argparse.Namespace) -> int:
    """Do the one that was named."""
    return ACTIONS[args.action][2](args)


# tokenizer


def _add_tokenizer(parser: argparse.ArgumentParser) -> None:
    _add_corpus(parser)
    parser.add_argument(
        "--vocab", type=int, default=64512, help="vocabulary size (default: %(default)s, as in KoGPT 6B)"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for tokenizer.json")
    parser.add_argument(
        "--share", type=read_share, default=1.0, help="share of the documents to learn from (default: all)"
    )
    parser.add_argument(
        "--held-out", nargs="+", metavar="FILE", help="files to measure on (default: 1 %% of FILES)"
    )
    parser.add_argument(
        "--context", type=read_count, default=2048, help="model_max_length written to tokenizer_config.json"
    )
    parser.add_argument("--json", action="store_true", help="print the measures as one JSON object")


def _tokenizer(args: argparse.Namespace) -> int:
    """Train, write, measure on text that was not trained on."""
    from kogpt.pretraining import sample
    from kogpt.pretraining.corpus import find_files
    from kogpt.pretraining.parts import require_bad_share
    from kogpt.pretraining.tokenizer_training import save_tokenizer, train_tokenizer
    from kogpt.tokenizer import Tokenizer

    reading, files = _reading(args), find_files(args.files, args.exclude, args.format)
    measured_on = find_files(args.held_out, (), args.format) if args.held_out else files
    require_bad_share(args.max_bad_share)
    require_folder(Path(args.out))
    _require_absent(Path(args.out) / "tokenizer.json")
    if not args.held_out:
        sample.require_held_out(sample.read_texts(files, reading, args.max_bad_share))
    texts = sample.read_texts(files, reading, args.max_bad_share)
    trained = train_tokenizer(sample.training_texts(texts, args.share), args.vocab)
    held_out = sample.read_texts(measured_on, reading, args.max_bad_share)
    with tempfile.TemporaryDirectory() as folder:  # --out gets it once all went well
        save_tokenizer(trained, Path(folder), args.context)
        found = sample.measure(
            Tokenizer.from_file(Path(folder) / "tokenizer.json"),
            held_out if args.held_out else sample.held_out_texts(held_out),
        )
    if args.held_out:
        deque(held_out, maxlen=0)  # to the end, where bad records are judged; FILES were judged above
    save_tokenizer(trained, Path(args.out), args.context)
    facts = {
        "n_vocab": args.vocab,
        "characters_per_token": round(found.characters_per_token, 4),
        "bytes_per_token": round(found.bytes_per_token, 4),
        "held_out_documents": found.documents,
        "held_out_bytes": found.n_bytes,
    }
    _tell(args.json, facts)
    return 0


# pack


def _add_pack(parser: argparse.ArgumentParser) -> None:
    _add_corpus(parser)
    parser.add_argument(
        "--tokenizer", required=True, metavar="PATH", help="tokenizer.json, or the folder that holds it"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write the shards to")
    parser.add_argument(
        "--workers", type=read_count, metavar="N", help="worker processes (default: one per core)"
    )
    parser.add_argument(
        "--near",
        type=float,
        default=0.8,
        metavar="SIMILARITY",
        help="drop documents at least this similar; 0 drops exact copies only (default: %(default)s)",
    )
    parser.add_argument("--keep-duplicates", action="store_true", help="keep duplicates")
    parser.add_argument(
        "--without-filter",
        action="append",
        default=[],
        metavar="NAME",
        help="skip this filter, or all of them; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def _pack(args: argparse.Namespace) -> int:
    """Pack, and say what became of the documents."""
    from kogpt.pretraining.corpus import find_files
    from kogpt.pretraining.pack import pack
    from kogpt.pretraining.parts import Options

    options = Options(
        reading=_reading(args),
        left_out=tuple(args.without_filter),
        keep_duplicates=args.keep_duplicates,
        near=args.near,
        max_bad_share=args.max_bad_share,
    )
    files = find_files(args.files, args.exclude, args.format)
    with _megabytes(files) as progress:
        report = pack(
            files,
            _tokenizer_file(args.tokenizer),
            Path(args.out),
            options,
            args.workers or usable_cpus(),
            progress,
        )
    plan = report.pop("plan")
    facts = {**report, "files": len(plan["files"]), "bytes": sum(file["bytes"] for file in plan["files"])}
    _tell(args.json, facts)
    return 0


# run


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.toml", help="recipe: model, data, schedule and optimizer")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for checkpoints, metrics and the model"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of the recipe, such as schedule.steps=200",
    )
    parser.add_argument(
        "--init",
        metavar="MODEL",
        help="start from the weights of this model; its shape replaces the recipe's [model]",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), help="device (default: cuda where there is a GPU)"
    )
    parser.add_argument(
        "--tensorboard", action="store_true", help="also write TensorBoard event files to DIR/tensorboard"
    )
    parser.add_argument("--plot", metavar="PNG", help="file for a plot of the loss")
    parser.epilog = "Many processes: torchrun --nproc-per-node 8 -m kogpt pretrain run RECIPE.toml --out DIR"


def _run(args: argparse.Namespace) -> int:
    """Train, or continue a run that was stopped."""
    _require_torch()
    from kogpt.pretraining.recipe import read_recipe
    from kogpt.pretraining.run import pretrain
    from kogpt.training.processes import join
    from kogpt.training.report import METRICS, plot

    path, out = Path(args.recipe), Path(args.out)
    require_folder(out)
    if args.plot:
        _require_picture(Path(args.plot))
    init = args.init and (str(Path(args.init).resolve()) if Path(args.init).exists() else args.init)
    recipe = read_recipe(path, args.set, init)
    with join(args.device) as processes:
        end = pretrain(recipe, path.parent, out, processes, sys.stderr, args.tensorboard)
        if not processes.is_first:
            return _exit_code(end)
        if args.plot:
            plot(out / METRICS, Path(args.plot))
        _say_end(end, out / "model")
    return _exit_code(end)


# plan


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--shape",
        default="kogpt-6b",
        metavar="NAME",
        help="named shape, kogpt-6b or kogpt-1b, or a config.json (default: %(default)s)",
    )
    parser.add_argument(
        "--gpu",
        default="h100",
        metavar="NAME",
        help="GPU type: a100, h100, h200 or b200 (default: %(default)s)",
    )
    parser.add_argument(
        "--gpus",
        type=int,
        nargs="+",
        default=[8, 64, 512],
        metavar="N",
        help="numbers of GPUs to plan for (default: 8 64 512)",
    )
    parser.add_argument("--tokens", type=float, help="tokens to train on (default: 20 per parameter)")
    parser.add_argument(
        "--batch-tokens", type=int, default=2**22, help="tokens per step (default: %(default)s)"
    )
    parser.add_argument(
        "--mfu", type=float, default=0.4, help="share of the GPU's peak to assume (default: %(default)s)"
    )
    parser.add_argument(
        "--optimizer",
        choices=("muon", "adamw"),
        default="muon",
        help="optimizer (default: %(default)s)",
    )
    parser.add_argument("--average", action="store_true", help="keep an average of the weights too")
    own = parser.add_argument_group("figures of your own GPUs, instead of the built-in ones")
    own.add_argument("--tflops", type=float, help="peak per GPU in dense bfloat16 TFLOP/s")
    own.add_argument("--memory", type=float, metavar="GB", help="memory per GPU in GB")
    own.add_argument("--network", type=float, metavar="GB/S", help="network rate per GPU to other nodes")
    own.add_argument("--price", type=float, metavar="DOLLARS", help="price of one GPU for one hour")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each number of GPUs")


def _plan(args: argparse.Namespace) -> int:
    """Print the plan."""
    from kogpt.pretraining import plan as planner

    config = _shape(args.shape)
    usual = planner.TOKENS_PER_PARAMETER * config.n_parameters
    job = planner.Job(
        config=config,
        gpu=planner.gpu(args.gpu, **_own_figures(args)),
        n_gpus=args.gpus[0],
        tokens=usual if args.tokens is None else args.tokens,
        batch_tokens=args.batch_tokens,
        mfu=args.mfu,
        optimizer=args.optimizer,
        averages=args.average,
    )
    found = planner.best_plans(job, args.gpus)
    if args.json:
        for plan in found:
            print(json.dumps(planner.to_json(plan)))
    else:
        print(planner.describe(job))
        print()
        print(planner.table(found))
    return 0


def _own_figures(args: argparse.Namespace) -> dict[str, float]:
    """The options that replace figures of the table, in its units."""
    figures = {
        "peak": args.tflops and args.tflops * 1e12,
        "memory": args.memory and args.memory * 1e9,
        "network": args.network and args.network * 1e9,
        "dollars": args.price,
    }
    return {name: value for name, value in figures.items() if value is not None}


def _shape(name: str) -> Any:
    from kogpt.config import SHAPES, ModelConfig

    if name in SHAPES:
        return SHAPES[name]
    path = Path(name) / "config.json" if Path(name).is_dir() else Path(name)
    try:
        document = parse_json(path.read_bytes(), path.name, InputError)
    except (OSError, InputError) as error:
        raise InputError(
            f"{name} is no named shape ({', '.join(SHAPES)}) and no config.json: {error}",
            f"{name}: 이름 있는 구조({', '.join(SHAPES)})도 config.json도 아닙니다: {error}",
        ) from error
    return ModelConfig.from_json(document)


# toy


def _add_toy(parser: argparse.ArgumentParser) -> None:
    _add_corpus(parser)
    parser.add_argument(
        "--out", default="toy", metavar="DIR", help="folder for everything (default: %(default)s)"
    )
    parser.add_argument(
        "--steps",
        type=read_count,
        help="training steps (default: 300); afterwards the recipe in DIR says how many",
    )


def _toy(args: argparse.Namespace) -> int:
    """From text to a model that can be talked to."""
    _require_torch()
    from kogpt.pretraining import toy
    from kogpt.pretraining.corpus import find_files

    files = find_files(args.files, args.exclude, args.format)
    options, out = toy.options(_reading(args), args.max_bad_share), Path(args.out)
    require_folder(out)
    toy.make_tokenizer(files, options, out)
    with _megabytes(files) as progress:
        made = toy.prepare(files, options, out, args.steps, progress)
    end = toy.train(made, sys.stderr)
    _say_end(end, made.model)
    return _exit_code(end)


# What several of them share.


def _add_corpus(parser: argparse.ArgumentParser) -> None:
    formats = ".jsonl, .txt, either in .zst or .gz, or .parquet"
    parser.add_argument("files", nargs="+", metavar="FILES", help=f"files, folders or patterns: {formats}")
    group = parser.add_argument_group("reading")
    group.add_argument(
        "--exclude", action="append", default=[], metavar="PATTERN", help="names of files to skip"
    )
    group.add_argument(
        "--format", choices=("jsonl", "text", "parquet"), help="format of the input (default: by file name)"
    )
    group.add_argument(
        "--encoding",
        choices=("auto", "utf-8", "cp949"),
        default="auto",
        help="encoding of the input (default: detect)",
    )
    group.add_argument(
        "--text-field",
        default="text",
        metavar="NAME",
        help="field that holds the text (default: %(default)s)",
    )
    group.add_argument(
        "--split",
        choices=("file", "blank-line", "line"),
        default="file",
        help="what counts as one document in a .txt file (default: the file)",
    )
    group.add_argument(
        "--max-bad-share",
        type=float,
        default=0.001,
        metavar="SHARE",
        help="stop when more of the records are unreadable (default: %(default)s)",
    )


def _reading(args: argparse.Namespace) -> Reading:
    from kogpt.pretraining.corpus import Reading

    encoding = None if args.encoding == "auto" else args.encoding
    return Reading(text_field=args.text_field, format=args.format, encoding=encoding, split=args.split)


def _tokenizer_file(name: str) -> Path:
    path = Path(name)
    return path / "tokenizer.json" if path.is_dir() else path


def _require_absent(path: Path) -> None:
    """InputError if a tokenizer is there already: shards and models depend on it."""
    if path.exists():
        raise InputError(
            f"{path} exists, and shards and models may depend on it: remove it, or give another --out",
            f"{path} 파일이 이미 있고 이것으로 만든 샤드와 모델이 있을 수 있습니다. "
            "지우거나 다른 --out을 지정하세요",
        )


def _require_picture(path: Path) -> None:
    """InputError unless a PNG can be written there, before hours of training instead of after."""
    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise InputError(
            f"--plot {path}: give the name of a .png in a folder that exists",
            f"--plot {path}: 있는 폴더 안의 .png 이름을 지정하세요",
        )


@contextmanager
def _megabytes(files: list[Path]) -> Iterator[Callable[[int], None]]:
    """A progress bar over the bytes of some files; tell it how many have been read, first those of before."""
    with Progress(sum(path.stat().st_size for path in files) // MEGABYTE) as bar:
        shown: int | None = None

        def read(n_bytes: int) -> None:
            nonlocal shown
            done = n_bytes // MEGABYTE
            if shown is None:
                bar.begin(done)
            else:
                bar.advance(done - shown)
            shown = done

        yield read


def _require_torch() -> None:
    if find_spec("torch") is None:
        raise MissingExtra("pretraining", "train")


def _exit_code(end: End) -> int:
    return INTERRUPTED if end.value == "stopped" else 0


def _say_end(end: End, model: Path) -> None:
    if _exit_code(end) == 0:
        en, ko = f"done; try it: kogpt --model {model}", f"끝났습니다. 써 보세요: kogpt --model {model}"
    else:
        en, ko = (
            "stopped and saved; the same command continues the run",
            "저장하고 멈췄습니다. 같은 명령으로 이어서 학습하세요",
        )
    print(localized(en, ko), file=sys.stderr)


def _tell(as_json: bool, facts: dict[str, Any]) -> None:
    """Facts by name, on stdout: one JSON object, or a line each; empty ones are left out of the lines."""
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{inner} {count:,}" for inner, count in value.items() if count)
        if value not in ("", [], 0):
            shown = f"{value:,}" if isinstance(value, int | float) else value
            print(f"{name.replace('_', ' ')}: {shown}")


Action = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]
ACTIONS: dict[str, Action] = {
    "tokenizer": ("train a tokenizer, and measure it on held-out text", _add_tokenizer, _tokenizer),
    "pack": ("filter, deduplicate and tokenize text into shards", _add_pack, _pack),
    "run": ("train a model on shards, or resume a run", _add_run, _run),
    "plan": ("estimate the memory, days and cost of a run", _add_plan, _plan),
    "toy": ("do all of it on one text file, in minutes", _add_toy, _toy),
}
