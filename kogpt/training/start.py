"""What a run starts from: random weights by a seed, or the weights of a model folder.

Both are read row by row: each process makes only its own share of the weights, and the weights do not depend
on the number of processes.
"""

from __future__ import annotations

import math
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray

from kogpt import checkpoint
from kogpt.checkpoint import Checkpoint
from kogpt.config import ModelConfig
from kogpt.model import GPTJ
from kogpt.training.processes import Processes, ReadRows

BLOCK = 64  # rows drawn from one generator


def random_rows(config: ModelConfig, seed: int) -> ReadRows:
    """Random weights: every block starts as the identity, and its inner matrices keep the variance."""
    shapes = config.tensor_shapes()

    def read(name: str, first: int, end: int) -> NDArray[np.float32]:
        shape = (end - first, *shapes[name][1:])
        if len(shape) == 1 or name.endswith(("out_proj.weight", "fc_out.weight")):
            is_scale = "ln_" in name and name.endswith(".weight")
            return np.full(shape, float(is_scale), dtype=np.float32)
        is_vocabulary = name.startswith(("transformer.wte", "lm_head"))
        deviation = np.float32(0.02 if is_vocabulary else 1 / math.sqrt(config.d_model))
        return deviation * _normal((seed, crc32(name.encode())), first, end, shape[1])

    return read


def _normal(key: tuple[int, int], first: int, end: int, width: int) -> NDArray[np.float32]:
    """Rows first..end of an endless matrix of normal numbers, seeded by `key`; (end - first, width)."""
    numbers = range(first // BLOCK, -(-end // BLOCK))
    blocks = [
        np.random.default_rng((*key, number)).standard_normal((BLOCK, width), np.float32)
        for number in numbers
    ]
    return np.concatenate(blocks)[first - numbers.start * BLOCK :][: end - first]


def stored_rows(start: Checkpoint) -> ReadRows:
    """The weights of a model folder."""
    return lambda name, first, end: start.tensors[name].rows(first, end).to("float32")


def initial_model(config: ModelConfig, seed: int) -> GPTJ:
    """A model of random weights in the memory of this process."""
    model = meta_model(config)
    model.to_empty(device="cpu")
    model.tie()
    Processes().fill(model, random_rows(config, seed))
    return model


def meta_model(config: ModelConfig) -> GPTJ:
    """A model on the meta device, without weights."""
    with torch.device("meta"):
        return GPTJ(config)


def find_start(init: str, root: Path) -> Checkpoint:
    """The model folder `init`: a path below `root`, a built-in name, or a name on the hub."""
    inside = root / init
    return checkpoint.load(inside if inside.exists() else init)
