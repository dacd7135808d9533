"""`kogpt config`, and the defaults of options: a TOML file, and KOGPT_* in the environment.

A flag goes before the environment, the environment before the file, the file before what is built in; the
model's own settings are built in. What goes before also switches off what it excludes. A name that is no
option of any command is refused, and a value that no command takes.

Commands find in `args.typed` the flag by which an option was typed, in `args.configured` what gave it its
value instead, both by dest.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from kogpt.errors import InputError, localized

PREFIX = "KOGPT_"
OTHER_VARIABLES = ("CONFIG", "DATA", "ISA", "API_KEY")  # that stand for no option
# Kubernetes documentation, "Accessing the Service": {NAME}_SERVICE_HOST, {NAME}_PORT_80_TCP_ADDR, ...
LINK = r"SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?"
OWN_OPTIONS = ("help", "version", "config")  # that a file cannot set
SECTION_OF_PROMPT = "prompt"
MAX_FILE_BYTES = 1 << 20
# Options that a command refuses together by itself: some of their values go together, as no group allows.
RIVALS = (
    *(("as", "labels"), ("as", "adapter"), ("device", "model_parallel"), ("shape", "adapter")),
    *(("sentences", "title", "abstract"), ("regex", "choice", "json_schema", "hangul")),
)
SWITCHES = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}

EPILOG = """The file is $XDG_CONFIG_HOME/kogpt/config.toml, or ~/.config/kogpt/config.toml;
--config FILE or KOGPT_CONFIG names another. A key is an option's name without its
dashes: top_p for --top-p. Keys at the top serve every command that has the option and
takes the value, a table serves one command, [prompt] the interactive prompt:

    dtype = "int8"
    temperature = 0.7
    [serve]
    port = 9000
    [pretrain.run]
    device = "cpu"

The variable KOGPT_TOP_P stands for --top-p in every command that takes its value. A flag
goes before a variable, a variable before the file, the file before what is built in. A setting
of higher priority also switches off configured options that cannot be combined with it."""


Commands = Mapping[str, Callable[[], argparse.ArgumentParser]]  # name of a command -> makes its parser


class Given(NamedTuple):
    """One value for an option, and where it was found."""

    name: str
    value: Any  # as TOML or the environment has it
    source: str
    path: tuple[str, ...] = ()  # names of the tables around it, such as ("pretrain", "run")
    is_variable: bool = False  # found in the environment

    @property
    def rank(self) -> tuple[bool, int]:
        """How special it is: a variable goes before the file, a table before the top."""
        return self.is_variable, len(self.path)


class Choice(NamedTuple):
    """The value that an option gets, and what gave it."""

    given: Given
    value: Any  # as argparse would have made it


Choices = dict[argparse.Action, Choice]


class Defaults:
    """Every value that the file and the environment give, in the order in which later ones win."""

    def __init__(self, file: Path | None = None, words: Sequence[str] = ()) -> None:
        self.file = file
        self.words = words  # that the user typed: they go before
        self.given: list[Given] = []

    def apply(self, parser: argparse.ArgumentParser, name: str, commands: Commands) -> None:
        """Make the values the defaults of the command `name` and of those below it. InputError.

        commands: all of them by name; a parser is made where only it can tell whether an option exists.
        """
        path = (name,)
        parsers = dict(parsers_below(parser, path))
        chosen: dict[tuple[str, ...], Choices] = {where: {} for where in parsers}
        for given in self.given:
            if given.path and given.path[0] not in commands:
                raise _no_table(given.path[:1], given.source, list(commands))
            if given.path[: len(path)] != path[: len(given.path)]:
                continue  # of another command
            if len(given.path) > len(path) and given.path not in parsers:
                raise _no_table(given.path, given.source, [where[-1] for where in parsers])
            actions = {
                where: options_of(child)[given.name]
                for where, child in parsers.items()
                if where[: len(given.path)] == given.path and given.name in options_of(child)
            }
            if not actions:
                _require_known(given, _known_options(given.path, commands))
            for where, action in actions.items():
                if _is_meant_for(action, given, commands):
                    chosen[where][action] = Choice(given, _value(action, given))
        for where, child in parsers.items():
            _settle(child, chosen[where], _typed(child, self.words))


class Repeated(list[Any]):
    """The default of an option that may be repeated; the first value that is given takes its place."""

    def __copy__(self) -> list[Any]:
        return []


def read_defaults(words: Sequence[str]) -> Defaults:
    """The values of the file that `words` name with --config, or of the usual one, and of the environment."""
    found = Defaults(_file(words), words)
    if found.file is not None:
        found.given += _read_file(found.file)
    for variable, value in sorted(os.environ.items()):
        name = variable.removeprefix(PREFIX)
        if variable.startswith(PREFIX) and name not in OTHER_VARIABLES and not _is_link(name, value):
            found.given.append(Given(name.lower(), value, variable, is_variable=True))
    return found


def _is_link(name: str, value: str) -> bool:
    """Whether Kubernetes set this variable, for a service that is called kogpt."""
    return bool(re.fullmatch(LINK, name)) or (name == "PORT" and "://" in value)


def pass_over(args: argparse.Namespace, *names: str) -> None:
    """Take back values that are configured for other runs of a command; typed ones stay. names: dests."""
    for name in names:
        if name in args.configured:
            setattr(args, name, False if getattr(args, name) is True else None)


def is_for_all(args: argparse.Namespace, name: str) -> bool:
    """Whether a value is configured for every command that has the option. name: its dest."""
    given: Given | None = args.configured.get(name)
    return given is not None and not given.path


def usual_file() -> Path:
    """Where the file of defaults is looked for (XDG base directories)."""
    base = os.environ.get("XDG_CONFIG_HOME") or _home() / ".config"
    return Path(base) / "kogpt" / "config.toml"


def _home() -> Path:
    """The user's folder; a name that no folder has where a user id stands for nobody, as in containers."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(os.devnull)


def _file(words: Sequence[str]) -> Path | None:
    """The file to read; None if there is none. InputError for one that cannot be read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", nargs="?")
    named = parser.parse_known_args(list(words))[0].config or os.environ.get(f"{PREFIX}CONFIG")
    path = Path(named) if named else usual_file()
    try:
        if path.is_file():
            return path
    except OSError as error:
        shown = str(path)[:200]
        reason = os.strerror(error.errno or 0)
        raise InputError(
            f"{shown} cannot be read ({reason}): set HOME, or name another file by --config or KOGPT_CONFIG",
            f"{shown} 파일을 읽을 수 없습니다({reason}). HOME을 지정하거나 --config, KOGPT_CONFIG로 다른"
            " 파일을 쓰세요",
        ) from None
    if named:
        shown = named[:200]
        raise InputError(f"--config: there is no file {shown!r}", f"--config: 파일이 없습니다: {shown!r}")
    return None


def _read_file(path: Path) -> Iterator[Given]:
    import tomllib

    from kogpt.files import read_limited

    try:
        document = tomllib.loads(read_limited(path, MAX_FILE_BYTES, InputError).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid TOML: {error}", f"{path}: TOML 문법 오류: {error}") from error
    yield from _values(document, path, ())


def _values(table: Mapping[str, Any], file: Path, path: tuple[str, ...]) -> Iterator[Given]:
    """The values of a table, then those of the tables in it: a more special value comes later, and wins."""
    for key, value in table.items():
        if not isinstance(value, dict):
            yield Given(key.replace("-", "_"), value, str(file), path)
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _values(value, file, (*path, key))


def parsers_below(
    parser: argparse.ArgumentParser, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """(words of the command, parser) of a command and of those below it."""
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from parsers_below(child, (*path, name))


def options_of(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The options of a parser by their names in a file: the first long one, or the short one."""
    options = {}
    for action in parser._actions:
        for option in action.option_strings:
            name = option.lstrip("-").replace("-", "_")
            if (len(name) > 1 or len(action.option_strings) == 1) and name not in OWN_OPTIONS:
                options[name] = action
    return options


def _known_options(path: tuple[str, ...], commands: Commands) -> set[str]:
    """The names of all options of the commands at `path` and below; of every command if it is empty."""
    known: set[str] = set()
    for name in path[:1] or commands:
        for where, child in parsers_below(commands[name](), (name,)):
            if where[: len(path)] == path:
                known |= options_of(child).keys()
    return known


def _no_table(path: tuple[str, ...], source: str, known: Sequence[str]) -> InputError:
    shown = ".".join(path)[:60]
    from difflib import get_close_matches

    nearest = next(iter(get_close_matches(path[-1], known, n=1)), ", ".join(known))
    return InputError(
        f"{source}: there is no command for the table [{shown}], did you mean {nearest}?",
        f"{source}: [{shown}] 표에 해당하는 명령이 없습니다 (비슷한 이름: {nearest})",
    )


def _is_meant_for(action: argparse.Action, given: Given, commands: Commands) -> bool:
    """False where a value of the top or the environment suits the option of another command alone."""
    if given.path or _takes(action, given):
        return True
    others = (child for name, make in commands.items() for _, child in parsers_below(make(), (name,)))
    found = (options_of(other).get(given.name) for other in others)
    return not any(option is not None and _takes(option, given) for option in found)


def _takes(action: argparse.Action, given: Given) -> bool:
    try:
        _value(action, given)
    except InputError:
        return False
    return True


def _typed(parser: argparse.ArgumentParser, words: Sequence[str]) -> dict[str, str]:
    """dest of every option of the parser that a command line types -> the flag."""
    before = takewhile(lambda word: word != "--", words)
    flags = {flag for word in before for flag in (word.partition("=")[0], word[:2])}  # -k3 is -k
    return {
        action.dest: flag for action in parser._actions for flag in action.option_strings if flag in flags
    }


def _settle(parser: argparse.ArgumentParser, chosen: Choices, typed: Mapping[str, str]) -> None:
    """Make what was chosen the defaults of a parser, but for what a better one excludes. InputError."""
    options = options_of(parser)
    for names in RIVALS:
        _drop_beaten([options[name] for name in names if name in options], chosen, typed)
    for group in parser._mutually_exclusive_groups:
        _drop_beaten(group._group_actions, chosen, typed)
        left = [chosen[action].given for action in group._group_actions if _is_on(action, chosen)]
        if len(left) > 1:
            raise _exclusive(left)
        group.required = group.required and not left
    for action, choice in chosen.items():
        action.required = False
        if choice.value is not False or action.default is not argparse.SUPPRESS:  # "debug" in args is on
            action.default = choice.value
    configured = {action.dest: choice.given for action, choice in chosen.items() if action.dest not in typed}
    parser.set_defaults(typed=typed, configured=configured)


def _drop_beaten(actions: Sequence[argparse.Action], chosen: Choices, typed: Mapping[str, str]) -> None:
    """Forget values of options that exclude each other: the most special stays, beside a typed one none."""
    is_typed = any(action.dest in typed for action in actions)
    on = [action for action in actions if _is_on(action, chosen)]
    best = max((chosen[action].given.rank for action in on), default=None)
    for action in on:
        if is_typed or chosen[action].given.rank != best:
            del chosen[action]


def _is_on(action: argparse.Action, chosen: Choices) -> bool:
    return action in chosen and chosen[action].value is not False


def _exclusive(given: Sequence[Given]) -> InputError:
    sources = ", ".join(dict.fromkeys(each.source for each in given))
    names = [each.name for each in given]
    return InputError(
        f"{sources}: {' and '.join(names)} exclude each other: type one of them, or leave one out",
        f"{sources}: {', '.join(names)} 중 하나만 쓸 수 있습니다. 하나를 명령줄에 쓰거나 나머지를 빼세요",
    )


def _require_known(given: Given, known: set[str]) -> None:
    if given.name in known:
        return
    from difflib import get_close_matches

    shown = given.source if given.is_variable else given.name
    close = get_close_matches(given.name, sorted(known), n=1)
    nearest = close[0] if close else ", ".join(sorted(known)[:5]) + ", ..."
    if given.is_variable:
        nearest = PREFIX + nearest.upper() if close else nearest
        raise InputError(
            f"{shown} is set, but there is no such option: unset it, or did you mean {nearest}?",
            f"환경 변수 {shown}에 해당하는 옵션이 없습니다. 변수를 지우거나 이름을 고치세요 "
            f"(비슷한 이름: {nearest})",
        )
    table = f" [{'.'.join(given.path)}]" if given.path else ""
    raise InputError(
        f"{given.source}{table}: there is no option {shown[:60]!r}, did you mean {nearest}?",
        f"{given.source}{table}: {shown[:60]!r} 옵션은 없습니다 (비슷한 이름: {nearest})",
    )


def _value(action: argparse.Action, given: Given) -> Any:
    """A value as argparse would make it for the option; InputError."""
    if action.nargs == 0:
        switch = given.value if isinstance(given.value, bool) else SWITCHES.get(str(given.value).lower())
        if switch is None:
            raise _wrong(given, "true or false", "true나 false")
        return switch
    is_list = action.nargs not in (None, "?") or isinstance(action, argparse._AppendAction)
    parts = given.value if isinstance(given.value, list) else [given.value]
    if not parts and action.nargs == "+":
        raise _wrong(given, "at least one value", "값 하나 이상")
    if len(parts) != 1 and not is_list:
        raise _wrong(given, "one value", "값 하나")
    values = [_converted(action, part, given) for part in parts]
    if isinstance(action, argparse._AppendAction):
        return Repeated(values)
    return values if is_list else values[0]


def _converted(action: argparse.Action, part: Any, given: Given) -> Any:
    """A value as the option's own converter makes it from text."""
    if isinstance(part, bool | dict | list):
        raise _wrong(given, "a text or a number", "글이나 숫자")
    try:
        value = action.type(str(part)) if callable(action.type) else str(part)
    except argparse.ArgumentTypeError as error:
        raise _wrong(given, str(error), str(error)) from error
    except (TypeError, ValueError) as error:
        kind = getattr(action.type, "__name__", "")
        raise _wrong(given, f"{kind} expected", f"필요한 형식: {kind}") from error
    if action.choices is not None and value not in action.choices:
        choices = ", ".join(map(str, action.choices))
        raise _wrong(given, f"one of {choices}", f"가능한 값: {choices}")
    return value


def _wrong(given: Given, en: str, ko: str) -> InputError:
    shown = repr(given.value)[:60]
    return InputError(
        f"{given.source}: {given.name} is {shown}: {en}", f"{given.source}: {given.name} 값 {shown}: {ko}"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kogpt config`, which are none."""
    parser.epilog = EPILOG


def run(args: argparse.Namespace) -> int:
    """Print the file's path and every default that the file and the environment give."""
    named = ["--config", args.config] if "config" in args else []
    found = read_defaults(named)
    if found.file is None:
        path = usual_file()
        print(localized(f"no file: {path}", f"파일 없음: {path}"))
    else:
        print(found.file)
    for given in found.given:
        place = ".".join((*given.path, given.name))
        where = "" if given.source == str(found.file) else f"  ({given.source})"
        print(f"{place} = {given.value!r}{where}")
    return 0
