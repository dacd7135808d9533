"""What a run starts from: random weights by a seed, or those of a model folder.

Either is asked for row by row, so that each of many processes makes its own share and none the whole model,
and the weights do not depend on how many they are.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray

from kogpt import checkpoint
from kogpt.checkpoint import Checkpoint
from kogpt.config import ModelConfig
from kogpt.errors import ConfigError
from kogpt.model import GPTJ
from kogpt.training.workers import Rows, Workers

BLOCK = 64  # rows that are drawn together


def random_rows(config: ModelConfig, seed: int) -> Rows:
    """Random weights: every block starts as the identity, its inner matrices keep the variance."""
    shapes = config.tensor_shapes()

    def rows(name: str, first: int, end: int) -> NDArray[np.float32]:
        shape = (end - first, *shapes[name][1:])
        if len(shape) == 1 or name.endswith(("out_proj.weight", "fc_out.weight")):
            is_scale = "ln_" in name and name.endswith(".weight")
            return np.full(shape, float(is_scale), dtype=np.float32)
        is_words = name.startswith(("transformer.wte", "lm_head"))
        deviation = np.float32(0.02 if is_words else 1 / math.sqrt(config.d_model))
        return deviation * _normal((seed, crc32(name.encode())), first, end, shape[1])

    return rows


def _normal(key: tuple[int, int], first: int, end: int, width: int) -> NDArray[np.float32]:
    """Rows first..end of an endless matrix of normal numbers that `key` names; (end - first, width)."""
    numbers = range(first // BLOCK, -(-end // BLOCK))
    blocks = [
        np.random.default_rng((*key, number)).standard_normal((BLOCK, width), np.float32)
        for number in numbers
    ]
    return np.concatenate(blocks)[first - numbers.start * BLOCK :][: end - first]


def stored_rows(start: Checkpoint) -> Rows:
    """The weights of a model folder."""
    return lambda name, first, end: start.tensors[name].rows(first, end).to("float32")


def initial_model(config: ModelConfig, seed: int) -> GPTJ:
    """Random weights in one process, in memory."""
    model = meta_model(config)
    model.to_empty(device="cpu")
    model.tie()
    Workers().fill(model, random_rows(config, seed))
    return model


def meta_model(config: ModelConfig) -> GPTJ:
    """A model without weights, on the meta device."""
    with torch.device("meta"):
        return GPTJ(config)


def find_start(init: str, root: Path) -> Checkpoint:
    """The model folder that a recipe names: one below `root`, a built-in name, or a name on the hub."""
    inside = root / init
    return checkpoint.load(inside if inside.exists() else init)


def require_tokenizer(path: Path, sha256: str) -> None:
    """ConfigError unless `path` is the tokenizer.json that the shards were packed with."""
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ConfigError(
            f"the shards were packed with another tokenizer (SHA-256 {sha256[:16]}...) than {path}: "
            f"pack the text again with that",
            f"말뭉치 조각을 만든 토크나이저(SHA-256 {sha256[:16]}...)가 {path}와(과) 다릅니다. "
            f"그것으로 다시 묶으세요",
        )
