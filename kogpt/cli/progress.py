"""A progress bar on stderr, where somebody can see it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

WIDTH = 30  # columns of the bar itself
INTERVAL = 0.1  # seconds between two drawings


class Progress:
    """How many of `total` are done; silent unless stderr is a terminal that can erase a line."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._started = self._drawn = time.monotonic()
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._shown = on_terminal and os.environ.get("TERM") != "dumb" and total > 1

    def __enter__(self) -> Self:
        self._draw()
        return self

    def __exit__(self, *_: object) -> None:
        self._erase()

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        if time.monotonic() - self._drawn >= INTERVAL:
            self._draw()

    @contextmanager
    def hidden(self, on_stderr: bool = False) -> Iterator[None]:
        """Out of the way while something else is printed on the same terminal, on stdout or `on_stderr`."""
        beside_text = on_stderr or (sys.stdout is not None and sys.stdout.isatty())
        if beside_text:
            self._erase()
        yield
        if beside_text:
            self._draw()

    def _draw(self) -> None:
        if not self._shown:
            return
        self._drawn = time.monotonic()
        filled = WIDTH * self._done // self._total
        line = f"[{'#' * filled}{'.' * (WIDTH - filled)}] {self._done}/{self._total}"
        if self._done:
            left = (self._drawn - self._started) / self._done * (self._total - self._done)
            line += f"  {left:.0f} s left"
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()

    def _erase(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
