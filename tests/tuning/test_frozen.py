"""Frozen matrices in every format: products and gradients of the floats that quantize.py unpacks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import random_tensors
from torch.nn import functional as F

from kogpt.config import ModelConfig
from kogpt.errors import ConfigError, KoGPTError
from kogpt.model import Linear
from kogpt.quantize import Quantized
from kogpt.rounding import nearest
from kogpt.tuning.frozen import (
    BASE_DTYPES,
    FLOATS,
    FrozenLinear,
    QuantizedLinear,
    Room,
    base_dtype,
    unpack_int4,
)
from kogpt.weights import Stored

SHAPES = ((64, 96), (40, 50))  # (N, K); 50 is no multiple of a group, nor of two groups


def matrix(shape: tuple[int, int], dtype: str) -> Quantized:
    values = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    values[3] *= 40  # a row with a scale of its own
    return nearest(Stored("float32", values), dtype)


def frozen(shape: tuple[int, int], dtype: str) -> tuple[FrozenLinear, torch.Tensor]:
    """A layer, and its weights as plain floats."""
    linear = Linear(shape[1], shape[0])
    if dtype in FLOATS:
        made = FrozenLinear(linear, Room(), FLOATS[dtype])
        made.weight.copy_(linear.weight.detach())
        return made, made.weight.detach().float()
    quantized = matrix(shape, dtype)
    made = QuantizedLinear(linear, Room(), dtype)
    made.load(quantized)
    return made, torch.from_numpy(quantized.unpack())


@pytest.mark.parametrize("shape", SHAPES)
def test_int4_is_unpacked_to_the_integers_of_the_file_format(shape: tuple[int, int]) -> None:
    quantized = matrix(shape, "int4")
    assert quantized.groups is not None
    quantized.groups[1] |= 128  # negative sizes, which the search seldom chooses
    found = unpack_int4(torch.from_numpy(quantized.codes), torch.from_numpy(quantized.groups))
    assert torch.equal(found[:, : shape[1]], torch.from_numpy(quantized._integers(slice(None))).float())


@pytest.mark.parametrize("dtype", BASE_DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_and_gradients_are_those_of_the_floats(dtype: str, shape: tuple[int, int]) -> None:
    layer, weight = frozen(shape, dtype)
    x = torch.randn(2, 7, shape[1], requires_grad=True)
    slow = x.detach().clone().requires_grad_()
    found, expected = layer(x), F.linear(slow, weight, layer.bias)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    direction = torch.randn_like(found)
    torch.autograd.backward(found, direction)
    torch.autograd.backward(expected, direction)
    torch.testing.assert_close(x.grad, slow.grad, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", BASE_DTYPES)
def test_nothing_large_is_kept_for_the_backward_pass(dtype: str) -> None:
    """Neither the input nor floats of the weight; autocast would keep a copy of the weight."""
    layer, _ = frozen((64, 96), dtype)
    kept: list[torch.Size] = []
    x = torch.randn(5, 96, requires_grad=True)

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
    assert kept == []


def test_matrices_of_a_model_become_floats_in_the_same_room() -> None:
    """New memory for each product leaves holes in malloc's heap, which grow from step to step."""
    room, found = Room(), []
    for shape in ((96, 64), (64, 96), (8, 16)):
        layer = FrozenLinear(Linear(shape[1], shape[0]), room, torch.bfloat16)
        layer.weight.copy_(torch.randn(shape))
        floats = layer.unscaled(torch.float32)
        assert torch.equal(floats, layer.weight.float())
        found.append(floats.data_ptr())
    assert len(set(found)) == 1


def test_what_is_held_in_the_dtype_of_products_is_not_copied() -> None:
    layer = FrozenLinear(Linear(8, 16), Room(), torch.bfloat16)
    assert layer.unscaled(torch.bfloat16) is layer.weight


def test_a_gradient_is_right_after_another_matrix_took_the_room() -> None:
    """As in a model: forward passes of all layers, then the backward passes in reverse."""
    room, held = Room(), []
    for _ in range(3):
        layer = FrozenLinear(Linear(32, 32), room, torch.bfloat16)
        layer.weight.copy_(torch.randn(32, 32))
        held.append(layer)
    x = torch.randn(4, 32, requires_grad=True)
    slow = x.detach().clone().requires_grad_()
    found, expected = x, slow
    for layer in held:
        found, expected = layer(found), F.linear(expected, layer.weight.float(), layer.bias)
    torch.autograd.backward(found.sum())
    torch.autograd.backward(expected.sum())
    torch.testing.assert_close(x.grad, slow.grad)


def test_the_base_keeps_the_format_that_it_is_stored_in(tiny: ModelConfig) -> None:
    from pathlib import Path

    from kogpt.checkpoint import Checkpoint

    tensors = {name: Stored("float32", value) for name, value in random_tensors(tiny).items()}
    floats, int4 = (Checkpoint(Path(), tiny, tensors, kind) for kind in (None, "int4"))
    assert base_dtype("auto", floats, torch.bfloat16) == "bfloat16"
    assert base_dtype("auto", floats, torch.float32) == "float32"
    assert base_dtype("auto", int4, torch.float32) == "int4"
    assert base_dtype("float32", int4, torch.float32) == "float32"
    with pytest.raises(KoGPTError, match="twice"):
        base_dtype("int8", int4, torch.float32)
    with pytest.raises(ConfigError, match="unknown"):
        base_dtype("int2", floats, torch.float32)
