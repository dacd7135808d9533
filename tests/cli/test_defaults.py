"""Defaults of options: flag, then environment, then file, then what is built in."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from kogpt import cli
from kogpt.cli import COMMANDS, command, defaults, parsers_by_name
from kogpt.errors import InputError


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
