"""Files -> prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kogpt.cli.reading import Entry, read_prompts
from kogpt.errors import InputError


@pytest.mark.parametrize("name", ["p.jsonl", "p.ndjson", "p.JSONL", "p.json"])
def test_json_gives_prompts_and_keeps_other_keys(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('{"prompt": "가\\n나", "id": 7}\n\n{"prompt": ""}\n')
    assert list(read_prompts(str(path), "x", "auto")) == [
        Entry(1, "가\n나", {"id": 7}),
        Entry(3, "", {}),
    ]


def test_lists_and_tables_give_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps([{"prompt": "가"}, {"prompt": "나", "id": 1}]))
    (tmp_path / "p.csv").write_text("id,prompt\n1,가\n2,나\n")
    assert list(read_prompts(str(tmp_path / "p.json"), "x", "auto"))[1] == Entry(2, "나", {"id": 1})
    assert list(read_prompts(str(tmp_path / "p.csv"), "x", "auto"))[1] == Entry(3, "나", {"id": "2"})


def test_lines_of_text_are_prompts(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("첫째 줄이다\r\n\r\n둘째 줄이다".encode("cp949"))
    found = list(read_prompts(str(tmp_path / "p.txt"), "x", "auto"))
    assert found == [Entry(1, "첫째 줄이다", {}), Entry(3, "둘째 줄이다", {})]


@pytest.mark.parametrize("line", ["{}", '{"prompt": 3}'])
def test_a_record_without_a_prompt_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "가"}}\n{line}')
    first, second = read_prompts(str(path), "x", "auto")
    assert first == Entry(1, "가", {})
    assert isinstance(second, InputError)
    assert second.en == 'x line 2 is not an object with a text "prompt"'
