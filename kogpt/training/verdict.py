"""What a validation says of a run: is it the best so far, and is it time to stop?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one validation."""

    metrics: Mapping[str, Any]  # JSON; goes to metrics.jsonl
    better: bool = False  # than every validation before: keep this checkpoint as the best
    enough: bool = False  # more training would not help: stop


@dataclass(frozen=True, slots=True)
class Best:
    """The best validation so far; saved with every checkpoint, so that a resumed run judges alike."""

    step: int
    metrics: Mapping[str, Any]
    misses: int = 0  # validations since, none of them better


def judge(
    metrics: Mapping[str, Any],
    name: str,
    best: Best | None,
    patience: float = math.inf,
    lower_is_better: bool = False,
) -> Verdict:
    """Compare one number of `metrics` with the best so far; enough after `patience` misses in a row.

    The first number is better than none, NaN never is.
    """
    sign = -1 if lower_is_better else 1
    value = sign * metrics[name]
    better = value > (-math.inf if best is None else sign * best.metrics[name])
    misses = 0 if better or best is None else best.misses + 1
    return Verdict(metrics, better, misses >= patience)
