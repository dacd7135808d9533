"""Reranking and vectors, with models that say what a test wants."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from kogpt.cli import main
from kogpt.errors import InputError
from kogpt.generation import KoGPT
from kogpt.search import vectors
from kogpt.search.index import Document, Hit, Index, Passage
from kogpt.search.reranking import Reranker
from kogpt.search.vectors import Embedder, VectorStore


class Model:
    """Scores by a table, embeds a text as the counts of four letters."""

    def __init__(self, likelihoods: dict[str, float] | None = None, letters: str = "가나다라") -> None:
        self.config = SimpleNamespace(n_ctx=256, d_model=len(letters))
        self.name = letters
        self.tokenizer = SimpleNamespace(encode=lambda text: [0] * 4 * len(text))
        self._likelihoods, self._letters = likelihoods or {}, letters
        self.embedded: list[str] = []

    def score(self, prompts: Sequence[str], continuations: Sequence[str]) -> list[float]:
        return [self._likelihoods.get(prompt[:2], -50.0) for prompt in prompts]

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.embedded += texts
        return np.array(
            [[text.count(letter) + 0.1 for letter in self._letters] for text in texts], np.float32
        )


def as_model(model: Any) -> KoGPT:
    return cast(KoGPT, model)


def test_the_first_hits_are_ordered_anew_and_stay_above_the_others() -> None:
    hits = [
        Hit(text, score, text, 1)
        for text, score in (("가가", 3.0), ("나나", 2.9), ("다다", 2.0), ("라라", 1.0))
    ]
    reranker = Reranker(as_model(Model({"가가": -50.0, "나나": -5.0, "다다": -40.0})), n_hits=3)
    ranked = reranker.rerank("물음", hits)
    assert ranked[0].passage == "나나" and ranked[-1] == hits[-1]
    assert {hit.passage for hit in ranked} == {hit.passage for hit in hits}
    assert all(a.score >= b.score for a, b in pairwise(ranked))
    assert reranker.rerank("물음", []) == []


def test_a_long_passage_leaves_room_for_the_question() -> None:
    hits = [Hit("가" * 1000, 1.0, "가", 1), Hit("나", 0.5, "나", 1)]
    asked = Reranker(as_model(Model())).questions("물음" * 100, hits)
    assert all(4 * len(prompt + question) <= 256 for prompt, question in asked)
    assert asked[0][0].count("가") > 20 and asked[1][0] == "나\n질문:"
    assert {question for _, question in asked} == {" " + "물음" * 8}


def test_vectors_are_made_once_and_go_on_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "EMBEDDED_AT_ONCE", 2)
    monkeypatch.setattr("kogpt.search.index.EMBEDDED_AT_ONCE", 2)
    texts = ["가 하나", "나 둘", "다 셋", "라 넷", "가 하나"]
    documents = [Document(str(i), b"", [Passage(text, 1)]) for i, text in enumerate(texts)]
    first, second = Model(), Model()

    def build(model: Model, batches: int) -> None:
        with Index.writing(tmp_path) as writer:
            for document in documents:
                writer.add(document)
            for count, _ in enumerate(writer.embed(Embedder(as_model(model))), 1):
                if count == batches:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(first, 1)
    build(second, 99)
    assert set(first.embedded) & set(second.embedded) == {vectors.PROBE}
    assert {*first.embedded, *second.embedded} == {*texts, vectors.PROBE}


def test_vectors_of_another_model_or_none_are_refused(tmp_path: Path) -> None:
    Index.add(tmp_path, [Document("a", b"", [Passage("가나다", 1)])])
    other = Embedder(as_model(Model(letters="세종가나")))
    with Index.open(tmp_path) as index, pytest.raises(InputError, match="no vectors"):
        index.query("가나다", embedder=other)
    with VectorStore.writing(tmp_path, Embedder(as_model(Model(letters="가나세종")))):
        pass
    with Index.open(tmp_path) as index, pytest.raises(InputError, match="another model"):
        index.query("가나다", embedder=other)


def test_the_model_without_the_adapter_of_the_vectors_reranks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, index = tmp_path / "texts", str(tmp_path / "index")
    folder.mkdir()
    for number, text in enumerate(["한강은 서울을 지난다.", "서울의 항구", "서울의 강에는 다리가 많다."]):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    chosen = ["--adapter", "search", "--device", "cpu"]
    assert main(["search", "index", str(folder), "--out", index, "--embed", *chosen]) == 0
    assert main(["search", "query", index, "서울의 강", "--rerank", "--json", *chosen]) == 0
    found = [json.loads(line)["score"] for line in capsys.readouterr().out.splitlines()]
    tuned, plain = (KoGPT.from_pretrained(device="cpu", adapter=name) for name in ("search", None))
    with Index.open(index) as opened:
        hits = opened.query("서울의 강", embedder=Embedder(tuned))
    expected, other = (Reranker(model).rerank("서울의 강", hits) for model in (plain, tuned))
    assert found == pytest.approx([hit.score for hit in expected], abs=1e-3)
    assert found != pytest.approx([hit.score for hit in other], abs=1e-2)
