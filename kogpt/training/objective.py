"""Model and loss as one module: (tokens, targets) -> summed loss. What the loop trains and validates."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from kogpt.errors import ConfigError
from kogpt.model import GPTJ, ForwardPass, Rotation
from kogpt.training.loss import Kernel, head_loss, loss_and_gradient

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
COMPILED = ("nothing", "loss", "blocks")

Forward = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Arithmetic:
    """How the loss is computed; weights, gradients and sums are float32 in any case."""

    dtype: str = "auto"  # of matrix products: bfloat16 where the device multiplies it, else float32
    z_loss: float = 0.0
    within_documents: bool = False  # attention does not look over an [EOS]
    checkpoint_blocks: bool = False  # keep only their inputs: less memory, a third more work
    compile: str = "loss"  # "blocks" compiles loss and blocks: pays on a GPU, not on a CPU

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("dtype", self.dtype, ("auto", *DTYPES)),
            ("compile", self.compile, COMPILED),
        ):
            if value not in allowed:
                raise ConfigError(
                    f"{name} is {value!r}, must be one of {', '.join(allowed)}",
                    f"{name} 값 {value!r}: {', '.join(allowed)} 중에서 고르세요",
                )
        if not 0 <= self.z_loss < math.inf:
            raise ConfigError(
                f"z_loss is {self.z_loss}, must be a finite number of at least 0 (1e-4 is usual)",
                f"z_loss 값 {self.z_loss}: 0 이상의 유한한 수여야 합니다 (보통 1e-4)",
            )

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """What `dtype` means there."""
        if self.dtype != "auto":
            return DTYPES[self.dtype]
        return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32


@cache
def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware does; where torch only imitates it, it takes several times as long as float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if platform.machine() in ("aarch64", "arm64"):
        ask = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # not in every build
        return ask is not None and bool(ask())
    return bool(torch.cpu._is_avx512_bf16_supported())  # mkldnn's answer is yes for any AVX-512


class Objective(nn.Module):
    """Next-token loss of a GPT-J."""

    def __init__(self, model: GPTJ, arithmetic: Arithmetic) -> None:
        super().__init__()
        self.model = model
        self.arithmetic = arithmetic
        self.kernel: Kernel = loss_and_gradient
        if arithmetic.compile != "nothing":
            self.kernel = torch.compile(loss_and_gradient)
        for block in self.blocks():
            if arithmetic.compile == "blocks":
                block.forward = _compiled_to_learn(block.forward)
            if arithmetic.checkpoint_blocks:
                # In place, so that parameters keep their names.
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    def blocks(self) -> list[nn.Module]:
        """The parts that several processes gather one at a time."""
        return list(self.model.transformer.h)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """(B, T) ids and the (B, T) ids that follow them (or IGNORED) -> summed loss, nats."""
        model = self.model
        positions = torch.arange(inputs.shape[1], device=inputs.device)
        run = ForwardPass()
        if self.arithmetic.within_documents:
            run = DocumentsApart(inputs, model.config.eos_token_id)
        dtype = self.arithmetic.dtype_on(inputs.device)
        with torch.autocast(inputs.device.type, dtype, enabled=dtype != torch.float32):
            # The residual stream is float32, also where the embedding is gathered in less.
            hidden = model.trunk(model.embed(inputs).float(), positions, run)
        head = model.lm_head.weight, model.lm_head.bias
        z_loss = self.arithmetic.z_loss
        return head_loss(hidden.flatten(0, 1).to(dtype), head, targets.flatten(), z_loss, self.kernel)


def _compiled_to_learn(forward: Forward) -> Forward:
    """Compiled where a gradient is wanted: validation has windows of every width, each compiled anew."""
    compiled = torch.compile(forward, dynamic=False)  # a run has few shapes: those of its stages

    def either(x: Tensor, rotation: Rotation, layer: int, run: ForwardPass) -> Tensor:
        if torch.is_grad_enabled():
            return compiled(x, rotation, 0, run)  # one compilation for all layers
        return forward(x, rotation, layer, run)

    return either


class DocumentsApart(ForwardPass):
    """Causal attention among the tokens of one document; an [EOS] belongs to the document that it ends."""

    def __init__(self, tokens: Tensor, eos: int) -> None:
        """`tokens`: (B, T) ids."""
        ends = tokens == eos
        document = ends.cumsum(1) - ends.long()
        self._mask = (document[:, None, :, None] == document[:, None, None, :]).tril()  # (B, 1, T, T)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask)
