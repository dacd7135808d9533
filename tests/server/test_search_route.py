"""/v1/search: passages of the index that the server was given."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from serving import serving

from kogpt.generation import KoGPT
from kogpt.search.index import Document, Index, Passage
from kogpt.search.reranking import Reranker


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
