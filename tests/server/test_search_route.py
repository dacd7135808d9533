"""/v1/search: passages of the index that the server was given."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from serving import serving

from kogpt.generation import KoGPT
from kogpt.search.index import Document, Index, Passage
from kogpt.search.reranking import Reranker
from kogpt.search.vectors import Embedder


def test_a_query_finds_passages_of_the_index_as_it_is_now(model: KoGPT, tmp_path: Path) -> None:
    texts = {"a": "서울은 수도이다.", "b": "부산은 항구이다."}
    Index.add(tmp_path, (Document(name, b"", [Passage(text, 1)]) for name, text in texts.items()))
    with serving(model) as server:
        url = f"{server.url}/v1/search"
        assert httpx.post(url, json={"query": "서울"}).status_code == 404
        server.service.index = tmp_path
        [hit] = httpx.post(url, json={"query": "서울은 어디인가?"}).json()["data"]
        assert (hit["passage"], hit["source"], hit["position"]) == ("서울은 수도이다.", "a", 1)
        assert hit["score"] > 0
        Index.add(tmp_path, [Document("c", b"", [Passage("서울의 강은 한강이다.", 1)])])
        assert len(httpx.post(url, json={"query": "서울"}).json()["data"]) == 2
        assert len(httpx.post(url, json={"query": "서울", "top_n": 1}).json()["data"]) == 1
        with Index.open(tmp_path) as index:
            expected = Reranker(model).rerank("서울의 강", index.query("서울의 강", 10))
        found = httpx.post(url, json={"query": "서울의 강", "rerank": True}, timeout=60).json()["data"]
        assert [hit["passage"] for hit in found] == [hit.passage for hit in expected]
        assert [hit["score"] for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-3)
        assert httpx.post(url, json={"query": " "}).status_code == 400
        assert httpx.post(url, json={"query": "서울", "top_n": 101}).status_code == 400


def test_vectors_count_where_a_request_names_the_model_that_made_them(tmp_path: Path) -> None:
    """The adapter `search` makes the vectors; the model without it orders the first hits."""
    texts = ["한강은 서울을 지난다.", "부산은 항구이다.", "서울의 강에는 다리가 많다."]
    loaded = KoGPT.from_pretrained(device="cpu")
    adapters = loaded.with_adapters({"search": "search"})
    embedder = Embedder(adapters["search"])
    with Index.writing(tmp_path) as writer:
        for number, text in enumerate(texts):
            writer.add(Document(str(number), b"", [Passage(text, 1)]))
        assert list(writer.embed(embedder))[-1] == 3
    with Index.open(tmp_path) as index:
        words = index.query("서울의 강")
        by_vectors = index.query("서울의 강", embedder=embedder)
    both = Reranker(loaded).rerank("서울의 강", by_vectors)
    with serving(loaded, adapters=adapters) as server:
        server.service.index = tmp_path

        def scores(**chosen: object) -> list[float]:
            body = {"query": "서울의 강", **chosen}
            answer = httpx.post(f"{server.url}/v1/search", json=body, timeout=60).raise_for_status().json()
            return [hit["score"] for hit in answer["data"]]

        assert scores(model="search") == pytest.approx([hit.score for hit in words])
        assert scores(model="search", vectors=True) == pytest.approx(
            [hit.score for hit in by_vectors], abs=1e-2
        )
        found = scores(model="search", vectors=True, rerank=True)
        assert found == pytest.approx([hit.score for hit in both], abs=0.1)
        for chosen in ({}, {"model": "kogpt-mini"}):  # the model without the adapter made no vectors
            body = {"query": "서울의 강", "vectors": True, **chosen}
            refused = httpx.post(f"{server.url}/v1/search", json=body, timeout=60)
            assert refused.status_code == 400 and refused.json()["error"]["param"] == "vectors"
