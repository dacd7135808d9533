"""A program at a terminal of its own, for tests that type."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Takes the terminal as its controlling one, so that Ctrl-C reaches it, and becomes the program.
BECOME = (
    "import fcntl, os, sys, termios as t; fcntl.ioctl(0, t.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
IUTF8 = 0o040000  # Linux, asm-generic/termbits.h; Python has no name for it
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
ROOT = Path(__file__).parents[2]


class Session:
    """`python -m kogpt ...` on a pseudo-terminal."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], iutf8: bool = True) -> None:
        self._master, slave = pty.openpty()
        attributes = termios.tcgetattr(slave)
        attributes[0] = attributes[0] | IUTF8 if iutf8 else attributes[0] & ~IUTF8
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        program = [sys.executable, "-m", "kogpt", *arguments]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-c", BECOME, *program],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            cwd=ROOT,
            env=clean | dict(environment),
        )
        os.close(slave)
        self._output = b""
        self._position = 0  # in `text`, after what was last expected

    @property
    def text(self) -> str:
        """All that was shown so far, without control sequences."""
        return CONTROL.sub("", self._output.decode("utf-8", "replace")).replace("\r", "")

    def expect(self, wanted: str, seconds: float = 60) -> None:
        """Read until `wanted` is shown, after what was expected before."""
        deadline = time.monotonic() + seconds
        while (found := self.text.find(wanted, self._position)) < 0:
            assert time.monotonic() < deadline, f"{wanted!r} not in {self.text!r}"
            assert self._read(deadline - time.monotonic()), f"ended before {wanted!r}: {self.text!r}"
        self._position = found + len(wanted)

    def send(self, keys: str | bytes) -> None:
        """Type."""
        os.write(self._master, keys.encode() if isinstance(keys, str) else keys)

    def ask(self, question: str, keys: str | bytes) -> None:
        """Wait for a question, then type once the line editor reads keys."""
        self.expect(question)
        self.editor_ready()
        self.send(keys)

    def editor_ready(self) -> None:
        """Read until the line editor has switched the terminal to single keys."""
        deadline = time.monotonic() + 60
        while termios.tcgetattr(self._master)[3] & termios.ICANON:
            assert time.monotonic() < deadline, self.text
            self._read(0.02)

    def end(self, seconds: float = 60) -> int:
        """Read until the program ends; its exit code."""
        deadline = time.monotonic() + seconds
        while self._read(max(0.0, deadline - time.monotonic())):
            assert time.monotonic() < deadline, f"still running: {self.text!r}"
        code = self._process.wait(timeout=10)
        os.close(self._master)
        return code

    def kill(self) -> None:
        """End the program if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _read(self, seconds: float) -> bool:
        """Take what is there within so many seconds; False once the program has closed the terminal."""
        if not select.select([self._master], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # EIO: the other side is closed
            return False
        self._output += data
        return bool(data)
