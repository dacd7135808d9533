"""Which parameter learns by which rule: Muon for the matrices inside the blocks, AdamW for all else.

Of matrices whose rows are shared out among processes (FSDP2), each process makes whole, and orthogonalises,
its share: every matrix is worked on once, and travels there and back in Muon's dtype.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor, Shard
from torch.optim import AdamW, Optimizer

from kogpt.errors import ConfigError

RULES = ("muon", "adamw")
TOGETHER = 2**25  # elements of matrices in one product: one by one, small ones wait for their launches


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Peak learning rates and decay; with `adamw` every parameter learns by AdamW.

    ConfigError for rates or decay that are not finite or below 0, and betas outside [0, 1).
    """

    name: str = "muon"
    adamw_rate: float = 3e-3
    muon_rate: float = 0.02  # of Muon's own update, whose singular values are near 1
    adamw_decay: float = 0.0
    muon_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.name not in RULES:
            raise ConfigError(
                f"optimizer {self.name!r} is unknown: choose one of {', '.join(RULES)}",
                f"알 수 없는 옵티마이저입니다: {self.name!r}. {', '.join(RULES)} 중에서 고르세요",
            )
        for name in ("adamw_rate", "muon_rate", "adamw_decay", "muon_decay"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:  # NaN is refused too
                raise _impossible(name, value, "a finite number of at least 0", "0 이상의 유한한 수")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            shown = list(self.betas)  # as a recipe writes them
            raise _impossible("betas", shown, "two numbers from 0 to below 1", "0 이상 1 미만의 수 두 개")


class Muon(torch.optim.Muon):
    """torch's Muon, for shared matrices too, with products in `dtype`; torch's own are always in bfloat16."""

    def __init__(self, matrices: list[nn.Parameter], rule: Rule, dtype: torch.dtype) -> None:
        super().__init__(matrices, lr=rule.muon_rate, weight_decay=rule.muon_decay)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # nobody here has a closure
        """One update of every matrix that has a gradient; processes that share them call it together."""
        for group in self.param_groups:
            due = [weight for weight in group["params"] if weight.grad is not None]
            for weights in _rounds(due):
                ahead = [self._ahead(weight, group) for weight in weights]
                if isinstance(weights[0], DTensor):
                    found = _orthogonal_rows(weights, ahead, group)
                else:
                    found = list(orthogonal(torch.stack(ahead), group))
                for weight, update in zip(weights, found, strict=True):
                    _apply(weight, update, group)

    def _ahead(self, weight: Tensor, group: Mapping[str, Any]) -> Tensor:
        """The mean gradient, a step ahead (Nesterov), in `dtype`: of a shared matrix, the rows held here."""
        gradient, state = weight.grad, self.state[weight]
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        mean = _held(state["momentum_buffer"]).lerp_(_held(gradient), 1 - group["momentum"])
        return _held(gradient).lerp(mean, group["momentum"]).to(self.dtype)


def _rounds(weights: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Plain matrices of a shape together, up to TOGETHER; as many shared ones as there are processes.

    A round of shared ones takes as long as its largest matrix: like by like in size.
    """
    plain: dict[torch.Size, list[Tensor]] = {}
    for weight in weights:
        if not isinstance(weight, DTensor):
            plain.setdefault(weight.shape, []).append(weight)
    for alike in plain.values():
        yield from _split(alike, max(1, TOGETHER // alike[0].numel()))
    shared = [weight for weight in weights if isinstance(weight, DTensor)]
    shared.sort(key=torch.numel, reverse=True)  # stable: the same order in every process
    yield from _split(shared, shared[0].device_mesh.size() if shared else 1)


def _split(weights: Sequence[Tensor], count: int) -> Iterator[Sequence[Tensor]]:
    return (weights[start : start + count] for start in range(0, len(weights), count))


def _orthogonal_rows(
    weights: Sequence[Tensor], ahead: Sequence[Tensor], group: Mapping[str, Any]
) -> list[Tensor]:
    """The rows held here of each matrix of a round, orthogonalised; `ahead` has those rows as they were.

    Process k receives all rows of matrix k, works on it as on a plain one, and returns them: two exchanges.
    A process for which the round has no matrix only gives and takes.
    """
    assert isinstance(weights[0], DTensor) and weights[0].placements == (Shard(0),)
    mesh = weights[0].device_mesh
    peers, rank, count = mesh.get_group(), mesh.get_local_rank(), mesh.size()
    held = [rows.numel() for rows in ahead] + [0] * (count - len(ahead))  # by the process that works on them
    n_rows, width = weights[rank].shape if rank < len(weights) else (0, 0)
    most = -(-n_rows // count)  # as torch.chunk divides: the last processes may hold fewer, or none
    owned = [width * len(range(n_rows)[k * most : (k + 1) * most]) for k in range(count)]
    whole = ahead[0].new_empty(n_rows * width)
    dist.all_to_all_single(whole, torch.cat([rows.flatten() for rows in ahead]), owned, held, peers)
    if rank < len(weights):
        whole = orthogonal(whole.view(1, n_rows, width), group).flatten()
    back = whole.new_empty(sum(held))
    dist.all_to_all_single(back, whole, held, owned, peers)
    return [found.view_as(rows) for found, rows in zip(back.split_with_sizes(held), ahead, strict=False)]


def _apply(weight: Tensor, update: Tensor, group: Mapping[str, Any]) -> None:
    rate = group["lr"] * math.sqrt(max(1, weight.shape[0] / weight.shape[1]))
    held = _held(weight)
    held.mul_(1 - group["lr"] * group["weight_decay"])
    held.add_(update, alpha=-rate)


def _held(tensor: Tensor) -> Tensor:
    """What this process holds of it: of a plain tensor, all."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def orthogonal(matrices: Tensor, group: Mapping[str, Any]) -> Tensor:
    """(K, M, N) matrices, singular values brought near 1 by Newton-Schulz steps as `group` of Muon says."""
    a, b, c = group["ns_coefficients"]
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    norms = torch.linalg.vector_norm(wide, dim=(1, 2), keepdim=True)
    found: Tensor = wide / norms.clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        square = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(square, square, square, beta=b, alpha=c), found, beta=a)
    return found if wide is matrices else found.mT


def build(model: nn.Module, rule: Rule, dtype: torch.dtype) -> list[Optimizer]:
    """Optimizers over the parameters of `model` that require a gradient; decay only on matrices.

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
    optimizers: list[Optimizer] = [AdamW(groups, lr=rule.adamw_rate, betas=rule.betas, fused=True)]
    if rule.name == "muon" and matrices:
        optimizers.append(Muon(matrices, rule, dtype))
    for optimizer in optimizers:
        for param_group in optimizer.param_groups:
            param_group["peak"] = param_group["lr"]
    return optimizers


def set_rate(optimizers: list[Optimizer], factor: float) -> None:
    """Every group's learning rate to `factor` of its peak."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = factor * group["peak"]


def _impossible(name: str, value: object, rule: str, rule_ko: str) -> ConfigError:
    return ConfigError(
        f"optimizer.{name} is {value}: it must be {rule}",
        f"optimizer.{name} 값이 {value}입니다. {rule_ko}여야 합니다",
    )
