"""`kogpt export`: a model folder written anew in another precision, or in the layout of other engines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kogpt import checkpoint, hub
from kogpt.cli.defaults import pass_over
from kogpt.cli.options import REVISION
from kogpt.cli.progress import Progress
from kogpt.errors import KoGPTError, localized
from kogpt.texts import decode, read_bytes

if TYPE_CHECKING:
    from kogpt.checkpoint import Checkpoint

FORMATS = {  # -> what it is
    "int4": "4.25 bits per weight, for KoGPT only",
    "int8": "8 bits per weight, for KoGPT only",
    "float16": "for KoGPT and transformers",
    "bfloat16": "for KoGPT and transformers",
    "float32": "for KoGPT and transformers",
    "phi": "the layout of Phi, for vLLM and transformers",
    "gguf": "one file for llama.cpp, Ollama and LM Studio",
    "peft": "the LoRA of --adapter for a model in the layout of Phi",
    "gguf-lora": "the same as one file for llama.cpp and Ollama",
}
# Format of an adapter -> its files.
ADAPTERS = {
    "peft": ("adapter_config.json", "adapter_model.safetensors"),
    "gguf-lora": ("adapter.gguf", "kogpt.manifest.json"),
}
# Format -> its types, the default first.
TYPES = {
    "phi": ("float16", "bfloat16", "float32"),
    "gguf": ("F16", "BF16", "F32", "Q8_0", "Q4_0"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kogpt export`."""
    formats = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    parser.add_argument("format", choices=FORMATS, metavar="FORMAT", help=formats)
    parser.add_argument(
        "--model",
        metavar="NAME",
        default="kogpt-mini",
        help="a folder, a hub name or a built-in model (default: %(default)s)",
    )
    parser.add_argument("--revision", metavar="NAME", help=REVISION)
    parser.add_argument("--adapter", metavar="DIR", help="a LoRA to add to the weights: a folder of PEFT")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--force", action="store_true", help="replace the model that DIR already holds")
    types = "; ".join(f"{name}: {', '.join(values)}" for name, values in TYPES.items())
    parser.add_argument("--type", metavar="TYPE", help=f"of the weights ({types}; default: the first)")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read the folder again and compare the logits of a sample text with the model's own",
    )
    calibration = parser.add_mutually_exclusive_group()
    calibration.add_argument(
        "--calibration",
        metavar="TEXTFILE",
        help="int4 only: quantise with GPTQ, calibrated on about 32,000 tokens of this text",
    )
    calibration.add_argument(
        "--own-text",
        action="store_true",
        help="int4 only: quantise with GPTQ, calibrated on text that the model writes for it",
    )


def run(args: argparse.Namespace) -> int:
    """Write the folder; its size, and what a check found, go to stderr."""
    from kogpt.export.folder import require_place, require_unrounded

    _pass_over(args)
    kind = _type(args)
    if args.format in ADAPTERS:
        _require_no_options_of_models(args)
    source = hub.find_folder(args.model, args.revision, weights=False)
    require_place(args.out, source, args.force, ADAPTERS.get(args.format, ()))
    text = None
    if args.calibration is not None:
        text = decode(read_bytes(args.calibration), args.calibration)
    stored = checkpoint.load(args.model, args.revision)
    if args.format in ADAPTERS:
        return _export_adapter(args, stored)
    require_unrounded(stored, kind or args.format)
    if args.adapter is not None:
        from kogpt.export.folder import with_lora

        stored = with_lora(stored, args.adapter)
    with Progress(stored.config.n_parameters) as progress:
        _write(args, stored, kind, text, progress.advance)
    n_bytes = sum(path.stat().st_size for path in args.out.iterdir())
    name = args.format if kind is None else f"{args.format} {kind}"
    size = f"{n_bytes / 1e6:,.1f} MB"
    _say(f"{args.out}: {name}, {size}", f"{args.out}: {name} 형식, {size}")
    if args.verify:
        from kogpt.export.verify import compare

        _say(*compare(stored, checkpoint.load(args.out)).lines())
    _warn_of_licence(stored)
    return 0


def _write(
    args: argparse.Namespace,
    stored: Checkpoint,
    kind: str | None,
    text: str | None,
    advance: Callable[[int], None],
) -> None:
    if kind is None:
        from kogpt.export.folder import export

        export(stored, args.format, args.out, text, advance, args.own_text)
        return
    from kogpt.export.folder import require_calibrated
    from kogpt.export.phi import export_gguf, export_phi

    for option, is_used in (("--calibration", text is not None), ("--own-text", args.own_text)):
        if is_used:
            require_calibrated(args.format, option)

    writers = {"phi": export_phi, "gguf": export_gguf}
    writers[args.format](stored, kind, args.out, advance)


def _export_adapter(args: argparse.Namespace, stored: Checkpoint) -> int:
    from kogpt.export.phi import export_gguf_lora, export_lora

    if args.adapter is None:
        raise KoGPTError(
            f"the format {args.format} rewrites an adapter: name its folder with --adapter",
            f"{args.format} 형식은 어댑터를 다시 씁니다. --adapter로 어댑터 폴더를 지정하세요",
        )
    writers = {"peft": export_lora, "gguf-lora": export_gguf_lora}
    writers[args.format](stored, args.adapter, args.out)
    _say(
        f"{args.out}: a LoRA for the model in the layout of Phi",
        f"{args.out}: Phi 구조의 모델에 쓰는 LoRA 어댑터",
    )
    return 0


def _pass_over(args: argparse.Namespace) -> None:
    """Leave out what is configured for other formats than the one that is typed."""
    if args.type not in TYPES.get(args.format, ()):
        pass_over(args, "type")
    if args.format in ADAPTERS:
        pass_over(args, "verify")
    if args.format != "int4":
        pass_over(args, "calibration", "own_text")


def _require_no_options_of_models(args: argparse.Namespace) -> None:
    """KoGPTError for an option without effect on an adapter."""
    options = ("--verify", args.verify), ("--calibration", args.calibration), ("--own-text", args.own_text)
    for option, value in options:
        if value:
            raise KoGPTError(
                f"{option} serves the formats of models, the format is {args.format}: leave {option} out",
                f"{option} 옵션은 모델 형식에만 쓰입니다 (지정한 형식: {args.format}). 이 옵션을 빼세요",
            )


def _type(args: argparse.Namespace) -> str | None:
    """The type of the weights; None for a format that has one only."""
    known = TYPES.get(args.format, ())
    if args.type is None:
        return known[0] if known else None
    if args.type not in known:
        have, have_ko = (", ".join(known),) * 2 if known else ("no types: leave --type out", "없음")
        raise KoGPTError(
            f"--type is {args.type}, the format {args.format} has {have}",
            f"--type 값 {args.type} ({args.format} 형식에서 가능한 값: {have_ko})",
        )
    return str(args.type)


def _warn_of_licence(stored: Checkpoint) -> None:
    """A line for the shape of the published model, whose licence forbids derivatives."""
    from kogpt.config import SHAPES

    if stored.config == SHAPES["kogpt-6b"]:
        _say(
            "the licence of the published KoGPT weights (CC BY-NC-ND 4.0) forbids passing on what is made of"
            " them: keep this folder to yourself",
            "공개된 KoGPT 가중치의 라이선스(CC BY-NC-ND 4.0)는 변경한 결과물의 배포를 금지합니다. "
            "이 폴더는 본인만 사용하세요",
        )


def _say(english: str, korean: str) -> None:
    print(localized(english, korean), file=sys.stderr)
