"""`kogpt mcp`: Korean text tools for agents, over standard input and output."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from kogpt.cli.options import add_model_options, load_model
from kogpt.errors import MissingExtra

if TYPE_CHECKING:
    from kogpt.generation import KoGPT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kogpt mcp`."""
    parser.add_argument(
        "--index", type=Path, metavar="INDEX", help="index of kogpt search that the search tool reads"
    )
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until standard input ends."""
    try:
        from kogpt.tasks.mcp import Tools, make_server
    except ImportError as error:
        raise MissingExtra("kogpt mcp", "mcp") from error
    from kogpt import checkpoint, hub

    if args.index is not None:
        from kogpt.search.index import Index

        Index.open(args.index).close()  # a mistake is said here, not at the first call

    checkpoint.read_config(hub.find_folder(args.model, args.revision, weights=False))

    def load(folder: Path | None) -> KoGPT:
        adapter = None if folder is None else str(folder)
        return load_model(argparse.Namespace(**{**vars(args), "adapter": adapter}))

    # The SDK closes the stream that it writes to; the program flushes its own at the end.
    with open(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as stream, redirect_stdout(stream):
        make_server(Tools(load, args.index, args.model == "kogpt-mini")).run()
    return 0
