"""`kogpt tune`: full, lora, p-tuning, prefix, embed."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kogpt.cli.defaults import pass_over
from kogpt.cli.options import REVISION, read_count, read_share
from kogpt.errors import InputError, MissingExtra, localized
from kogpt.memory import amount
from kogpt.texts import decode_argument

if TYPE_CHECKING:
    from kogpt.tuning.data import Data, Wording
    from kogpt.tuning.run import Outcome, TuningSettings

INTERRUPTED = 130
METHODS = {
    "full": "tune all weights; writes a model folder",
    "lora": "tune low-rank updates of the matrices; writes an adapter in PEFT's format",
    "p-tuning": "tune virtual tokens through an encoder; writes an adapter in PEFT's format",
    "prefix": "tune keys and values before the text; writes an adapter in PEFT's format",
    "embed": "tune embeddings on pairs of texts that mean the same; writes a LoRA in PEFT's format",
}
NAMED = (
    *("nsmc", "ynat", "klue-sts", "korsts", "kobest-boolq", "kobest-copa", "kobest-hellaswag"),
    *("kobest-sentineg", "kobest-wic", "intent", "k-mhas", "curse", "profanity"),
)  # a test compares them with tuning.data: importing it takes torch's time

SKIPPED = {  # reasons of Data.skipped, in Korean
    "empty in train": "학습의 빈 행",
    "duplicate in train": "학습의 중복 행",
    "empty in dev": "검증의 빈 행",
    "duplicate in dev": "검증의 중복 행",
    "also in dev or test": "검증이나 시험에도 있는 행",
}

FACTS = {  # Korean names of the figures of a dry run
    "rows": "학습 행",
    "dev rows": "검증 행",
    "steps": "스텝",
    "passes per step": "스텝마다 나누어 계산하는 횟수",
    "trained weights": "학습하는 가중치",
    "weights": "가중치",
    "optimizer": "옵티마이저",
    "gradients": "기울기",
    "activations": "활성값",
    "working weights": "작업용 가중치",
    "loss": "손실",
    "memory": "메모리 합계",
    "fits": "들어가는지",
    "instead": "대신 쓸 옵션",
    "time": "시간",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One parser for each method."""
    methods = parser.add_subparsers(dest="method", metavar="METHOD", required=True)
    for name, summary in METHODS.items():
        child = methods.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        _add_data(child, name)
        _add_method(child, name)
        _add_model(child)
        _add_training(child, name)


def run(args: argparse.Namespace) -> int:
    """Tune, or continue a run that was stopped; or say what it would take."""
    if any(find_spec(name) is None for name in ("torch", "matplotlib")):  # a finished run draws its curves
        raise MissingExtra("tuning", "train")
    from kogpt.training.processes import join
    from kogpt.training.report import METRICS, plot
    from kogpt.tuning import run as tuning

    data = _read(args)
    job = tuning.prepare(_settings(args), args.model, data, args.task, args.score_test, args.revision)
    with join(args.device) as processes:
        if args.dry_run:
            from kogpt.tuning.estimate import estimate

            _tell(estimate(job, processes), args.json)
            return 0
        outcome = tuning.tune(job, args.out, processes, sys.stderr)
        if not processes.is_first:
            return 0
    plot(args.out / METRICS, args.out / "metrics.png")
    return _say(outcome, args)


def _add_data(parser: argparse.ArgumentParser, method: str) -> None:
    group = parser.add_argument_group("data")
    data = "with TASK the folder of its files (default: KOGPT_DATA), without it a file of rows"
    if method == "embed":
        parser.set_defaults(task=None, template=None, labels=None)
        data = "file of rows"
    else:
        known = f"named task: {', '.join(NAMED)}"
        group.add_argument("task", nargs="?", choices=NAMED, metavar="TASK", help=known)
    group.add_argument("--data", metavar="PATH", type=Path, help=data)
    group.add_argument("--dev", metavar="FILE", type=Path, help="rows to judge by (default: a share of PATH)")
    group.add_argument(
        "--dev-share",
        type=read_share,
        default=0.05,
        help="share of PATH that becomes dev (default: %(default)s)",
    )
    group.add_argument("--rows", type=read_count, metavar="N", help="use N training rows, chosen by hash")
    group.add_argument("--test", metavar="FILE", type=Path, help="rows that must not be trained on")
    group.add_argument("--score-test", action="store_true", help="measure the result on the test rows too")
    group.add_argument(
        "--test-rows", type=read_count, metavar="N", help="measure on N test rows, chosen by hash"
    )
    if method != "embed":
        group.add_argument("--template", metavar="TEXT", help=r"prompt around {text}; \n is a line break")
        group.add_argument(
            "--labels",
            nargs="+",
            type=_read_label,
            metavar="VALUE=WORD",
            help="word that answers for each value of label",
        )
    group.add_argument(
        "--skip-bad", action="store_true", help="leave out empty, duplicate and test rows, and count them"
    )
    group.add_argument("--allow-overlap", action="store_true", help="train on rows of dev and test as well")
    group.add_argument("--truncate", action="store_true", help="cut rows that are too long")
    group.add_argument("--length", type=read_count, metavar="N", help="longest row (default: the context)")


def _add_method(parser: argparse.ArgumentParser, name: str) -> None:
    group = parser.add_argument_group("method")
    if name != "embed":
        group.add_argument(
            "--head", action="store_true", help="answer by a linear head, of labels or scores, not by words"
        )
        group.add_argument(
            "--prompt-loss-weight",
            type=float,
            default=0.0,
            metavar="W",
            help="learn the prompt as well: weight of its tokens beside those of the answer, such as 0.05 "
            "(default: %(default)s)",
        )
    if name in ("lora", "embed"):
        group.add_argument("--rank", type=read_count, default=16, help="rank (default: %(default)s)")
        group.add_argument(
            "--alpha",
            type=float,
            default=16.0,
            help="the update is scaled by alpha / sqrt(rank) (default: %(default)s)",
        )
        group.add_argument(
            "--targets", nargs="+", metavar="NAME", help="matrices to update (default: all six of a block)"
        )
    if name in ("p-tuning", "prefix"):
        group.add_argument(
            "--virtual-tokens",
            type=read_count,
            default=20,
            metavar="N",
            help="positions before the text (default: %(default)s)",
        )
        group.add_argument(
            "--init-text",
            metavar="TEXT",
            help="text that a prefix, or a prompt without encoder, begins from (default: the first rows)",
        )
    if name == "p-tuning":
        group.add_argument(
            "--encoder",
            choices=("mlp", "lstm", "none"),
            default="mlp",
            help="encoder; none is prompt tuning, begun from words (default: %(default)s)",
        )
    group.add_argument("--rate", type=float, help="peak learning rate (default: the method's)")


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="NAME",
        default="kogpt-mini",
        help="a folder, a hub name or a built-in model (default: %(default)s)",
    )
    group.add_argument("--revision", metavar="NAME", help=REVISION)


def _add_training(parser: argparse.ArgumentParser, name: str) -> None:
    group = parser.add_argument_group("training")
    group.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        required=True,
        help="folder for checkpoints, metrics and the result",
    )
    group.add_argument(
        "--epochs", type=float, default=3.0, help="passes over the rows (default: %(default)s)"
    )
    group.add_argument("--batch", type=read_count, default=32, help="rows per step (default: %(default)s)")
    group.add_argument(
        "--checks", type=read_count, default=4, help="validations per epoch (default: %(default)s)"
    )
    group.add_argument(
        "--patience",
        type=read_count,
        default=4,
        help="stop after so many validations without a better one (default: %(default)s)",
    )
    group.add_argument(
        "--seed", type=int, default=0, help="seed of order and new weights (default: %(default)s)"
    )
    group.add_argument(
        "--device", choices=("cpu", "cuda"), help="device (default: cuda where there is a GPU)"
    )
    group.add_argument(
        "--dtype",
        choices=("auto", "bfloat16", "float32"),
        default="auto",
        help="precision of products; weights stay float32 (default: %(default)s)",
    )
    if name != "full":
        group.add_argument(
            "--base-dtype",
            choices=("auto", "float32", "bfloat16", "int8", "int4"),
            default="auto",
            help="precision of the frozen model (default: int8 or int4 if stored so, else that of products)",
        )
    group.add_argument(
        "--schedule",
        choices=("cosine", "wsd"),
        default="cosine",
        help="fall of the learning rate: along a cosine, or late and straight (default: %(default)s)",
    )
    if name != "embed":  # the pairs of a batch are compared with each other
        group.add_argument(
            "--tokens-per-pass",
            type=read_count,
            default=4096,
            metavar="N",
            help="gradients of a larger batch are summed over several passes (default: %(default)s)",
        )
    group.add_argument(
        "--checkpoint-blocks", action="store_true", help="compute blocks twice: less memory, more time"
    )
    group.add_argument("--dry-run", action="store_true", help="say steps, memory and time, and train nothing")
    group.add_argument("--json", action="store_true", help="print the result as one JSON object")


def _read(args: argparse.Namespace) -> Data:
    from kogpt.tuning.data import Choice, Files, read_data, read_task
    from kogpt.tuning.tasks import TASKS

    _require_effect(args)
    choice = Choice(
        **{
            name: getattr(args, name)
            for name in ("dev_share", "rows", "test_rows", "skip_bad", "allow_overlap")
        }
    )
    if args.task is not None:
        found = read_task(TASKS[args.task], args.data, choice, args.dev)
    elif args.data is None:
        en, ko = ("", "") if args.method == "embed" else ("a TASK, or ", "TASK를 쓰거나 ")
        raise InputError(
            f"there is nothing to tune on: name {en}a file of rows with --data",
            f"튜닝할 데이터가 없습니다. {ko}--data로 파일을 지정하세요",
        )
    else:
        files = Files(train=args.data, dev=args.dev, test=args.test)
        found = read_data(files, _wording(args), choice, pairs=args.method == "embed")
    if "template" in args.typed and not found.asked:
        raise InputError(
            "--template has no effect: these rows bring their own prompts, or have none; leave it out",
            "프롬프트가 행에 있거나 없는 데이터라 --template을 쓸 수 없습니다. 빼세요",
        )
    _tell_skipped(found.skipped)
    return found


def _tell_skipped(skipped: Mapping[str, int]) -> None:
    """How many rows were left out and why, unless none was."""
    told = {why: count for why, count in skipped.items() if count}
    if told:
        en = ", ".join(f"{count:,} {why}" for why, count in told.items())
        ko = ", ".join(f"{SKIPPED[why]} {count:,}개" for why, count in told.items())
        print(localized(f"kogpt: left out: {en}", f"kogpt: 뺀 행: {ko}"), file=sys.stderr)


def _require_effect(args: argparse.Namespace) -> None:
    """InputError for typed options that would change nothing; configured ones serve other runs."""
    typed = args.typed.keys()
    if args.task is None and args.test is None:
        pass_over(args, "score_test")
    if getattr(args, "encoder", "none") != "none":
        pass_over(args, "init_text")  # only a prefix and a prompt without encoder begin from a text
    if args.task is not None and typed & {"template", "labels"}:
        raise InputError(
            f"{args.task} has a template and labels of its own: leave --template and --labels out",
            f"{args.task}에는 템플릿과 레이블이 이미 있습니다. --template과 --labels를 빼세요",
        )
    if args.task is not None and "test" in typed:
        raise InputError(
            f"--test has no effect: {args.task} has test rows of its own; leave it out",
            f"{args.task}에는 시험 행이 이미 있어 --test를 쓸 수 없습니다. 빼세요",
        )
    if typed >= {"dev", "dev_share"}:
        raise InputError(
            "--dev-share has no effect beside --dev: leave one out",
            "--dev-share는 --dev와 함께 쓸 수 없습니다. 하나를 빼세요",
        )
    if "test_rows" in typed and not args.score_test:
        raise InputError(
            "--test-rows has no effect without --score-test: add it",
            "--test-rows는 --score-test와 함께 쓰세요",
        )
    if args.score_test and args.task is None and args.test is None:
        raise InputError(
            "--score-test has no test rows to measure: name them with --test",
            "--score-test로 잴 시험 행이 없습니다. --test로 파일을 지정하세요",
        )


def _read_label(text: str) -> str:
    """An argument that names a value of label and the word for it."""
    _, sign, word = text.partition("=")
    if not sign or not word.strip():
        shown = text[:40]
        raise argparse.ArgumentTypeError(
            localized(
                f"{shown!r}: write VALUE=WORD, as in '1= 긍정'",
                f"{shown!r}: VALUE=WORD 형식으로 쓰세요. 예: '1= 긍정'",
            )
        )
    return text


def _wording(args: argparse.Namespace) -> Wording:
    from kogpt.tuning.data import Wording

    usual = Wording()
    template, words = usual.template, usual.words
    if args.template is not None:
        template = decode_argument(args.template, "--template").replace("\\n", "\n")
    if args.labels is not None:
        given = [decode_argument(label, "--labels").partition("=") for label in args.labels]
        words = {value: word for value, _, word in given}
    return Wording(template, words)


def _settings(args: argparse.Namespace) -> TuningSettings:
    from dataclasses import fields

    from kogpt.tuning.run import TuningSettings

    given = {f.name: getattr(args, f.name) for f in fields(TuningSettings) if hasattr(args, f.name)}
    if given.get("targets", ()) is None:
        del given["targets"]
    elif "targets" in given:
        given["targets"] = tuple(given["targets"])
    return TuningSettings(**given)


def _tell(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
        return
    for key, value in facts.items():
        name = key.removesuffix("_bytes").replace("_", " ")
        shown = f"{value:,}" if type(value) is int else value
        if key.endswith("_bytes"):
            shown = amount(value)
        elif key == "seconds":
            minutes = "" if value is None else f"{value / 60:,.1f}"
            told = (f"{minutes} min", f"{minutes}분") if minutes else ("unknown", "알 수 없음")
            name, shown = "time", localized(*told)
        elif key == "fits":
            shown = localized("yes", "예") if value else localized("no", "아니요")
        elif key == "instead":
            if facts["fits"]:
                continue
            shown = " ".join(value or [localized("no option does", "들어가는 옵션이 없음")])
        print(f"{localized(name, FACTS[name])}: {shown}")


def _say(outcome: Outcome, args: argparse.Namespace) -> int:
    from kogpt.tuning.run import SPLITS

    if outcome.end.value == "stopped":
        en = "stopped and saved; the same command continues the run"
        print(localized(en, "저장하고 멈췄습니다. 같은 명령으로 이어서 학습하세요"), file=sys.stderr)
        return INTERRUPTED
    facts = {"end": outcome.end.value, "result": str(outcome.result), "trained_weights": outcome.n_trained}
    if args.json:
        print(json.dumps({**facts, **outcome.metrics}))
        return 0
    for split, metrics in outcome.metrics.items():
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(f"{localized(split, SPLITS[split])}: {shown}")
    weights = localized(f"{outcome.n_trained:,} weights", f"가중치 {outcome.n_trained:,}개")
    print(f"{outcome.result}  ({weights})")
    return 0
