"""The fields of a JSON body: read as a class, refused by name, and turned into settings of Sampling.

What this model cannot do is refused, never passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kogpt.server.limits import Limits
from kogpt.server.refusals import Refused
from kogpt.server.service import Prompt

# Fields of OpenAI's API that change nothing here: labels for its own books.
IGNORED: tuple[str, ...] = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
)
IGNORED += ("prompt_cache_retention", "prompt_cache_options")
# Values of fields that mean "not wanted", beside null; any other is refused: it could not be followed.
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto", {"type": "none"}, {"type": "auto"}),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "web_search_options": (),
    "dimensions": (),
    "guided_grammar": (),
    "background": (False,),
    "conversation": (),
    "previous_response_id": (),
    "reasoning": ({},),
    "max_tool_calls": (),
    "truncation": ("disabled",),
    "thinking": ({"type": "disabled"},),
    "assets": ({},),
    "moderation": (),
    "prompt": (),  # of responses: one that OpenAI stores
    "image": (),
    "top_logprobs": (0,),
    "context_management": ([],),
    "background_options": ({},),
    "access_programs": ([],),
}
# Fields that Sampling has under the same name.
SAMPLING: tuple[str, ...] = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
SAMPLING += ("presence_penalty", "frequency_penalty", "n")
KNOWN_BIAS = 100.0  # OpenAI's bound of a logit bias

B = TypeVar("B", bound="Body")
Item = TypeVar("Item")
Many = Annotated[
    list[Item], Field(fail_fast=True)
]  # the first wrong entry is reported, not each of a million
Prompts = str | Many[str] | Many[int] | Many[Many[int]]


class Strict(BaseModel):
    """A JSON object whose every field is known and of its own type."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, document: Any) -> Any:
        """null is as good as nothing, whatever the field: clients give back what they were given."""
        if not isinstance(document, dict):
            return document
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return {name: value for name, value in document.items() if value is not None or name in known}


class Body(Strict):
    """A body that may name the model."""

    model: str | None = None


class StreamOptions(Strict):
    """How a stream ends."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(Strict):
    """A schema with OpenAI's labels, which change nothing."""

    schema_: dict[str, Any] = Field(alias="schema")
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Strict):
    """What an answer has to be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(Strict):
    """vLLM's name for the same."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: Many[str] | None = Field(default=None, min_length=1)


class Sampled(Body):
    """Fields that completions, chat and responses share."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, ge=0.01, le=100)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | Many[str] | None = None
    logit_bias: dict[str, float] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    regex: str | None = None
    choice: Many[str] | None = Field(default=None, min_length=1)
    hangul: bool | None = None
    guided_regex: str | None = None
    guided_choice: Many[str] | None = Field(default=None, min_length=1)
    guided_json: dict[str, Any] | str | None = None
    structured_outputs: StructuredOutputs | None = None

    def settings(self, limits: Limits) -> dict[str, Any]:
        """The fields of Sampling that were given."""
        given = {name: value for name in SAMPLING if (value := getattr(self, name, None)) is not None}
        if self.seed is not None:
            given["seed"] = self.seed % 2**63
        if self.stop is not None:
            given["stop"] = checked_stops(self.stop, "stop", limits)
        if self.logit_bias is not None:
            given["logit_bias"] = _biases(self.logit_bias, limits)
        return given | {name: value for _, name, value in self._grammars()}

    @property
    def grammar_field(self) -> str | None:
        """The field that says what the answer has to match. Refused where several do."""
        found = [field for field, _, _ in self._grammars()]
        if len(found) > 1:
            raise Refused(f"{found[1]} is given beside {found[0]}: an answer follows one of them", found[1])
        return found[0] if found else None

    def _grammars(self) -> Iterator[tuple[str, str, Any]]:
        """(field of the client, setting of Sampling, its value) of everything that an answer has to match."""
        structured = self.structured_outputs or StructuredOutputs()
        given: Sequence[tuple[str, str, Any]] = (
            ("regex", "regex", self.regex),
            ("choice", "choice", self.choice),
            ("hangul", "hangul", self.hangul or None),
            ("guided_regex", "regex", self.guided_regex),
            ("guided_choice", "choice", self.guided_choice),
            ("guided_json", "json_schema", self.guided_json),
            ("structured_outputs", "json_schema", structured.json_),
            ("structured_outputs", "regex", structured.regex),
            ("structured_outputs", "choice", structured.choice),
            *self.formats(),
        )
        return (entry for entry in given if entry[2] is not None)

    def formats(self) -> Sequence[tuple[str, str, Any]]:
        """The same of the dialect's own field, if it has one."""
        return ()


class Writing(Sampled):
    """Fields that completions and chat share."""

    n: int | None = Field(default=None, ge=1)
    response_format: ResponseFormat | None = None

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def formats(self) -> Sequence[tuple[str, str, Any]]:
        """response_format as a setting."""
        if self.response_format is None:
            return ()
        if self.response_format.type != "json_schema" and self.response_format.json_schema is not None:
            raise schema_without_use("response_format.json_schema", self.response_format.type)
        if self.response_format.type == "text":
            return ()
        schema: dict[str, Any] = {"type": "object"}
        if self.response_format.type == "json_schema":
            if self.response_format.json_schema is None:
                raise Refused("response_format.json_schema is missing", "response_format.json_schema")
            schema = self.response_format.json_schema.schema_
        return (("response_format", "json_schema", schema),)


def schema_without_use(name: str, kind: str) -> Refused:
    """The refusal of a schema that the answer would not follow."""
    return Refused(f"{name} is given with the type {kind}: write the type json_schema, or leave it out", name)


def read(kind: type[B], document: Mapping[str, Any]) -> B:
    """The body as its class; Refused names the first field that is wrong."""
    for name, harmless in UNSUPPORTED.items():
        if name not in kind.model_fields and document.get(name) not in (None, *harmless):
            raise Refused(f"{name} is not supported: leave it out", name, code="unsupported_parameter")
    dropped = {*IGNORED, *UNSUPPORTED} - set(kind.model_fields)
    try:
        return kind.model_validate({name: value for name, value in document.items() if name not in dropped})
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> Refused:
    """The first complaint of pydantic, by the name of its field."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    names = [str(part) for part in first["loc"] if not (isinstance(part, str) and "[" in part)]
    param = ".".join(names[:3])[:60]
    if first["type"] == "extra_forbidden":
        return Refused(f"there is no field {param!r}", param, code="unknown_parameter")
    if first["type"] == "missing":
        return Refused(f"{param} is missing", param)
    return Refused(f"{param}: {first['msg']}", param)


def split(prompts: Prompts) -> list[Prompt]:
    """Each text, or each list of ids."""
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [[token for token in prompts if isinstance(token, int)]]
    return [text for text in prompts if isinstance(text, str | list)]


def checked_count(n: int, name: str, limit: int) -> None:
    """Refused for a list that is empty or too long."""
    if not 0 < n <= limit:
        raise Refused(f"{name} has {n} entries, must be 1 to {limit}", name)


def checked_top(wanted: int, name: str, limits: Limits) -> int:
    """How many likeliest tokens are wanted; Refused above the limit."""
    if wanted > limits.top_logprobs:
        raise Refused(f"{name} is {wanted}, the limit is {limits.top_logprobs}", name)
    return wanted


def checked_stops(stop: str | list[str], name: str, limits: Limits) -> list[str]:
    """Stop strings as a list; Refused for too many, and for too long ones."""
    stops = [stop] if isinstance(stop, str) else stop
    if len(stops) > limits.stops:
        raise Refused(f"{name} has {len(stops)} texts, the limit is {limits.stops}", name)
    longest = max(map(len, stops), default=0)
    if longest > limits.stop_characters:
        raise Refused(f"{name} has {longest} characters, the limit is {limits.stop_characters}", name)
    return stops


def _biases(given: Mapping[str, float], limits: Limits) -> dict[int, float]:
    if len(given) > limits.biases:
        raise Refused(f"logit_bias has {len(given)} entries, the limit is {limits.biases}", "logit_bias")
    found = {}
    for token, value in given.items():
        if not token.isascii() or not token.isdecimal() or len(token) > 10:
            raise Refused(f"logit_bias has the key {token[:60]!r}, must be a token id", "logit_bias")
        if abs(value) > KNOWN_BIAS:
            raise Refused(f"logit_bias of {token} is {value:g}, must be -100 to 100", "logit_bias")
        found[int(token)] = value
    return found
