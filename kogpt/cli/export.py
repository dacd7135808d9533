"""`kogpt export`: a model folder written anew in another precision."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kogpt import checkpoint, hub
from kogpt.cli.progress import Progress
from kogpt.errors import localized
from kogpt.texts import decode, read_bytes

FORMATS = {  # -> what it is
    "int4": "4.25 bits per weight, for KoGPT only",
    "int8": "8 bits per weight, for KoGPT only",
    "float16": "for KoGPT and transformers",
    "bfloat16": "for KoGPT and transformers",
    "float32": "for KoGPT and transformers",
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
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub model")
    parser.add_argument("--adapter", metavar="DIR", help="a LoRA to add to the weights: a folder of PEFT")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--force", action="store_true", help="replace the model that DIR already holds")
    parser.add_argument(
        "--calibration",
        metavar="TEXTFILE",
        help="int4 only: quantise with GPTQ, calibrated on about 32,000 tokens of this text",
    )


def run(args: argparse.Namespace) -> int:
    """Write the folder; its size goes to stderr."""
    from kogpt.export.folder import export, require_place, with_lora

    source = hub.find_folder(args.model, args.revision, weights=False)
    require_place(args.out, source, args.force)
    text = None
    if args.calibration is not None:
        text = decode(read_bytes(args.calibration), args.calibration)
    stored = checkpoint.load(args.model, args.revision)
    if args.adapter is not None:
        stored = with_lora(stored, args.adapter)
    with Progress(stored.config.n_parameters) as progress:
        export(stored, args.format, args.out, text, progress.advance)
    n_bytes = sum(path.stat().st_size for path in args.out.iterdir())
    size = f"{n_bytes / 1e6:,.1f} MB"
    line = localized(f"{args.out}: {args.format}, {size}", f"{args.out}: {args.format} 형식, {size}")
    print(line, file=sys.stderr)
    return 0
