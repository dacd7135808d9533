"""Refusals as HTTP answers: the status, the field to blame, and a text that shows little of the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kogpt.errors import KoGPTError, NotEnoughMemory, SamplingError

SHOWN = 200  # characters of the input that an answer may repeat

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    500: "server_error",
    503: "overloaded_error",
}


class Refused(Exception):
    """A request that is not served. `param` names the field, `code` is for programs."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        *,
        status: int = 400,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message if len(message) <= 2 * SHOWN else message[: 2 * SHOWN] + " ..."
        self.param = param
        self.status = status
        self.code = code
        self.headers = dict(headers or {})

    def openai(self) -> dict[str, Any]:
        """The body in OpenAI's shape."""
        error = {"message": self.message, "type": TYPES[self.status], "param": self.param, "code": self.code}
        return {"error": error}


def refusal(error: KoGPTError, param: str | None = None) -> Refused:
    """What the model refuses, as an answer: the client's mistake, or a machine that is too small now."""
    if isinstance(error, NotEnoughMemory):
        return Refused(str(error), status=503, code="not_enough_memory", headers={"Retry-After": "5"})
    message = str(error)
    code = "context_length_exceeded" if "tokens" in error.en and "at most" in error.en else None
    return Refused(message, param, code=code)


def failure(error: BaseException) -> Refused:
    """An answer that could not be finished; nothing of the inside is shown but our own messages."""
    if isinstance(error, SamplingError):  # the client's grammar became too complex while it was followed
        return Refused(str(error), status=400, code="grammar")
    if isinstance(error, KoGPTError):
        return Refused(str(error), status=500, code="failed")
    return Refused("the answer failed; the server's log says why", status=500, code="failed")
