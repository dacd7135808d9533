"""A progress bar on stderr, where somebody can see it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from kogpt.errors import localized

WIDTH = 30  # columns between the brackets
INTERVAL = 0.1  # seconds between two drawings


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
        filled = WIDTH * self._done // self._total
        line = f"{self._label} [{'#' * filled}{'.' * (WIDTH - filled)}] {self._done}/{self._total}".lstrip()
        if self._done > self._first:
            seconds = (self._drawn - self._started) / (self._done - self._first)
            left = seconds * (self._total - self._done)
            line += localized(f"  {left:.0f} s left", f"  {left:.0f}초 남음")
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()

    def _erase(self) -> None:
        if self._can_erase and self._total > 1:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
