"""Work that needs no model: options that only a model reads are refused, and what is printed is filtered."""

from __future__ import annotations

import argparse
from typing import Any

from kogpt.cli.filter import OF_A_MODEL
from kogpt.errors import InputError


def typed_model_options(args: argparse.Namespace) -> list[str]:
    """The typed options that only a model reads."""
    return [args.typed[name] for name in (*OF_A_MODEL, "adapter") if name in args.typed]


def refuse_model_options(args: argparse.Namespace, en: str, ko: str) -> None:
    """InputError for typed options that nothing would read; configured ones serve other runs.

    en, ko: why there is no model, and what would load one.
    """
    if typed := ", ".join(typed_model_options(args)):
        raise InputError(f"{en}, or leave {typed} out", f"{ko} 다음 옵션을 빼세요: {typed}")


def screened(args: argparse.Namespace, text: str) -> str:
    """The text as --filter has it printed, whoever wrote it."""
    mode: Any = args.filter
    if mode == "off":
        return text
    from kogpt.tasks.filter import TextFilter

    return TextFilter(mode).apply(text)[0]
