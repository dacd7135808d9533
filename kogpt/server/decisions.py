"""Typed decisions: POST /v1/systemone, with requests and answers as transformers and llama.cpp have them.

The model writes nothing. It says how likely each allowed answer is after the state and the question, compared
with a state without content (classification.py): an answer that the model always likes counts for no more
than the others. The state comes first and is read once for all questions, by way of the prefix cache.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from kogpt.classification import WITHOUT_CONTENT, calibrated
from kogpt.errors import KoGPTError
from kogpt.request import Request
from kogpt.server.aside import while_connected
from kogpt.server.fields import Body, Many, Strict, checked_count, read
from kogpt.server.refusals import Refused, refusal
from kogpt.server.service import Served, Service, client_of

Content = str | dict[str, Any] | Many[Any]
MAX_OPTIONS = {"choice": 255, "score": 10}


class Noul(Strict):
    """A question that is answered with the probability of yes."""

    type: Literal["noul"]
    instructions: Content | None = None
    criteria: dict[Literal["true", "false"], Content | None] | None = None

    def options(self) -> list[Option]:
        """Yes and no."""
        told = self.criteria or {}
        return [Option("true", "예", told.get("true")), Option("false", "아니요", told.get("false"))]


class Choice(Strict):
    """A question whose answer is one of the keys; a value may describe its key."""

    type: Literal["choice"]
    instructions: Content | None = None
    criteria: dict[str, Content | None]

    def options(self) -> list[Option]:
        """The keys."""
        return [Option(name, name, told) for name, told in self.criteria.items()]


class Score(Strict):
    """A question whose answer is a level, the lowest first."""

    type: Literal["score"]
    instructions: Content | None = None
    criteria: Many[Content]

    def options(self) -> list[Option]:
        """The levels."""
        return [Option(str(i), shown(level), None) for i, level in enumerate(self.criteria)]


Question = Annotated[Noul | Choice | Score, Field(discriminator="type")]


class DecisionBody(Body):
    """The body of /v1/systemone."""

    state: Content
    questions: dict[str, Question]


@dataclass(frozen=True, slots=True)
class Option:
    """One allowed answer: its name in the reply, the text whose likelihood counts, and what it means."""

    name: str
    label: str
    told: Content | None

    def line(self) -> str:
        """As the prompt lists it."""
        return f"- {self.label}" if self.told is None else f"- {self.label}: {shown(self.told)}"


async def decisions(http: HttpRequest, service: Service, document: Mapping[str, Any]) -> Response:
    """A probability for every allowed answer to every question."""
    body = read(DecisionBody, document)
    served = service.find(body.model)
    checked_count(len(body.questions), "questions", service.limits.prompts)
    options = {name: question.options() for name, question in body.questions.items()}
    for name, question in body.questions.items():
        limit = MAX_OPTIONS.get(question.type, 2)
        if not 2 <= len(options[name]) <= limit or not all(option.label.strip() for option in options[name]):
            where = f"questions.{name[:60]}.criteria"
            raise Refused(f"{where} has {len(options[name])} answers, must be 2 to {limit} texts", where)
    service.check_characters(_n_characters(body, options), "questions")
    requests = await asyncio.to_thread(_requests, served, body, options)
    requests = [replace(request, reusable=True, namespace=client_of(http)) for request in requests]
    service.check_cost(requests, "questions")
    likelihoods = await while_connected(http, _likelihoods(service, requests))
    answers = {}
    for number, (name, question) in enumerate(body.questions.items()):
        found, *free = likelihoods[number :: len(options)]  # after the state, and after those without content
        [shares] = calibrated(np.array([found]), np.array(free))
        answers[name] = answer(question, options[name], [float(share) for share in shares])
    n_read = sum(len(request.inputs) + sum(map(len, request.choices)) for request in requests)
    usage = {"input_tokens": n_read, "output_tokens": 0}
    return JSONResponse({"model": served.name, "answers": answers, "usage": usage})


def answer(question: Question, options: Sequence[Option], shares: Sequence[float]) -> dict[str, Any]:
    """The reply to a question from the probability of each option.

    confidence: of a choice 0 where all are alike and 1 where one is sure; of a score 1 less the expected
    distance from the likeliest level, in units of that of equal shares from the middle.
    """
    if isinstance(question, Noul):
        return {"type": "noul", "noul": shares[0]}
    probabilities = {option.name: share for option, share in zip(options, shares, strict=True)}
    n, best = len(shares), int(np.argmax(shares))
    if isinstance(question, Choice):
        confidence = max(0.0, (shares[best] - 1 / n) / (1 - 1 / n))
        name = options[best].name
        return {
            "type": "choice",
            "choice": name,
            "confidence": confidence,
            "probabilities": probabilities,
        }
    levels = np.arange(n)
    distance = float(np.abs(levels - best) @ np.array(shares))
    return {
        "type": "score",
        "score": float(levels @ np.array(shares)),
        "legend": dict(zip(probabilities, question.criteria, strict=True)),
        "confidence": max(0.0, 1 - distance / float(np.abs(levels - (n - 1) / 2).mean())),
        "probabilities": probabilities,
    }


def prompt(state: str, question: Question, options: Sequence[Option]) -> str:
    """The text before an answer; it begins with the state, so that questions share it."""
    lines = [f"내용: {state}", ""]
    if question.instructions is not None:
        lines.append(f"질문: {shown(question.instructions)}")
    return "\n".join([*lines, "보기:", *(option.line() for option in options), "답:"])


def shown(content: Content) -> str:
    """Text as it is, anything else as JSON."""
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def _n_characters(body: DecisionBody, options: Mapping[str, Sequence[Option]]) -> int:
    """How many characters `_requests` has tokenised: a prompt with each of its options."""
    state, total = shown(body.state), 0
    for name, question in body.questions.items():
        length = len(prompt(state, question, options[name])) + max(len(o.label) for o in options[name])
        total += (1 + len(WITHOUT_CONTENT)) * (1 + len(options[name])) * length
    return total


def _requests(served: Served, body: DecisionBody, options: Mapping[str, Sequence[Option]]) -> list[Request]:
    """One for each question after the state, then the same after each state without content."""
    try:
        return [
            served.model.question_request(
                prompt(state, question, options[name]), [f" {option.label}" for option in options[name]]
            )
            for state in (shown(body.state), *WITHOUT_CONTENT)
            for name, question in body.questions.items()
        ]
    except KoGPTError as error:
        raise refusal(error, "questions") from None


async def _likelihoods(service: Service, requests: Sequence[Request]) -> list[list[float]]:
    """Of each request's options; the first request goes ahead, so that the others begin with its state."""
    pieces = [*await service.ask(requests[:1]), *await service.ask(requests[1:])]
    return [[float(scores.logprobs.sum()) for scores in piece.event.choices] for piece in pieces]
