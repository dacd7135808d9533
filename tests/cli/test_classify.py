"""`kogpt classify`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kogpt.cli import main


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["classify", *words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_three_formats_say_the_same(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--labels", "좋음,나쁨", "--model", str(tiny_folder), "하늘이 맑다", "비가\t온다")
    _, text, _ = run(capsys, *words)
    _, table, _ = run(capsys, *words, "--format", "tsv")
    code, objects, _ = run(capsys, *words, "--format", "json")
    records = [json.loads(line) for line in objects.splitlines()]
    assert code == 0 and [record["text"] for record in records] == ["하늘이 맑다", "비가\t온다"]
    names, *rows = [line.split("\t") for line in table.splitlines()]
    assert names == ["text", "label", "좋음", "나쁨"] and [row[1] for row in rows] == [
        record["label"] for record in records
    ]
    assert [line.split("\t")[0] for line in text.splitlines()] == [row[1] for row in rows]
    assert sum(records[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_two_models_on_labelled_text(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.tsv"
    file.write_text("text\tlabel\n하늘\t좋음\n땅\t1\n", encoding="utf-8")
    words = ("--labels", "좋음,나쁨", "--file", str(file), "--model", str(tiny_folder))
    code, out, _ = run(capsys, *words, "--compare", str(tiny_folder))
    assert code == 0 and "p = 1" in out.splitlines()[-1]
    code, _, err = run(capsys, *words)
    assert code == 0 and "of 2" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["글"], "no labels"),
        (["--labels", "하나", "글"], "1 labels"),
        (["--as", "sentiment", "--labels", "가,나", "글"], "leave out --labels"),
        (["--examples", "x.tsv", "--as", "sentiment", "글"], "--examples"),
        (["--labels", "가,나", "글", "--compare", "kogpt-mini"], "right answers"),
        (["--labels", "가,나", "--file", "/nowhere.txt"], "cannot read"),
        (["--labels", "가,나", "글", "--file", "x"], "not both"),
    ],
)
def test_mistakes(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *words)
    assert code == 2 and out == "" and says in err and err.count("\n") == 1


def test_an_example_with_a_label_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "shots.tsv"
    file.write_text("text\tlabel\n하늘\t다른\n", encoding="utf-8")
    code, _, err = run(capsys, "--labels", "가,나", "--examples", str(file), "글")
    assert code == 2 and "line 2" in err and "다른" in err
