"""`kogpt config`, and the defaults of options: a TOML file, and KOGPT_* in the environment.

A flag goes before the environment, the environment before the file, the file before what is built in; the
model's own settings are built in. A name that is no option of any command is refused.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
SWITCHES = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}

EPILOG = """The file is $XDG_CONFIG_HOME/kogpt/config.toml, or ~/.config/kogpt/config.toml;
--config FILE or KOGPT_CONFIG names another. A key is an option's name without its
dashes: top_p for --top-p. Keys at the top serve every command that has the option, a
table serves one command, [prompt] the interactive prompt:

    dtype = "int8"
    temperature = 0.7
    [serve]
    port = 9000
    [pretrain.run]
    device = "cpu"

The variable KOGPT_TOP_P stands for --top-p in every command that has it. A flag goes
before a variable, a variable before the file, the file before what is built in."""


Commands = Mapping[str, Callable[[], argparse.ArgumentParser]]  # name of a command -> makes its parser


class Given(NamedTuple):
    """One value for an option, and where it was found."""

    name: str
    value: Any  # as TOML or the environment has it
    source: str
    path: tuple[str, ...] = ()  # names of the tables around it, such as ("pretrain", "run")


class Defaults:
    """Every value that the file and the environment give, in the order in which later ones win."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.given: list[Given] = []

    def apply(self, parser: argparse.ArgumentParser, name: str, commands: Commands) -> None:
        """Make the values the defaults of the command `name` and of those below it. InputError.

        commands: all of them by name; a parser is made where only it can tell whether an option exists.
        """
        path = (name,)
        parsers = dict(parsers_below(parser, path))
        for given in self.given:
            if given.path and given.path[0] not in commands:
                raise _no_table(given.path[:1], given.source, list(commands))
            if given.path[: len(path)] != path[: len(given.path)]:
                continue  # of another command
            if len(given.path) > len(path) and given.path not in parsers:
                raise _no_table(given.path, given.source, [where[-1] for where in parsers])
            actions = [
                options_of(child)[given.name]
                for where, child in parsers.items()
                if where[: len(given.path)] == given.path and given.name in options_of(child)
            ]
            if not actions:
                _require_known(given, _known_options(given.path, commands))
            for action in actions:
                _set_default(action, given)


class Repeated(list[Any]):
    """The default of an option that may be repeated; the first value that is given takes its place."""

    def __copy__(self) -> list[Any]:
        return []


def read_defaults(words: Sequence[str]) -> Defaults:
    """The values of the file that `words` name with --config, or of the usual one, and of the environment."""
    found = Defaults(_file(words))
    if found.file is not None:
        found.given += _read_file(found.file)
    for variable, value in sorted(os.environ.items()):
        name = variable.removeprefix(PREFIX)
        if variable.startswith(PREFIX) and name not in OTHER_VARIABLES and not _is_link(name, value):
            found.given.append(Given(name.lower(), value, variable))
    return found


def _is_link(name: str, value: str) -> bool:
    """Whether Kubernetes set this variable, for a service that is called kogpt."""
    return bool(re.fullmatch(LINK, name)) or (name == "PORT" and "://" in value)


def usual_file() -> Path:
    """Where the file of defaults is looked for (XDG base directories)."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "kogpt" / "config.toml"


def _file(words: Sequence[str]) -> Path | None:
    """The file to read; None if there is none. InputError for one that cannot be read."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", nargs="?")
    named = parser.parse_known_args(list(words))[0].config or os.environ.get(f"{PREFIX}CONFIG")
    path = Path(named) if named else usual_file()
    try:
        if path.is_file():
            return path
    except PermissionError:
        shown = str(path)[:200]
        raise InputError(
            f"{shown} cannot be read (permission denied): set HOME or KOGPT_CONFIG",
            f"{shown} 파일을 읽을 권한이 없습니다. HOME이나 KOGPT_CONFIG를 지정하세요",
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


def _require_known(given: Given, known: set[str]) -> None:
    if given.name in known:
        return
    from difflib import get_close_matches

    shown = given.source if given.source.startswith(PREFIX) else given.name
    close = get_close_matches(given.name, sorted(known), n=1)
    nearest = close[0] if close else ", ".join(sorted(known)[:5]) + ", ..."
    if given.source.startswith(PREFIX):
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


def _set_default(action: argparse.Action, given: Given) -> None:
    action.required = False
    if action.nargs == 0:
        switch = given.value if isinstance(given.value, bool) else SWITCHES.get(str(given.value).lower())
        if switch is None:
            raise _wrong(given, "true or false", "true나 false")
        if switch or action.default is not argparse.SUPPRESS:
            action.default = switch if switch else False
        return
    is_list = action.nargs not in (None, "?") or isinstance(action, argparse._AppendAction)
    parts = given.value if isinstance(given.value, list) else [given.value]
    if len(parts) != 1 and not is_list:
        raise _wrong(given, "one value", "값 하나")
    values = [_converted(action, part, given) for part in parts]
    if isinstance(action, argparse._AppendAction):
        action.default = Repeated(values)
    else:
        action.default = values if is_list else values[0]


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
