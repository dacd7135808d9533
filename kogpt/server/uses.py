"""POST /v1/classify, /v1/summarize, /v1/ask and /v1/filter: labels, main sentences, answers, covered text.

A text is data: nothing in it is an instruction. Summaries and the filter ask no model, unless the filter's
request names one with the profanity adapter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from kogpt.classification import WITHOUT_CONTENT, Classification, Classifier, Wording, calibrated, shares
from kogpt.errors import KoGPTError
from kogpt.request import Request
from kogpt.search.index import require_query
from kogpt.server.aside import while_connected
from kogpt.server.fields import Body, Many, Strict, checked_count, read
from kogpt.server.refusals import Refused, refusal
from kogpt.server.search import with_index
from kogpt.server.service import Order, Served, Service, Usage, client_of
from kogpt.tasks.answers import SHORT, Evidence, Source, find_evidence, find_sources, prompt
from kogpt.tasks.filter import screen
from kogpt.tasks.profanity import has_adapter, judge, log_odds
from kogpt.tasks.summaries import make_title, summarize

MAX_CHARACTERS = 200_000
MAX_QUESTION = 2_000  # characters


class Shot(Strict):
    """A text with its label."""

    text: str
    label: str


class ClassifyBody(Body):
    """The body of /v1/classify."""

    input: str | Many[str]
    labels: Many[str] | None = None  # None: those of the model's adapter
    examples: Many[Shot] = Field(default_factory=list, max_length=64)
    instruction: str = ""


class SummarizeBody(Body):
    """The body of /v1/summarize."""

    input: str = Field(max_length=MAX_CHARACTERS)
    sentences: int = Field(default=3, ge=1, le=100)


class AskBody(Body):
    """The body of /v1/ask."""

    question: str = Field(max_length=MAX_QUESTION)
    input: str | None = Field(default=None, max_length=MAX_CHARACTERS)  # None: the server's index
    sentences: int = Field(default=3, ge=1, le=100)
    answer: bool = True  # whether the model says something as well


class FilterBody(Body):
    """The body of /v1/filter. model: one with the profanity adapter judges the text as well."""

    input: str = Field(max_length=MAX_CHARACTERS)


async def classify(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """The label of each text and how likely each is, corrected for what the model always prefers."""
    body = read(ClassifyBody, document)
    served = service.find(body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    checked_count(len(texts), "input", service.limits.prompts)
    _require_labels(body)
    try:
        if body.labels is None and served.model.has_head:
            found, n_tokens = await _by_head(http, service, served, texts)
        else:
            found, n_tokens = await _by_words(http, service, _Asked(served, _wording(served, body), texts))
    except KoGPTError as error:
        raise refusal(error, "input") from None
    data = [
        {"index": index, "label": one.label, "probabilities": one.probabilities}
        for index, one in enumerate(found)
    ]
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return JSONResponse({"object": "list", "model": served.name, "data": data, "usage": usage})


def _require_labels(body: ClassifyBody) -> None:
    """Refuse what only labels of the client's own can follow: an adapter has its own wording."""
    for name in ("examples", "instruction"):
        if body.labels is None and getattr(body, name):
            raise Refused(f"{name} is given without labels: give labels, or leave {name} out", name)


async def _by_head(
    http: HttpRequest, service: Service, served: Served, texts: Sequence[str]
) -> tuple[list[Classification], int]:
    """What the head of the model's adapter says of each text, and how many tokens were read."""
    service.check_characters(sum(map(len, texts)), "input")
    requests = await asyncio.to_thread(served.model.head_requests, texts)
    service.check_cost(requests, "input")
    pieces = await while_connected(http, service.ask(requests))
    found = served.model.labels_by_head(texts, [piece.event for piece in pieces])
    return found, sum(len(request.inputs) for request in requests)


async def _by_words(http: HttpRequest, service: Service, asked: _Asked) -> tuple[list[Classification], int]:
    """The same by the likelihood of the words that stand for labels."""
    service.check_characters(asked.n_characters(), "input")
    requests = await asyncio.to_thread(asked.requests)
    service.check_cost(requests, "input")
    if asked.wording.shared():
        requests = [replace(request, reusable=True, namespace=client_of(http)) for request in requests]
    likelihoods = await while_connected(http, _likelihoods(service, requests))
    return asked.classifications(likelihoods), sum(len(request.inputs) for request in requests)


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


@dataclass(frozen=True, slots=True)
class _Asked:
    """Texts to label, and how they are asked about."""

    served: Served
    wording: Wording
    texts: Sequence[str]

    def n_characters(self) -> int:
        """How many characters `requests` has tokenised: a prompt alone, and with each label."""
        wording = self.wording
        around = len(wording.shared()) + len(wording.template) + max(map(len, wording.answers))
        return sum((1 + len(wording.answers)) * (around + len(text)) for text in self._all())

    def requests(self) -> list[Request]:
        """One for each text, then those without content, where they are needed."""
        before, answers = self.wording.shared(), list(self.wording.answers)
        model = self.served.model
        return [model.question_request(before + self.wording.ask(text), answers) for text in self._all()]

    def classifications(self, likelihoods: np.ndarray[Any, np.dtype[np.float64]]) -> list[Classification]:
        """What the answers to the requests say of each text."""
        own, free = likelihoods[: len(self.texts)], likelihoods[len(self.texts) :]
        found = calibrated(own, free) if self.wording.calibrated else shares(own)
        return [self.wording.classification(text, row) for text, row in zip(self.texts, found, strict=True)]

    def _all(self) -> list[str]:
        return [*self.texts, *(WITHOUT_CONTENT if self.wording.calibrated else ())]


async def _likelihoods(
    service: Service, requests: Sequence[Request]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(requests, choices) log-likelihoods. The first goes ahead: others begin with what they share."""
    pieces = await service.ask(requests[:1])
    if requests[1:]:
        pieces += await service.ask(requests[1:])
    return np.array([[float(s.logprobs.sum()) for s in piece.event.choices] for piece in pieces])


async def summarise(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """The sentences that carry a text, word for word, and a title of its words."""
    body = read(SummarizeBody, document)
    try:
        found, title = await service.aside.run(
            http, lambda: (summarize(body.input, body.sentences), make_title(body.input))
        )
    except KoGPTError as error:
        raise refusal(error, "input") from None
    return JSONResponse({"sentences": [sentence.text for sentence in found], "title": title})


async def ask(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """The sentences that answer a question, word for word, and what the model says after them."""
    body = read(AskBody, document)
    served = service.find(body.model)
    try:
        evidence = await _evidence(http, service, body)
    except KoGPTError as error:
        raise refusal(error, "question") from None
    usage = Usage()
    said = None
    if body.answer:
        settings = {name: getattr(SHORT, name) for name in SHORT.__dataclass_fields__}
        order = Order(served, [prompt(body.question, evidence)], settings, namespace=client_of(http))
        [written] = await service.write(http, await service.requests(order), usage)
        said = written.text.strip()
    shown = [{"sentence": e.sentence, "source": e.source, "score": e.score} for e in evidence]
    return JSONResponse({"model": served.name, "evidence": shown, "answer": said, "usage": usage.openai()})


async def _evidence(http: HttpRequest, service: Service, body: AskBody) -> list[Evidence]:
    """The sentences of the given text, or of the server's index, that answer best."""
    if body.input is None:
        require_query(body.question)
        sources = await with_index(http, service, partial(find_sources, body.question))
    else:
        sources = [Source(body.input)]
    return await service.aside.run(http, partial(find_evidence, body.question, sources, body.sentences))


async def cover(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """The text with profanity and personal data covered, what was found where, how profane it is."""
    body = read(FilterBody, document)
    odds = await _odds(http, service, service.find(body.model), body.input)
    screened = await service.aside.run(http, lambda: screen(body.input, judge(body.input, odds)))
    return JSONResponse(screened.record())


async def _odds(http: HttpRequest, service: Service, served: Served, text: str) -> float | None:
    """What the model says of a text's profanity; None where it has no adapter for that."""
    model = served.model
    if not has_adapter(model) or not text.strip():
        return None
    wording, handles = model.wording(), model.handles
    classifier = Classifier(model.session, wording, handles.prefix, handles.adapter)
    try:
        request = await asyncio.to_thread(classifier.request, text)
    except KoGPTError as error:
        raise refusal(error, "input") from None
    [row] = shares(await while_connected(http, _likelihoods(service, [request])))
    return log_odds(wording.classification(text, row))
