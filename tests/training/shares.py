"""`python shares.py FOLDER` under torchrun's variables: what every process holds of a model, and gradients.

Rank 0 writes FOLDER/whole.pt: the weights put together again, gradients of one batch, and an update by them.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import cast
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.tensor import DTensor

from kogpt.config import ModelConfig
from kogpt.pretraining.start import meta_model, random_rows
from kogpt.training.objective import Arithmetic, Objective
from kogpt.training.optimizers import Rule, build
from kogpt.training.workers import Workers, join

# Odd sizes: shares of different lengths, and blocks of random rows that lie across a border.
UNTIED = ModelConfig(n_layers=2, n_heads=2, d_model=36, d_ff=145, n_vocab=301, n_ctx=32, rotary_dim=8)
SHAPES = {tied: replace(UNTIED, tied_head=tied) for tied in (False, True)}
SEED = 11


def objective(config: ModelConfig, workers: Workers, dtype: str) -> Objective:
    arithmetic = Arithmetic(dtype=dtype, compile="nothing")
    made = Objective(meta_model(config), arithmetic)
    workers.distribute(made, made.blocks(), arithmetic.dtype_on(workers.device))
    made.model.tie()
    workers.fill(made.model, random_rows(config, SEED))
    return made


def gradients(made: Objective, workers: Workers) -> dict[str, torch.Tensor]:
    """Of the summed loss of four rows, all processes together, at weights of which none is zero."""
    shapes = made.model.config.tensor_shapes()

    def noise(name: str, first: int, end: int) -> NDArray[np.float32]:
        rng = np.random.default_rng(crc32(name.encode()))
        return rng.normal(1.0 if "ln_" in name else 0.0, 0.2, shapes[name]).astype(np.float32)[first:end]

    workers.fill(made.model, noise)
    rows = torch.randint(5, 301, (4, 17), generator=torch.Generator().manual_seed(3))[
        workers.rank :: workers.count
    ]
    torch.autograd.backward(made(rows[:, :-1], rows[:, 1:]) * workers.count)
    return {name: whole(parameter.grad) for name, parameter in made.named_parameters()}


def updated(made: Objective, workers: Workers) -> dict[str, torch.Tensor]:
    """The weights after an update by those gradients, its products in float32."""
    gradients(made, workers)
    for optimizer in build(made, Rule(), torch.float32):
        optimizer.step()
    return {name: whole(parameter.detach()) for name, parameter in made.named_parameters()}


def whole(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with join("cpu") as workers:
        found: dict[str, object] = {}
        for tied, config in SHAPES.items():
            made = objective(config, workers, "float32")
            weights = {name: whole(value) for name, value in made.model.state_dict().items()}
            held = sum(cast(DTensor, parameter).to_local().numel() for parameter in made.parameters())
            assert held <= 0.51 * config.n_parameters, (held, config.n_parameters)
            found[f"weights, {tied}"] = weights
            found[f"updated, {tied}"] = updated(made, workers)
            for dtype in ("float32", "bfloat16"):
                found[f"{dtype}, {tied}"] = gradients(objective(config, workers, dtype), workers)
        if workers.is_first:
            torch.save(found, folder / "whole.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
