"""`kogpt summarize`, `kogpt ask` and `kogpt report`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kogpt.cli import main

TEXT = "임진왜란은 1592년에 일어났다. 그때 조선의 왕은 선조였다. 이순신은 바다에서 싸웠다."


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "a.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def test_summarize(file: str, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summarize", file, "--sentences", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "sentences" and found["summary"][0] in TEXT
    assert main(["summarize", file, "--title"]) == 0
    title = capsys.readouterr().out.split()
    assert title and all(word in TEXT for word in title)  # nothing is made up without an adapter
    assert main(["summarize", file, "--abstract", "--model", str(tiny_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "abstract"


def test_ask(file: str, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    question = "임진왜란 때 조선의 왕은?"
    assert main(["ask", question, "--file", file, "--no-answer"]) == 0
    assert "1. 그때 조선의 왕은 선조였다." in capsys.readouterr().out
    assert main(["ask", question, "--file", file, "--model", str(tiny_folder), "-k", "1"]) == 0
    shown = capsys.readouterr()
    assert "Answer" in shown.out and "may be wrong" in shown.err
    assert main(["ask", question, "--file", file, "--no-answer", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["answer"] is None and found["evidence"][0]["sentence"] == "그때 조선의 왕은 선조였다."


WITHOUT_MODEL = [
    ["summarize", "{file}"],
    ["summarize", "{file}", "--title"],
    ["ask", "전화는?", "--file", "{file}", "--no-answer"],
]


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize(
    "command",
    [
        *WITHOUT_MODEL,
        ["ask", "전화는?", "--file", "{file}", "--model", "{model}"],
        ["summarize", "{file}", "--abstract", "--model", "{model}"],
    ],
    ids=" ".join,
)
def test_all_that_is_shown_is_filtered(
    command: list[str], form: list[str], file: str, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentences of the text too, with and without a model."""
    Path(file).write_text("문의 전화는 010-0123-4567입니다.", encoding="utf-8")
    places = {"{file}": file, "{model}": str(tiny_folder)}
    words = [places.get(word, word) for word in command] + form
    found = {}
    for mode in ("off", "mask", "block"):
        assert main([*words, "--filter", mode]) == 0
        found[mode] = capsys.readouterr().out
    assert "0123" not in found["mask"] + found["block"] and "*" not in found["block"]
    if "--abstract" not in command:
        assert "010-0123-4567" in found["off"] and "전화는 ***-****-****" in found["mask"]
        assert "전화는" in found["block"]


@pytest.mark.parametrize("command", WITHOUT_MODEL, ids=" ".join)
def test_configured_options_of_a_model_are_no_mistake(
    command: list[str], file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [file if word == "{file}" else word for word in command]
    configured = {"REVISION": "x", "DTYPE": "int8", "DEVICE": "cuda:1", "OFFLOAD": "1", "ENCODING": "utf-8"}
    if "--title" in command:
        configured["SENTENCES"] = "2"
    else:
        configured["ADAPTER"] = "title"
    assert main(words) == 0
    plain = capsys.readouterr()
    for name, value in configured.items():
        monkeypatch.setenv(f"KOGPT_{name}", value)
    assert main(words) == 0
    assert capsys.readouterr() == plain


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.eml"
    words = ["report", "--prompt", "가", "--text", "나", "--temperature", "0.5", "--out"]
    assert main([*words, str(out)]) == 0
    assert b"opensource+kogpt@kakaobrain.com" in out.read_bytes()
    assert "nothing is sent" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "r.json")]) == 0
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["settings"] == {"temperature": 0.5}
    assert main([*words, str(out)]) == 2 and main([*words, str(tmp_path / "r.doc")]) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["summarize", "/nowhere.txt"], "cannot read"),
        (["summarize", "{empty}"], "no text"),
        (["ask", " ", "--file", "{file}", "--no-answer"], "question is empty"),
        (["ask", "왕은?", "--index", "/nowhere"], "/nowhere"),
        (["ask", "왕은?", "--file", "{empty}"], "no text"),
        (["summarize", "{file}", "--adapter", "title"], "add --abstract, or leave --adapter out"),
        (["summarize", "{file}", "--dtype=int8", "--device", "cpu"], "--device, --dtype"),
        (
            ["summarize", "{file}", "--title", "--cache_dtype", "int8"],
            "--adapter title, or leave --cache_dtype",
        ),
        (["summarize", "{file}", "--title", "--sentences", "2"], "--title makes one line"),
        (["summarize", "{file}", "--abstract", "--sentences=2"], "--abstract makes one line"),
        (
            ["ask", "왕은?", "--file", "{file}", "--no-answer", "--model", "x", "--adapter", "y"],
            "--model, --adapter",
        ),
        (["ask", "왕은?", "--index", "{file}", "--encoding", "utf-8"], "--encoding"),
    ],
)
def test_mistakes(
    words: list[str], says: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    places = {"{file}": file, "{empty}": str(tmp_path / "empty.txt")}
    assert main([places.get(word, word) for word in words]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and says in shown.err and shown.err.count("\n") == 1
