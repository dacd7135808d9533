"""Where the interactive prompt's answers come from: a terminal with line editing, or a pipe.

Questions go to the terminal, or to stderr where there is none, so that stdout holds text only.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kogpt.errors import localized

if TYPE_CHECKING:
    from concurrent.futures import Future

    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History


class Questions(Protocol):
    """Somebody who answers."""

    patient: bool  # whether a wrong answer can be pointed out and mended

    def ask(self, question: str, keep: bool = False) -> str:
        """The answer, without the line end; EOFError at the end, KeyboardInterrupt on Ctrl-C.

        `keep`: offer this answer again as history.
        """


class Pipe:
    """Answers that are lines of standard input."""

    patient = False

    def ask(self, question: str, keep: bool = False) -> str:
        print(question, file=sys.stderr)
        line = b"" if sys.stdin is None else sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        from kogpt.texts import decode

        return decode(line, localized("standard input", "표준 입력")).removesuffix("\n").removesuffix("\r")


class Terminal:
    """Answers typed at a terminal: prompt_toolkit reads keys as UTF-8 whatever locale and tty are set to.

    If `model` fails while somebody types, the question ends with its exception.
    """

    patient = True

    def __init__(self, model: Future[Any]) -> None:
        from prompt_toolkit import PromptSession

        os.environ.setdefault("PROMPT_TOOLKIT_NO_CPR", "1")  # a late reply would be read as an answer
        self._model = model
        output = _terminal_output()
        self._prompts: PromptSession[str] = PromptSession(
            history=_history(), output=output, enable_suspend=True
        )
        self._numbers: PromptSession[str] = PromptSession(output=output, enable_suspend=True)
        if not is_dumb_terminal():
            output.write_raw("\r")  # the first question is shown already: draw over it
            output.flush()

    def ask(self, question: str, keep: bool = False) -> str:
        session = self._prompts if keep else self._numbers
        typed = session.prompt(question, pre_run=self._watch)
        from kogpt.texts import decode_argument

        return decode_argument(typed, localized("what was typed", "입력한 글"))

    def _watch(self) -> None:
        from prompt_toolkit.application import get_app

        get_app().create_background_task(self._leave_on_failure())

    async def _leave_on_failure(self) -> None:
        from asyncio import wait, wrap_future

        from prompt_toolkit.application import get_app

        loading = wrap_future(self._model)
        await wait([loading])
        if error := loading.exception():
            get_app().exit(exception=error)


def on_terminal() -> bool:
    """Whether somebody can be asked: keys come from a terminal, and there is one to show questions on."""
    return sys.stdin is not None and sys.stdin.isatty() and (sys.stdout.isatty() or sys.stderr.isatty())


def is_dumb_terminal() -> bool:
    """Whether the terminal cannot go back to the start of a line."""
    return os.environ.get("TERM", "").lower() in ("", "dumb", "unknown")


def _terminal_output() -> Any:
    from prompt_toolkit.output.defaults import create_output

    return create_output(always_prefer_tty=True)  # `kogpt > file` still asks on the screen


def _history() -> History:
    """Earlier prompts, in a file that only the user can read; only this session's where none can be kept."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class Patient(FileHistory):
        """A history that is no longer written where the disk is full; questions go on."""

        def store_string(self, string: str) -> None:
            with suppress(OSError):
                super().store_string(string)

    try:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        path = state / "kogpt" / "history"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.open("ab").close()
    except (OSError, RuntimeError) as error:  # RuntimeError: a home that nobody has
        import logging

        logging.getLogger(__name__).debug("no history is kept: %s", error)
        return InMemoryHistory()
    return Patient(path)
