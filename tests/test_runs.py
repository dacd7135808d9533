"""The scripts in runs/: what they ask of `kogpt`, from which folder, and what they take for done."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "runs"))
import adapters  # noqa: E402
import endings  # noqa: E402
import tuning  # noqa: E402


class Commands:
    """Stands for subprocess.run: notes the words of each command, and answers with so good a figure."""

    def __init__(self) -> None:
        self.words: list[list[str]] = []
        self.status = 0

    def __call__(self, words: Sequence[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        assert options["cwd"] == ROOT
        self.words.append(list(words)[3:])
        if self.status:
            options["stderr"].write(b"earlier\nkogpt: began with other rows\n")
        shown = json.dumps({"test": {"accuracy": 0.25 * len(self.words)}})
        return subprocess.CompletedProcess(words, self.status, f"...\n{shown}\n".encode())

    def last(self, option: str) -> str:
        """The value of an option in the last command: of two the later holds."""
        words = self.words[-1]
        return words[len(words) - words[::-1].index(option)]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands()
    monkeypatch.setattr(subprocess, "run", found)
    return found


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that scripts are called from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tuning, "tfidf", lambda task, args: {})
    yield tmp_path


def call_tuning(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    common = ["--data", "sets", "--work", "out", "--tasks", "nsmc", "--methods", "full", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", ["tuning.py", *common, *words])
    assert tuning.main() == 0


def test_figures_of_tuning_are_those_of_the_words(
    elsewhere: Path,
    commands: Commands,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words, figure in (([], 25), ([], 25), (["--rows", "5"], 50), (["--rows", "5"], 50), ([], 75)):
        call_tuning(monkeypatch, *words)
        assert f"| accuracy | {figure}.00 | 1 |" in capsys.readouterr().out
    (elsewhere / "out" / "nsmc-full-0.json").write_text('{"test": {"accuracy": 0.1}}', encoding="utf-8")
    call_tuning(monkeypatch)  # of an older script, which noted no words
    assert "| accuracy | 100.00 | 1 |" in capsys.readouterr().out


def test_what_kogpt_refuses_is_told_with_its_log(
    elsewhere: Path,
    commands: Commands,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands.status = 2
    call_tuning(monkeypatch)
    shown = capsys.readouterr()
    log = elsewhere / "out" / "nsmc-full-0.log"
    assert shown.err == f"nsmc, full: status 2, {log} ends with: kogpt: began with other rows\n"
    assert "accuracy" not in shown.out and not log.with_suffix(".json").exists()


@pytest.mark.parametrize(
    ("words", "epochs"),
    [
        ([], "3.0"),
        (["--quick"], "2.0"),
        (["--gpu"], "2"),
        (["--gpu", "--epochs", "1"], "1.0"),
        (["--epochs", "1", "--quick"], "1.0"),
    ],
)
def test_epochs_that_the_user_gives_win(
    words: list[str],
    epochs: str,
    elsewhere: Path,
    commands: Commands,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call_tuning(monkeypatch, *words)
    assert float(commands.last("--epochs")) == float(epochs)


def test_paths_are_of_the_callers_folder(
    elsewhere: Path, commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_tuning(monkeypatch)
    assert commands.last("--data") == str(elsewhere / "sets")
    assert commands.last("--out") == str(elsewhere / "out" / "nsmc-full-0")
    monkeypatch.setattr(sys, "argv", ["adapters.py", "sentiment", "--data", "sets", "--work", "out"])
    monkeypatch.setattr(adapters, "ship", lambda name, work: None)
    assert adapters.main() == 0
    assert commands.last("--data") == str(elsewhere / "sets")
    assert commands.last("--out") == str(elsewhere / "out" / "sentiment")


@pytest.mark.skipif(sys.platform != "linux", reason="the script is for GNU tools")
def test_paths_of_mini_are_of_the_callers_folder(tmp_path: Path) -> None:
    """With a `python` that only notes its arguments."""
    for name in ("corpus", "eval", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "own.toml").write_text("", encoding="utf-8")
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/words\n', encoding="utf-8")
    python.chmod(0o755)
    paths = {"CORPUS": "corpus", "WORK": "work", "RECIPE": "own.toml", "EVAL": "eval"}
    environment = {**os.environ, **paths, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    script = shutil.copytree(ROOT / "runs", tmp_path / "project" / "runs") / "mini.sh"
    subprocess.run(["bash", str(script)], cwd=tmp_path, env=environment, check=True)
    words = (tmp_path / "words").read_text(encoding="utf-8").split()
    assert words.count("runs/tables.py") == 2
    assert {words[n + 1] for n, word in enumerate(words) if word == "--data"} == {str(tmp_path / "eval")}
    assert all(word.startswith(str(tmp_path)) for word in words if word.endswith(("corpus", ".toml", "own")))


def test_lines_of_a_corpus_end_with_a_line_feed_only(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    texts = ["하나는\u2028둘은\u0085셋은", "넷은"]
    corpus.write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8"
    )
    assert endings.read_words(corpus) == ["하나는", "둘은", "셋은", "넷은"]
