"""Text <-> ids: round trips, streams, and what is refused."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from korean import HARD, PROSE

from kogpt.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return Tokenizer.from_file(tiny_tokenizer)


@pytest.mark.parametrize("text", [*PROSE, *HARD, ""])
def test_any_text_round_trips_up_to_nfc(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)
