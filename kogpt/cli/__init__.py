"""The `kogpt` command: which subcommand, its arguments, and what the shell is told at the end.

One module per subcommand with `add_arguments(parser)` and `run(args) -> exit code`; it is imported only when
it is asked for. Text goes to stdout, everything else to stderr.
Exit codes: 0 fine, 2 a user's mistake, 130 Ctrl-C, 1 anything else.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from kogpt import __version__
from kogpt.cli.defaults import SECTION_OF_PROMPT, read_defaults
from kogpt.cli.examples import EXAMPLES
from kogpt.cli.korean import HELP, TEXTS, korean_argparse, translate
from kogpt.errors import KoGPTError, localized, prefers_korean

DESCRIPTION = "KakaoBrain Korean(hangul) Generative Pre-Training Model"  # the original's own words

# Subcommand -> (module, what it does). Without a subcommand: the interactive prompt.
PROMPT = "kogpt.cli.prompt"
COMMANDS = {
    "generate": ("kogpt.cli.generate", "continue one prompt, standard input or a file of prompts"),
    "models": ("kogpt.cli.catalog", "list the models that are here: built in, or in the hub's cache"),
    "info": ("kogpt.cli.info", "show a model's hyperparameters and whether it fits this machine"),
    "bench": ("kogpt.cli.bench", "measure a model's speed against the limits of this machine"),
    "eval": ("kogpt.cli.eval", "evaluate a model on Korean tasks, few-shot"),
    "classify": ("kogpt.cli.classify", "label texts: sentiment, intent, profanity, or labels of your own"),
    "search": ("kogpt.cli.search", "index documents, and find the paragraphs that answer a question"),
    "summarize": (
        "kogpt.cli.summarize",
        "summarise a text: its main sentences, a title, or a line by the model",
    ),
    "ask": ("kogpt.cli.ask", "answer a question from a text or an index, the evidence first"),
    "filter": (
        "kogpt.cli.filter",
        "cover profanity and personal data in texts, and judge how profane they are",
    ),
    "report": ("kogpt.cli.report", "write a report of harmful text, which you may send"),
    "mcp": ("kogpt.cli.mcp", "offer Korean text tools to agents by the Model Context Protocol"),
    "serve": ("kogpt.cli.serve", "serve a model over HTTP: OpenAI's API, Kakao's API and a page"),
    "demo": ("kogpt.cli.demo", "show the demo, a page in Gradio"),
    "export": ("kogpt.cli.export", "write a model folder in another precision"),
    "tune": ("kogpt.cli.tune", "tune a model on a task or on rows of your own"),
    "pretrain": ("kogpt.cli.pretrain", "train a tokenizer and a model from raw text"),
    "config": ("kogpt.cli.defaults", "show the defaults of options: a file, and KOGPT_* variables"),
    "completion": ("kogpt.cli.completion", "print a script that completes command lines in a shell"),
}
# Words that people try -> what they mean. `kogpt help COMMAND` is `kogpt COMMAND --help`.
ALIASES = {"help": "--help", "version": "--version", "list": "models"}

MISTAKE, FAILURE, INTERRUPTED = 2, 1, 130


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaint is one line; every one knows -d and --config."""

    def __init__(self, **settings: Any) -> None:
        style = argparse.RawDescriptionHelpFormatter
        super().__init__(formatter_class=style, allow_abbrev=False, **settings)
        # Suppressed default: a subparser must not overwrite what the parser above it has read.
        self.add_argument(
            "-d", "--debug", action="store_true", default=argparse.SUPPRESS, help="show log and tracebacks"
        )
        self.add_argument(
            "--config",
            metavar="FILE",
            default=argparse.SUPPRESS,
            help="file of defaults (kogpt help config)",
        )

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help; argparse itself says nothing where that fails."""
        if file is None or file is not sys.stdout:
            super()._print_message(message, file)
        else:
            file.write(message)
            file.flush()

    def error(self, message: str) -> NoReturn:
        en = f"{self.prog}: {message} (see {self.prog} --help)\n"
        ko = f"{self.prog}: {message} ({self.prog} --help 참고)\n"
        self.exit(MISTAKE, localized(en, ko))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (sys.argv's if None); the exit code."""
    try:
        if argv is None:
            _begin_again_in_utf8()
        return _main(argv)
    except KeyboardInterrupt:  # also while modules are imported, which takes the first second
        return INTERRUPTED


def _main(argv: Sequence[str] | None) -> int:
    _speak_utf8()
    words = _in_other_words(list(sys.argv[1:] if argv is None else argv))
    name = words.pop(0) if words and not words[0].startswith("-") else None
    with korean_argparse():
        module, parser = command(name)
        try:
            read_defaults(words).apply(parser, name or SECTION_OF_PROMPT, parsers_by_name())
        except KoGPTError as error:
            return _stop(MISTAKE, str(error), debug=False)
        args, rest = _parsed(parser, words)
    if rest:
        parser.error(_unexpected(rest, name, args))
    debug = "debug" in args
    if debug:
        _log_to_stderr()
    if sys.stdout is None:
        return _stop(FAILURE, localized("standard output is closed", "표준 출력이 닫혀 있습니다"), debug)
    try:
        code: int = module.run(args)
        sys.stdout.flush()  # here, where a full disk or a closed pipe can still be answered
        return code
    except KoGPTError as error:
        return _stop(MISTAKE, str(error), debug)
    except BrokenPipeError:  # the reader has what it wanted: `kogpt ... | head`
        _abandon_stdout()
        return 0
    except MemoryError as error:
        return _stop(FAILURE, localized(f"not enough memory: {error}", f"메모리 부족: {error}"), debug)
    except OSError as error:
        return _say_system_error(error, debug)
    except ValueError as error:
        if (line := _unnameable(error)) is None:
            raise
        return _stop(MISTAKE, line, debug)


def _parsed(parser: Parser, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The words as arguments, and those that are none; SystemExit after --help and --version."""
    try:
        return parser.parse_known_args(words)
    except BrokenPipeError:
        _abandon_stdout()
        raise SystemExit(0) from None
    except OSError as error:
        raise SystemExit(_say_system_error(error, debug=False)) from None


def _say_system_error(error: OSError, debug: bool) -> int:
    _abandon_stdout()
    where = f"{error.filename}: " if error.filename else ""
    reason = f"{where}{error.strerror or error}"
    return _stop(FAILURE, localized(f"system error: {reason}", f"시스템 오류: {reason}"), debug)


def _unnameable(error: ValueError) -> str | None:
    """The message for a file name that no system can hold; None if the error is another."""
    if str(error).startswith("embedded null"):
        return localized(
            "the name of a file holds a NUL character: leave it out",
            "파일 이름에 NUL 문자가 있습니다. 빼고 다시 쓰세요",
        )
    if isinstance(error, UnicodeEncodeError) and "\ud800" <= error.object[error.start] <= "\udfff":
        shown = ascii(error.object[:100])
        return localized(
            f"{shown} holds a lone surrogate, which UTF-8 cannot write: leave it out",
            f"{shown}: UTF-8로 쓸 수 없는 문자(짝이 없는 서로게이트)가 있습니다. 빼고 다시 쓰세요",
        )
    return None


def _in_other_words(words: list[str]) -> list[str]:
    """A command line without aliases."""
    if words[:1] == ["help"]:
        return [*words[1:], ALIASES["help"]]
    return [ALIASES.get(word, word) for word in words[:1]] + words[1:]


def parsers_by_name() -> dict[str, Callable[[], Parser]]:
    """The function that builds each command's parser, by the name of its table in a file of defaults."""

    def maker(name: str | None) -> Callable[[], Parser]:
        return lambda: command(name)[1]

    return {SECTION_OF_PROMPT: maker(None), **{name: maker(name) for name in COMMANDS}}


def command(name: str | None) -> tuple[ModuleType, Parser]:
    """The module of a subcommand (of the interactive prompt if None) and its parser."""
    if name is None:
        path, parser = PROMPT, Parser(prog="kogpt", description=DESCRIPTION, epilog=_overview())
        parser.add_argument(
            "--version", action="version", version=__version__, help="print the version and exit"
        )
    elif name in COMMANDS:
        path, summary = COMMANDS[name]
        parser = Parser(prog=f"kogpt {name}", description=f"{summary[0].upper()}{summary[1:]}.")
    else:
        from difflib import get_close_matches

        close = get_close_matches(name, [*COMMANDS, *ALIASES], n=1)
        remedy = ("generate TEXT, to continue a text", "generate TEXT (글을 이어 쓰기)")
        en, ko = (close[0], close[0]) if close else remedy
        en = f"there is no command {name!r}, try: kogpt {en}"
        Parser(prog="kogpt").error(localized(en, f"{name!r} 명령은 없습니다. 다음을 써 보세요: kogpt {ko}"))
    module = import_module(path)
    module.add_arguments(parser)
    if prefers_korean():
        translate(parser)
    _add_examples(parser)
    return module, parser


def _overview() -> str:
    en = "Without a command: the interactive prompt. Commands (kogpt COMMAND --help):"
    lines = [localized(en, "명령 없이 실행하면 대화형 프롬프트가 열립니다. 명령 (kogpt COMMAND --help):")]
    width = max(map(len, COMMANDS))
    for name, (_, summary) in COMMANDS.items():
        lines.append(f"  {name:{width}}  {localized(summary, HELP.get(summary, summary))}")
    return "\n".join(lines)


def _add_examples(parser: argparse.ArgumentParser) -> None:
    """Put the examples of a command, and of its subcommands, below its options."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _add_examples(child)
    if parser.prog in EXAMPLES:
        lines = [localized("examples:", HELP["examples:"]), *(f"  {line}" for line in EXAMPLES[parser.prog])]
        parser.epilog = "\n".join(lines if not parser.epilog else [parser.epilog, "", *lines])


def _unexpected(rest: Sequence[str], name: str | None, args: argparse.Namespace) -> str:
    if name is None and (known := [word for word in rest if word in COMMANDS]):
        first = f"kogpt {known[0]}"
        return localized(f"write the command first: {first} [options]", f"명령을 먼저 쓰세요: {first} [옵션]")
    words = " ".join(rest)
    text = getattr(args, {"generate": "prompt", "ask": "question"}.get(name or "", ""), None)
    if text and not any(word.startswith("-") for word in rest):
        quoted = f'kogpt {name} "{text} {words}"'
        return localized(f"put the text in quotes: {quoted}", f"글을 따옴표로 묶으세요: {quoted}")
    return localized(f"unrecognized arguments: {words}", TEXTS["unrecognized arguments: %s"] % words)


def _stop(code: int, line: str, debug: bool) -> int:
    """Say why in one line, after the traceback if that is wanted."""
    if debug:
        import traceback

        traceback.print_exc()
    print(f"kogpt: {line}", file=sys.stderr)
    return code


def _begin_again_in_utf8() -> None:
    """Start Python again in UTF-8 where it has read the command line in another encoding.

    The locale stays what it was, for the language of messages.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1" or not sys.executable:
        return
    try:  # the bytes themselves: not every decoding can be taken back
        words = Path("/proc/self/cmdline").read_bytes().split(b"\0")[1:-1]
    except OSError:
        words = [os.fsencode(word) for word in sys.orig_argv[1:]]
    os.execve(sys.executable, [os.fsencode(sys.executable), *words], os.environb | {b"PYTHONUTF8": b"1"})


def _speak_utf8() -> None:
    """Read and write UTF-8 whatever the locale says.

    Other bytes are kept as they came in what is read (PEP 383; reading.py judges them), and escaped in what
    is written: the names of files and models may hold them, and JSON has the same escapes.
    """
    if sys.stderr is None:  # `print` would write messages to stdout instead
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    escape = "backslashreplace"
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, escape), (sys.stderr, escape)):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=errors)


def _abandon_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush has nothing to complain about."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _log_to_stderr() -> None:
    import logging

    logging.basicConfig(level=logging.DEBUG, format="[%(asctime)s] [%(levelname)s] %(message)s")
