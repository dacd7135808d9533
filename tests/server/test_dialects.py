"""Responses, Anthropic's messages, ranks, typed decisions, grammars, chat templates and adapters."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from conftest import TINY, random_tensors
from serving import Running, serving

from kogpt import KoGPT, checkpoint, peft
from kogpt.adapter import Adapter, Lora, LowRank, SoftPrompt
from kogpt.classification import WITHOUT_CONTENT
from kogpt.errors import SamplingError
from kogpt.grammar import Guide
from kogpt.server import decisions
from kogpt.server.access import Access
from kogpt.server.ranking import QUESTION
from kogpt.server.templates import ChatTemplate, TemplateError

QA = "Q:안녕하세요?\nA:"


@pytest.fixture
def client(server: Running) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def name_of(model: KoGPT) -> str:
    return Path(model.name).name


def post(server: Running, path: str, body: Mapping[str, Any], **headers: str) -> Any:
    response = httpx.post(server.url + path, json=body, headers=headers, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def refused(server: Running, path: str, body: Mapping[str, Any]) -> Any:
    response = httpx.post(server.url + path, json=body, timeout=60)
    assert response.status_code == 400, response.text
    return response.json()["error"]


# Responses


def test_a_response_is_the_next_turn(client: Any, model: KoGPT) -> None:
    settings: dict[str, Any] = {"model": name_of(model), "max_output_tokens": 12, "extra_body": {"seed": 4}}
    whole = client.responses.create(input="안녕하세요?", **settings)
    assert whole.output_text == model.generate(QA, max_tokens=12, seed=4, stop=["\nQ:"]).text
    assert whole.status == "incomplete" and whole.incomplete_details.reason == "max_output_tokens"
    turns = [{"role": "user", "content": "안녕하세요?"}]
    again = client.responses.create(input=turns, instructions="짧게", **settings)
    python = model.generate(f"짧게\n{QA}", max_tokens=12, seed=4, stop=["\nQ:"])
    assert again.output_text == python.text and again.usage.output_tokens == 12
    turns += [item.model_dump(exclude_none=True) for item in again.output]
    client.responses.create(input=[*turns, {"role": "user", "content": "네"}], **settings)


def test_a_streamed_response_adds_up(client: Any, model: KoGPT) -> None:
    settings: dict[str, Any] = {"model": name_of(model), "max_output_tokens": 12, "extra_body": {"seed": 5}}
    events = list(client.responses.create(input="안녕하세요?", stream=True, **settings))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    whole = client.responses.create(input="안녕하세요?", **settings)
    assert text == events[-1].response.output_text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type == "response.incomplete"
    settings |= {"extra_body": {"choice": ["네"]}}
    with client.responses.stream(input="안녕하세요?", **settings) as stream:  # the client's own helper
        assert "".join(event.delta for event in stream if event.type == "response.output_text.delta") == "네"
        assert stream.get_final_response().output_text == "네"


# Anthropic


def test_messages_are_anthropics(server: Running, model: KoGPT) -> None:
    body = {
        "model": name_of(model),
        "max_tokens": 12,
        "temperature": 0,
        "system": [{"type": "text", "text": "짧게", "cache_control": {"type": "ephemeral"}}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "안녕하세요?"}]}],
    }
    found = post(server, "/v1/messages", body, **{"anthropic-version": "2023-06-01"})
    python = model.generate(f"짧게\n{QA}", max_tokens=12, temperature=0, stop=["\nQ:"])
    assert found["content"] == [{"type": "text", "text": python.text}]
    assert found["stop_reason"] == ("max_tokens" if python.finish_reason == "length" else "end_turn")
    usage, n_prompt = found["usage"], python.prompt_tokens
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == n_prompt
    counted = {name: body[name] for name in ("model", "system", "messages")}
    assert post(server, "/v1/messages/count_tokens", counted) == {"input_tokens": n_prompt}
    stop = python.text[2:4]
    cut = post(server, "/v1/messages", body | {"stop_sequences": [stop]})
    assert (cut["stop_reason"], cut["stop_sequence"]) == ("stop_sequence", stop)
    assert cut["content"][0]["text"] == python.text[: python.text.index(stop)]


def test_streamed_messages_are_anthropics_events(server: Running, model: KoGPT) -> None:
    body = {"max_tokens": 12, "temperature": 0, "messages": [{"role": "user", "content": "안녕하세요?"}]}
    whole = post(server, "/v1/messages", body)
    response = httpx.post(server.url + "/v1/messages", json=body | {"stream": True}, timeout=60)
    events = [part.split("\n") for part in response.text.strip().split("\n\n")]
    documents = [json.loads(data.removeprefix("data: ")) for _, data in events]
    assert [name.removeprefix("event: ") for name, _ in events] == [d["type"] for d in documents]
    text = "".join(d["delta"]["text"] for d in documents if d["type"] == "content_block_delta")
    assert text == whole["content"][0]["text"]
    kinds = [d["type"] for d in documents if d["type"] != "content_block_delta"]
    assert kinds == [
        *("message_start", "content_block_start"),
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert documents[-2]["delta"]["stop_reason"] == whole["stop_reason"]
    assert documents[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"]


def test_anthropics_errors_are_in_its_shape(server: Running) -> None:
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        response = httpx.post(server.url + path, json={"messages": [{"role": "tool", "content": ""}]})
        document = response.json()
        assert response.status_code == 400 and document["type"] == "error"
        assert document["error"]["type"] == "invalid_request_error"
        lost = httpx.post(server.url + path, json={"model": "x", "messages": [], "max_tokens": 1})
        assert lost.status_code in (400, 404) and lost.json()["type"] == "error"


# Ranking


def test_documents_are_ranked_by_what_they_make_of_the_query(server: Running, model: KoGPT) -> None:
    documents = ["봄이 왔다", "법률 제1조", "고양이가 잔다"]
    found = post(server, "/v1/rerank", {"query": "봄", "documents": documents, "return_documents": True})
    wanted = {}
    for index, text in enumerate(documents):
        _, [ids] = model.tokenizer.encode_choices(text + QUESTION, [" 봄"])
        wanted[index] = math.exp(model.score(text + QUESTION, " 봄") / len(ids))
    order = sorted(wanted, key=lambda index: -wanted[index])
    assert [entry["index"] for entry in found["results"]] == order
    for entry in found["results"]:
        assert entry["relevance_score"] == pytest.approx(wanted[entry["index"]], rel=1e-5)
        assert entry["document"] == {"text": documents[entry["index"]]}
    top = post(server, "/v1/rerank", {"query": "봄", "documents": documents, "top_n": 1})
    assert [entry["index"] for entry in top["results"]] == order[:1]


def test_scores_are_cosines_of_embeddings(server: Running, model: KoGPT) -> None:
    texts = ["하나", "둘", "하나"]
    vectors = model.embed(texts)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = post(server, "/v1/score", {"text_1": texts[0], "text_2": texts[1:]})
    scores = [entry["score"] for entry in found["data"]]
    assert scores == pytest.approx([vectors[0] @ vectors[1], 1.0], abs=1e-5)
    pairs = post(server, "/v1/score", {"text_1": texts[:2], "text_2": texts[1:]})
    assert [entry["score"] for entry in pairs["data"]] == pytest.approx([scores[0]] * 2, abs=1e-5)
    assert refused(server, "/v1/score", {"text_1": texts, "text_2": texts[:2]})["param"] == "text_1"


# Typed decisions

STATE = "늦어서 화가 남"
QUESTIONS: dict[str, Any] = {
    "refund": {"type": "noul", "instructions": "환불?"},
    "team": {
        "type": "choice",
        "criteria": {"배송": "늦음", "결제": None, "기타": {"뜻": 1}},
    },
    "anger": {"type": "score", "instructions": "화?", "criteria": ["전혀", "조금", "매우"]},
}


def test_decisions_are_calibrated_likelihoods(server: Running, model: KoGPT) -> None:
    found = post(server, "/v1/systemone", {"state": STATE, "questions": QUESTIONS})
    assert found["usage"]["output_tokens"] == 0 and list(found["answers"]) == list(QUESTIONS)
    body = decisions.DecisionBody.model_validate({"state": STATE, "questions": QUESTIONS})
    for name, question in body.questions.items():
        options = question.options()
        labels = [f" {option.label}" for option in options]
        after = model.score(decisions.prompt(STATE, question, options), labels)
        free = [model.score(decisions.prompt(text, question, options), labels) for text in WITHOUT_CONTENT]
        before = np.mean([np.exp(row) / np.exp(row).sum() for row in free], axis=0)
        weights = np.exp(after) / before
        shares = weights / weights.sum()
        answer = found["answers"][name]
        if name == "refund":
            assert answer == {"type": "noul", "noul": pytest.approx(shares[0], rel=1e-5)}
        else:
            assert list(answer["probabilities"].values()) == pytest.approx(list(shares), rel=1e-5)
    assert found["answers"]["anger"]["legend"] == {"0": "전혀", "1": "조금", "2": "매우"}
    assert 0 <= found["answers"]["anger"]["score"] <= 2


@pytest.mark.parametrize(
    ("shares", "choice", "score", "confidences"),
    [
        ([1.0, 0.0, 0.0], "a", 0.0, (1.0, 1.0)),
        ([1 / 3, 1 / 3, 1 / 3], "a", 1.0, (0.0, 0.0)),
        ([0.0, 0.5, 0.5], "b", 1.5, (0.25, 0.25)),
    ],
)
def test_confidence_goes_from_not_at_all_to_sure(
    shares: list[float], choice: str, score: float, confidences: tuple[float, float]
) -> None:
    question = decisions.Choice(type="choice", criteria={"a": None, "b": None, "c": None})
    found = decisions.answer(question, question.options(), shares)
    assert (found["choice"], found["confidence"]) == (choice, pytest.approx(confidences[0]))
    levels = decisions.Score(type="score", criteria=["낮음", "중간", "높음"])
    found = decisions.answer(levels, levels.options(), shares)
    assert (found["score"], found["confidence"]) == (
        pytest.approx(score),
        pytest.approx(confidences[1]),
    )


@pytest.mark.parametrize(
    "question",
    [
        {"type": "word"},
        {"type": "choice", "criteria": {"하나": None}},
        {"type": "choice", "criteria": {" ": None, "둘": None}},
        {"type": "score", "criteria": ["단계"] * 11},
        {"type": "noul", "criteria": {"maybe": "글쎄"}},
        {"type": "noul", "colour": 1},
    ],
)
def test_questions_that_make_no_sense_are_refused(server: Running, question: dict[str, Any]) -> None:
    error = refused(server, "/v1/systemone", {"state": STATE, "questions": {"q": question}})
    assert error["param"].startswith("questions.q")


# Constrained answers

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2]}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("field", "texts"),
    [
        ({"regex": "[가나]{2}"}, {"가가", "가나", "나가", "나나"}),
        ({"guided_regex": "[가나]"}, {"가", "나"}),
        ({"choice": ["긍정", "부정"]}, {"긍정", "부정"}),
        ({"guided_choice": ["긍정", "부정"]}, {"긍정", "부정"}),
        ({"structured_outputs": {"choice": ["긍정", "부정"]}}, {"긍정", "부정"}),
        ({"guided_json": SCHEMA}, {'{"a": 1}', '{"a": 2}'}),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, {'{"a": 1}', '{"a": 2}'}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            {'{"a": 1}', '{"a": 2}'},
        ),
    ],
)
def test_answers_match_what_was_asked(server: Running, field: dict[str, Any], texts: set[str]) -> None:
    body = {"prompt": "답:", "max_tokens": 20, "n": 4, "temperature": 2} | field
    found = post(server, "/v1/completions", body)
    assert {choice["text"] for choice in found["choices"]} <= texts
    assert {choice["finish_reason"] for choice in found["choices"]} == {"stop"}


def test_chats_and_responses_write_json(client: Any, model: KoGPT) -> None:
    chat = client.chat.completions.create(
        model=name_of(model),
        messages=[{"role": "user", "content": "?"}],
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
        },
    )
    assert json.loads(chat.choices[0].message.content)["a"] in (1, 2)
    response = client.responses.create(
        model=name_of(model),
        input="?",
        text={"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
    )
    assert response.status == "completed" and json.loads(response.output_text)["a"] in (1, 2)
    free = client.chat.completions.create(
        model=name_of(model),
        messages=[{"role": "user", "content": "?"}],
        response_format={"type": "json_object"},
        max_tokens=4,
    )
    assert free.choices[0].message.content.startswith("{")


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"regex": "("}, "regex"),
        ({"guided_regex": "(?=a)b"}, "guided_regex"),
        ({"regex": "a{60000}"}, "regex"),
        ({"regex": "a", "choice": ["b"]}, "choice"),
        ({"choice": [""]}, "choice"),
        ({"choice": []}, "choice"),
        ({"guided_choice": []}, "guided_choice"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        (
            {"response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
            "response_format.json_schema",
        ),
        ({"response_format": {"type": "text", "json_schema": {"schema": {}}}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}},
            "response_format",
        ),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"guided_grammar": "root ::= a"}, "guided_grammar"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ],
)
def test_grammars_that_cannot_be_followed_are_refused(
    server: Running, field: dict[str, Any], param: str
) -> None:
    assert refused(server, "/v1/completions", {"prompt": "가"} | field)["param"] == param


@pytest.mark.parametrize("kind", ["text", "json_object"])
def test_a_schema_that_a_response_would_not_follow_is_refused(server: Running, kind: str) -> None:
    body = {"input": "가", "text": {"format": {"type": kind, "schema": {"type": "object"}}}}
    assert refused(server, "/v1/responses", body)["param"] == "text.format.schema"


def test_a_grammar_that_becomes_too_complex_is_the_clients_mistake(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Guide, token: int) -> None:
        raise SamplingError("too complex", "너무 복잡합니다")

    monkeypatch.setattr(Guide, "accept", broken)
    body = {"prompt": "가", "regex": "[가나]{3}"}
    assert refused(server, "/v1/completions", body)["code"] == "grammar"
    stream = httpx.post(server.url + "/v1/completions", json=body | {"stream": True}, timeout=60)
    assert '"code": "grammar"' in stream.text and "[DONE]" not in stream.text


# Chat templates

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}[EOS]\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def templated(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("templated")
    checkpoint.save(folder, TINY, random_tensors(TINY), dtype="float32", tokenizer=tiny_tokenizer)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    with serving(KoGPT.from_pretrained(folder, device="cpu", dtype="float32")) as running:
        yield running


def test_a_models_own_template_is_used_and_messages_stay_text(templated: Running) -> None:
    model = templated.service.model
    tokenizer = model.tokenizer
    ids = [tokenizer.special["[BOS]"], *tokenizer.encode("user: [EOS] 안녕"), tokenizer.eos_token_id]
    ids += tokenizer.encode("\nassistant:")
    body = {"messages": [{"role": "user", "content": "[EOS] 안녕"}], "seed": 1, "max_tokens": 8}
    text = post(templated, "/v1/chat/completions", body)["choices"][0]["message"]["content"]
    completion = post(templated, "/v1/completions", {"prompt": ids, "seed": 1, "max_tokens": 8})
    assert text == completion["choices"][0]["text"]
    counted = post(templated, "/v1/messages/count_tokens", {"messages": body["messages"]})
    assert counted == {"input_tokens": len(ids)}


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "time or memory",
        ),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses"),
        ("{{ raise_exception('turns must alternate') }}", "turns must alternate"),
        ("{{ nothing.at.all }}", "refuses"),
        ("{% if %}", "refuses"),
        ("{{ 'a' * 5000000 }}", "too long"),
    ],
)
def test_a_hostile_template_is_refused_and_harms_nobody(source: str, said: str) -> None:
    template = ChatTemplate(source, {}, {})
    with pytest.raises(TemplateError, match=said):
        template.render([{"role": "user", "content": "안녕"}])
    template.close()


def test_a_template_that_was_killed_renders_again() -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    template = ChatTemplate("{% if messages[0].content == '끝' %}" + endless + "{% endif %}가", {}, {})
    with pytest.raises(TemplateError):
        template.render([{"role": "user", "content": "끝"}])
    assert template.render([{"role": "user", "content": "안녕"}]) == ["가"]
    template.close()


# Adapters


@pytest.fixture(scope="module")
def family(model: KoGPT, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    width = TINY.d_model
    names = [f"transformer.h.{i}.attn.q_proj" for i in range(2)]
    updates = {name: LowRank(noise(4, width), noise(width, 4), 1.0) for name in names}
    root = tmp_path_factory.mktemp("adapters")
    assert model.folder is not None
    stored = checkpoint.load(model.folder)
    adapters: dict[str, Adapter] = {"lora": Lora(updates), "soft": SoftPrompt(noise(5, width))}
    for name, adapter in adapters.items():
        saved = peft.SavedAdapter(adapter, None, peft.Origin.of(stored))
        peft.save(root / name, saved, TINY)
    loaded = KoGPT.from_pretrained(model.folder, device="cpu", dtype="float32")
    models = loaded.with_adapters({name: root / name for name in adapters})
    with serving(loaded, access=Access(keys=("one", "two")), adapters=models) as running:
        yield running


def test_adapters_are_models(family: Running) -> None:
    found = openai.OpenAI(base_url=f"{family.url}/v1", api_key="one", max_retries=0)
    names = [entry.id for entry in found.models.list()]
    assert names[1:] == ["lora", "soft"]
    body = {"prompt": "옛날 옛적에", "temperature": 0, "max_tokens": 12}
    texts = {}
    for name in names:
        answer = post(family, "/v1/completions", body | {"model": name}, authorization="Bearer one")
        texts[name] = answer["choices"][0]["text"]
        python = family.service.models[name].generate("옛날 옛적에", temperature=0, max_tokens=12)
        assert texts[name] == python.text and answer["model"] == name
    assert len(set(texts.values())) == 3
    assert found.models.retrieve("lora").to_dict()["parent"] == names[0]


def test_what_was_read_before_is_counted_and_keys_share_nothing(family: Running) -> None:
    body = {"prompt": "동해물과 백두산이 마르고 닳도록 하느님이 보우하사 우리나라 만세", "max_tokens": 2}

    def cached(key: str, **more: str) -> int:
        found = post(family, "/v1/completions", body | more, authorization=f"Bearer {key}")
        n: int = found["usage"]["prompt_tokens_details"]["cached_tokens"]
        return n

    assert cached("one") == 0
    assert cached("one") >= 8
    assert cached("one", model="lora") == 0
    assert cached("two") == 0
    assert cached("two") >= 8
