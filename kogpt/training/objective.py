"""The module that the loop trains and validates: (inputs, targets) -> summed loss, in three steps."""

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
from kogpt.memory import return_freed_blocks
from kogpt.model import GPTJ, ForwardPass, Rotation
from kogpt.training.loss import Kernel, head_loss, loss_and_gradient
from kogpt.training.optimizers import ParameterGroup

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
COMPILE = ("nothing", "loss", "blocks")

Forward = Callable[..., Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeSettings:
    """How the loss is computed; weights, gradients and sums are always float32.

    ConfigError for an unknown dtype or part to compile, and for a z_loss that is not finite or below 0.
    """

    dtype: str = "auto"  # matrix products: bfloat16 where the device multiplies it, else float32
    z_loss: float = 0.0  # weight of log(Z)^2, see kogpt/training/loss.py
    within_documents: bool = False  # attention stops at [EOS]
    checkpoint_blocks: bool = False  # recompute blocks in the backward pass: less memory, a third more work
    compile: str = "loss"  # "blocks" compiles loss and blocks, which pays on a GPU only; or "nothing"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("dtype", self.dtype, ("auto", *DTYPES)),
            ("compile", self.compile, COMPILE),
        ):
            if value not in allowed:
                raise ConfigError(
                    f"{name} is {value!r}, must be one of {', '.join(allowed)}",
                    f"{name} 값 {value!r}: {', '.join(allowed)} 중에서 고르세요",
                )
        if not 0 <= self.z_loss < math.inf:
            raise ConfigError(
                f"z_loss is {self.z_loss}, must be a finite number of at least 0 (1e-4 is usual)",
                f"z_loss 값 {self.z_loss}: 0 이상의 유한한 수를 쓰세요 (보통 1e-4)",
            )

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """The torch dtype of products on a device."""
        if self.dtype != "auto":
            return DTYPES[self.dtype]
        return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32


@cache
def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16; torch's emulation takes several times as long as float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if platform.machine() in ("aarch64", "arm64"):
        ask = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # some builds lack it
        return ask is not None and bool(ask())
    return bool(torch.cpu._is_avx512_bf16_supported())  # mkldnn says yes for any AVX-512


class Objective(nn.Module):
    """Next-token loss of a GPT-J: `embedded`, then `hidden`, then `loss`.

    A soft prompt overrides the first step and a head the last. `groups` says what learns by which rule;
    override it where other parameters than the model's own learn.
    """

    def __init__(self, model: GPTJ, compute: ComputeSettings) -> None:
        super().__init__()
        self.model = model
        self.compute = compute
        self.kernel: Kernel = loss_and_gradient
        if compute.compile != "nothing":
            self.kernel = torch.compile(loss_and_gradient)
        for block in self.blocks():
            if compute.compile == "blocks":
                block.forward = _compile_for_training(block.forward)
            if compute.checkpoint_blocks:
                return_freed_blocks()
                # Patching the method keeps the names of the parameters; a wrapper module would change them.
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)

    def blocks(self) -> list[nn.Module]:
        """The modules whose weights several processes gather one at a time."""
        return list(self.model.transformer.h)

    def groups(self) -> list[ParameterGroup]:
        """The trainable parameters by the rule that suits them.

        Muon is for the matrices of the blocks, by their published names (kellerjordan.github.io/posts/muon).
        The rows of embedding and head are words that learn one by one, and a matrix that is no weight of the
        model, such as a factor of LoRA, must not be orthogonalised: AdamW. Vectors do not decay.
        """
        shapes = self.model.config.tensor_shapes()
        inner = {f"model.{name}" for name, shape in shapes.items() if ".h." in name and len(shape) == 2}
        trained = [(name, value) for name, value in self.named_parameters() if value.requires_grad]
        matrices = [value for name, value in trained if name in inner]
        words = [value for name, value in trained if name not in inner and value.ndim >= 2]
        vectors = [value for _, value in trained if value.ndim < 2]
        return [
            ParameterGroup("matrices", matrices, "muon"),
            ParameterGroup("words", words, "adamw"),
            ParameterGroup("vectors", vectors, "adamw", decay=False),
        ]

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """(B, T) ids and (B, T) targets -> summed loss ()."""
        return self.loss(self.hidden(self.embedded(inputs), self.forward_pass(inputs)), targets)

    def forward_pass(self, inputs: Tensor) -> ForwardPass:
        """Attention and products for (B, T) ids: causal, over documents or within them."""
        if self.compute.within_documents:
            return WithinDocuments(inputs, self.model.config.eos_token_id)
        return ForwardPass()

    def embedded(self, inputs: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, E) float32; a soft prompt may put P more positions before them."""
        return self.model.embed(inputs).float()  # the embedding may be gathered in a narrower dtype

    def hidden(self, x: Tensor, run: ForwardPass) -> Tensor:
        """(B, T, E) embeddings -> (B, T, E) after the last LayerNorm."""
        dtype = self.compute.dtype_on(x.device)
        positions = torch.arange(x.shape[1], device=x.device)
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            return self.model.trunk(x, positions, run)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """(B, P + T, E) hidden states, (B, T) int64 ids that follow the last T -> summed loss (), nats.

        IGNORED targets add nothing.
        """
        hidden = hidden[:, -targets.shape[1] :].flatten(0, 1).to(self.compute.dtype_on(hidden.device))
        head = self.model.lm_head.weight, self.model.lm_head.bias
        return head_loss(hidden, head, targets.flatten(), self.compute.z_loss, self.kernel)


def _compile_for_training(forward: Forward) -> Forward:
    """Compiled in grad mode only: validation has windows of every width and would compile each of them."""
    compiled = torch.compile(forward, dynamic=False)  # a run has few shapes, one for each stage

    def either(x: Tensor, rotation: Rotation, layer: int, run: ForwardPass) -> Tensor:
        if torch.is_grad_enabled():
            return compiled(x, rotation, 0, run)  # layer 0 for all, so that one compilation serves them
        return forward(x, rotation, layer, run)

    return either


class WithinDocuments(ForwardPass):
    """Causal attention within each document; [EOS] is the last token of its document."""

    def __init__(self, tokens: Tensor, eos: int) -> None:
        """tokens: (B, T) ids."""
        ends = tokens == eos
        document = ends.cumsum(1) - ends.long()
        self._mask = (document[:, None, :, None] == document[:, None, None, :]).tril()  # (B, 1, T, T)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self._mask)
