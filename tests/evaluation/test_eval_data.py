"""Data files: known by hash, refused otherwise, fetched once; tasks and their files as a whole."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from small import reviews, write_tsv

from kogpt import data_files as data
from kogpt import datasets as sources
from kogpt.data_files import Source
from kogpt.errors import InputError, KoGPTError
from kogpt.evaluation import tasks

NAMES = ("id", "document", "label")


def test_a_known_file_is_read_and_named(tmp_path: Path) -> None:
    source = write_tsv(tmp_path / "rows.tsv.gz", NAMES, reviews(3))
    table = data.load([source], tmp_path)
    assert [row["id"] for row in table.rows] == ["1000", "1001", "1002"]
    assert table.digest == source.digest and table.note == source.note


def test_a_file_that_is_not_what_it_claims_is_refused(tmp_path: Path) -> None:
    source = write_tsv(tmp_path / "rows.tsv.gz", NAMES, reviews(3))
    write_tsv(tmp_path / "rows.tsv.gz", NAMES, reviews(4))
    with pytest.raises(InputError, match="is not test file") as caught:
        data.load([source], tmp_path)
    assert source.digest[:20] in str(caught.value)


def test_a_folder_without_the_file_names_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOGPT_DATA", str(tmp_path))
    with pytest.raises(InputError, match=r"ratings_test.txt / nsmc_test.tsv.gz"):
        data.load(sources.NSMC_TEST)


def test_an_official_file_is_fetched_once_checked_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = "id\tdocument\tlabel\n7\t좋아요\t1\n".encode()
    good = "sha256:" + hashlib.sha256(content).hexdigest()
    asked: list[str] = []

    def answer(url: str, timeout: float) -> Any:
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.delenv("KOGPT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", answer)
    source = Source("x.txt", good, "official", data.read_tsv, "https://example.org/x.txt")
    for _ in range(2):
        assert data.load([source]).rows == [{"id": "7", "document": "좋아요", "label": "1"}]
    assert asked == ["https://example.org/x.txt"]
    assert "https://example.org/x.txt" in capsys.readouterr().err
    bad = Source("y.txt", good[:-1] + "x", "official", data.read_tsv, "https://example.org/y.txt")
    with pytest.raises(InputError, match="is not official"):
        data.load([bad])
    assert not (data.cache_folder() / "y.txt").exists()


def test_no_network_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, timeout: float) -> Any:
        raise urllib.error.URLError("no route")

    monkeypatch.delenv("KOGPT_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(InputError, match="--data or KOGPT_DATA"):
        data.load(sources.NSMC_TEST)


def test_the_git_digest_is_gits_own(tmp_path: Path) -> None:
    content = "한 줄\n".encode()
    made = subprocess.run(
        ["git", "hash-object", "--stdin"], input=content, capture_output=True, check=True, cwd=tmp_path
    )
    assert data.digest_of(content, "git") == f"git:{made.stdout.decode().strip()}"


def test_readers() -> None:
    plain = 'a\tb\r\n"x"\t두  칸\u3000끝\n'.encode()
    assert data.read_tsv(plain) == [{"a": '"x"', "b": "두 칸 끝"}]
    quoted = 'a\tb\n"그는 ""빙고""라 외쳤다"\ty\n'.encode()
    assert data.read_quoted_tsv(quoted) == [{"a": '그는 "빙고"라 외쳤다', "b": "y"}]
    klue = [{"guid": "g", "labels": {"label": 4.9, "real-label": 4.85}, "annotations": {"x": []}}]
    assert data.read_klue(json.dumps(klue).encode()) == [{"guid": "g", "label": "4.9", "real_label": "4.85"}]
    with pytest.raises(ValueError, match="line 2 is not a row of the table: 1 columns"):
        data.read_tsv(b"a\tb\nc\n")


@pytest.mark.parametrize("name", tasks.NAMES)
def test_tasks_are_whole(name: str) -> None:
    task = tasks.get(name)
    assert task.name == name and task.version >= 1 and task.contamination
    assert len(task.prompts) >= 2, "more than one wording, by name"
    assert len({prompt.name for prompt in task.prompts}) == len(task.prompts)
    for prompt in task.prompts:
        assert prompt.source
        assert len(prompt.choices) == (len(prompt.grades) or len(task.labels))
    every = task.test + task.pool
    assert len({source.digest for source in every}) == len(every)
    assert any(source.url and source.url.startswith("https://") for source in task.test)
    with pytest.raises(KoGPTError, match="choose one of"):
        task.prompt("nonsense")


def test_an_unknown_task_is_answered_with_the_nearest() -> None:
    with pytest.raises(KoGPTError, match="try kobest-copa"):
        tasks.get("kobest_copa")


def test_prompts_read_as_published() -> None:
    nsmc = tasks.get("nsmc")
    example = nsmc.read({"id": "1", "document": "아 더빙.. 진짜 짜증나네요 목소리", "label": "0"})
    assert nsmc.prompt("brackets").render(example) == "아 더빙.. 진짜 짜증나네요 목소리 (부정)"
    assert nsmc.prompt("equals").render(example).endswith("목소리=부정")
    copa = tasks.get("kobest-copa")
    row = {
        "ID": "1",
        "sentence": "비가 왔다.",
        "question": "결과",
        "1": "젖었다.",
        "2": "말랐다.",
        "Answer": "1",
    }
    assert copa.prompt("harness").render(copa.read(row)) == "비가 왔다.  그래서 젖었다."
    sts = tasks.get("klue-sts")
    row = {"guid": "g", "sentence1": "가", "sentence2": "나", "label": "3.0"}
    assert sts.read(row).answer == 1, "3.0 and up is similar"
    assert sts.prompt("grade").render(sts.read(row)).endswith("점수: 3")
