"""A GPT-J forward pass with nothing clever in it, in float64: the slow twin of every runner.

One row, one head and one position at a time; no cache, no batch, no mask. Written from the papers that
kogpt/model.py names, with the rotation as a product of complex numbers.
Shapes: T tokens, L layers, H heads, D head width, E model width, V vocabulary.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kogpt.config import ModelConfig
from kogpt.sampling import Changes, Sampling

Matrix = NDArray[np.float64]


class Reference:
    def __init__(self, config: ModelConfig, tensors: Mapping[str, NDArray[Any]]) -> None:
        self.config = config
        self.tensors = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        self._read: list[tuple[Matrix, Matrix]] = []  # keys and values of each layer of the last text

    def embeddings(self, ids: NDArray[np.int64]) -> Matrix:
        return np.array([self.tensors["transformer.wte.weight"][i] for i in ids])

    def logits(self, inputs: NDArray[Any]) -> Matrix:
        """(T,) ids or (T, E) embeddings -> (T, V)."""
        head = "transformer.wte" if self.config.tied_head else "lm_head"
        return self.hidden(inputs) @ self.tensors[f"{head}.weight"].T + self.tensors["lm_head.bias"]

    def keys_values(self, inputs: NDArray[Any]) -> tuple[Matrix, Matrix]:
        """(T,) ids or (T, E) embeddings -> rotated keys, and values, (L, T, H, D) each."""
        self.hidden(inputs)
        keys, values = (np.array(layers) for layers in zip(*self._read, strict=True))
        shape = (*keys.shape[:2], self.config.n_heads, self.config.d_head)
        return keys.reshape(shape), values.reshape(shape)

    def hidden(self, inputs: NDArray[Any]) -> Matrix:
        """(T,) ids or (T, E) embeddings -> (T, E) after the last LayerNorm."""
        self._read = []
        x = inputs.astype(np.float64) if inputs.ndim == 2 else self.embeddings(inputs)
        for layer in range(self.config.n_layers):
            h = self.layer_norm(x, f"transformer.h.{layer}.ln_1")
            x = (
                x
                + self.attention(h, f"transformer.h.{layer}.attn")
                + self.mlp(h, f"transformer.h.{layer}.mlp")
            )
        return self.layer_norm(x, "transformer.ln_f")

    def layer_norm(self, x: Matrix, name: str) -> Matrix:
        rows = []
        for row in x:
            deviation = math.sqrt(np.var(row) + self.config.layer_norm_epsilon)
            normal = (row - np.mean(row)) / deviation
            rows.append(normal * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"])
        return np.array(rows)

    def mlp(self, h: Matrix, name: str) -> Matrix:
        x: Matrix = h @ self.tensors[f"{name}.fc_in.weight"].T + self.tensors[f"{name}.fc_in.bias"]
        x = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        out: Matrix = x @ self.tensors[f"{name}.fc_out.weight"].T + self.tensors[f"{name}.fc_out.bias"]
        return out

    def attention(self, h: Matrix, name: str) -> Matrix:
        d_head = self.config.d_head
        q, k, v = (h @ self.tensors[f"{name}.{p}_proj.weight"].T for p in "qkv")
        y, all_keys = np.zeros_like(h), np.zeros_like(h)
        for start in range(0, self.config.d_model, d_head):
            head = slice(start, start + d_head)
            queries = [self.turned(row, t) for t, row in enumerate(q[:, head])]
            keys = [self.turned(row, t) for t, row in enumerate(k[:, head])]
            all_keys[:, head] = keys
            for t, query in enumerate(queries):
                scores = np.array([query @ key for key in keys[: t + 1]]) / math.sqrt(d_head)
                weights = np.exp(scores - scores.max())
                y[t, head] = weights / weights.sum() @ v[: t + 1, head]
        self._read.append((all_keys, v))
        return y @ self.tensors[f"{name}.out_proj.weight"].T

    def turned(self, x: Matrix, position: int) -> Matrix:
        """One head's query or key with the first R of its D dimensions turned, pair by pair."""
        y = x.copy()
        for i in range(0, self.config.rotary_dim, 2):
            angle = position * 10000.0 ** (-i / self.config.rotary_dim)
            pair = complex(x[i], x[i + 1]) * cmath.exp(1j * angle)
            y[i], y[i + 1] = pair.real, pair.imag
        return y


def changes(
    sampling: Sampling, prompt: NDArray[np.int64], written: Mapping[int, int], n_vocab: int | None = None
) -> Changes | None:
    """Bias and penalties after `written` (token -> how often), built anew: the twin of what a Sampler keeps.

    prompt: ids that the repetition penalty counts as seen.
    """
    s = sampling
    seen = set(prompt.tolist()) if s.repetition_penalty != 1 else set()
    penalized = (s.repetition_penalty, s.presence_penalty, s.frequency_penalty) != (1, 0, 0)
    counts = dict(written) if penalized else {}
    ids = sorted(seen | set(counts) | set(s.logit_bias))
    ids = [token for token in ids if n_vocab is None or token < n_vocab]
    if not ids:
        return None
    return Changes(
        np.array(ids),
        np.array([s.logit_bias.get(token, 0.0) for token in ids]),
        np.array([s.repetition_penalty if token in seen or token in counts else 1.0 for token in ids]),
        np.array(
            [
                s.presence_penalty + counts[token] * s.frequency_penalty if token in counts else 0.0
                for token in ids
            ]
        ),
    )
