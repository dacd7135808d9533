"""--workers: batch commands over several processes or machines, with the same output as one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kogpt.cli.options import read_count
from kogpt.errors import InputError
from kogpt.files import require_folder


def add_worker_options(parser: argparse.ArgumentParser) -> None:
    """--workers, --ray, --parts."""
    group = parser.add_argument_group("several processes or machines")
    group.add_argument(
        "--workers", type=read_count, metavar="N", help="work with N processes, each with the whole model"
    )
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="Ray cluster whose machines work, or auto for a running one (default: this machine)",
    )
    group.add_argument(
        "--parts",
        type=Path,
        metavar="DIR",
        help="keep finished parts in DIR, so that the same command goes on after an interruption",
    )


def spread(
    args: argparse.Namespace,
    make: Callable[[], Callable[[Any], Any]],
    parts: Sequence[Any],
    run: Mapping[str, Any],
) -> Iterator[Any]:
    """The answers to the parts, in order, by the workers that the options name.

    run: what the answers depend on besides the parts; it tells the runs of a --parts folder apart.
    """
    from kogpt.cluster.pool import Kept, Pool
    from kogpt.cluster.pool import spread as work
    from kogpt.memory import usable_cpus

    here = args.ray is None
    cpus = max(1, usable_cpus() // args.workers) if here else 1
    kept = None if args.parts is None else Kept(args.parts, {**run, "parts": repr(parts)})
    return work(Pool(args.workers, args.ray, cpus), make, parts, kept)


def require_workers(args: argparse.Namespace) -> None:
    """InputError for --ray or --parts, if typed, where there are no workers, and for parts in no folder."""
    for name in ("ray", "parts"):
        if name in args.typed and args.workers is None:
            raise InputError(
                f"--{name} needs --workers N: how many processes work",
                f"--{name}에는 작업 프로세스 수를 정하는 --workers N이 필요합니다",
            )
    if args.workers is not None and args.parts is not None:
        require_folder(args.parts)


def cut(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Items in parts of at most `size`."""
    return [items[start : start + size] for start in range(0, len(items), size)]
