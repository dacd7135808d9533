"""`kogpt filter`: cover profanity and personal data in text, and say how profane it is."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from kogpt.cli.options import add_adapter_option, add_model_options, drop_unfit_adapter, load_model
from kogpt.cli.texts import add_text_arguments, read_items
from kogpt.errors import InputError

if TYPE_CHECKING:
    from kogpt.generation import KoGPT
    from kogpt.tasks.filter import Screened

MODES = ("mask", "block")
FORMATS = ("text", "json", "tsv")
COLUMNS = ("text", "found", "profanity", "insult", "profane", "insulting")
BATCH = 256  # texts that are judged at once
# Options that nothing reads without a model; a test compares them with add_model_options.
OF_A_MODEL = ("model", "revision", "device", "dtype", "cache_dtype", "model_parallel", "offload")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kogpt filter`."""
    add_text_arguments(parser, labels=False)
    parser.add_argument(
        "--mode",
        choices=MODES,
        default="mask",
        help="cover what is found with stars, or end the text before it (default: %(default)s)",
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="text", help="how results are printed (default: %(default)s)"
    )
    add_model_options(parser)
    add_adapter_option(parser)


def run(args: argparse.Namespace) -> int:
    """Filter every text. A model is loaded only if an adapter is to judge as well."""
    from kogpt.tasks.filter import screen
    from kogpt.tasks.profanity import ADAPTER, judge_all

    drop_unfit_adapter(args, lambda origin: origin.task == ADAPTER)
    _check(args)
    texts = [item.text for item in read_items(args)]
    model = None if args.adapter is None else _load_judge(args)
    if args.format == "tsv":
        print("\t".join(COLUMNS))
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        for text, judgement in zip(part, judge_all(part, model), strict=True):
            print(_SHOWN[args.format](screen(text, judgement, args.mode)))
        sys.stdout.flush()
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse typed options of a model that nothing would load; configured ones serve other commands."""
    typed = ", ".join(args.typed[name] for name in OF_A_MODEL if name in args.typed)
    if args.adapter is None and typed:
        raise InputError(
            f"the filter loads a model for --adapter only: add --adapter profanity, or leave {typed} out",
            "필터는 --adapter가 있을 때만 모델을 씁니다."
            f" --adapter profanity를 더하거나 다음 옵션을 빼세요: {typed}",
        )


def _load_judge(args: argparse.Namespace) -> KoGPT:
    """The model whose adapter judges; InputError for an adapter of another task."""
    from kogpt.tasks.profanity import ADAPTER, has_adapter

    model = load_model(args)
    if not has_adapter(model):
        raise InputError(
            f"--adapter {args.adapter} was not tuned on profanity: --adapter {ADAPTER} was",
            f"--adapter {args.adapter}: 욕설 판정용 어댑터가 아닙니다. --adapter {ADAPTER} 옵션을 쓰세요",
        )
    return model


def _tsv(found: Screened) -> str:
    judged = found.judgement
    kinds = ",".join(span.kind for span in found.found)
    shares = f"{judged.profanity:.6f}\t{judged.insult:.6f}"
    return (
        f"{' '.join(found.text.split())}\t{kinds}\t{shares}\t{int(judged.profane)}\t{int(judged.insulting)}"
    )


_SHOWN: Mapping[str, Callable[[Screened], str]] = {
    "text": lambda found: found.text,
    "json": lambda found: json.dumps(found.record(), ensure_ascii=False),
    "tsv": _tsv,
}
