"""Learning rates and weight decay over a run, as factors of their peaks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from kogpt.errors import ConfigError

SHAPES = ("wsd", "cosine")


@dataclass(frozen=True, slots=True)
class Factors:
    """Factors of the peaks for one step."""

    muon: float  # factor of Muon's learning rate
    adamw: float
    weight_decay: float  # factor of the weight decay


@dataclass(frozen=True, kw_only=True, slots=True)
class Cooldown:
    """The end of wsd: the rate falls for `decay_steps`, as (what is left of them) ** power."""

    decay_steps: int
    power: float = 1.0  # 1: a straight line; above 1 the rate falls fast first


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Warm-up, then a shape: a cosine, or `wsd` (warmup-stable-decay, arXiv 2404.06395, section 4).

    wsd stays at the peak until the last `decay_steps`, so the end of a run may be moved before the decay
    begins. `adamw` gives AdamW a cooldown of its own; without it, it follows Muon's. `weight_decay` has
    points (share of the run, factor), between which the factor goes in straight lines. ConfigError for an
    unknown shape, for steps that do not fit together, and for a cooldown or points that cannot be meant.
    """

    steps: int
    warmup_steps: int
    decay_steps: int = 0  # wsd's
    shape: str = "wsd"
    floor: float = 0.0  # factor at the end
    power: float = 1.0  # exponent of the decay of wsd, see Cooldown
    adamw: Cooldown | None = None
    weight_decay: tuple[tuple[float, float], ...] = ((0.0, 1.0),)

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ConfigError(
                f"schedule {self.shape!r} is unknown: choose one of {', '.join(SHAPES)}",
                f"알 수 없는 일정입니다: {self.shape!r}. {', '.join(SHAPES)} 중에서 고르세요",
            )
        if self.steps < 1 or not 0 <= self.floor <= 1:
            raise ConfigError(
                f"schedule.steps is {self.steps}, floor {self.floor}: steps must be at least 1, the floor "
                "from 0 to 1",
                f"schedule.steps 값 {self.steps}, floor 값 {self.floor}: steps는 1 이상, floor는 0에서 1 "
                "사이로 쓰세요",
            )
        self._require_cooldown(Cooldown(decay_steps=self.decay_steps, power=self.power))
        if self.adamw:
            self._require_cooldown(self.adamw)
        self._require_points()

    def _require_cooldown(self, cooldown: Cooldown) -> None:
        warmup, decay, power = self.warmup_steps, cooldown.decay_steps, cooldown.power
        if warmup < 0 or decay < 0 or warmup + decay > self.steps:
            raise ConfigError(
                f"warm-up ({warmup}) and decay ({decay}) must be 0 or more and fit into {self.steps} steps: "
                "shorten them, or raise schedule.steps",
                f"예열({warmup})과 감쇠({decay})가 0보다 작거나 전체 {self.steps}단계를 넘습니다. "
                "줄이거나 schedule.steps를 늘리세요",
            )
        if not 0 < power < math.inf:
            raise ConfigError(
                f"schedule.power is {power}: it must be a number above 0; 1 is a straight line",
                f"schedule.power 값이 {power}입니다. 0보다 큰 수를 쓰세요. 1은 직선입니다",
            )
        if self.shape == "cosine" and (self.adamw or power != 1):
            raise ConfigError(
                'schedule.shape "cosine" has no power and no schedule.adamw: leave them out, or take "wsd"',
                'schedule.shape가 "cosine"이면 power와 schedule.adamw를 쓸 수 없습니다. '
                '빼거나 "wsd"를 쓰세요',
            )

    def _require_points(self) -> None:
        points = self.weight_decay
        pairs = all(len(point) == 2 and 0 <= point[0] <= 1 and 0 <= point[1] < math.inf for point in points)
        shares = [point[0] for point in points]
        if not points or not pairs or any(a >= b for a, b in pairwise(shares)):
            shown = [list(point) for point in points]  # TOML's form
            raise ConfigError(
                f"schedule.weight_decay is {shown}: it must be points [share of the run, factor], shares "
                "from 0 to 1 and rising, factors of at least 0, such as [[0, 1], [1, 0]]",
                f"schedule.weight_decay 값이 {shown}입니다. [[0, 1], [1, 0]]처럼 [진행 비율, 배율]의 목록을 "
                "쓰세요. 비율은 0에서 1까지 커지는 수, 배율은 0 이상의 수입니다",
            )

    def factors(self, step: int) -> Factors:
        """All factors for update number `step`, from 0."""
        muon = self.factor(step)
        adamw = self.factor(step, self.adamw) if self.adamw else muon
        shares, values = zip(*self.weight_decay, strict=True)
        return Factors(muon, adamw, float(np.interp(step / self.steps, shares, values)))

    def factor(self, step: int, cooldown: Cooldown | None = None) -> float:
        """The factor for update number `step`, from 0; above 0 for every step of the run.

        cooldown: None for the schedule's own, which is Muon's.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.shape == "wsd":
            end = cooldown or Cooldown(decay_steps=self.decay_steps, power=self.power)
            left = self.steps - step
            fall = math.pow(min(1.0, left / (end.decay_steps + 1)), end.power)
        else:
            done = (step - self.warmup_steps + 1) / (self.steps - self.warmup_steps + 1)
            fall = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return self.floor + (1 - self.floor) * fall
