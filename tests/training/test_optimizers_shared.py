"""Muon over matrices whose rows lie in several processes: one process's update, and two exchanges a round.

`python test_optimizers_shared.py FOLDER` under torchrun's variables is one of those processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from kogpt.training.optimizers import Muon, OptimizerSettings
from kogpt.training.processes import join

# Eight of them have a gradient: of 3 processes one has nothing to work on in the last round, and holds fewer
# rows of 7, 8 and 16 than the others, and none of 4; of a single row the first holds all.
SIZES = [(7, 7), (12, 5), (4, 16), (16, 4), (8, 8), (1, 6), (7, 7), (5, 12), (4, 9)]
WITHOUT_GRADIENT = 6
STEPS = 3
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def drawn(size: tuple[int, int], seed: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def trained(dtype: torch.dtype, count: int) -> tuple[list[Tensor], list[dict[str, int]], dict[str, Any]]:
    """The matrices after some steps, what each step sent by kind, and what the optimizer keeps of them."""
    mesh = init_device_mesh("cpu", (count,)) if count > 1 else None

    def shared(whole: Tensor) -> Tensor:
        return whole if mesh is None else distribute_tensor(whole, mesh, [Shard(0)])

    weights = [nn.Parameter(shared(drawn(size, seed))) for seed, size in enumerate(SIZES)]
    optimizer = Muon(weights, OptimizerSettings(muon_rate=0.1), dtype)
    sent = []
    for step in range(STEPS):
        for n, (weight, size) in enumerate(zip(weights, SIZES, strict=True)):
            if n != WITHOUT_GRADIENT:
                weight.grad = shared(drawn(size, 100 * (step + 1) + n))
        with CommDebugMode() as calls:
            optimizer.step()
        sent.append({str(kind): times for kind, times in calls.get_comm_counts().items()})
    means = {str(n): whole(state["momentum_buffer"]) for n, state in optimizer.state_dict()["state"].items()}
    return [whole(weight.detach()) for weight in weights], sent, means


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with join("cpu") as processes:
        found = {name: trained(dtype, processes.count) for name, dtype in DTYPES.items()}
        if processes.is_first:
            torch.save(found, folder / "found.pt")


@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.slow), 3])
def together(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Any]:
    """How many processes, and what they found."""
    count, folder = request.param, tmp_path_factory.mktemp("together")
    port = 20_003 + (os.getpid() + count) % 20_000
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    root = str(Path(__file__).parents[2])
    common = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, **world}
    command = [sys.executable, "-W", "error", __file__, str(folder)]
    processes = [
        subprocess.Popen(command, env={**common, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(count)
    ]
    for process in processes:
        _, message = process.communicate()
        assert process.returncode == 0, message
    return count, torch.load(folder / "found.pt")


@pytest.mark.parametrize("dtype", DTYPES)
def test_shared_matrices_learn_as_whole_ones(together: tuple[int, Any], dtype: str) -> None:
    weights, _, means = together[1][dtype]
    alone, _, own_means = trained(DTYPES[dtype], 1)
    # The same products of the same numbers; only an operator's choice of kernel may differ.
    atol, rtol = (1e-6, 1e-5) if dtype == "float32" else (1e-3, 1e-2)
    for weight, own, size in zip(weights, alone, SIZES, strict=True):
        torch.testing.assert_close(weight, own, atol=atol, rtol=rtol, msg=str(size))
    assert torch.equal(weights[WITHOUT_GRADIENT], drawn(SIZES[WITHOUT_GRADIENT], WITHOUT_GRADIENT))
    assert means.keys() == own_means.keys() and len(means) == len(SIZES) - 1
    for n, mean in means.items():
        torch.testing.assert_close(mean, own_means[n])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_sends_there_and_back_and_nothing_else(together: tuple[int, Any], dtype: str) -> None:
    count, found = together
    rounds = -(-(len(SIZES) - 1) // count)
    for sent in found[dtype][1]:
        assert sent == {"c10d.alltoall_base_": 2 * rounds}


def test_a_plain_matrix_is_sent_nowhere() -> None:
    assert trained(torch.float32, 1)[1] == [{}] * STEPS


if __name__ == "__main__":
    main(Path(sys.argv[1]))
