"""`kogpt demo`: the demo in Gradio."""

from __future__ import annotations

import argparse

from kogpt.cli.options import (
    add_adapter_option,
    add_filter_option,
    add_model_options,
    load_model,
    read_count,
)
from kogpt.errors import MissingExtra


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kogpt demo`."""
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s); others let everybody who reaches it write",
    )
    parser.add_argument(
        "--port", type=read_count, default=7860, metavar="N", help="port to listen on (default: %(default)s)"
    )
    add_model_options(parser)
    add_adapter_option(parser)
    add_filter_option(parser, "mask")


def run(args: argparse.Namespace) -> int:
    """Show the demo until it is interrupted."""
    try:
        from kogpt.demo.app import launch
    except ImportError as error:
        raise MissingExtra("kogpt demo", "demo") from error

    from kogpt.server.listen import Address
    from kogpt.tasks.filter import TextFilter

    Address(args.host, args.port).check_free()  # before the model, which takes its time

    model = load_model(args)
    model.use_screen(TextFilter(args.filter).stream, logprobs=True)  # the page shows numbers, no tokens
    launch(model, args.host, args.port)
    return 0
