"""GPT-J as a torch module: token ids -> logits.

The architecture of github.com/kingoflolz/mesh-transformer-jax as published for KoGPT6B-ryan1.5b:
rotary positions on the first `rotary_dim` of each head's dimensions, interleaved (RoFormer,
arXiv 2104.09864, section 3.2.2); one LayerNorm that feeds attention and MLP in parallel; no bias in the
attention projections; a biased output head.

Knows no cache, mask, adapter, quantisation or sampling: these enter through a ForwardPass.
Shapes: B rows, T tokens, H heads, D head width, R rotary width, E model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kogpt.config import ModelConfig

# Factors of each rotated dimension, and of the other dimension of its pair; (T, 1, R) or (B, T, 1, R) each.
Rotation = tuple[Tensor, Tensor]


class Linear(nn.Linear):
    """nn.Linear with a typed call."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...


class ForwardPass:
    """What the model leaves to its caller: attention and matrix products. These defaults are for training.

    A runner overrides `attend` to keep a cache, and `project` to add LoRA.
    """

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention in a layer, four times (B, H, T, D). q and k are rotated already, q is not scaled yet."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def project(self, linear: Linear, x: Tensor) -> Tensor:
        """The product with one of the six matrices of a block, and its bias; (B, T, in) -> (B, T, out)."""
        return linear(x)

    def project_all(self, linears: Sequence[Linear], x: Tensor) -> Sequence[Tensor]:
        """`project` by each of the matrices that read the same x, and are equally large."""
        return [self.project(linear, x) for linear in linears]


class Attention(nn.Module):
    """Multi-head attention without biases; positions enter through `rotation`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.d_head = config.d_head
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            Linear(config.d_model, config.d_model, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, rotation: Rotation, layer: int, run: ForwardPass) -> Tensor:
        """(B, T, E) -> (B, T, E)."""
        q, k, v = (
            part.view(*x.shape[:-1], -1, self.d_head)  # (B, T, E) -> (B, T, H, D)
            for part in run.project_all((self.q_proj, self.k_proj, self.v_proj), x)
        )
        q, k = rotate(q, rotation), rotate(k, rotation)
        y = run.attend(layer, q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # (B, H, T, D)
        return run.project(self.out_proj, y.transpose(1, 2).flatten(-2))


class Norm(nn.LayerNorm):
    """LayerNorm in the precision of its input: training may gather its weights in a narrower one."""

    if TYPE_CHECKING:

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        """(..., E) -> (..., E)."""
        return F.layer_norm(
            x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps
        )


class MLP(nn.Module):
    """Two biased projections around the tanh approximation of GELU (arXiv 1606.08415, section 2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc_in = Linear(config.d_model, config.d_ff)
        self.fc_out = Linear(config.d_ff, config.d_model)

    def forward(self, x: Tensor, run: ForwardPass) -> Tensor:
        """(B, T, E) -> (B, T, E)."""
        return run.project(self.fc_out, F.gelu(run.project(self.fc_in, x), approximate="tanh"))


class Block(nn.Module):
    """Attention and MLP side by side on one LayerNorm, both added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = Norm(config.d_model, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotation: Rotation, layer: int, run: ForwardPass) -> Tensor:
        """(B, T, E) -> (B, T, E)."""
        h = self.ln_1(x)
        y: Tensor = x + self.attn(h, rotation, layer, run) + self.mlp(h, run)
        return y


class Transformer(nn.Module):
    """Embedding, blocks and last LayerNorm, under the names of the published checkpoint."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.n_vocab, config.d_model)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.ln_f = Norm(config.d_model, eps=config.layer_norm_epsilon)


class GPTJ(nn.Module):
    """The model in steps: a soft prompt may replace the first, and the head may run on few positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)
        self.lm_head = Linear(config.d_model, config.n_vocab)
        self.tie()

    def tie(self) -> None:
        """Make head and embedding one tensor if the config says so; leaving the meta device parts them."""
        if self.config.tied_head:
            self.lm_head.weight = self.transformer.wte.weight

    def embed(self, tokens: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, E)."""
        x: Tensor = self.transformer.wte(tokens)
        return x

    def trunk(self, x: Tensor, positions: Tensor, run: ForwardPass | None = None) -> Tensor:
        """(B, T, E) embeddings at (B, T) or (T,) positions -> (B, T, E) after the last LayerNorm."""
        return self.norm(self.blocks(x, positions, run or ForwardPass(), range(self.config.n_layers)))

    def blocks(self, x: Tensor, positions: Tensor, run: ForwardPass, layers: range) -> Tensor:
        """The given blocks, one after the other; (B, T, E) -> (B, T, E)."""
        precision = torch.promote_types(x.dtype, torch.float32)  # 16-bit q and k are rotated in float32
        rotation = rotary_table(positions, self.config.rotary_dim, precision)
        for layer in layers:
            x = self.transformer.h[layer](x, rotation, layer, run)
        return x

    def norm(self, x: Tensor) -> Tensor:
        """The last LayerNorm; (B, T, E) -> (B, T, E)."""
        return self.transformer.ln_f(x)

    def head(self, x: Tensor) -> Tensor:
        """(..., E) -> (..., V) logits, in the dtype of x."""
        return self.lm_head(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) ids, each row from position 0 -> (B, T, V) logits; T at most n_ctx."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.trunk(self.embed(tokens), positions))


def rotary_table(positions: Tensor, rotary_dim: int, dtype: torch.dtype) -> Rotation:
    """Angles position / 10000^(2j/R) for j < R/2, in float64 until cos and sin; RoFormer, equation 15."""
    pairs = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=positions.device)
    angles = positions.double()[..., None, None] * 10000.0 ** (-pairs / rotary_dim)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.stack((cos, cos), dim=-1).flatten(-2), torch.stack((-sin, sin), dim=-1).flatten(-2)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (2j, 2j+1) of the first R dimensions by its angle; (B, T, H, D) -> same; equation 34."""
    own, others = rotation
    turned, rest = x.tensor_split([own.shape[-1]], dim=-1)
    swapped = turned.reshape(*turned.shape[:-1], -1, 2).flip(-1).flatten(-2)
    return torch.cat(((turned * own + swapped * others).to(x.dtype), rest), dim=-1)
