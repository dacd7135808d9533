"""/v1/classify, /v1/summarize and /v1/filter: as in Python; mistakes are refused."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from serving import Running, serving

from kogpt import KoGPT
from kogpt.classification import Wording
from kogpt.engine import Engine
from kogpt.tasks.filter import TextFilter

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
    assert found.status_code == 200
    for entry, answer in zip(found.json()["data"], expected, strict=True):
        assert entry["label"] == answer.label
        assert entry["probabilities"] == pytest.approx(answer.probabilities, abs=1e-5)


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
        ("summarize", {"input": " "}),
        ("filter", {}),
    ],
)
def test_mistakes(server: Running, path: str, body: dict[str, Any]) -> None:
    assert post(server, path, **body).status_code == 400


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
