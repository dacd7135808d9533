"""Defaults of options: flag, then environment, then file, then what is built in."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from kogpt import cli
from kogpt.cli import COMMANDS, command, defaults, parsers_by_name
from kogpt.cli.classify import _check as check_classify
from kogpt.cli.defaults import Given
from kogpt.errors import InputError

VALUES = ("1", "0.5", "1,4,16", "true", "글", 3, 0.25, True, ["a"], ["a=b", "c=d"])


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")


def read(text: str, *words: str, tmp_path: Path) -> argparse.Namespace:
    """The arguments of a command line with this file."""
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    name = words[0] if words and words[0] in COMMANDS else None
    rest = [*words[name is not None :], "--config", str(path)]
    parser = command(name)[1]
    defaults.read_defaults(rest).apply(parser, name or "prompt", parsers_by_name())
    return parser.parse_args(rest)


def test_a_flag_goes_before_the_environment_and_that_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'dtype = "int8"\ntemperature = 0.5\ntop-p = 0.25\nseed = 1\n'
    text += "[prompt]\nseed = 2\n[serve]\nport = 9000\n"
    monkeypatch.setenv("KOGPT_TOP_P", "0.5")
    found = read(text, "--temperature", "0", tmp_path=tmp_path)
    assert (found.dtype, found.temperature, found.top_p, found.seed) == ("int8", 0.0, 0.5, 2)
    assert found.cache_dtype == "auto"  # built in
    assert read(text, "serve", tmp_path=tmp_path).port == 9000
    assert read(text, "generate", "가", tmp_path=tmp_path).seed == 1
    assert read(text, "models", tmp_path=tmp_path).json is False  # has none of these options


def test_the_usual_file_is_found_and_another_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert cli.main(["config"]) == 0
    assert "no file" in capsys.readouterr().out
    (tmp_path / "kogpt").mkdir()
    (tmp_path / "kogpt" / "config.toml").write_text('model = "a"\n[pretrain.run]\ndevice = "cpu"\n')
    monkeypatch.setenv("KOGPT_DTYPE", "int4")
    assert cli.main(["config"]) == 0
    path = tmp_path / "kogpt" / "config.toml"
    assert capsys.readouterr().out.splitlines() == [
        str(path),
        "model = 'a'",
        "pretrain.run.device = 'cpu'",
        "dtype = 'int4'  (KOGPT_DTYPE)",
    ]
    (tmp_path / "b.toml").write_text('model = "no-such-model"')
    monkeypatch.setenv("KOGPT_CONFIG", str(tmp_path / "b.toml"))
    assert cli.main(["info"]) in (0, 2)
    assert cli.main(["generate", "가", "--config", str(tmp_path / "c.toml")]) == 2
    assert "there is no file" in capsys.readouterr().err
    assert cli.main(["generate", "가"]) == 2
    assert "no-such-model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words", "complaint"),
    [
        ('modle = "a"', ("generate", "가"), "no option 'modle', did you mean model?"),
        ("porrt = 9000", ("generate", "가"), "no option 'porrt', did you mean port?"),
        ("[serve]\nprot = 1", ("serve",), r"\[serve\]: there is no option 'prot', did you mean port?"),
        ("[serv]\nport = 1", ("generate", "가"), r"table \[serv\], did you mean serve?"),
        ("[pretrain.rum]\nout = 1", ("pretrain", "run", "a"), "did you mean run?"),
        ("[serve]\ntop_p = 0.5", ("serve",), "no option 'top_p'"),
        ("temperature = true", ("generate", "가"), "temperature is True: a text or a number"),
        ('temperature = "warm"', ("generate", "가"), "temperature is 'warm': float expected"),
        ("temperature = [1, 2]", ("generate", "가"), "one value"),
        ('dtype = "int3"', ("generate", "가"), "dtype is 'int3': one of auto, float32"),
        ("json = 3", ("generate", "가"), "json is 3: true or false"),
        ("shots = 0.5", ("eval", "nsmc"), "not a whole number"),
        ("x = ", ("generate", "가"), "is not valid TOML"),
        ("config = 'a'", ("generate", "가"), "no option 'config'"),
    ],
)
def test_what_is_wrong_is_refused(tmp_path: Path, text: str, words: tuple[str, ...], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        read(text, *words, tmp_path=tmp_path)


def test_a_variable_that_is_no_option_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KOGPT_TEMPERTURE", "0.5")
    assert cli.main(["models"]) == 2
    assert "did you mean KOGPT_TEMPERATURE?" in capsys.readouterr().err
    monkeypatch.delenv("KOGPT_TEMPERTURE")
    monkeypatch.setenv("KOGPT_PORT", "9000")  # an option of another command
    assert cli.main(["models", "--json"]) == 0


def test_variables_of_kubernetes_are_no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service called kogpt puts them into every container."""
    links = {"PORT": "tcp://10.0.0.1:80", "PORT_80_TCP": "tcp://10.0.0.1:80", "PORT_80_TCP_ADDR": "10.0.0.1"}
    links |= {"SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "80", "SERVICE_PORT_HTTP": "80"}
    for name, value in links.items():
        monkeypatch.setenv(f"KOGPT_{name}", value)
    assert defaults.read_defaults([]).given == []


def test_options_that_repeat_are_replaced_not_extended(tmp_path: Path) -> None:
    text = 'stop = [".", "!"]\n[pretrain]\nexclude = "a"\n'
    assert read(text, "generate", "가", tmp_path=tmp_path).stop == [".", "!"]
    assert read(text, "generate", "가", "--stop", "?", "--stop", ",", tmp_path=tmp_path).stop == ["?", ","]
    assert read(text, "pretrain", "toy", "f", tmp_path=tmp_path).exclude == ["a"]


def test_switches_and_what_is_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "json = true\ndebug = true\n[pretrain.tokenizer]\nout = 'folder'\n"
    found = read(text, "generate", "가", tmp_path=tmp_path)
    assert found.json and found.debug
    assert read(text, "pretrain", "tokenizer", "f", tmp_path=tmp_path).out == "folder"
    monkeypatch.setenv("KOGPT_JSON", "0")
    monkeypatch.setenv("KOGPT_DEBUG", "no")
    found = read(text, "generate", "가", tmp_path=tmp_path)
    assert not found.json and not getattr(found, "debug", False)


def test_every_option_has_one_name() -> None:
    """A name in a file means one option of a command, never two."""
    for name in (None, *COMMANDS):
        for where, parser in defaults.parsers_below(command(name)[1], (str(name),)):
            named = [action for action in parser._actions if action.option_strings]
            found = {id(action) for action in defaults.options_of(parser).values()}
            own = {id(a) for a in named if {"--help", "--version", "--config"} & set(a.option_strings)}
            assert {id(action) for action in named} - own == found, where


def paths() -> Iterator[tuple[str, ...]]:
    """The words of every command, and of those below it."""
    for name, make in parsers_by_name().items():
        for where, _ in defaults.parsers_below(make(), (name,)):
            yield where


def test_the_example_of_the_help_breaks_no_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = [line.strip() for line in defaults.EPILOG.splitlines() if line.startswith("    ")]
    (tmp_path / "config.toml").write_text("\n".join(example), encoding="utf-8")
    assert example[0] == 'dtype = "int8"'
    for where in paths():
        words = [word for word in where if word != defaults.SECTION_OF_PROMPT]
        with pytest.raises(SystemExit) as caught:
            cli.main([*words, "--help", "--config", str(tmp_path / "config.toml")])
        assert caught.value.code == 0, where


def test_a_value_that_some_command_takes_breaks_no_other() -> None:
    """At the top of a file and in the environment; in a command's own table it is refused."""
    parsers = {name: make() for name, make in parsers_by_name().items()}
    commands = {name: partial(parsers.__getitem__, name) for name in parsers}
    options: dict[str, dict[str, list[argparse.Action]]] = {}  # name of an option -> of a command -> options
    for name, parser in parsers.items():
        for _, child in defaults.parsers_below(parser, (name,)):
            for option, action in defaults.options_of(child).items():
                options.setdefault(option, {}).setdefault(name, []).append(action)

    def is_taken(name: str, given: Given) -> bool:
        found = defaults.read_defaults([])
        found.given = [given]
        try:
            found.apply(parsers[name], name, commands)
        except InputError:
            return False
        return True

    for option, owners in options.items():
        choices = [
            choice for actions in owners.values() for action in actions for choice in action.choices or ()
        ]
        for value in (*VALUES, *dict.fromkeys(choices)) if len(owners) > 1 else ():
            some = any(is_taken(name, Given(option, value, "config.toml", (name,))) for name in owners)
            for name in owners:
                assert is_taken(name, Given(option, value, "config.toml")) == some, (option, value, name)


def test_a_value_for_others_leaves_what_is_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = 'dtype = "int8"\ndevice = "cuda:1"\nformat = "tsv"\nrows = "1,4"\nlabels = "긍정,부정"\n'
    tune = ("tune", "lora", "nsmc", "--out", "x")
    found = read(text, *tune, tmp_path=tmp_path)
    assert (found.dtype, found.device, found.rows) == ("auto", None, None)
    assert read(text, "pretrain", "toy", "f", tmp_path=tmp_path).format is None
    found = read(text, "bench", tmp_path=tmp_path)
    assert (found.dtype, found.device, found.rows) == ("int8", "cuda:1", (1, 4))
    monkeypatch.setenv("KOGPT_DTYPE", "int4")  # not for this command: the file's value stays
    assert read('dtype = "bfloat16"', *tune, tmp_path=tmp_path).dtype == "bfloat16"
    with pytest.raises(InputError, match="dtype is 'int8': one of auto, bfloat16"):
        read('[tune]\ndtype = "int8"', *tune, tmp_path=tmp_path)


def groups() -> Iterator[tuple[tuple[str, ...], list[argparse.Action]]]:
    """(words of the command, options) of every group of options that exclude each other."""
    for name, make in parsers_by_name().items():
        for where, parser in defaults.parsers_below(make(), (name,)):
            yield from ((where, group._group_actions) for group in parser._mutually_exclusive_groups)


def test_a_typed_option_goes_before_a_configured_one_that_it_excludes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs = [(where, *pair) for where, actions in groups() for pair in permutations(actions, 2)]
    assert {where[0] for where, *_ in pairs} >= {"ask", "bench", "export", "summarize"}
    for where, typed, other in pairs:
        with monkeypatch.context() as patch:
            patch.setenv(f"KOGPT_{other.dest.upper()}", "1")
            patch.setenv(f"KOGPT_{typed.dest.upper()}", "1")
            words = [typed.option_strings[0]] + (["2"] if typed.nargs is None else [])
            parser = command(where[0])[1]
            defaults.read_defaults(words).apply(parser, where[0], parsers_by_name())
            leaf = dict(defaults.parsers_below(parser, where[:1]))[where]
            for action in leaf._actions:
                action.required = False
            found = vars(leaf.parse_args(words))
        assert found[other.dest] == other.default and found[typed.dest] in ("2", 2, True), (where, typed.dest)


def test_a_configured_option_is_enough_for_a_group_of_which_one_is_required(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read('[ask]\nfile = "f"', "ask", "질문", tmp_path=tmp_path).file == "f"
    monkeypatch.setenv("KOGPT_INDEX", "idx")
    assert read("", "ask", "질문", tmp_path=tmp_path).index == "idx"
    found = read('[ask]\nfile = "f"', "ask", "질문", tmp_path=tmp_path)  # a variable goes before the file
    assert (found.file, found.index) == (None, "idx")
    found = read("", "ask", "질문", "--file=g", tmp_path=tmp_path)
    assert (found.file, found.index) == ("g", None)
    with pytest.raises(SystemExit):
        read("", "ask", "질문", "--file", "g", "--index", "idx", tmp_path=tmp_path)


def test_configured_options_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    words = ("export", "int4", "--out", "x")
    with pytest.raises(InputError, match="calibration and own_text exclude each other: type one of them"):
        read('[export]\ncalibration = "f"\nown_text = true', *words, tmp_path=tmp_path)
    found = read('[export]\ncalibration = "f"\nown_text = false', *words, tmp_path=tmp_path)
    assert (found.calibration, found.own_text) == ("f", False)
    found = read('adapter = "a"\n[bench]\nlora_rank = 8', "bench", tmp_path=tmp_path)
    assert (found.adapter, found.lora_rank) == (None, 8)  # the table goes before the top


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        (
            "model_parallel = true",
            ("generate", "가", "--device", "cpu"),
            {"device": "cpu", "model_parallel": False},
        ),
        (
            'device = "cpu"',
            ("generate", "가", "--model-parallel"),
            {"device": "auto", "model_parallel": True},
        ),
        (
            'device = "cuda"\nmodel_parallel = true',
            ("generate", "가"),
            {"device": "cuda", "model_parallel": True},
        ),
        (
            'adapter = "title"',
            ("classify", "--as", "sentiment", "가"),
            {"named": "sentiment", "adapter": None},
        ),
        ('[classify]\nas = "intent"', ("classify", "--labels=a,b", "가"), {"named": None, "labels": "a,b"}),
        ('adapter = "title"', ("bench", "--shape", "mini"), {"shape": "mini", "adapter": None}),
    ],
)
def test_options_that_a_command_itself_refuses_together(
    tmp_path: Path, text: str, words: tuple[str, ...], expected: dict[str, Any]
) -> None:
    found = vars(read(text, *words, tmp_path=tmp_path))
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RAY": "auto", "PARTS": "x"}, ("classify", "가", "--as", "sentiment")),
        (
            {"TEMPLATE": "{text}", "INSTRUCTION": "x", "EXAMPLES": "x"},
            ("classify", "가", "--as", "sentiment"),
        ),
    ],
)
def test_a_check_that_options_have_an_effect_leaves_configured_ones_alone(
    variables: dict[str, str], words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        with pytest.raises(InputError, match=r"--(workers|labels)"):
            check_classify(read("", *words, f"--{name.lower()}", value, tmp_path=tmp_path))
        monkeypatch.setenv(f"KOGPT_{name}", value)
    check_classify(read("", *words, tmp_path=tmp_path))


def test_rivals_are_options_of_one_command() -> None:
    known = [options.keys() for options in map(defaults.options_of, parsers())]
    assert [pair for pair in defaults.RIVALS if not any(names >= set(pair) for names in known)] == []


def parsers() -> Iterator[argparse.ArgumentParser]:
    for name, make in parsers_by_name().items():
        yield from (parser for _, parser in defaults.parsers_below(make(), (name,)))


def test_what_was_typed_and_what_was_configured_is_told_apart(tmp_path: Path) -> None:
    text = 'dtype = "int8"\nmodel = "a"\n[serve]\nrows = 3\n'
    found = read(text, "serve", "--model=b", "--adapter", "c", "--port", "1", tmp_path=tmp_path)
    assert found.typed == {
        "model": "--model",
        "adapters": "--adapter",
        "port": "--port",
        "config": "--config",
    }
    assert {name: given.source for name, given in found.configured.items()} == dict.fromkeys(
        ("dtype", "rows"), str(tmp_path / "config.toml")
    )
    found = read("", "search", "query", "i", "가", "-k3", tmp_path=tmp_path)
    assert found.typed["k"] == "-k" and found.configured == {}
