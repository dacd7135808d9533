"""/v1/classify, /v1/summarize, /v1/ask and /v1/filter: as in Python; mistakes are refused."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from time import sleep
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import TINY
from numpy.typing import NDArray
from serving import Running, serving

from kogpt import KoGPT, KoGPTError
from kogpt.adapter import SoftPrompt
from kogpt.classification import Wording
from kogpt.engine import Engine
from kogpt.peft import Origin, SavedAdapter
from kogpt.search.index import Document, Index, Passage
from kogpt.server import uses
from kogpt.server.limits import Limits
from kogpt.tasks.answers import Source, answer, find_evidence
from kogpt.tasks.filter import TextFilter
from kogpt.tasks.profanity import judge, judge_all
from kogpt.tasks.summaries import summarize

TURN = {"role": "user", "content": "가"}
TEXTS = ["하늘이 맑다", "비가 온다"]


def post(server: Running, path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60)


@pytest.mark.parametrize("shots", [(), (("바람이 분다", 1), ("해가 뜬다", 0))])
def test_labels_are_those_of_python(
    server: Running, model: KoGPT, shots: tuple[tuple[str, int], ...]
) -> None:
    labels = ["좋음", "나쁨"]
    examples = [{"text": text, "label": labels[label]} for text, label in shots]
    found = post(server, "classify", input=TEXTS, labels=labels, examples=examples, instruction="나눕니다.")
    expected = model.classify(TEXTS, Wording(tuple(labels), instruction="나눕니다.", examples=shots))
    before = server.service.model.engine.counters.reused
    post(server, "classify", input=TEXTS, labels=labels, examples=examples, instruction="나눕니다.")
    assert server.service.model.engine.counters.reused > before  # the shared part was read before
    assert found.status_code == 200
    for entry, own in zip(found.json()["data"], expected, strict=True):
        assert entry["label"] == own.label
        assert entry["probabilities"] == pytest.approx(own.probabilities, abs=1e-5)


def test_an_answer_has_its_evidence_first(server: Running, model: KoGPT, tmp_path: Path) -> None:
    text, question = "한강은 서울을 지난다. 날씨가 맑다.", "한강은 어디를 지나는가?"
    evidence = find_evidence(question, [Source(text)], 1)
    found = post(server, "ask", question=question, input=text, sentences=1).json()
    assert [entry["sentence"] for entry in found["evidence"]] == [e.sentence for e in evidence]
    assert found["answer"] == answer(model, question, evidence)
    assert post(server, "ask", question=question, input=text, answer=False).json()["answer"] is None
    assert post(server, "ask", question=question).status_code == 404  # no text and no index
    Index.add(tmp_path, [Document("강.txt", b"", [Passage(text, 1)])])
    server.service.index = tmp_path
    try:
        [first, *_] = post(server, "ask", question=question, answer=False).json()["evidence"]
        assert (first["sentence"], first["source"]) == (evidence[0].sentence, "강.txt")
        for other in ("?", "바다 고기"):  # no word; a word that no passage has
            assert post(server, "ask", question=other, answer=False).status_code == 400
        next(tmp_path.glob("*.sqlite")).write_bytes(b"no index")
        for path, body in (("ask", {"question": question}), ("search", {"query": "한강"})):
            refused = post(server, path, **body)
            assert refused.status_code == 503 and str(tmp_path) not in refused.text
    finally:
        server.service.index = None


def test_the_filter_weighs_the_profanity_adapter_where_a_request_names_it() -> None:
    model = KoGPT.from_pretrained(device="cpu")
    adapters = model.with_adapters({"judge": "profanity", "mood": "sentiment"})
    texts = ["이 등신아 꺼져라", "오늘 날씨가 참 좋네요"]
    with serving(model, adapters=adapters) as server:
        for text in texts:
            plain, joint = judge(text), judge_all([text], adapters["judge"])[0]
            assert joint.profanity != pytest.approx(plain.profanity, rel=1e-3)
            for name, expected in ((None, plain), ("kogpt-mini", plain), ("mood", plain), ("judge", joint)):
                found = post(server, "filter", input=text, model=name).json()
                assert found["profanity"] == pytest.approx(expected.profanity, rel=1e-3)
                assert found["profane"] == expected.profane
        assert post(server, "filter", input="가" * 5000, model="judge").status_code == 200
        assert post(server, "filter", input="가", model="other").status_code == 404


def test_what_asks_no_model_waits_in_a_queue_of_its_own(
    model: KoGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crowd of summaries is refused beyond a limit, and completions are not kept waiting behind it."""
    go_on = Event()
    monkeypatch.setattr(uses, "summarize", lambda text, n: go_on.wait(30) and summarize(text, n))
    with serving(model, Limits(aside=4)) as server, ThreadPoolExecutor(5) as clients:
        waiting = [clients.submit(post, server, "summarize", input="글이다.") for _ in range(4)]
        while server.service.aside.n_open < 4:
            sleep(0.01)
        refused = post(server, "filter", input="글")
        assert refused.status_code == 429 and "retry-after" in refused.headers
        assert post(server, "completions", prompt="가", max_tokens=2).status_code == 200
        go_on.set()
        assert [answer.result().status_code for answer in waiting] == [200] * 4
        assert post(server, "filter", input="글").status_code == 200


def test_sentences_and_covered_text(server: Running) -> None:
    found = post(server, "summarize", input="첫 문장이다. 둘째 문장이다.", sentences=1).json()
    assert found["sentences"] == ["첫 문장이다."] and found["title"]
    found = post(server, "filter", input="전화 010-0123-4567").json()
    assert found["text"] == "전화 ***-****-****" and found["found"][0]["kind"] == "mobile"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("classify", {"input": "글"}),
        ("classify", {"input": "글", "labels": ["하나"]}),
        ("classify", {"input": [], "labels": ["가", "나"]}),
        ("classify", {"input": "글", "labels": ["가", "나"], "examples": [{"text": "글", "label": "다"}]}),
        ("classify", {"input": ["가" * 9000] * 64, "labels": [str(n) for n in range(64)]}),
        ("ask", {"question": " ", "input": "글"}),
        ("ask", {"question": "글", "input": " "}),
        ("summarize", {"input": " "}),
        ("filter", {}),
    ],
)
def test_mistakes(server: Running, path: str, body: dict[str, Any]) -> None:
    assert post(server, path, **body).status_code == 400


@pytest.mark.parametrize(
    "field", [{"instruction": "나눕니다."}, {"examples": [{"text": "글", "label": "다"}]}]
)
def test_what_labels_alone_can_follow_is_refused_without_them(model: KoGPT, field: dict[str, Any]) -> None:
    tuned = with_adapter(model, Origin(labels=("가", "나"), template="{text}="))
    with serving(tuned) as server:
        assert post(server, "classify", input="글").status_code == 200
        refused = post(server, "classify", input="글", **field)
    assert refused.status_code == 400 and refused.json()["error"]["param"] in field


def test_a_head_answers_as_in_python(model: KoGPT) -> None:
    head = np.random.default_rng(3).standard_normal((2, TINY.d_model)).astype(np.float32)
    tuned = with_adapter(model, Origin(labels=("가", "나"), template="{text}="), head)
    graded = with_adapter(model, Origin(template="{text}="), head[:1])
    with serving(tuned) as server:
        found = post(server, "classify", input=TEXTS)
        worded = post(server, "classify", input=TEXTS, labels=["좋음", "나쁨"])
    for entry, own in zip(found.json()["data"], tuned.classify(TEXTS), strict=True):
        assert entry["label"] == own.label
        assert entry["probabilities"] == pytest.approx(own.probabilities, abs=1e-5)
    powers = np.exp(tuned.label_scores(TEXTS))
    shares = [list(entry["probabilities"].values()) for entry in found.json()["data"]]
    np.testing.assert_allclose(shares, powers / powers.sum(1, keepdims=True), atol=1e-4)
    assert found.json()["usage"]["prompt_tokens"] > 0 and worded.status_code == 200
    with serving(graded) as server:
        assert post(server, "classify", input=TEXTS).status_code == 400
    with pytest.raises(KoGPTError, match="grades"):
        graded.classify(TEXTS)


def with_adapter(model: KoGPT, origin: Origin, head: NDArray[np.float32] | None = None) -> KoGPT:
    noise = np.random.default_rng(0).standard_normal((5, TINY.d_model)).astype(np.float32)
    saved = SavedAdapter(SoftPrompt(noise), head, origin)
    return KoGPT(model.tokenizer, Engine(model.engine.runner), tuned=saved)


WRITTEN = "전화 010-0123-4567, 또는 없음. "


@pytest.mark.parametrize("mode", ["mask", "block"])
def test_a_filter_covers_every_way_to_read_an_answer(model: KoGPT, mode: Any) -> None:
    """Streams and whole answers alike; logprobs would name the tokens, and are refused by their name."""
    filtered = KoGPT(model.tokenizer, Engine(model.engine.runner))
    filtered.use_screen(TextFilter(mode).stream)
    expected, cut = TextFilter(mode).apply(WRITTEN)
    wanted = {"prompt": "가", "choice": [WRITTEN], "max_tokens": 90}
    with serving(filtered) as server:
        assert not httpx.get(server.url + "/v1/models").json()["data"][0]["logprobs"]
        [choice] = post(server, "completions", **wanted).json()["choices"]
        assert choice["text"] == expected
        assert choice["finish_reason"] == ("content_filter" if cut else "stop")
        lines = post(server, "completions", **wanted, stream=True).text.splitlines()
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert "".join(event["choices"][0]["text"] for event in events) == expected
        for path, field in (("completions", {"logprobs": 1}), ("chat/completions", {"logprobs": True})):
            body = field | ({"prompt": "가"} if path == "completions" else {"messages": [TURN]})
            refused = post(server, path, **body)
            assert refused.status_code == 400 and refused.json()["error"]["param"] == "logprobs"
