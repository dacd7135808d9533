"""Output head and cross entropy in one pass over the tokens, so that no (N, V) matrix outlives its chunk.

At a small width the logits are the largest thing that a training step makes: 16,384 tokens of an
8,192-word vocabulary are 512 MiB in float32, several times over. Here a chunk of tokens goes through head,
loss and gradient while it is in cache, and only the gradients of hidden states, weight and bias stay.

Shapes: N tokens, E model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 1024  # tokens at least; the logits of a chunk are a few MiB to a few hundred
GPU_LOGITS = 2**26  # of a chunk on a GPU, which fewer would not keep busy
IGNORED = -100  # a target that is not scored

# logits without bias (n, V), bias (V,), targets (n,), z_loss -> summed loss (), gradient by the logits (n, V)
Kernel = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def loss_and_gradient(logits: Tensor, bias: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """The Kernel, in float32 inside; worth compiling, for it is nothing but element-wise steps and sums."""
    scores = logits.float() + bias
    log_z = scores.logsumexp(-1, keepdim=True)
    counted = (targets != IGNORED)[:, None]
    index = targets.clamp_min(0)[:, None]
    losses = log_z - scores.gather(-1, index) + z_loss * log_z.square()
    slope = (scores - log_z).exp() * (1 + 2 * z_loss * log_z)
    hit = torch.arange(scores.shape[-1], device=scores.device) == index
    gradient = torch.where(counted, slope - hit.float(), 0.0)
    return torch.where(counted, losses, 0.0).sum(), gradient.to(logits.dtype)


def head_loss(
    hidden: Tensor,
    head: tuple[Tensor, Tensor],
    targets: Tensor,
    z_loss: float = 0.0,
    kernel: Kernel = loss_and_gradient,
) -> Tensor:
    """Summed cross entropy, nats, of (N,) int64 targets under softmax(hidden weight^T + bias).

    hidden (N, E); head is weight (V, E) and bias (V,), used in the dtype of `hidden`. IGNORED targets count
    nothing. Where a gradient is wanted, adds `z_loss` * log(Z)^2 per token (arXiv 2204.02311, section 5).
    """
    if torch.is_grad_enabled():
        apply = cast(Callable[..., Tensor], _HeadLoss.apply)
        return apply(hidden, *head, targets, z_loss, kernel)
    weight, bias = head[0].to(hidden.dtype), head[1]
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    for rows in _chunks(hidden, len(bias)):
        scores = (hidden[rows] @ weight.T).float() + bias
        total += F.cross_entropy(scores, targets[rows], reduction="sum", ignore_index=IGNORED)
    return total


def _chunks(hidden: Tensor, n_vocab: int) -> Iterator[slice]:
    size = CHUNK if hidden.device.type == "cpu" else max(CHUNK, GPU_LOGITS // n_vocab)
    return (slice(start, start + size) for start in range(0, len(hidden), size))


class _HeadLoss(torch.autograd.Function):
    """The gradient is made in the forward pass, while the logits are at hand, and scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, z_loss: float, kernel: Kernel
    ) -> Tensor:
        w = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight, dtype=torch.float32)
        d_bias = torch.zeros_like(bias, dtype=torch.float32)
        for rows in _chunks(hidden, len(bias)):
            loss, d_logits = kernel(hidden[rows] @ w.T, bias, targets[rows], z_loss)
            total += loss
            d_hidden[rows] = d_logits @ w
            d_weight += d_logits.T @ hidden[rows]
            d_bias += d_logits.sum(0, dtype=torch.float32)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        return d_hidden * grad, d_weight * grad, d_bias * grad, None, None, None
