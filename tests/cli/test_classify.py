"""`kogpt classify`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kogpt import checkpoint, peft
from kogpt.adapter import unchanged
from kogpt.cli import command, main
from kogpt.peft import Origin, SavedAdapter
from kogpt.tasks.named import Labeller


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


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Lets --workers work here; the runs that a folder of parts would be named by."""
    runs: list[dict[str, Any]] = []

    def work_here(_: Any, make: Any, parts: Any, run: dict[str, Any]) -> Iterator[Any]:
        runs.append(run)
        return map(make(), parts)

    for name in ("generate", "classify"):
        monkeypatch.setattr(f"kogpt.cli.{name}.spread", work_here)
    return runs


@pytest.mark.parametrize(
    "words",
    [
        ["classify", "--labels", "가,나", "글"],
        ["generate", "--seed", "1", "--max-tokens", "1", "글"],
    ],
)
def test_parts_are_named_by_every_option_that_changes_answers(
    words: list[str], tiny_folder: Path, in_this_process: list[dict[str, Any]]
) -> None:
    """By each with a choice of values; those of --encoding and --format change the texts, or nothing."""
    words = [*words, "--model", str(tiny_folder), "--workers", "1"]
    options = [action for action in command(words[0])[1]._actions if action.choices]
    tried = [action for action in options if action.dest not in ("encoding", "format", "named")]
    assert {action.dest for action in tried} >= {"dtype", "cache_dtype"}
    assert main(words) == 0
    for action in tried:
        assert main([*words, action.option_strings[0], list(action.choices or ())[-1]]) == 0, action.dest
        assert in_this_process[-1] != in_this_process[0], action.dest


def test_parts_are_named_by_the_examples_not_by_their_file(
    tiny_folder: Path, tmp_path: Path, in_this_process: list[dict[str, Any]]
) -> None:
    file = tmp_path / "shots.tsv"
    words = ["classify", "--labels", "가,나", "--examples", str(file), "글", "--workers", "1"]
    for label in ("가", "나"):
        file.write_text(f"text\tlabel\n하늘\t{label}\n", encoding="utf-8")
        assert main([*words, "--model", str(tiny_folder)]) == 0
    assert in_this_process[0] != in_this_process[1]


def write_head(folder: Path, model: Path, labels: tuple[str, ...], template: str = "{text}=") -> None:
    """An adapter that answers by a head: with labels, or as a grade where there are none."""
    stored = checkpoint.load(model)
    head = np.random.default_rng(0).normal(size=(len(labels) or 1, stored.config.d_model)).astype(np.float32)
    saved = SavedAdapter(unchanged(stored.config), head, Origin.of(stored, "x", labels, template))
    peft.save(folder, saved, stored.config, str(model))


def test_an_adapter_with_a_head_labels_texts_in_every_way(
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    in_this_process: list[dict[str, Any]],
) -> None:
    write_head(tmp_path / "head", tiny_folder, (" 부정", " 긍정"))
    file = tmp_path / "a.tsv"
    file.write_text("text\tlabel\n하늘\t긍정\n땅\t1\n", encoding="utf-8")
    words = ("--adapter", str(tmp_path / "head"), "--file", str(file), "--model", str(tiny_folder))
    code, out, err = run(capsys, *words, "--format", "tsv")
    names, *rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and names == ["text", "label", "부정", "긍정"] and "of 2 as the file says" in err
    assert [row[0] for row in rows] == ["하늘", "땅"] and {row[1] for row in rows} <= {"부정", "긍정"}
    assert run(capsys, *words, "--format", "tsv", "--workers", "2") == (code, out, err)
    code, out, _ = run(capsys, *words, "--compare", str(tiny_folder))
    assert code == 0 and "p = 1" in out.splitlines()[-1]
    code, out, _ = run(capsys, *words, "--labels", "가,긍정", "--format", "tsv")  # words of one's own
    assert code == 0 and out.splitlines()[0].endswith("가\t긍정")


def test_an_adapter_with_a_head_is_a_labeller_in_python(tiny_folder: Path, tmp_path: Path) -> None:
    from kogpt.generation import KoGPT

    write_head(tmp_path / "head", tiny_folder, (" 부정", " 긍정"))
    with KoGPT.from_pretrained(tiny_folder, adapter=tmp_path / "head") as model:
        labeller = Labeller.by_adapter(model)
        assert labeller.labels == ("부정", "긍정")
        assert labeller.label(["하늘", "땅"]) == model.classify(["하늘", "땅"])


@pytest.mark.parametrize("template", ["{text}=", "{text1} {text2}="])
def test_a_head_that_grades_is_refused_in_one_line(
    template: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_head(tmp_path / "head", tiny_folder, (), template)
    words = ("--adapter", str(tmp_path / "head"), "글", "--model", str(tiny_folder))
    code, out, err = run(capsys, *words)
    assert code == 2 and out == "" and err.count("\n") == 1 and "grades texts and has no labels" in err
