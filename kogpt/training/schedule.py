"""Learning rates over a run, as factors of their peaks."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kogpt.errors import ConfigError

SHAPES = ("wsd", "cosine")


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Warm-up, then a shape: a cosine, or `wsd` (warmup-stable-decay, arXiv 2404.06395, section 4).

    wsd stays at the peak until the last `decay_steps`, so the end of a run may be moved before the decay
    begins. ConfigError for an unknown shape, and for steps that do not fit together.
    """

    steps: int
    warmup_steps: int
    decay_steps: int = 0  # wsd's
    shape: str = "wsd"
    floor: float = 0.0  # factor at the end

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
        warmup, decay = self.warmup_steps, self.decay_steps
        if warmup < 0 or decay < 0 or warmup + decay > self.steps:
            raise ConfigError(
                f"warm-up ({warmup}) and decay ({decay}) must be 0 or more and fit into {self.steps} steps: "
                "shorten them, or raise schedule.steps",
                f"예열({warmup})과 감쇠({decay})가 0보다 작거나 전체 {self.steps}스텝을 넘습니다. "
                "줄이거나 schedule.steps를 늘리세요",
            )

    def factor(self, step: int) -> float:
        """The factor for update number `step`, from 0; above 0 for every step of the run."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.shape == "wsd":
            fall = min(1.0, (self.steps - step) / (self.decay_steps + 1))
        else:
            done = (step - self.warmup_steps + 1) / (self.steps - self.warmup_steps + 1)
            fall = 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        return self.floor + (1 - self.floor) * fall
