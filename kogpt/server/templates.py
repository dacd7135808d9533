"""A model's chat template, rendered by another process: it comes from strangers, and is a program.

The process has a limit of memory, its environment is Jinja's immutable sandbox, and what takes too long is
killed. Run as a module, this file is that process.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import selectors
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from kogpt.errors import CheckpointError
from kogpt.files import read_json, safe_join

FILE = "chat_template.jinja"
SETTINGS = "tokenizer_config.json"
MAX_SETTINGS_BYTES = 4 << 20
MAX_TEMPLATE = 64 << 10  # characters; published ones have up to 12,000
MAX_TEXT = 4 << 20  # characters of a rendered conversation
MAX_MEMORY = 512 << 20  # bytes of address space
SECONDS = 0.5  # of processor time, to render
PATIENCE = 120.0  # seconds of the wall clock for the same, on a busy machine
# What a template's mistakes raise; anything else ends the process.
MISTAKES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class TemplateError(Exception):
    """The template refuses a conversation, or takes too much; the text is for the client."""


def find_template(folder: Path) -> str | None:
    """The chat template of a model's folder, or None. Raises CheckpointError."""
    source: object = None
    if os.path.lexists(folder / FILE):
        source = safe_join(folder, FILE).read_text(encoding="utf-8")
    elif os.path.lexists(folder / SETTINGS):
        source = read_json(safe_join(folder, SETTINGS), MAX_SETTINGS_BYTES).get("chat_template")
    if source is None:
        return None
    if not isinstance(source, str) or len(source) > MAX_TEMPLATE:
        raise CheckpointError(
            f"{folder}: the chat template must be a text of at most {MAX_TEMPLATE:,} characters",
            f"{folder}: 채팅 템플릿은 {MAX_TEMPLATE:,}자 이하의 글이어야 합니다",
        )
    return source


class ChatTemplate:
    """Turns conversations into texts and special tokens.

    A special token counts only where the template itself writes it, by its name or as `bos_token`: it is
    rendered as a mark that clients cannot guess. The same text in a message stays text.
    """

    def __init__(self, source: str, special: Mapping[str, int], roles: Mapping[str, str]) -> None:
        """special: ids by text. roles: variables of the template such as bos_token, and their texts."""
        nonce = secrets.token_hex(16)
        marks = {text: f"\ue000{nonce}:{index}\ue001" for text, index in special.items()}
        for text in sorted(marks, key=len, reverse=True):
            source = source.replace(text, marks[text])
        variables = {name: marks[text] for name, text in roles.items() if text in marks}
        self._opening = {"source": source, "variables": variables}
        self._mark = re.compile(f"\ue000{nonce}:([0-9]+)\ue001")
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()

    def render(self, messages: Sequence[Mapping[str, str]]) -> list[str | int]:
        """The texts and ids of a conversation, up to where the answer begins. Raises TemplateError."""
        with self._lock:
            answer = self._ask({"messages": messages})
        if "error" in answer:
            raise TemplateError(answer["error"])
        parts = self._mark.split(answer["text"])  # every other part is the number in a mark
        return [int(part) if i % 2 else part for i, part in enumerate(parts) if part]

    def close(self) -> None:
        """End the process; the next `render` starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """What the process says to a document; it is killed if that takes too long."""
        if self._process is None:
            command = [sys.executable, "-m", "kogpt.server.templates"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._send(self._opening)
        self._send(document)
        line = self._line()
        if not line:
            self.close()
            raise TemplateError("the model's chat template takes too much time or memory")
        found: dict[str, Any] = json.loads(line)
        return found

    def _send(self, document: Mapping[str, Any]) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(document).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died; `_line` finds nothing to read

    def _line(self) -> bytes:
        """One line of the process; empty if it ended or took too long."""
        assert self._process is not None and self._process.stdout is not None
        received = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                if not selector.select(PATIENCE):
                    return b""
                part = os.read(self._process.stdout.fileno(), 1 << 16)
                if not part:
                    return b""
                received += part
        return received


def main() -> None:
    """Render what comes line by line, until there is no more."""
    from jinja2.exceptions import TemplateError as JinjaError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: object) -> None:
        raise JinjaError(str(message))

    _limit_memory()
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    opening = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        _limit_work(SECONDS)
        try:
            template = environment.from_string(opening["source"], opening["variables"])
            text = template.render(json.loads(line), add_generation_prompt=True)
            answer = {"text": text} if len(text) <= MAX_TEXT else {"error": "the conversation is too long"}
        except (JinjaError, *MISTAKES) as error:
            answer = {"error": f"the model's chat template refuses this conversation: {str(error)[:100]}"}
        _limit_work(0)
        print(json.dumps(answer), flush=True)


def _limit_memory() -> None:
    if sys.platform != "win32":  # which has neither limit: the parent's patience is all
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


def _limit_work(seconds: float) -> None:
    """Have this process killed after so many seconds of work; 0 takes that back."""
    if sys.platform != "win32":
        import signal

        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    main()
