"""The one table of routes that take a body: what answers them, and in which shape they refuse."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from kogpt.server import (
    chat,
    completions,
    decisions,
    embeddings,
    kakao,
    messages,
    ranking,
    responses,
    search,
    tokens,
    uses,
)
from kogpt.server.refusals import Refused
from kogpt.server.service import Service

Handler = Callable[[HttpRequest, Service, Mapping[str, Any]], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """A handler, the class of its body, and its dialect of refusals."""

    handler: Handler
    body: type[BaseModel]
    refuse: Callable[[Refused], dict[str, Any]] = Refused.openai


POSTS: dict[str, Route] = {
    "/v1/completions": Route(completions.completions, completions.CompletionBody),
    "/v1/chat/completions": Route(chat.chat, chat.ChatBody),
    "/v1/responses": Route(responses.responses, responses.ResponseBody),
    "/v1/embeddings": Route(embeddings.embeddings, embeddings.EmbeddingBody),
    "/v1/rerank": Route(ranking.rerank, ranking.RerankBody),
    "/v1/score": Route(ranking.score, ranking.ScoreBody),
    "/v1/search": Route(search.search, search.SearchBody),
    "/v1/systemone": Route(decisions.decisions, decisions.DecisionBody),
    "/v1/classify": Route(uses.classify, uses.ClassifyBody),
    "/v1/summarize": Route(uses.summarise, uses.SummarizeBody),
    "/v1/ask": Route(uses.ask, uses.AskBody),
    "/v1/filter": Route(uses.cover, uses.FilterBody),
    "/v1/messages": Route(messages.messages, messages.MessageBody, messages.error_body),
    "/v1/messages/count_tokens": Route(messages.count_tokens, messages.CountBody, messages.error_body),
    "/tokenize": Route(tokens.tokenize, tokens.TokenizeBody),
    "/detokenize": Route(tokens.detokenize, tokens.DetokenizeBody),
    "/v1/inference/kogpt/generation": Route(kakao.generation, kakao.GenerationBody, kakao.error_body),
}


def error_body(path: str, refused: Refused) -> dict[str, Any]:
    """A refusal in the shape that the clients of a route read; OpenAI's where there is no such route."""
    route = POSTS.get(path)
    return refused.openai() if route is None else route.refuse(refused)
