"""The uses as their pages show them: the seven official examples, and a notebook for each use."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from unittest import mock

import pytest

from kogpt import KoGPT

ROOT = Path(__file__).parents[1]
with mock.patch.object(sys, "path", [str(ROOT / "runs"), *sys.path]):
    from uses import OFFICIAL, PAGES, run_official, with_threshold
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.fixture(scope="module")
def mini() -> KoGPT:
    return KoGPT.from_pretrained(device="cpu")


def test_the_official_examples_run(mini: KoGPT) -> None:
    found = list(run_official(mini))
    assert len(found) == 7
    for example, result in found:
        assert result.finish_reason in ("stop", "length")
        assert result.completion_tokens <= example.settings["max_tokens"]


@pytest.mark.parametrize("page", ["docs/uses.md", "docs/ko/uses.md"])
def test_the_pages_show_them(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for example in OFFICIAL:
        assert example.prompt.splitlines()[-1] in text
        assert f"max_tokens {example.settings['max_tokens']}" in text
    assert text.count("→") == 7 and "<!--" not in text


@pytest.mark.parametrize(("template", "page"), PAGES.values())
def test_a_page_has_the_text_of_its_template_and_the_results_that_it_points_to(
    template: str, page: str
) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = with_threshold((ROOT / "runs" / template).read_text(encoding="utf-8")).splitlines()
    assert [line for line in lines if line not in text.splitlines()] == ["<!-- official -->"]
    assert "\n|" in text or not re.search(r"table below|아래 (?:표|결과)", text)


def test_there_is_a_notebook_for_each_use() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "ask",
        "classify",
        "filter",
        "generate",
        "search",
        "summarize",
    ]
