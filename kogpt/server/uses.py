"""POST /v1/classify, /v1/summarize and /v1/filter: labels, main sentences, and covered text.

A text is data: nothing in it is an instruction. Summaries and the filter ask no model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from kogpt.classification import WITHOUT_CONTENT, Wording, calibrated, shares
from kogpt.errors import KoGPTError
from kogpt.request import Request
from kogpt.server.fields import Body, Strict, checked_count, read
from kogpt.server.refusals import refusal
from kogpt.server.service import Served, Service, while_connected
from kogpt.tasks.filter import TextFilter
from kogpt.tasks.profanity import judge
from kogpt.tasks.summaries import make_title, summarize

MAX_CHARACTERS = 200_000


class Shot(Strict):
    """A text with its label."""

    text: str
    label: str


class ClassifyBody(Body):
    """The body of /v1/classify."""

    input: str | list[str]
    labels: list[str] | None = None  # None: those of the model's adapter
    examples: list[Shot] = Field(default_factory=list, max_length=64)
    instruction: str = ""


class SummarizeBody(Body):
    """The body of /v1/summarize."""

    input: str = Field(max_length=MAX_CHARACTERS)
    sentences: int = Field(default=3, ge=1, le=100)


class FilterBody(Body):
    """The body of /v1/filter."""

    input: str = Field(max_length=MAX_CHARACTERS)


async def classify(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """The label of each text and how likely each is, corrected for what the model always prefers."""
    body = read(ClassifyBody, document)
    served = service.find(body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    checked_count(len(texts), "input", service.limits.prompts)
    try:
        wording = _wording(served, body)
        requests = await asyncio.to_thread(_questions, served, wording, texts)
    except KoGPTError as error:
        raise refusal(error, "input") from None
    service.check_cost(requests, "input")
    pieces = await while_connected(http, service.ask(requests))
    likelihoods = np.array([[float(s.logprobs.sum()) for s in piece.event.choices] for piece in pieces])
    own = likelihoods[: len(texts)]
    found = calibrated(own, likelihoods[len(texts) :]) if wording.calibrated else shares(own)
    data = [
        {
            "index": index,
            "label": wording.labels[int(row.argmax())],
            "probabilities": dict(zip(wording.labels, map(float, row), strict=True)),
        }
        for index, row in enumerate(found)
    ]
    n_tokens = sum(len(request.inputs) for request in requests)
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return JSONResponse({"object": "list", "model": served.name, "data": data, "usage": usage})


def _wording(served: Served, body: ClassifyBody) -> Wording:
    if body.labels is None:
        return served.model.wording()
    labels = tuple(body.labels)
    for shot in body.examples:
        if shot.label not in labels:
            raise KoGPTError(
                f"an example has the label {shot.label[:40]!r}, which is none of labels",
                f"예시의 레이블 {shot.label[:40]!r}: labels에 없습니다",
            )
    shots = tuple((shot.text, labels.index(shot.label)) for shot in body.examples)
    return Wording(labels, instruction=body.instruction, examples=shots)


def _questions(served: Served, wording: Wording, texts: list[str]) -> list[Request]:
    """One request for each text, then those without content, where they are needed."""
    asked = [*texts, *(WITHOUT_CONTENT if wording.calibrated else ())]
    before, answers = wording.shared(), list(wording.answers)
    return [served.model.question_request(before + wording.ask(text), answers) for text in asked]


async def summarise(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """The sentences that carry a text, word for word, and a title of its words."""
    del http, service
    body = read(SummarizeBody, document)
    try:
        found = await asyncio.to_thread(summarize, body.input, body.sentences)
        title = await asyncio.to_thread(make_title, body.input)
    except KoGPTError as error:
        raise refusal(error, "input") from None
    return JSONResponse({"sentences": [sentence.text for sentence in found], "title": title})


async def cover(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """The text with profanity and personal data covered, what was found where, how profane it is."""
    del http, service
    return JSONResponse(await asyncio.to_thread(_cover, read(FilterBody, document).input))


def _cover(text: str) -> dict[str, Any]:
    mask = TextFilter("mask")
    found = [{"start": span.start, "end": span.end, "kind": span.kind} for span in mask.spans(text)]
    return {"text": mask.apply(text)[0], "found": found, "profanity": judge(text).profanity}
