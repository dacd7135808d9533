"""The Korean of messages and pages: one register, -하세요, and particles that fit the word before them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "kogpt").rglob("*.py"))
PAGES = sorted([ROOT / "README.ko.md", *(ROOT / "docs" / "ko").glob("*.md")])
COMMAND = re.compile(r"[가-힣]시오\b")  # 하십시오, 합시오
BOTH = re.compile(
    r"이\(가\)|가\(이\)|을\(를\)|를\(을\)|은\(는\)|는\(은\)|와\(과\)|과\(와\)|\(으\)로|으로\(로\)"
)


def korean_texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string with Hangul in a module; docstrings are not shown to users."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    statements = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in statements:
            if not re.search("[가-힣]", node.value):
                continue
            yield node.lineno, node.value


@pytest.mark.parametrize("pattern", [COMMAND, BOTH], ids=["register", "particles"])
def test_messages(pattern: re.Pattern[str]) -> None:
    found = [(path, text) for path in MODULES for text in korean_texts(path)]
    assert len(found) > 300
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {text}" for path, (line, text) in found if pattern.search(text)
    ]
    assert wrong == [], "-하세요, not -십시오; kogpt.errors.josa chooses the particle"


def english_words(call: ast.Call) -> Iterator[str]:
    """Words in a row that a call of print shows whatever the locale says."""
    for shown in call.args:
        parts = shown.values if isinstance(shown, ast.JoinedStr) else [shown]
        for part in parts:
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield from re.findall("[A-Za-z]{3,} [A-Za-z]{3,}", part.value)


def test_what_is_printed_is_localized() -> None:
    prints = [
        (path, node)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]
    assert len(prints) > 50
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {' '.join(words)}"
        for path, node in prints
        if (words := list(english_words(node)))
    ]
    assert wrong == [], "kogpt.errors.localized gives the text in the user's language"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [found[0] for pattern in (COMMAND, BOTH) for found in pattern.finditer(text)] == []


def test_what_is_refused() -> None:
    assert COMMAND.search("값을 줄여 주십시오") and COMMAND.search("읽읍시오.")
    assert not COMMAND.search("값을 줄이세요. 시오니즘")
    assert all(BOTH.search(text) for text in ("모델이(가)", "값을(를)", "길이은(는)", "a와(과)", "b(으)로"))
    assert not BOTH.search("구간의 길이(8)가 깁니다")
