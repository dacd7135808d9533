"""Fixtures shared by the suite: small random models and a small tokenizer; no network, weights or GPU."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from kogpt.config import ModelConfig

TINY = ModelConfig(n_layers=3, n_heads=4, d_model=64, d_ff=256, n_vocab=512, n_ctx=128, rotary_dim=8)


def random_tensors(config: ModelConfig, seed: int = 0) -> Mapping[str, NDArray[np.float32]]:
    """Weights large enough that every term of the model shows in the logits."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in config.tensor_shapes().items():
        noise = rng.standard_normal(shape).astype(np.float32)
        is_norm_weight = name.endswith(("ln_1.weight", "ln_f.weight"))
        tensors[name] = 1 + 0.1 * noise if is_norm_weight else noise * (shape[-1] ** -0.5)
    return tensors


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    return TINY


@pytest.fixture(scope="session")
def tiny_tensors() -> Mapping[str, NDArray[np.float32]]:
    return random_tensors(TINY)
