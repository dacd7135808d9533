"""Averages of a run's weights, which are validated and exported instead of the newest weights.

The plain mean of the last weights is stochastic weight averaging (arXiv 1803.05407, section 3.2). An
exponential mean forgets early ones. Either costs one more copy of the trained weights, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kogpt.errors import ConfigError
from kogpt.training.optimizers import local


@dataclass(frozen=True, kw_only=True, slots=True)
class AverageSettings:
    """Weights that are averaged: those after step `first_step`, and after each `every` steps from then on.

    decay: 1 for the plain mean; below 1, what an average keeps of itself when weights are added to it, once
    1 / (1 - decay) have been. ConfigError for steps below 0 or 1, and a decay outside (0, 1].
    """

    first_step: int = 0
    every: int = 10
    decay: float = 1.0

    def __post_init__(self) -> None:
        if self.first_step < 0:
            raise _impossible("first_step", self.first_step, "0 or more", "0 이상의 수")
        if self.every < 1:
            raise _impossible("every", self.every, "1 or more", "1 이상의 수")
        if not 0 < self.decay <= 1:  # NaN is refused too
            raise _impossible("decay", self.decay, "above 0 and at most 1", "0보다 크고 1 이하인 수")

    def is_due(self, step: int) -> bool:
        """Whether the weights after `step` updates, from 1, are averaged."""
        return step >= max(1, self.first_step) and (step - self.first_step) % self.every == 0

    @property
    def first_due(self) -> int:
        """The first step whose weights are averaged."""
        return self.first_step or self.every

    def share(self, count: int) -> float:
        """Share of the newest weights when `count` are in the average already."""
        return max(1 / (count + 1), 1 - self.decay)


class Average:
    """The average of the trainable weights of a module; each process keeps its shares."""

    def __init__(self, module: nn.Module, settings: AverageSettings) -> None:
        self.settings = settings
        self.weights = {name: torch.zeros_like(weight) for name, weight in _trained(module)}
        self.count = 0  # weights averaged so far

    @torch.no_grad()
    def add(self, module: nn.Module) -> None:
        """Average the weights that the module has now."""
        trained = dict(_trained(module))
        means = [local(self.weights[name]) for name in trained]
        weights = [local(weight) for weight in trained.values()]
        if self.count:
            torch._foreach_lerp_(means, weights, self.settings.share(self.count))
        else:
            torch._foreach_copy_(means, weights)
        self.count += 1

    @torch.no_grad()
    def exchange(self, module: nn.Module) -> None:
        """Put the average into the module and its weights here; a second call undoes the first."""
        for name, weight in _trained(module):
            own, mean = local(weight), local(self.weights[name])
            held = own.clone()
            own.copy_(mean)
            mean.copy_(held)


def _trained(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters that learn, by name; a tied one once."""
    return ((name, value.detach()) for name, value in module.named_parameters() if value.requires_grad)


def _impossible(name: str, value: float, rule: str, rule_ko: str) -> ConfigError:
    return ConfigError(
        f"average.{name} is {value}: it must be {rule}",
        f"average.{name} 값이 {value}입니다. {rule_ko}를 쓰세요",
    )
