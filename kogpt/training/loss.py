"""Output head and cross entropy in one pass over the tokens, so that no (N, V) matrix outlives its chunk.

In a narrow model the logits are the largest tensor of a training step: 16,384 tokens times 8,192 words are
512 MiB in float32, and a plain loss holds several such tensors. Here each chunk of tokens goes through head,
loss and gradient while it is in cache. Only the gradients of hidden states, weight and bias are kept, and
only those that are wanted are computed: a frozen head costs no product and no memory.

Shapes: N tokens, E model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK = 1024  # tokens per chunk on a CPU, and at least on a GPU
GPU_LOGITS = 2**26  # logits per chunk on a GPU; smaller chunks leave it idle
IGNORED = -100  # an integer target that is not scored; torch's ignore_index

# Logits without bias (n, V), bias (V,), targets (n,), z_loss -> summed loss (), its gradient (n, V).
Kernel = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def loss_and_gradient(logits: Tensor, bias: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
    """The Kernel in float32; element-wise steps and sums only, so compiling it pays."""
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

    hidden: (N, E). head: weight (V, E) and bias (V,); products are in the dtype of `hidden`. IGNORED targets
    add nothing. In grad mode adds `z_loss` * log(Z)^2 per token (PaLM, arXiv 2204.02311, section 5).
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
    """Computes the gradients in the forward pass, while the logits exist; the backward pass scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, z_loss: float, kernel: Kernel
    ) -> Tensor:
        w = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
        for rows in _chunks(hidden, len(bias)):
            loss, d_logits = kernel(hidden[rows] @ w.T, bias, targets[rows], z_loss)
            total += loss
            if d_hidden is not None:
                torch.mm(d_logits, w, out=d_hidden[rows])
            if d_weight is not None:
                d_weight += d_logits.T @ hidden[rows]
            if d_bias is not None:
                d_bias += d_logits.sum(0, dtype=torch.float32)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        found = (None if gradient is None else gradient * grad for gradient in ctx.saved_tensors)
        return (*found, None, None, None)
