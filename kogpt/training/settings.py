"""How to train: settings that pretraining and tuning share, and TOML files of settings, closed and typed."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from kogpt.errors import ConfigError
from kogpt.training.averaging import AverageSettings
from kogpt.training.objective import ComputeSettings
from kogpt.training.optimizers import OptimizerSettings
from kogpt.training.schedule import Schedule

T = TypeVar("T")
# numpy splits a larger seed into parts, and in a list of numbers those of one give the numbers of another:
# (1 + 5 * 2**32, 0) those of (1, 5), which is seed 1 at step 5.
END_OF_SEEDS = 2**32
MAX_DEPTH = 100  # levels of tables and lists in a file of settings; those in runs/ have 3


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopSettings:
    """How much a pass takes, and how often the loop logs, validates and saves.

    ConfigError for a value that is not a finite number above 0.
    """

    clip: float = 1.0  # norm of all gradients together
    tokens_per_pass: int = 16384  # per process; a larger step is made of several passes
    log_every: int = 10  # steps
    validate_every: int = 250
    save_every: int = 1000
    save_seconds: float = (
        600.0  # a checkpoint is due after these seconds or those steps, whichever comes first
    )
    keep: int = 2  # newest checkpoints that stay; those that they call best stay too

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if not 0 < value < math.inf:
                raise ConfigError(
                    f"loop.{setting.name} is {value}: it must be a number above 0",
                    f"loop.{setting.name} 값이 {value}입니다. 0보다 큰 수를 쓰세요",
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSettings:
    """Everything a run needs to know beside model and data; a table of a TOML file for each field."""

    schedule: Schedule
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    loop: LoopSettings = field(default_factory=LoopSettings)
    average: AverageSettings | None = None  # None: the newest weights are validated and exported


def require_seed(seed: int) -> None:
    """ConfigError unless every seed that is allowed gives numbers of its own."""
    if not 0 <= seed < END_OF_SEEDS:
        raise ConfigError(
            f"seed is {seed}: it must be a whole number from 0 to below 2^32, {END_OF_SEEDS:,}",
            f"seed 값이 {seed}입니다. 0 이상 2^32({END_OF_SEEDS:,}) 미만의 정수를 쓰세요",
        )


def read_toml(path: Path, changes: Sequence[str] = ()) -> dict[str, Any]:
    """A TOML file, changed by lines of TOML such as `schedule.steps = 200`.

    ConfigError for a file that is missing or not TOML, and for a change that is not.
    """
    try:
        document = _parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"recipe {path} cannot be read: {error}", f"설정 파일을 읽을 수 없습니다: {path} ({error})"
        ) from error
    for change in changes:
        _merge(document, _parse_change(change))
    return document


def _parse_change(change: str) -> dict[str, Any]:
    try:
        return _parse(change)
    except (ValueError, RecursionError) as error:
        change = change if len(change) <= 80 else change[:80] + "..."
        raise ConfigError(
            f"--set {change} is not a line of TOML ({error}): write numbers as steps=200 and text as "
            "'name=\"...\"'",
            f"TOML 한 줄이 아닙니다: --set {change} ({error}). 수는 steps=200, 글은 "
            "'name=\"...\"'처럼 쓰세요",
        ) from error


def _parse(text: str) -> dict[str, Any]:
    """A TOML document that can be merged and shown; ValueError or RecursionError for any other text."""
    document = tomllib.loads(text)
    _require_bounds(document, MAX_DEPTH)
    return document


def _require_bounds(value: object, depth: int) -> None:
    """ValueError for tables and lists more than `depth` deep, and for a whole number that TOML need not have.

    Python reads larger ones, but may neither print them nor make them floats.
    """
    if not depth:
        raise ValueError(f"tables or lists are more than {MAX_DEPTH} deep")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _require_bounds(item, depth - 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"a whole number of {value.bit_length():,} bits: write one from -2^63 to below 2^63")


def _merge(document: dict[str, Any], change: Mapping[str, Any]) -> None:
    for name, value in change.items():
        if isinstance(value, dict) and isinstance(document.get(name), dict):
            _merge(document[name], value)
        else:
            document[name] = value


def from_table(kind: type[T], document: Mapping[str, Any], where: str = "") -> T:
    """A dataclass from a TOML table that has its fields and no others.

    `where` is the table's name and a dot, for messages. ConfigError for a key that is unknown, missing or
    of another type.
    """
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(document.keys() - known.keys()):
        raise ConfigError(
            f"unknown setting {where}{unknown[0]}: choose one of {', '.join(known)}",
            f"알 수 없는 설정입니다: {where}{unknown[0]}. {', '.join(known)} 중에서 고르세요",
        )
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in document]:
        raise ConfigError(
            f"{where}{missing[0]} is missing: it has no default",
            f"{where}{missing[0]} 설정이 없습니다. 기본값이 없으니 적어 주세요",
        )
    return kind(**{name: _convert(hints[name], value, where + name) for name, value in document.items()})


def _convert(hint: Any, value: Any, where: str) -> Any:
    """A TOML value as what the type hint says."""
    origin, inner = get_origin(hint), get_args(hint)
    if NoneType in inner:
        return _convert(inner[0], value, where)
    if is_dataclass(hint) and isinstance(value, dict):
        return from_table(hint, value, where + ".")  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(inner[0], item, f"{where}[{n}]") for n, item in enumerate(value))
    if origin is not None and issubclass(origin if isinstance(origin, type) else int, Mapping):
        if isinstance(value, dict):
            return {name: _convert(inner[1], item, f"{where}.{name}") for name, item in value.items()}
    elif hint is float and type(value) is int:
        return float(value)
    elif type(value) is hint:
        return value
    kind = getattr(hint, "__name__", hint)
    raise ConfigError(
        f"{where} is {value!r}: it must be of type {kind}",
        f"{where} 값 {value!r}의 형식이 다릅니다. {kind} 형식으로 쓰세요",
    )
