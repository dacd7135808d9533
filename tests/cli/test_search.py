"""`kogpt search`: what is printed, exit codes, changes, an index that is killed while it is written."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import TINY, random_tensors

from kogpt import checkpoint
from kogpt.cli import main
from kogpt.search.index import Index

ROOT = Path(__file__).parents[2]
CITIES = {
    "서울": "서울은 한강이 흐르는 도시이다.",
    "부산": "부산은 바다가 보이는 도시이다.",
    "경주": "경주는 신라의 수도였다.",
}


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in CITIES.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


def sources(index: Path, query: str, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    capsys.readouterr()
    assert main(["search", "query", str(index), query, "--json", *options]) == 0
    return [json.loads(line)["source"] for line in capsys.readouterr().out.splitlines()]


def test_index_and_query(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = tmp_path / "index"
    assert main(["search", "index", str(texts), "--out", str(index)]) == 0
    assert "3 files, 3 paragraphs" in capsys.readouterr().err
    assert main(["search", "query", str(index), "신라의 수도는 어디인가?", "-k", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1. 경주.txt:1 (") and out.endswith(f"    {CITIES['경주']}\n")
    (texts / "서울.txt").unlink()
    (texts / "부산.txt").write_text("부산은 갈매기가 많다.", encoding="utf-8")
    (texts / "새.txt").write_text("제주는 섬이다.", encoding="utf-8")
    assert main(["search", "index", str(texts), "--out", str(index)]) == 0
    assert "(1 new, 1 changed, 1 removed, 0 left out)" in capsys.readouterr().err
    assert sources(index, "도시", capsys) == []
    assert sources(index, "갈매기", capsys) == ["부산.txt"]


def test_vectors_and_reranking(
    texts: Path,
    tmp_path: Path,
    tiny_folder: Path,
    tiny_tokenizer: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = tmp_path / "other"
    checkpoint.save(other, TINY, random_tensors(TINY, seed=7), dtype="float32", tokenizer=tiny_tokenizer)
    index, model = str(tmp_path / "index"), ["--model", str(tiny_folder)]
    assert main(["search", "index", str(texts), "--out", index, "--embed", *model]) == 0
    assert set(sources(Path(index), "도시는", capsys, *model)) == {"서울.txt", "부산.txt"}
    assert set(sources(Path(index), "도시는", capsys, "--rerank", *model)) == {"서울.txt", "부산.txt"}
    assert main(["search", "query", index, "도시", "--model", str(other)]) == 2
    assert "another model" in capsys.readouterr().err
    assert sources(Path(index), "신라", capsys, "--words-only") == ["경주.txt"]


def test_a_mistaken_rebuild_or_an_index_without_embed_keeps_the_vectors(
    texts: Path, tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, model = str(tmp_path / "index"), ["--model", str(tiny_folder)]
    assert main(["search", "index", str(texts), "--out", index, "--embed", *model]) == 0
    assert main(["search", "index", str(tmp_path / "typo"), "--out", index, "--rebuild"]) == 2
    assert set(sources(Path(index), "도시는", capsys, *model)) == {"서울.txt", "부산.txt"}
    (texts / "새.txt").write_text("새 도시는 넓다.", encoding="utf-8")
    assert main(["search", "index", str(texts), "--out", index]) == 0
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("kogpt: ") and "1 paragraphs have no vector yet" in told and "--embed" in told
    assert main(["search", "query", index, "도시는", *model]) == 2
    assert capsys.readouterr().err.splitlines() == [told]
    assert set(sources(Path(index), "도시는", capsys, "--words-only")) == {"서울.txt", "부산.txt", "새.txt"}
    assert main(["search", "index", str(texts), "--out", index, "--embed", *model]) == 0
    assert "no vector" not in capsys.readouterr().err
    assert set(sources(Path(index), "도시는", capsys, *model)) == {"서울.txt", "부산.txt", "새.txt"}


def test_one_line_and_exit_code_2(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = tmp_path / "index"
    assert main(["search", "query", str(index), "x"]) == 2
    assert main(["search", "index", str(tmp_path / "none"), "--out", str(index)]) == 2
    (texts / "그림.pdf").write_bytes(b"%PDF-1.4")
    assert main(["search", "index", str(texts), "--out", str(index)]) == 2
    assert "1 left out" in capsys.readouterr().err
    assert main(["search", "query", str(index), " "]) == 2
    assert main(["search", "index", str(tmp_path), "--out", str(index)]) == 2
    (index / "index.sqlite").write_bytes(b"x" * 9000)
    assert main(["search", "query", str(index), "서울"]) == 2
    assert main(["search", "index", str(texts), "--out", str(index)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("kogpt: ") for line in lines].count(True) >= 4
    assert "damaged" in lines[-1]
    (texts / "그림.pdf").unlink()
    assert main(["search", "index", str(texts), "--out", str(index), "--rebuild"]) == 0
    assert sources(index, "한강", capsys) == ["서울.txt"]


def test_a_document_does_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("가나다 \x1b]0;x\x07 라마바", encoding="utf-8")
    assert main(["search", "index", str(tmp_path / "a.txt"), "--out", str(tmp_path / "index")]) == 0
    assert main(["search", "query", str(tmp_path / "index"), "가나다"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_killed_at_a_random_moment_the_index_is_the_old_one_or_the_new(texts: Path, tmp_path: Path) -> None:
    kill_and_check(texts, tmp_path / "index", n_kills=3)


def mark(number: int) -> str:
    """A word that only one version of a file holds."""
    return 3 * chr(ord("갸") + 28 * number)


def kill_and_check(texts: Path, index: Path, n_kills: int) -> tuple[int, int]:
    """Kill `index` after random times; how often the old and the new state were found."""
    chance = random.Random(n_kills)
    command = [sys.executable, "-m", "kogpt", "search", "index", str(texts), "--out", str(index)]
    new = texts / "새.txt"

    def write(number: int) -> float:
        """Index version `number` of a file; the seconds that it took."""
        lines = "\n".join(f"{mark(number)} {i} 가나다라 마바사" for i in range(4000))
        new.write_text(lines, encoding="utf-8")
        started = time.monotonic()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        return time.monotonic() - started

    def holds(number: int) -> int:
        with Index.open(index) as opened:
            assert opened.query("신라의 수도")[0].source == "경주.txt"
            return len(opened.query(mark(number), k=4001))

    seconds = write(0)
    old_states = 0
    for number in range(1, n_kills + 1):
        new.write_text(
            new.read_text(encoding="utf-8").replace(mark(number - 1), mark(number)), encoding="utf-8"
        )
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            time.sleep(chance.uniform(0, 1.1 * seconds))
            process.kill()
        now, before = holds(number), holds(number - 1)
        assert (now, before) in ((4000, 0), (0, 4000))
        old_states += before == 4000
        seconds = write(number)
        assert holds(number) == 4000
    return old_states, n_kills - old_states
