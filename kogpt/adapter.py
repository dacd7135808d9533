"""Adapters: small sets of weights that change what a model does without changing the model.

`Lora` adds low-rank updates to matrices, `SoftPrompt` puts embeddings before the text, `KeyValuePrefix` puts
keys and values of every layer before it. Tuning writes them, runners serve them, `merged` adds a LoRA to a
model's own weights; peft.py reads and writes their folders.
Shapes: r rank, N outputs and K inputs of a matrix, P virtual positions, L layers, H heads, D head
width, E model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kogpt.config import ModelConfig
from kogpt.errors import KoGPTError, josa
from kogpt.quantize import Lazy
from kogpt.weights import Stored

Floats = NDArray[np.float32]

BLOCK_ROWS = 1024  # rows of a matrix that are merged at a time


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


Adapter = Lora | SoftPrompt | KeyValuePrefix


def require_lora_fits(lora: Lora, config: ModelConfig) -> None:
    """Raise KoGPTError unless every update belongs to a matrix of a block and has its shape."""
    shapes = config.tensor_shapes()
    for module, update in lora.updates.items():
        shape = shapes.get(f"{module}.weight", ())
        if ".h." not in module or len(shape) != 2:
            raise KoGPTError(
                f"the adapter changes {module}, which is no matrix in a block of this model: "
                "use an adapter that was tuned on this model",
                f"어댑터가 {josa(module, '을/를')} 바꾸지만, 이 모델의 블록에 그런 행렬이 없습니다. "
                "이 모델에서 튜닝한 어댑터를 쓰세요",
            )
        (n, k), rank = shape, len(update.a)
        if update.a.shape != (rank, k) or update.b.shape != (n, rank):
            raise KoGPTError(
                f"the adapter's factors of {module} are {update.a.shape} and {update.b.shape}, must be "
                f"(rank, {k}) and ({n}, rank): use an adapter that was tuned on this model",
                f"{module}의 어댑터 행렬 크기 {update.a.shape}, {update.b.shape} "
                f"(조건: (랭크, {k}), ({n}, 랭크)). 이 모델에서 튜닝한 어댑터를 쓰세요",
            )


def unchanged(config: ModelConfig) -> Lora:
    """A LoRA that changes nothing: what a head needs to be an adapter for PEFT, which knows none without."""
    width = config.d_model
    update = LowRank(np.zeros((1, width), np.float32), np.zeros((width, 1), np.float32), scale=1.0)
    return Lora({"transformer.h.0.attn.q_proj": update})


def merged(tensors: Mapping[str, Stored], lora: Lora) -> Mapping[str, Stored]:
    """A model's tensors with a LoRA added, float32 where one is; each is computed when it is asked for."""
    return _Merged(tensors, lora)


class _Merged(Lazy[Stored]):
    def __init__(self, tensors: Mapping[str, Stored], lora: Lora) -> None:
        super().__init__(tensors)
        self._tensors = tensors
        self._updates = {f"{module}.weight": update for module, update in lora.updates.items()}

    def __getitem__(self, name: str) -> Stored:
        tensor, update = self._tensors[name], self._updates.get(name)
        if update is None:
            return tensor
        weights = np.array(tensor.to("float32"))
        for start in range(0, len(weights), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            weights[rows] += update.scale * (update.b[rows] @ update.a)
        return Stored("float32", weights)
