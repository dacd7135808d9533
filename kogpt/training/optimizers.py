"""Muon and AdamW over the parameter groups that an objective declares.

Processes that shard a matrix by rows (FSDP2) share Muon's work: each gathers, orthogonalises and returns some
of the matrices. So every matrix is orthogonalised once, and travels twice, in the dtype of Muon's products.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor, Shard
from torch.optim import AdamW, Optimizer

from kogpt.errors import ConfigError

OPTIMIZERS = ("muon", "adamw")
TOGETHER = 2**25  # elements per batched product; small matrices one by one would wait for kernel launches


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSettings:
    """Peak learning rates and decay; with the name "adamw" every parameter learns by AdamW.

    ConfigError for rates or decay that are not finite or below 0, and betas outside [0, 1).
    """

    name: str = "muon"
    adamw_rate: float = 3e-3
    muon_rate: float = 0.02  # the update has singular values near 1, so the rate is a spectral norm
    adamw_decay: float = 0.0
    muon_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ConfigError(
                f"optimizer {self.name!r} is unknown: choose one of {', '.join(OPTIMIZERS)}",
                f"알 수 없는 옵티마이저입니다: {self.name!r}. {', '.join(OPTIMIZERS)} 중에서 고르세요",
            )
        for name in ("adamw_rate", "muon_rate", "adamw_decay", "muon_decay"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:  # NaN is refused too
                raise _impossible(name, value, "a finite number of at least 0", "0 이상의 유한한 수")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            shown = list(self.betas)  # TOML's form
            raise _impossible("betas", shown, "two numbers from 0 to below 1", "0 이상 1 미만의 수 두 개")


@dataclass(frozen=True, slots=True)
class ParameterGroup:
    """Parameters that learn alike."""

    name: str
    parameters: list[nn.Parameter]
    rule: str  # "muon" or "adamw"; where the settings choose AdamW for everything, "muon" means AdamW too
    decay: bool = True  # by the rule's decay


class Muon(torch.optim.Muon):
    """torch's Muon with products in `dtype` (torch's own are in bfloat16), and for sharded matrices.

    matrices: parameters or param_groups, as torch's optimizers take them.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter] | list[dict[str, Any]],
        settings: OptimizerSettings,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(matrices, lr=settings.muon_rate, weight_decay=settings.muon_decay)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closures here
        """Update every matrix that has a gradient; processes that shard them must call this together."""
        for group in self.param_groups:
            due = [weight for weight in group["params"] if weight.grad is not None]
            for weights in _rounds(due):
                ahead = self._nesterov(weights, group)
                if isinstance(weights[0], DTensor):
                    found = _orthogonal_rows(weights, [rows.to(self.dtype) for rows in ahead], group)
                else:
                    found = list(orthogonalize(torch.stack(ahead).to(self.dtype), group))
                _apply(weights, found, group)

    def _nesterov(self, weights: Sequence[Tensor], group: Mapping[str, Any]) -> list[Tensor]:
        """Nesterov momentum of a round, float32; of sharded matrices, the rows that this process holds."""
        gradients, means = [], []
        for weight in weights:
            gradient, state = weight.grad, self.state[weight]
            assert gradient is not None
            if not state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            gradients.append(local(gradient))
            means.append(local(state["momentum_buffer"]))
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        return list(torch._foreach_lerp(gradients, means, group["momentum"]))


def _rounds(weights: Sequence[Tensor]) -> Iterator[Sequence[Tensor]]:
    """Batches of matrices to orthogonalise together.

    Plain matrices: those of one shape, up to TOGETHER elements. Sharded ones: one for each process, sorted by
    size, because a round takes as long as its largest matrix.
    """
    plain: dict[torch.Size, list[Tensor]] = {}
    for weight in weights:
        if not isinstance(weight, DTensor):
            plain.setdefault(weight.shape, []).append(weight)
    for alike in plain.values():
        yield from _split(alike, max(1, TOGETHER // alike[0].numel()))
    shared = [weight for weight in weights if isinstance(weight, DTensor)]
    shared.sort(key=torch.numel, reverse=True)  # stable, hence the same order in every process
    yield from _split(shared, shared[0].device_mesh.size() if shared else 1)


def _split(weights: Sequence[Tensor], count: int) -> Iterator[Sequence[Tensor]]:
    return (weights[start : start + count] for start in range(0, len(weights), count))


def _orthogonal_rows(
    weights: Sequence[Tensor], ahead: Sequence[Tensor], group: Mapping[str, Any]
) -> list[Tensor]:
    """Orthogonalise the matrices of a round; `ahead` and the result have the rows that this process holds.

    Process k receives all rows of matrix k, orthogonalises it, and sends the rows back: two exchanges.
    A process that the round has no matrix for only sends and receives.
    """
    assert isinstance(weights[0], DTensor) and weights[0].placements == (Shard(0),)
    mesh = weights[0].device_mesh
    peers, rank, count = mesh.get_group(), mesh.get_local_rank(), mesh.size()
    held = [rows.numel() for rows in ahead] + [0] * (count - len(ahead))  # elements to send to each process
    n_rows, width = weights[rank].shape if rank < len(weights) else (0, 0)
    most = -(-n_rows // count)  # the split of torch.chunk: the last processes may hold fewer rows, or none
    owned = [width * len(range(n_rows)[k * most : (k + 1) * most]) for k in range(count)]
    whole = ahead[0].new_empty(n_rows * width)
    dist.all_to_all_single(whole, torch.cat([rows.flatten() for rows in ahead]), owned, held, peers)
    if rank < len(weights):
        whole = orthogonalize(whole.view(1, n_rows, width), group).flatten()
    back = whole.new_empty(sum(held))
    dist.all_to_all_single(back, whole, held, owned, peers)
    return [found.view_as(rows) for found, rows in zip(back.split_with_sizes(held), ahead, strict=False)]


def _apply(weights: Sequence[Tensor], updates: Sequence[Tensor], group: Mapping[str, Any]) -> None:
    torch._foreach_mul_([local(weight) for weight in weights], 1 - group["lr"] * group["weight_decay"])
    for weight, update in zip(weights, updates, strict=True):
        rate = group["lr"] * math.sqrt(max(1, weight.shape[0] / weight.shape[1]))
        local(weight).add_(update, alpha=-rate)


def local(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this process holds; all rows of a plain tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def orthogonalize(matrices: Tensor, group: Mapping[str, Any]) -> Tensor:
    """(K, M, N) -> (K, M, N) with singular values near 1, by Newton-Schulz steps.

    group: a param_group of Muon, with the coefficients, number of steps and epsilon.
    """
    a, b, c = group["ns_coefficients"]
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    norms = torch.linalg.vector_norm(wide, dim=(1, 2), keepdim=True)
    found: Tensor = wide / norms.clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        square = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(square, square, square, beta=b, alpha=c), found, beta=a)
    return found if wide is matrices else found.mT


def build_optimizers(
    groups: Iterable[ParameterGroup], settings: OptimizerSettings, dtype: torch.dtype
) -> list[Optimizer]:
    """AdamW and Muon over groups of parameters; an optimizer without parameters is left out.

    dtype: Muon's products; its momentum and everything of AdamW stay float32.
    """
    adamw: list[dict[str, Any]] = []
    muon: list[dict[str, Any]] = []
    for group in groups:
        by_muon = settings.name != "adamw" and group.rule == "muon"
        decay = settings.muon_decay if by_muon else settings.adamw_decay
        if group.parameters:
            param_group = {"params": group.parameters, "weight_decay": decay if group.decay else 0.0}
            (muon if by_muon else adamw).append(param_group)
    optimizers: list[Optimizer] = []
    if adamw:
        optimizers.append(AdamW(adamw, lr=settings.adamw_rate, betas=settings.betas, fused=True))
    if muon:
        optimizers.append(Muon(muon, settings, dtype))
    for optimizer in optimizers:
        for param_group in optimizer.param_groups:
            param_group["peak"] = param_group["lr"]
    return optimizers


def hyperparameters(optimizers: Iterable[Optimizer]) -> list[dict[str, Any]]:
    """Rates, decay, betas and the like of every group."""
    return [
        {name: value for name, value in group.items() if name != "params"}
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]


def set_hyperparameters(
    optimizers: Iterable[Optimizer], peaks: Sequence[Mapping[str, Any]], factor: float
) -> None:
    """Set every group to its `peaks`, the learning rate to `factor` times its own."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group, peak in zip(groups, peaks, strict=True):
        group.update({**peak, "lr": factor * peak["peak"]})


def _impossible(name: str, value: object, rule: str, rule_ko: str) -> ConfigError:
    return ConfigError(
        f"optimizer.{name} is {value}: it must be {rule}",
        f"optimizer.{name} 값이 {value}입니다. {rule_ko}를 쓰세요",
    )
