"""`kogpt completion`: a script that lets a shell complete commands, options and their values."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

SHELLS = ("bash", "zsh", "fish")

BASH = """\
# eval "$(kogpt completion bash)"
_kogpt() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} path=kogpt values='' names='' options='' i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$path ${{COMP_WORDS[i]}}" in
            {paths}) path="$path ${{COMP_WORDS[i]}}" ;;
        esac
    done
    case "$path ${{COMP_WORDS[COMP_CWORD - 1]}}" in
{values}
    esac
    case "$path" in
{words}
    esac
    if [[ -n $values ]]; then
        COMPREPLY=($(compgen -W "$values" -- "$cur"))
    elif [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$options" -- "$cur"))
    else
        COMPREPLY=($(compgen -W "$names" -- "$cur"))
    fi
}}
complete -o default -F _kogpt kogpt
"""
ZSH = '# eval "$(kogpt completion zsh)"\nautoload -Uz compinit bashcompinit && compinit && bashcompinit\n'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kogpt completion`."""
    parser.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    from kogpt.cli import COMMANDS, command

    parsers = dict(_with_subcommands("kogpt", command(None)[1]))
    for name in COMMANDS:
        parsers |= _with_subcommands(f"kogpt {name}", command(name)[1])
    if args.shell == "fish":
        print("\n".join(_fish(parsers)))
    else:
        print((ZSH if args.shell == "zsh" else "") + _bash(parsers), end="")
    return 0


def _with_subcommands(
    path: str, parser: argparse.ArgumentParser
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """(words of the command line, parser) of a command and of those below it."""
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from _with_subcommands(f"{path} {name}", child)


def _bash(parsers: dict[str, argparse.ArgumentParser]) -> str:
    values, words = [], []
    for path, parser in parsers.items():
        names = " ".join([*_below(path, parsers), *_choices(parser)])
        options = [option for action in parser._actions for option in action.option_strings]
        words.append(f"        '{path}') names='{names}' options='{' '.join(options)}' ;;")
        for action in parser._actions:
            if action.option_strings and action.choices:
                patterns = "|".join(f"'{path} {option}'" for option in action.option_strings)
                values.append(f"        {patterns}) values='{' '.join(map(str, action.choices))}' ;;")
    paths = "|".join(f"'{path}'" for path in parsers)
    return BASH.format(paths=paths, values="\n".join(values), words="\n".join(words))


def _fish(parsers: dict[str, argparse.ArgumentParser]) -> Iterator[str]:
    yield "# kogpt completion fish | source"
    for path, parser in parsers.items():
        seen = [f"__fish_seen_subcommand_from {word}" for word in path.split()[1:]]
        here = " && ".join(seen) or "__fish_use_subcommand"
        for name in _below(path, parsers):
            text = parsers[f"{path} {name}"].description
            yield f"complete -c kogpt -n {_quoted(here)} -a {name} -d {_quoted(text or '')}"
        for choice in _choices(parser):
            yield f"complete -c kogpt -n {_quoted(here)} -a {choice}"
        for action in parser._actions:
            if action.option_strings:
                yield f"complete -c kogpt -n {_quoted(here)} {_fish_option(action, path)}"


def _fish_option(action: argparse.Action, prog: str) -> str:
    options = [f"-s {name[1:]}" for name in action.option_strings if len(name) == 2]
    options += [f"-l {name[2:]}" for name in action.option_strings if len(name) > 2]
    if action.choices:
        options.append(f"-x -a {_quoted(' '.join(map(str, action.choices)))}")
    elif action.nargs != 0:
        options.append("-r")
    text = (action.help or "") % (vars(action) | {"prog": prog})
    return f"{' '.join(options)} -d {_quoted(' '.join(text.split()))}"


def _below(path: str, parsers: dict[str, argparse.ArgumentParser]) -> list[str]:
    """Names of the commands one word below."""
    n = len(path.split())
    return [
        other.split()[n] for other in parsers if other.startswith(f"{path} ") and len(other.split()) == n + 1
    ]


def _choices(parser: argparse.ArgumentParser) -> list[str]:
    """Values of positional arguments."""
    return [
        str(choice)
        for action in parser._actions
        if not action.option_strings and not isinstance(action, argparse._SubParsersAction)
        for choice in action.choices or ()
    ]


def _quoted(text: str) -> str:
    """In single quotes, in which fish knows two escapes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
