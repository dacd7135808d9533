"""Which parameter learns by which rule: Muon for the matrices inside the blocks, AdamW for all else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from kogpt.errors import ConfigError

RULES = ("muon", "adamw")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Peak learning rates and decay; with `adamw` every parameter learns by AdamW."""

    name: str = "muon"
    adamw_rate: float = 3e-3
    muon_rate: float = 0.02  # of Muon's own update, whose singular values are near 1
    adamw_decay: float = 0.0
    muon_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise ConfigError(
                f"optimiser {self.name!r} is unknown: choose one of {', '.join(RULES)}",
                f"최적화기 {self.name!r}을(를) 알 수 없습니다. {', '.join(RULES)} 중에서 고르세요",
            )


class Muon(torch.optim.Muon):
    """torch's Muon with products in `dtype`; torch's own are in bfloat16 on any machine."""

    def __init__(self, matrices: list[nn.Parameter], rule: Rule, dtype: torch.dtype) -> None:
        super().__init__(matrices, lr=rule.muon_rate, weight_decay=rule.muon_decay)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody here has a closure
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)

    def _update(self, weight: nn.Parameter, group: Mapping[str, Any]) -> None:
        gradient, state = weight.grad, self.state[weight]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(mean, group["momentum"])  # Nesterov's
        rate = group["lr"] * math.sqrt(max(1, weight.shape[0] / weight.shape[1]))
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(orthogonal(ahead.to(self.dtype), group), alpha=-rate)


def orthogonal(matrix: Tensor, group: Mapping[str, Any]) -> Tensor:
    """The matrix with its singular values brought near 1, by Newton-Schulz steps as `group` of Muon says."""
    a, b, c = group["ns_coefficients"]
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    found: Tensor = wide / wide.norm().clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        square = found @ found.T
        found = torch.addmm(found, torch.addmm(square, square, square, beta=b, alpha=c), found, beta=a)
    return found if wide is matrix else found.T


def build(model: nn.Module, rule: Rule, dtype: torch.dtype) -> list[Optimizer]:
    """Optimisers over the parameters of `model` that require a gradient; decay only on matrices.

    `dtype` is that of the products which Muon needs; all that is kept is float32.
    Muon: kellerjordan.github.io/posts/muon. Embedding and head are matrices too, but their rows are words
    that learn one by one, so they stay with AdamW, as there.
    """
    matrices: list[nn.Parameter] = []
    words: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            inside = ".h." in name
            group = vectors if parameter.ndim < 2 else matrices if inside else words
            group.append(parameter)
    adamw_matrices = words if rule.name == "muon" else words + matrices
    groups = [
        {"params": adamw_matrices, "weight_decay": rule.adamw_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimisers: list[Optimizer] = [AdamW(groups, lr=rule.adamw_rate, betas=rule.betas, fused=True)]
    if rule.name == "muon" and matrices:
        optimisers.append(Muon(matrices, rule, dtype))
    for optimiser in optimisers:
        for param_group in optimiser.param_groups:
            param_group["peak"] = param_group["lr"]
    return optimisers


def set_rate(optimisers: list[Optimizer], factor: float) -> None:
    """Every group's learning rate to `factor` of its peak."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = factor * group["peak"]
