"""Several processes hold the weights, and make the gradients, that one would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kogpt.training.processes import Processes
from kogpt.training.start import BLOCK, initial_model, random_rows

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import shares  # noqa: E402

Found = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What two processes put together."""
    folder = tmp_path_factory.mktemp("two")
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_001 + os.getpid() % 20_000)}
    common = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), **world}
    command = [sys.executable, "-W", "error", str(HERE / "shares.py"), str(folder)]
    processes = [
        subprocess.Popen(command, env={**common, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in processes:
        _, message = process.communicate()
        assert process.returncode == 0, message
    found: Found = torch.load(folder / "whole.pt")
    return found


@pytest.mark.parametrize("tied", [False, True])
def test_weights_do_not_depend_on_the_number_of_processes(two: Found, tied: bool) -> None:
    alone = initial_model(shares.SHAPES[tied], shares.SEED).state_dict()
    assert two[f"weights, {tied}"].keys() == alone.keys()
    for name, value in alone.items():
        assert torch.equal(two[f"weights, {tied}"][name], value), name


def one(tied: bool, dtype: str) -> dict[str, torch.Tensor]:
    return shares.gradients(shares.objective(shares.SHAPES[tied], Processes(), dtype), Processes())


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_are_those_of_one_process(two: Found, tied: bool) -> None:
    alone = one(tied, "float32")
    for name, value in two[f"float32, {tied}"].items():
        torch.testing.assert_close(value, alone[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_an_update_in_float32_is_that_of_one_process(two: Found, tied: bool) -> None:
    alone = shares.updated(shares.objective(shares.SHAPES[tied], Processes(), "float32"), Processes())
    for name, value in two[f"updated, {tied}"].items():
        torch.testing.assert_close(value, alone[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
def test_bfloat16_on_the_way_costs_no_more_than_bfloat16_at_work(two: Found, tied: bool) -> None:
    """About as far from float32 as one process: 2.3 times for the worst of the parameters."""
    exact, alone = one(tied, "float32"), one(tied, "bfloat16")
    for name, value in two[f"bfloat16, {tied}"].items():
        assert value.dtype == torch.float32
        assert (value - exact[name]).norm() <= 3 * (alone[name] - exact[name]).norm(), name
        assert not torch.equal(value, alone[name]), name


def test_a_process_alone_sums_without_its_device() -> None:
    """A tensor on the device would be waited for, and all work in the queue before it."""
    assert Processes(torch.device("meta")).sum((1.5, True)) == [1.5, 1.0]


def test_random_weights_have_their_deviation_and_no_row_twice() -> None:
    config = shares.SHAPES[False]
    model = initial_model(config, seed=1)
    for name, deviation in (("lm_head.weight", 0.02), ("transformer.h.1.attn.k_proj.weight", 1 / 6)):
        weight = model.get_parameter(name).detach()
        assert float(weight.std()) == pytest.approx(deviation, rel=0.1)
        assert len(torch.unique(weight, dim=0)) == len(weight)
    other = initial_model(config, seed=2)
    assert not torch.equal(model.lm_head.weight, other.lm_head.weight)
    assert not torch.equal(model.lm_head.weight, model.transformer.wte.weight)
    rows = random_rows(config, 1)
    assert torch.equal(
        torch.from_numpy(rows("lm_head.weight", BLOCK - 3, 2 * BLOCK + 5)),
        model.lm_head.weight[BLOCK - 3 : 2 * BLOCK + 5],
    )
