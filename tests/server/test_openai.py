"""OpenAI's own client, unchanged; streamed equals whole; prompts are scored as in Python."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from openai.types import chat, completion_create_params, embedding_create_params, responses
from serving import Running
from test_hostile import GOOD

from kogpt import KoGPT, Sampling
from kogpt.server.fields import IGNORED
from kogpt.server.routes import POSTS

PROMPT = "오늘 서울의 날씨는"
SHORT: dict[str, Any] = {"max_tokens": 3, "seed": 1, "stop": ["\nQ:"]}


@pytest.fixture
def client(server: Running) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def name_of(model: KoGPT) -> str:
    return Path(model.name).name


def test_the_model_is_listed(client: Any, model: KoGPT) -> None:
    assert [entry.id for entry in client.models.list()] == [name_of(model)]
    assert client.models.retrieve(name_of(model)).owned_by == "kogpt"


@pytest.mark.parametrize("stop", [None, ["다"], [" ", "."]])
def test_streamed_text_is_the_whole_text_is_that_of_python(
    client: Any, model: KoGPT, stop: list[str] | None
) -> None:
    for seed in range(4):
        settings = {"temperature": 1.5, "seed": seed, "max_tokens": 24, "stop": stop, "model": name_of(model)}
        whole = client.completions.create(prompt=PROMPT, **settings).choices[0]
        streamed = ""
        for chunk in client.completions.create(prompt=PROMPT, stream=True, **settings):
            streamed += chunk.choices[0].text
            finish = chunk.choices[0].finish_reason
        python = model.generate(PROMPT, temperature=1.5, seed=seed, max_tokens=24, stop=stop or ())
        assert whole.text == streamed == python.text
        assert whole.finish_reason == finish == python.finish_reason


def test_n_answers_to_many_prompts_are_numbered(client: Any, model: KoGPT) -> None:
    found = client.completions.create(
        model=name_of(model), prompt=["가", "나"], n=2, seed=3, max_tokens=6, temperature=1
    )
    expected = model.generate(["가", "나"], Sampling(n=2, seed=3, max_tokens=6, temperature=1))
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in found.choices] == [result.text for result in expected]
    assert found.usage is not None
    assert found.usage.completion_tokens >= sum(result.completion_tokens for result in expected)


def test_ids_as_prompts_are_those_of_the_text(client: Any, model: KoGPT) -> None:
    ids = [int(token) for token in model.tokenizer.encode(PROMPT)]
    texts = [
        client.completions.create(model=name_of(model), prompt=prompt, temperature=0, max_tokens=8)
        .choices[0]
        .text
        for prompt in (PROMPT, ids, [ids])
    ]
    assert texts[0] == texts[1] == texts[2]


def test_echo_scores_every_token_of_the_prompt(client: Any, model: KoGPT) -> None:
    found = client.completions.create(
        model=name_of(model), prompt=PROMPT, echo=True, logprobs=3, max_tokens=4, temperature=0
    ).choices[0]
    assert found.logprobs is not None and found.text.startswith(PROMPT)
    ids = [int(token) for token in model.tokenizer.encode(PROMPT)]
    content = found.logprobs.model_extra["content"]
    assert [entry["id"] for entry in content][: len(ids)] == ids
    values = found.logprobs.token_logprobs
    assert values is not None and values[0] is None
    [scores] = model.engine.score([(np.array(ids[:1]), [np.array(ids[1:])])])
    assert values[1 : len(ids)] == pytest.approx(scores[0].tolist(), abs=1e-5)
    assert b"".join(bytes(entry["bytes"]) for entry in content).decode("utf-8", "replace") == found.text
    assert all(len(entry["top_logprobs"]) == 3 for entry in content[1:])


@pytest.mark.parametrize("prompt", [PROMPT, [7]])
@pytest.mark.parametrize("stream", [False, True])
def test_every_answer_echoes_the_tokens_of_its_prompt(
    server: Running, model: KoGPT, prompt: str | list[int], stream: bool
) -> None:
    """Prompts of many tokens, and of one, which has no log-probability."""
    body = {"prompt": prompt, "n": 3, "echo": True, "logprobs": 1, "max_tokens": 4, "seed": 1}
    ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    texts = [""] * 3
    entries: list[list[Any]] = [[], [], []]
    places: list[list[int]] = [[], [], []]
    for choice in echoed(server, body | {"stream": stream}):
        texts[choice["index"]] += choice["text"]
        if choice["logprobs"]:
            entries[choice["index"]] += choice["logprobs"]["content"]
            places[choice["index"]] += choice["logprobs"]["text_offset"]
    for text, found, offsets in zip(texts, entries, places, strict=True):
        assert [entry["id"] for entry in found][: len(ids)] == list(ids)
        assert len(found) > len(ids) and found[0]["logprob"] is None
        assert all(entry["logprob"] is not None for entry in found[1:])
        raw = b"".join(bytes(entry["bytes"]) for entry in found)
        assert raw.decode("utf-8", "ignore") == text.replace("\ufffd", "")  # the last character may be cut
        assert offsets == [sum(len(e["token"]) for e in found[:i]) for i in range(len(found))]


def echoed(server: Running, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of an answer, or those of all events of a stream."""
    answer = httpx.post(server.url + "/v1/completions", json=body, timeout=60)
    if not body["stream"]:
        choices: list[dict[str, Any]] = answer.json()["choices"]
        return choices
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    return [choice for event in events for choice in event["choices"]]


def test_usage_comes_last_where_it_is_asked_for(client: Any, model: KoGPT) -> None:
    chunks = list(
        client.completions.create(
            model=name_of(model),
            prompt=PROMPT,
            max_tokens=5,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert all(chunk.usage is None for chunk in chunks[:-1])
    usage = chunks[-1].usage
    assert usage is not None and not chunks[-1].choices
    assert usage.prompt_tokens == len(model.tokenizer.encode(PROMPT)) and usage.completion_tokens == 5


def test_chat_ends_where_the_next_question_would_begin(client: Any, model: KoGPT) -> None:
    found = client.chat.completions.create(
        model=name_of(model),
        messages=[
            {"role": "system", "content": "친절하게 답합니다."},
            {"role": "user", "content": [{"type": "text", "text": "이름이 뭐예요?"}]},
        ],
        max_completion_tokens=12,
        seed=1,
        logprobs=True,
        top_logprobs=2,
    )
    answer = found.choices[0]
    text = "친절하게 답합니다.\nQ:이름이 뭐예요?\nA:"
    python = model.generate(text, max_tokens=12, seed=1, stop=["\nQ:"])
    assert answer.message.content == python.text and answer.message.role == "assistant"
    assert answer.logprobs is not None and answer.logprobs.content is not None
    assert all(math.isfinite(entry.logprob) for entry in answer.logprobs.content)
    stream = client.chat.completions.create(
        model=name_of(model),
        messages=[{"role": "user", "content": "안녕"}],
        max_tokens=8,
        seed=2,
        stream=True,
    )
    parts = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(parts) == model.generate("Q:안녕\nA:", max_tokens=8, seed=2, stop=["\nQ:"]).text


def test_embeddings_are_unit_vectors_of_the_model(client: Any, model: KoGPT) -> None:
    texts = ["문장 하나", "다른 문장"]
    found = client.embeddings.create(model=name_of(model), input=texts, encoding_format="float")
    wanted = model.embed(texts)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose([entry.embedding for entry in found.data], wanted, atol=1e-6)
    packed = client.embeddings.create(model=name_of(model), input=texts[0], encoding_format="base64")
    raw = np.frombuffer(base64.b64decode(packed.data[0].embedding), np.float32)
    np.testing.assert_allclose(raw, wanted[0], atol=1e-6)


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"suffix": "끝"}, "suffix"),
        ({"n": 99}, "n"),
        ({"temperature": 3.0}, "temperature"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop": ["."] * 17}, "stop"),
        ({"logit_bias": {"9999999": 1}}, "logit_bias"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"extra_body": {"colour": "blue"}}, "colour"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    client: Any, model: KoGPT, extra: dict[str, object], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=name_of(model), prompt=PROMPT, **extra)
    assert caught.value.param == param and caught.value.type == "invalid_request_error"


def test_a_prompt_that_is_too_long_says_so(client: Any, model: KoGPT) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=name_of(model), prompt="가나다라마바사 " * 200)
    assert caught.value.code == "context_length_exceeded"


def test_another_model_does_not_exist(client: Any) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-5", prompt=PROMPT)


PARAMETERS = {
    "/v1/completions": completion_create_params.CompletionCreateParamsBase,
    "/v1/chat/completions": chat.completion_create_params.CompletionCreateParamsBase,
    "/v1/responses": responses.response_create_params.ResponseCreateParamsBase,
    "/v1/embeddings": embedding_create_params.EmbeddingCreateParams,
}


@pytest.mark.parametrize("path", PARAMETERS)
def test_every_field_that_the_client_knows_is_known_here(server: Running, path: str) -> None:
    """null is as good as nothing; what cannot be followed is refused by its name."""
    fields = [name for name in PARAMETERS[path].__annotations__ if name not in GOOD[path]]
    assert len(fields) > 2
    foreign = set(fields) - set(POSTS[path].body.model_fields) - set(IGNORED)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        absent = client.post(path, json=GOOD[path] | dict.fromkeys(fields))
        assert absent.status_code == 200, absent.text
        for name in foreign:
            error = client.post(path, json=GOOD[path] | {name: {"a": 1}}).json()["error"]
            assert error["param"] == name and error["code"] in ("unsupported_parameter", "unknown_parameter")


def test_an_answer_can_be_given_back_as_it_came(client: Any, model: KoGPT) -> None:
    """Clients append the message that they got, with everything that is null in it."""
    asked: list[Any] = [{"role": "user", "content": "안녕"}]
    settings: dict[str, Any] = {"model": name_of(model), "max_tokens": 3, "seed": 1}
    message = client.chat.completions.create(messages=asked, **settings).choices[0].message
    for given in (message, message.model_dump(), {"role": "assistant", "content": message.content}):
        again = client.chat.completions.create(messages=[*asked, given, *asked], **settings)
        expected = model.generate(f"Q:안녕\nA:{message.content.strip()}\nQ:안녕\nA:", **SHORT).text
        assert again.choices[0].message.content == expected
