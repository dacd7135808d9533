"""A progress bar on stderr, where somebody can see it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from kogpt.errors import clip, columns, localized

WIDTH, LEAST_WIDTH = 30, 10  # columns of the bar: usually, and at least on a narrow terminal
INTERVAL = 0.1  # seconds between two drawings


def _terminal_columns() -> int:
    """Columns of the terminal behind stderr; 80 where it does not say."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


class Progress:
    """A line that says how many of `total` are done, and how long the rest takes.

    It is drawn on a terminal that can erase a line. Elsewhere only the labels of `show` are printed.
    """

    def __init__(self, total: int = 0) -> None:
        self._total = total
        self._done = self._first = 0  # _first: done before this process began
        self._label = ""
        self._started = self._drawn = time.monotonic()
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._can_erase = on_terminal and os.environ.get("TERM") != "dumb"

    def __enter__(self) -> Self:
        self._draw()
        return self

    def __exit__(self, *_: object) -> None:
        self._erase()

    def begin(self, done: int) -> None:
        """Set how many were done before this process began; their speed is unknown."""
        self._done = self._first = done
        self._started = time.monotonic()
        self._draw()

    def advance(self, count: int = 1) -> None:
        """Count `count` more as done."""
        self._done += count
        if time.monotonic() - self._drawn >= INTERVAL:
            self._draw()

    def show(self, label: str, done: int, total: int) -> None:
        """Set how many are done; a new label begins a new bar, in which `done` are done already."""
        if label != self._label:
            self._erase()
            self._label, self._started, self._first = label, time.monotonic(), done
            if not self._can_erase:
                print(f"kogpt: {label}", file=sys.stderr)
        self._done, self._total = done, total
        self._draw()

    @contextmanager
    def hidden(self, on_stderr: bool = False) -> Iterator[None]:
        """Erase the line while the block prints on the same terminal, on stdout or `on_stderr`."""
        beside_text = on_stderr or (sys.stdout is not None and sys.stdout.isatty())
        if beside_text:
            self._erase()
        yield
        if beside_text:
            self._draw()

    def _draw(self) -> None:
        if not self._can_erase or self._total <= 1:
            return
        self._drawn = time.monotonic()
        counts = f" {self._done}/{self._total}"
        if self._done > self._first:
            seconds = (self._drawn - self._started) / (self._done - self._first)
            left = seconds * (self._total - self._done)
            counts += localized(f"  {left:.0f} s left", f"  {left:.0f}초 남음")
        sys.stderr.write(f"\r\x1b[K{self._fitted(counts, _terminal_columns() - 1)}")
        sys.stderr.flush()

    def _fitted(self, counts: str, room: int) -> str:
        """Label, bar and counts in the columns of a line: a wrapped line could not be erased."""
        brackets = len("[]")
        before = f"{self._label} " if self._label else ""
        width = min(max(room - columns(before + counts) - brackets, LEAST_WIDTH), WIDTH)
        filled = width * self._done // self._total
        before = clip(before, max(room - width - brackets - columns(counts), 0))
        return clip(f"{before}[{'#' * filled}{'.' * (width - filled)}]{counts}", room)

    def _erase(self) -> None:
        if self._can_erase and self._total > 1:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
