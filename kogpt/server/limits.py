"""What one request and all requests together may take, checked before any work is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Protocol

from kogpt.errors import localized


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a server; `kogpt serve --print-limits` shows them."""

    body_bytes: int = 2 * 2**20
    buffered_bytes: int = 128 * 2**20
    header_bytes: int = 32 * 2**10
    headers: int = 100
    json_depth: int = 64
    prompts: int = 64
    messages: int = 1024
    n: int = 16
    stops: int = 16
    stop_characters: int = 256
    biases: int = 1024
    top_logprobs: int = 20
    cost: int = 262_144
    characters: int = 16 * 2**20
    logprobs: int = 262_144
    waiting: int = 256
    aside: int = 32
    body_seconds: float = 30.0
    header_seconds: float = 10.0
    stall_seconds: float = 30.0

    def describe(self) -> Iterator[str]:
        """A line for each: name, value, meaning."""
        for limit in fields(self):
            yield f"{limit.name:<16} {getattr(self, limit.name):>12,}  {localized(*MEANINGS[limit.name])}"


class Host(Protocol):
    """What access rules and limits need to know of a server: one with an engine, or one before another's."""

    limits: Limits
    draining: bool
    buffered: int  # bytes of bodies that are being received


MEANINGS = {
    "body_bytes": ("bytes of one body", "본문 하나의 바이트 수"),
    "buffered_bytes": ("bytes of all bodies that are being received", "받고 있는 모든 본문의 바이트 수"),
    "header_bytes": ("bytes of the headers of a request", "요청 헤더의 바이트 수"),
    "headers": ("headers of a request", "요청의 헤더 수"),
    "json_depth": ("nesting of a JSON body", "JSON 본문의 중첩 깊이"),
    "prompts": ("prompts or texts of one request", "요청 하나의 프롬프트(글) 수"),
    "messages": ("messages of one conversation", "대화 하나의 메시지 수"),
    "n": ("answers to one prompt", "프롬프트 하나의 답 수"),
    "stops": ("stop strings", "stop 문자열 수"),
    "stop_characters": ("characters of a stop string", "stop 문자열 하나의 글자 수"),
    "biases": ("entries of logit_bias", "logit_bias 항목 수"),
    "top_logprobs": ("likeliest tokens shown with each token", "토큰마다 보여 주는 후보 토큰 수"),
    "cost": ("tokens that one request may read and write", "요청 하나가 읽고 쓸 수 있는 토큰 수"),
    "characters": (
        "characters that one request has tokenised, a context once for every choice after it",
        "요청 하나가 토큰으로 나누는 글자 수(선택지마다 앞글을 한 번씩 셈)",
    ),
    "logprobs": (
        "tokens and candidates that the logprobs of one request may name",
        "요청 하나의 logprobs에 담을 수 있는 토큰과 후보의 수",
    ),
    "waiting": ("answers that wait for their turn", "차례를 기다리는 답의 수"),
    "aside": (
        "searches, summaries and filtered texts that are worked on or wait",
        "처리하고 있거나 차례를 기다리는 검색, 요약, 필터 요청의 수",
    ),
    "body_seconds": ("seconds to receive a body", "본문을 받는 시간(초)"),
    "header_seconds": ("seconds to receive the headers", "헤더를 받는 시간(초)"),
    "stall_seconds": (
        "seconds that a client may leave a stream unread",
        "스트림을 읽지 않는 시간(초)",
    ),
}
