"""Adapters: small sets of weights that change what a model does without changing the model.

`Lora` adds low-rank updates to matrices, `SoftPrompt` puts embeddings before the text, `KeyValuePrefix` puts
keys and values of every layer before it. Tuning writes them, runners serve them, export merges them.
Shapes: r rank, N outputs and K inputs of a matrix, P virtual positions, L layers, H heads, D head
width, E model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LowRank:
    """The update scale * b @ a of one matrix (LoRA, arXiv 2106.09685, section 4.1)."""

    a: Floats  # (r, K)
    b: Floats  # (N, r)
    scale: float  # alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv 2312.03732)


@dataclass(frozen=True, slots=True)
class Lora:
    """Updates by the names of their modules: transformer.h.0.attn.q_proj and the like."""

    updates: Mapping[str, LowRank]


@dataclass(frozen=True, slots=True)
class SoftPrompt:
    """Embeddings before every text (prompt tuning, arXiv 2104.08691; P-tuning, arXiv 2103.10385)."""

    embeddings: Floats  # (P, E)


@dataclass(frozen=True, slots=True)
class KeyValuePrefix:
    """Keys, already rotated, and values before every text (prefix tuning, arXiv 2101.00190)."""

    keys: Floats  # (L, P, H, D)
    values: Floats  # (L, P, H, D)
