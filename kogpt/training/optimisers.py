"""Which parameter learns by which rule: Muon for the matrices inside the blocks, AdamW for all else."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

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


def build(model: nn.Module, rule: Rule) -> list[Optimizer]:
    """Optimisers over the parameters of `model` that require a gradient; decay only on matrices.

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
        optimisers.append(Muon(matrices, lr=rule.muon_rate, weight_decay=rule.muon_decay))
    for optimiser in optimisers:
        for param_group in optimiser.param_groups:
            param_group["peak"] = param_group["lr"]
    return optimisers


def set_rate(optimisers: list[Optimizer], factor: float) -> None:
    """Every group's learning rate to `factor` of its peak."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = factor * group["peak"]
