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
from kogpt.training.objective import ComputeSettings, Objective
from kogpt.training.optimizers import OptimizerSettings, build_optimizers
from kogpt.training.processes import Processes, join
from kogpt.training.start import meta_model, random_rows

# Odd sizes: shares of different lengths, and blocks of random rows that lie across a border.
UNTIED = ModelConfig(n_layers=2, n_heads=2, d_model=36, d_ff=145, n_vocab=301, n_ctx=32, rotary_dim=8)
SHAPES = {tied: replace(UNTIED, tied_head=tied) for tied in (False, True)}
SEED = 11


def objective(config: ModelConfig, processes: Processes, dtype: str) -> Objective:
    compute = ComputeSettings(dtype=dtype, compile="nothing")
    made = Objective(meta_model(config), compute)
    processes.distribute(made, made.blocks(), compute.dtype_on(processes.device))
    made.model.tie()
    processes.fill(made.model, random_rows(config, SEED))
    return made


def gradients(made: Objective, processes: Processes) -> dict[str, torch.Tensor]:
    """Of the summed loss of four rows, all processes together, at weights of which none is zero."""
    shapes = made.model.config.tensor_shapes()

    def noise(name: str, first: int, end: int) -> NDArray[np.float32]:
        rng = np.random.default_rng(crc32(name.encode()))
        return rng.normal(1.0 if "ln_" in name else 0.0, 0.2, shapes[name]).astype(np.float32)[first:end]

    processes.fill(made.model, noise)
    rows = torch.randint(5, 301, (4, 17), generator=torch.Generator().manual_seed(3))[
        processes.rank :: processes.count
    ]
    torch.autograd.backward(made(rows[:, :-1], rows[:, 1:]) * processes.count)
    return {name: whole(parameter.grad) for name, parameter in made.named_parameters()}


def updated(made: Objective, processes: Processes) -> dict[str, torch.Tensor]:
    """The weights after an update by those gradients, its products in float32."""
    gradients(made, processes)
    for optimizer in build_optimizers(made.groups(), OptimizerSettings(), torch.float32):
        optimizer.step()
    return {name: whole(parameter.detach()) for name, parameter in made.named_parameters()}


def whole(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with join("cpu") as processes:
        found: dict[str, object] = {}
        for tied, config in SHAPES.items():
            made = objective(config, processes, "float32")
            weights = {name: whole(value) for name, value in made.model.state_dict().items()}
            held = sum(cast(DTensor, parameter).to_local().numel() for parameter in made.parameters())
            assert held <= 0.51 * config.n_parameters, (held, config.n_parameters)
            found[f"weights, {tied}"] = weights
            found[f"updated, {tied}"] = updated(made, processes)
            for dtype in ("float32", "bfloat16"):
                found[f"{dtype}, {tied}"] = gradients(objective(config, processes, dtype), processes)
        if processes.is_first:
            torch.save(found, folder / "whole.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
