"""A model split over several devices: logical ones of the CPU, fakes that know where they lie, and GPUs."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, random_tensors
from numpy.typing import NDArray
from runners import pretend_free, stored
from torch._subclasses.fake_tensor import FakeTensorMode

from kogpt import torch_runner
from kogpt.config import SHAPES, ModelConfig
from kogpt.errors import KoGPTError, NotEnoughMemory
from kogpt.placement import Placement
from kogpt.runner import Array, Chunk
from kogpt.torch_runner import TorchRunner
from kogpt.torch_weights import split_layers

DEEP = replace(TINY, n_layers=7)
TENSORS = {name: stored(array) for name, array in random_tensors(DEEP).items()}
IDS = np.random.default_rng(1).integers(0, DEEP.n_vocab, (3, 60))


def weights_of(config: ModelConfig, runs: list[range]) -> list[int]:
    """Weights of each run: the embedding in the first, ln_f and head in the last."""
    sizes = {name: prod(shape) for name, shape in replace(config, tied_head=False).tensor_shapes().items()}
    found = [sum(sizes[n] for n in sizes for i in run if n.startswith(f"transformer.h.{i}.")) for run in runs]
    found[0] += sizes["transformer.wte.weight"]
    found[-1] += sum(sizes[name] for name in sizes if name.startswith(("transformer.ln_f", "lm_head")))
    assert sum(found) == sum(sizes.values())
    return found


def passes(runner: TorchRunner) -> list[Array]:
    """Prompts of unequal length, a soft prompt, a fork, and decoding of all rows, one of them from a fork."""
    rows = [runner.open() for _ in range(3)]
    soft = np.random.default_rng(2).standard_normal((5, DEEP.d_model)).astype(np.float32)
    prompts: list[NDArray[Any]] = [IDS[0, :40], IDS[1, :9], soft]
    logits = runner.forward([Chunk(row, ids, len(ids)) for row, ids in zip(rows, prompts, strict=True)])
    runner.close(rows[1])
    rows[1] = runner.fork(rows[0], 17)
    for i in range(40, 43):
        logits += runner.forward([Chunk(row, IDS[j, i : i + 1]) for j, row in enumerate(rows)])
    return [*logits, *runner.hidden([Chunk(rows[2], IDS[2, :30], 4)])]


def cpus(monkeypatch: pytest.MonkeyPatch, n: int) -> list[torch.device]:
    """Makes `device` mean n CPUs, which only fake tensors tell apart."""
    devices = [torch.device("cpu", i) for i in range(n)]
    monkeypatch.setattr(torch_runner, "_devices", lambda names: devices)
    return devices


# Where the borders lie


def test_the_6b_over_four() -> None:
    runs = split_layers(SHAPES["kogpt-6b"], 4)
    assert runs == [range(6), range(6, 14), range(14, 22), range(22, 28)]
    assert max(weights_of(SHAPES["kogpt-6b"], runs)) * 4 < 6.5e9  # float32, on cards of 10 GB


@pytest.mark.parametrize("config", [*SHAPES.values(), TINY, DEEP, replace(DEEP, d_ff=9000, tied_head=True)])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
def test_shares_differ_by_less_than_a_block(config: ModelConfig, n: int) -> None:
    runs = split_layers(config, n)
    assert len(runs) == n
    assert [layer for run in runs for layer in run] == list(range(config.n_layers))
    found = weights_of(config, runs)
    block = weights_of(config, [range(0), range(1), range(1, config.n_layers)])[1]
    alone = [w for w, run in ((found[0], runs[0]), (found[-1], runs[-1])) if not run]  # a huge embedding
    assert max(found) <= max(sum(found) / n + block, *alone, 0)


# One device or many


@pytest.mark.parametrize("tied_head", [False, True])
@pytest.mark.parametrize("n", [2, 3, 9])
def test_logits_are_those_of_one_device(n: int, tied_head: bool) -> None:
    config = replace(DEEP, tied_head=tied_head)
    tensors = {name: TENSORS[name] for name in config.tensor_shapes()}
    split = TorchRunner(config, tensors, device=",".join(["cpu"] * n))
    for found, wanted in zip(passes(split), passes(TorchRunner(config, tensors)), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("tied_head", [False, True])
def test_everything_lies_where_it_is_used(tied_head: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake tensors compute nothing, but refuse to mix devices."""
    config = replace(DEEP, tied_head=tied_head)
    devices = cpus(monkeypatch, 3)
    monkeypatch.setattr(torch_runner, "_to_numpy", lambda x: np.zeros(x.shape, np.float32))
    with FakeTensorMode(allow_non_fake_inputs=True):
        runner = TorchRunner(config, {name: TENSORS[name] for name in config.tensor_shapes()})
        passes(runner)
        assert {layer.device for layer in runner._cache.layers} == set(devices)
        state = runner._model.state_dict()
    where = {name: tensor.device.index for name, tensor in state.items()}
    assert (where["transformer.wte.weight"], where["lm_head.weight"], where["transformer.ln_f.bias"]) == (
        0,
        2,
        2,
    )
    for run, device in zip(split_layers(config, 3), devices, strict=True):
        for layer in run:
            assert where[f"transformer.h.{layer}.mlp.fc_in.weight"] == device.index
            assert runner._cache.layers[layer].device == device


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("device", ["cuda:all", "cuda:1,cuda:0"])
def test_logits_over_gpus_are_those_of_one(device: str) -> None:
    split = TorchRunner(DEEP, TENSORS, device=device)
    for found, wanted in zip(passes(split), passes(TorchRunner(DEEP, TENSORS, device="cuda:0")), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


# What does not fit


@pytest.mark.parametrize("tied_head", [False, True])
def test_the_device_that_is_too_small_is_named(tied_head: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(DEEP, tied_head=tied_head)
    cpus(monkeypatch, 3)
    weights = weights_of(config, split_layers(config, 3))  # each end holds its copy of a tied weight
    free = {place: 4 * n / 0.9 + 2 for place, n in enumerate(weights)}
    pretend_free(monkeypatch, lambda device: int(free[device.index]) if device else 10**9)
    tensors = {name: TENSORS[name] for name in config.tensor_shapes()}
    with FakeTensorMode(allow_non_fake_inputs=True):
        runner = TorchRunner(config, tensors)
        for small in range(3):
            with monkeypatch.context() as short:
                short.setitem(free, small, free[small] - 10)
                with pytest.raises(NotEnoughMemory, match=f"this model on cpu:{small} "):
                    TorchRunner(config, {})  # told before a tensor is touched
        free[1] = 100
        row = runner.open()
        with pytest.raises(NotEnoughMemory, match="32 tokens on cpu:1 "):
            runner.forward([Chunk(row, IDS[0, :10])])
        assert all(layer.shape[1] == 1 for layer in runner._cache.layers)  # the null block


def test_a_device_named_twice_has_to_hold_both_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    n_bytes = 4 * DEEP.n_parameters
    pretend_free(monkeypatch, lambda device: n_bytes)
    with pytest.raises(NotEnoughMemory, match="on cpu "):
        TorchRunner(DEEP, TENSORS, device="cpu,cpu")


# What `device` may be


def test_cuda_all_is_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    names = ["cuda:0", "cuda:1", "cuda:2"]
    assert torch_runner._devices("cuda:all") == [torch.device(name) for name in names]
    assert torch_runner._devices("cuda:2,cuda:0") == [torch.device("cuda:2"), torch.device("cuda:0")]
    assert torch_runner._devices("cuda") == [torch.device("cuda")]
    for name in ("cuda:1,cuda:3", "cuda,cuda:1", "cuda:0,", "cuda:all,cuda:0"):
        with pytest.raises(KoGPTError, match=rf"'{name}'.* 3 GPUs"):
            torch_runner._devices(name)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(KoGPTError, match=r"'cuda:all'.* 0 GPUs"):
        torch_runner._devices("cuda:all")


def test_several_devices_are_gpus() -> None:
    assert {Placement(name).runner_name() for name in ("cuda:0,cuda:1", "cuda:all")} == {"torch"}
    for device in ("cuda:0,cpu", "cpu,cpu", "auto,cuda"):
        with pytest.raises(KoGPTError, match=f"'{device}'.*cuda:all"):
            Placement(device)
