"""The adapters that ship: small, whole, tuned on the kogpt-mini of this package, each with a card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kogpt import KoGPT, checkpoint, cli, peft
from kogpt.errors import CheckpointError
from kogpt.hub import ADAPTERS, adapter_names, find_adapter

MAX_BYTES = 12 << 20
LABELLED = {"sentiment", "intent", "profanity"}
EXAMPLES = Path(__file__).parents[1] / "examples"
# Commands that run or write a model, apart from --adapter; each finds adapters in its own place.
COMMANDS = (
    ("generate", "이 영화는", "--max-tokens", "1"),
    ("classify", "이 영화는 좋다", "--labels", "좋다,싫다"),
    ("eval", str(EXAMPLES / "reviews.toml"), "--shots", "0", "--limit", "2", "--no-tfidf"),
    ("search", "index", str(EXAMPLES / "article.txt"), "--out", "index", "--embed"),
    ("bench", "--rows", "1", "--prompt-tokens", "8", "--new-tokens", "2", "--rounds", "1"),
    ("export", "gguf-lora", "--out", "exported"),
)


def test_adapters_are_small() -> None:
    assert sum(path.stat().st_size for path in ADAPTERS.rglob("*")) <= MAX_BYTES


@pytest.mark.parametrize("name", adapter_names())
def test_an_adapter_belongs_to_kogpt_mini_and_has_a_card(name: str) -> None:
    saved = peft.load(name, checkpoint.load("kogpt-mini"))
    assert saved.origin.model is not None and saved.origin.tokenizer is not None
    assert bool(saved.origin.labels) == (name in LABELLED)
    card = (ADAPTERS / name / "README.md").read_text(encoding="utf-8")
    for part in ("**Data.**", "**Licence.**", "**Recipe.**", "**Figures**"):
        assert part in card
    assert not [path for path in (ADAPTERS / name).iterdir() if path.suffix == ".partial"]


@pytest.mark.skipif("sentiment" not in adapter_names(), reason="sentiment does not ship")
def test_a_review_is_labelled_by_name() -> None:
    model = KoGPT.from_pretrained(adapter="sentiment")
    good, bad = model.label_scores(
        ["정말 재미있고 감동적인 최고의 영화", "최악이다 돈 아깝고 지루한 쓰레기 영화"]
    )
    assert int(np.argmax(good)) == 1 and int(np.argmax(bad)) == 0
    assert model.classify("정말 재미있고 감동적인 최고의 영화").label == "긍정"


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_every_command_takes_a_name_that_ships(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([*words, "--adapter", "sentiment"]) == 0


def test_a_name_that_does_not_ship_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no adapter 'emotion'"):
        find_adapter("emotion")
    assert find_adapter(tmp_path) == tmp_path
