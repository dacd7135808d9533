"""A pretraining run as one TOML file: model, data, schedule, optimizer; closed, typed, checked when read.

seed = 1
tokenizer = "tokenizer"                      # a folder with tokenizer.json; paths are from the file's folder
[model]                                      # n_vocab is the tokenizer's
n_layers = 6
...
                                             # or, instead of [model], init = "kogpt-mini": go on from a model
[sources.wiki]
shards = "shards/wiki"
weight = 2.0
[[stages]]
length = 256
rows = 32
[schedule]
steps = 1000
warmup_steps = 50
[validation]
wiki = "valid_wiki.jsonl.zst"
[optimizer], [arithmetic], [loop]            # may be left out; fields as in kogpt/training
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from kogpt.errors import ConfigError
from kogpt.pretraining.mixture import Source, Stage
from kogpt.training.objective import Arithmetic
from kogpt.training.optimizers import Rule
from kogpt.training.schedule import Schedule

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A model but for its vocabulary."""

    n_layers: int
    n_heads: int
    d_model: int
    n_ctx: int
    rotary_dim: int
    d_ff: int | None = None  # 4 * d_model
    tied_head: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How often, and how much at a time."""

    clip: float = 1.0
    tokens_per_pass: int = 16384
    log_every: int = 10
    validate_every: int = 250
    validation_bytes: int = 100_000  # of each set: a sample while training
    save_every: int = 1000
    save_seconds: float = 600.0
    keep: int = 2

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if not 0 < value < math.inf:
                raise ConfigError(
                    f"loop.{setting.name} is {value}: it must be a number above 0",
                    f"loop.{setting.name} 값이 {value}입니다. 0보다 큰 수여야 합니다",
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All of a run."""

    tokenizer: str
    sources: Mapping[str, Source]
    stages: tuple[Stage, ...]
    schedule: Schedule
    model: Shape | None = None  # of random weights
    init: str | None = None  # the model folder, or name, whose weights and shape the run starts from
    optimizer: Rule = field(default_factory=Rule)
    arithmetic: Arithmetic = field(default_factory=Arithmetic)
    loop: Pace = field(default_factory=Pace)
    validation: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.model is None) == (self.init is None):
            raise ConfigError(
                "a recipe has either [model], the shape of random weights, or init, a model to go on from",
                "[model](임의 가중치의 구조)과 init(이어서 학습할 모델) 중 하나만 적으세요",
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(
                f"seed is {self.seed}: it must be 0 or more, and below 2^63",
                f"seed 값이 {self.seed}입니다. 0 이상 2^63 미만이어야 합니다",
            )


def read_recipe(path: Path, changes: Sequence[str] = (), init: str | None = None) -> Recipe:
    """The recipe of a TOML file, changed by lines of TOML such as `schedule.steps = 200`.

    `init` takes the place of its [model]. ConfigError for a file that is missing or not TOML, and for a key
    that is unknown, missing or mistyped.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(
            f"recipe {path} cannot be read: {error}", f"{path} 설정을 읽을 수 없습니다: {error}"
        ) from error
    for change in changes:
        _merge(document, _table(change))
    if init is not None:
        document.pop("model", None)
        document["init"] = init
    return from_table(Recipe, document, "")


def _table(change: str) -> dict[str, Any]:
    try:
        return tomllib.loads(change)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(
            f"--set {change} is no line of TOML ({error}): numbers are written as steps=200, text as "
            "'name=\"...\"'",
            f"--set {change}은(는) TOML 한 줄이 아닙니다({error}). 수는 steps=200, 글은 "
            "'name=\"...\"'처럼 쓰세요",
        ) from error


def from_table(kind: type[T], document: Mapping[str, Any], where: str) -> T:
    """A dataclass from a table that has its fields and no others."""
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(document.keys() - known.keys()):
        raise ConfigError(
            f"{where}{unknown[0]} is no setting; there are {', '.join(known)}",
            f"{where}{unknown[0]} 설정은 없습니다. 가능한 설정: {', '.join(known)}",
        )
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in document]:
        raise ConfigError(
            f"{where}{missing[0]} is missing: it has no default", f"{where}{missing[0]} 설정이 필요합니다"
        )
    return kind(**{name: _value(hints[name], value, where + name) for name, value in document.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(hint), get_args(hint)
    if NoneType in inner:
        return _value(inner[0], value, where)
    if is_dataclass(hint) and isinstance(value, dict):
        return from_table(hint, value, where + ".")  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list):
        return tuple(_value(inner[0], item, f"{where}[{n}]") for n, item in enumerate(value))
    if origin is not None and issubclass(origin if isinstance(origin, type) else int, Mapping):
        if isinstance(value, dict):
            return {name: _value(inner[1], item, f"{where}.{name}") for name, item in value.items()}
    elif hint is float and type(value) is int:
        return float(value)
    elif type(value) is hint:
        return value
    raise ConfigError(
        f"{where} is {value!r}, not of the type {getattr(hint, '__name__', hint)}",
        f"{where} 값 {value!r}의 형식이 다릅니다. {getattr(hint, '__name__', hint)} 형식이어야 합니다",
    )


def _merge(document: dict[str, Any], change: Mapping[str, Any]) -> None:
    for name, value in change.items():
        if isinstance(value, dict) and isinstance(document.get(name), dict):
            _merge(document[name], value)
        else:
            document[name] = value
