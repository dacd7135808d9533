"""Configured options beside typed ones: whatever a command refuses together, the typed one stands.

Each command line here works by itself. Every option of its command is configured beside it, alone and with
every other option typed: what was typed is never refused for what is configured.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from kogpt import checkpoint, peft
from kogpt.adapter import SoftPrompt
from kogpt.cli import COMMANDS, command, main
from kogpt.cli.defaults import RIVALS, SECTION_OF_PROMPT, Defaults, Given, options_of, parsers_below
from kogpt.errors import KoGPTError
from kogpt.peft import SavedAdapter
from kogpt.sampling import GRAMMARS

# Command -> lines that work, each up to where it begins to read a model or data, to train or to serve.
LINES: dict[str, tuple[str, ...]] = {
    "prompt": ("",),
    "generate": ("글", "--file f.txt", "--file f.txt --workers 2"),
    "classify": ("글 --as sentiment", "글 --labels 가,나", "--file rows.tsv --adapter sentiment"),
    "filter": ("글", "글 --adapter profanity", "--file f.txt"),
    "summarize": ("f.txt", "f.txt --title", "f.txt --abstract", "f.txt --title --adapter title"),
    "ask": ("하늘 --file f.txt", "하늘 --index index", "하늘 --file f.txt --no-answer"),
    "bench": ("", "--shape mini"),
    "eval": ("nsmc", "ppl --text f.txt", "list", "compare a b"),
    "serve": ("", "--engine vllm"),
    "report": ("--prompt 가 --text 나",),
    "search": ("index f.txt --out new", "query index 하늘", "query index 하늘 --words-only"),
    "export": (
        *("int4 --out new", "int8 --out new", "phi --out new", "gguf --out new"),
        *("peft --out new --adapter a", "gguf-lora --out new --adapter a"),
    ),
    "tune": (
        *("lora nsmc --out new", "lora --data rows.tsv --out new", "full --data rows.tsv --out new"),
        *("p-tuning --data rows.tsv --out new", "prefix --data rows.tsv --out new"),
        "embed --data pairs.tsv --out new",
    ),
    "demo": ("",),
}
WITHOUT = {"models", "info", "mcp", "pretrain", "config", "completion"}  # they refuse no options together
# Values that are right by themselves, by the name of an option; others are numbers, or words.
VALUES: dict[str, Any] = {"file": "f.txt", "text": "f.txt", "calibration": "f.txt", "examples": "rows.tsv"}
VALUES |= {"dev": "dev.tsv", "test": "dev.tsv", "data": "rows.tsv", "rows": "30", "index": "index"}
VALUES |= {"regex": "[0-9]+", "json_schema": "{}", "logit_bias": "5=1", "template": "{text}"}
VALUES |= {"adapter": "sentiment", "device": "cpu", "encoding": "utf-8", "labels": "가,나", "as": "sentiment"}
VALUES |= {"top_p": "0.5", "min_p": "0.5", "dev_share": "0.5", "host": "127.0.0.1", "api_key_file": "key.txt"}
VALUES |= {"model": "kogpt-mini", "prompt": "equals", "out": "new.eml", "engine": "kogpt"}
VALUES |= {"text_column": "text", "label_column": "label"}
OF_ONE: dict[tuple[str, str], Any] = {("embed", name): "others.tsv" for name in ("dev", "test")}
OF_ONE |= {("embed", "data"): "pairs.tsv", ("classify", "examples"): "shots.tsv", ("serve", "rows"): "2"}
OF_ONE |= {("tune", "labels"): ["0= 가", "1= 나"], ("export", "type"): "Q8_0"}
OF_ONE |= {("serve", "filter"): "off"}  # a configured one is refused in front of vLLM, which filters nothing
NEEDED = {"tls_certificate", "tls_key"}  # one without the other is refused, typed or not
STOPS = (
    *("kogpt.generation.KoGPT.from_pretrained", "kogpt.checkpoint.load", "kogpt.hub.find_folder"),
    *("kogpt.placement.load_runner", "kogpt.cli.speed.random_tensors", "kogpt.search.index.Index.writing"),
    *("kogpt.tuning.data.read_task", "kogpt.evaluation.compare.compare", "kogpt.cli.report.atomic_write"),
    *("kogpt.cli.generate.spread", "kogpt.cli.classify.spread", "kogpt.cli.eval.spread"),
)


class Reached(Exception):
    """The checks of options are passed."""


def stop(*_: Any, **__: Any) -> NoReturn:
    raise Reached


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with what the lines name, in which no command goes further than its checks."""
    from kogpt.search.index import Document, Index, Passage

    monkeypatch.setenv("LC_ALL", "C")
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # what --threads sets ends with the test
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.txt").write_text("하늘이 맑다.\n", encoding="utf-8")
    (tmp_path / "key.txt").write_text("key\n", encoding="utf-8")
    for name, word in (("rows", "글"), ("dev", "말")):
        rows = "".join(f"{word} {n}\t{n % 2}\n" for n in range(40))
        (tmp_path / f"{name}.tsv").write_text(f"text\tlabel\n{rows}", encoding="utf-8")
    for name, word in (("pairs", "글"), ("others", "말")):
        pairs = "".join(f"{word} {n}\t다른 {word} {n}\n" for n in range(40))
        (tmp_path / f"{name}.tsv").write_text(f"text1\ttext2\n{pairs}", encoding="utf-8")
    (tmp_path / "shots.tsv").write_text("text\tlabel\n글\t가\n", encoding="utf-8")
    Index.add(tmp_path / "index", [Document("a", b"1", [Passage("하늘", 1)])])
    for name in STOPS:
        monkeypatch.setattr(name, stop)
    monkeypatch.setattr("kogpt.cluster.vllm.require_vllm", lambda: "vllm")
    monkeypatch.setattr("kogpt.cli.serve._show_access_log", lambda: None)  # its stream ends with the test


def refusal(name: str, words: list[str], given: list[Given]) -> str | None:
    """Why a command line is refused with these defaults; None where it is not."""
    module, parser = command(None if name == SECTION_OF_PROMPT else name)
    found = Defaults(None, words)
    found.given = given
    sys.stdin = io.TextIOWrapper(io.BytesIO("글\n".encode()))
    try:
        found.apply(parser, name, {name: lambda: parser})
        module.run(parser.parse_args(words))
    except Reached:
        return None
    except KoGPTError as error:
        return str(error)
    except SystemExit as ended:
        return f"exit {ended.code}"
    return None


def parsers_of(name: str) -> dict[tuple[str, ...], argparse.ArgumentParser]:
    """The parsers of a command and of those below it, by their tables."""
    return dict(parsers_below(command(None if name == SECTION_OF_PROMPT else name)[1], (name,)))


def path_of(name: str, words: list[str]) -> tuple[str, ...]:
    """The table of a command line."""
    leaves = parsers_of(name)
    return (name, *words[:1]) if (name, *words[:1]) in leaves else (name,)


def values_of(path: tuple[str, ...]) -> Iterator[tuple[str, argparse.Action, Any]]:
    """(name, option, a value that is right by itself) for every option of a command."""
    for name, action in options_of(parsers_of(path[0])[path]).items():
        if name not in NEEDED:
            yield name, action, _value(path, name, action)


def _value(path: tuple[str, ...], name: str, action: argparse.Action) -> Any:
    if action.nargs == 0:
        return True
    known = OF_ONE.get((path[-1], name), OF_ONE.get((path[0], name), VALUES.get(name)))
    if known is not None and (not action.choices or known in action.choices):
        return known
    if action.choices:
        return [str(choice) for choice in action.choices if choice != action.default][-1]
    return "2" if callable(action.type) and action.type is not Path else "x"


def lines() -> Iterator[tuple[str, str]]:
    yield from ((name, line) for name, found in LINES.items() for line in found)


def test_every_command_has_lines() -> None:
    assert {*LINES, *WITHOUT} == {SECTION_OF_PROMPT, *COMMANDS}


@pytest.mark.parametrize(("name", "line"), list(lines()), ids=lambda part: part.replace(" ", "_"))
@pytest.mark.usefixtures("place")
def test_what_is_typed_is_never_refused_for_what_is_configured(
    name: str, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", sys.stdin)  # put back in the end
    words = line.split()
    assert refusal(name, words, []) is None
    path = path_of(name, words)
    configured, typed = [], []
    for option, action, value in values_of(path):
        is_many = isinstance(action, argparse._AppendAction) or action.nargs in ("+", "*")
        flag, many = action.option_strings[0], value if isinstance(value, list) else [value]
        configured.append(Given(option, many if is_many else value, "config.toml", path))
        if flag not in words:
            typed.append([flag] if value is True else [flag, *many])
    for given in configured:
        assert refusal(name, words, [given]) is None, given
    for more in typed:
        if refusal(name, [*words, *more], []) is not None:
            continue  # typed it is wrong, whatever is configured
        for given in configured:
            assert refusal(name, [*words, *more], [given]) is None, (more, given)
    capsys.readouterr()


def test_settings_that_exclude_each_other_are_rivals() -> None:
    """RIVALS repeats them: sampling.py imports numpy, for which --help must not wait."""
    assert GRAMMARS in RIVALS


@pytest.mark.parametrize(
    ("text", "line", "shown"),
    [
        ('adapter = "sentiment"', "filter 바보", "바보"),
        ('adapter = "sentiment"', "summarize --title f.txt", "하늘이 맑다"),
        ('adapter = "search"', "summarize --title f.txt", "하늘이 맑다"),
    ],
)
def test_an_adapter_that_serves_other_commands_is_passed_over(
    text: str, line: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """No model is loaded for it. In the command's own table, and typed, it is refused."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LC_ALL", "C")
    (tmp_path / "f.txt").write_text("하늘이 맑다.\n", encoding="utf-8")
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    words = [*line.split(), "--config", "config.toml"]
    with monkeypatch.context() as patch:
        patch.setattr("kogpt.generation.KoGPT.from_pretrained", stop)
        assert main(words) == 0
        assert shown in capsys.readouterr().out
    (tmp_path / "config.toml").write_text(f"[{words[0]}]\n{text}", encoding="utf-8")
    assert main(words) == 2
    assert "was not tuned on" in (told := capsys.readouterr().err) or "writes no text" in told


def test_a_line_by_the_model_passes_over_an_adapter_that_serves_other_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters: list[Any] = []

    def load(*_: Any, adapter: Any = None, **__: Any) -> NoReturn:
        adapters.append(adapter)
        raise Reached

    monkeypatch.setattr("kogpt.generation.KoGPT.from_pretrained", load)
    (tmp_path / "f.txt").write_text("하늘이 맑다.\n", encoding="utf-8")
    for name, wanted in (("sentiment", None), ("title", "title")):
        monkeypatch.setenv("KOGPT_ADAPTER", name)
        with pytest.raises(Reached):
            main(["summarize", "--abstract", str(tmp_path / "f.txt")])
        assert adapters[-1] == wanted


def test_a_soft_prompt_that_serves_other_commands_is_not_measured(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = checkpoint.load(tiny_folder)
    prompt = SoftPrompt(np.zeros((2, stored.config.d_model), np.float32))
    peft.save(tmp_path / "prompt", SavedAdapter(prompt), stored.config, str(tiny_folder))
    words = ["bench", "--model", str(tiny_folder), "--rows", "1", "--rounds", "1", "--new-tokens", "2"]
    words += ["--prompt-tokens", "8", "--device", "cpu", "--json"]
    assert main([*words, "--adapter", str(tmp_path / "prompt")]) == 2
    capsys.readouterr()
    monkeypatch.setenv("KOGPT_ADAPTER", str(tmp_path / "prompt"))
    assert main(words) == 0 and "adapters_cost" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mask", "block"])
def test_a_typed_filter_goes_before_configured_logprobs(
    name: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KOGPT_LOGPROBS", "2")
    words = ["generate", "글", "--json", "--max-tokens", "2", "--model", str(tiny_folder)]
    assert main([*words, "--filter", name]) == 0
    assert "logprobs" not in capsys.readouterr().out
    assert main(words) == 0
    assert "logprobs" in capsys.readouterr().out
    monkeypatch.setenv("KOGPT_FILTER", name)
    monkeypatch.delenv("KOGPT_LOGPROBS")
    assert main([*words, "--logprobs", "2"]) == 2  # nothing that is typed switches a filter off by the way
