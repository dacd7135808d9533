"""GPT-J as a torch module: the published count, the naive forward pass, and training's view of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, random_tensors
from reference import Reference

from kogpt.config import SHAPES, ModelConfig
from kogpt.model import GPTJ, rotary_table, rotate

IDS = np.random.default_rng(1).integers(0, TINY.n_vocab, (2, 30))


def model_of(config: ModelConfig, dtype: torch.dtype = torch.float64) -> GPTJ:
    state = {name: torch.from_numpy(array) for name, array in random_tensors(config).items()}
    if config.tied_head:
        state["lm_head.weight"] = state["transformer.wte.weight"]
    model = GPTJ(config)
    model.load_state_dict(state)
    return model.to(dtype)


def test_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = GPTJ(SHAPES["kogpt-6b"])
    assert sum(parameter.numel() for parameter in model.parameters()) == 6_166_502_400
    assert SHAPES["kogpt-6b"].n_parameters == 6_166_502_400


@pytest.mark.parametrize("tied_head", [False, True])
def test_names_and_shapes_are_those_of_the_checkpoint(tied_head: bool) -> None:
    config = replace(TINY, tied_head=tied_head)
    named = {name: tuple(p.shape) for name, p in GPTJ(config).named_parameters()}
    assert named == config.tensor_shapes()


@pytest.mark.parametrize("tied_head", [False, True])
def test_logits(tied_head: bool) -> None:
    config = replace(TINY, tied_head=tied_head)
    logits = model_of(config)(torch.from_numpy(IDS)).detach().numpy()
    reference = Reference(config, random_tensors(config))
    for found, ids in zip(logits, IDS, strict=True):
        np.testing.assert_allclose(found, reference.logits(ids), rtol=0, atol=1e-12)


def test_later_tokens_change_nothing_before_them() -> None:
    model = model_of(TINY)
    changed = IDS.copy()
    changed[:, 20:] = 0
    before, after = (model(torch.from_numpy(ids)).detach() for ids in (IDS, changed))
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.isclose(before[:, 20:], after[:, 20:]).all(-1).any()


def test_steps_take_embeddings_and_positions_of_each_row() -> None:
    model = model_of(TINY)
    tokens = torch.from_numpy(IDS)
    x = model.embed(tokens)
    shared = model.head(model.trunk(x, torch.arange(30)))
    own = model.head(model.trunk(x, torch.stack([torch.arange(30), torch.arange(7, 37)])))
    assert torch.equal(shared, model(tokens))
    # Attention sees only differences of positions.
    torch.testing.assert_close(own, shared, rtol=0, atol=1e-12)
    spread = model.head(model.trunk(x, 2 * torch.arange(30)))
    assert not torch.isclose(spread[:, 1:], shared[:, 1:], atol=1e-4).all(-1).any()


def test_angles_are_exact_at_the_end_of_the_context() -> None:
    """A float32 angle would be wrong by 1e-4 at position 2,047."""
    own, others = rotary_table(torch.tensor([2047]), 64, torch.float32)
    angles = 2047 * 10000.0 ** (-np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(own.view(32, 2), np.cos(angles)[:, None].repeat(2, 1), rtol=0, atol=1e-7)
    signs = np.array([-1, 1])  # of the odd dimension in the even one, and the other way round
    np.testing.assert_allclose(others.view(32, 2), np.sin(angles)[:, None] * signs, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_width_heads_are_turned_in_float32(dtype: torch.dtype) -> None:
    rotation = rotary_table(torch.arange(40), 8, torch.float32)
    x = torch.randn(1, 40, 2, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    turned = rotate(x, rotation)
    assert turned.dtype == dtype
    assert torch.equal(turned, rotate(x.float(), rotation).to(dtype))  # rounded once, at the end


def test_every_parameter_learns() -> None:
    model = model_of(TINY, torch.float32)
    tokens = torch.from_numpy(IDS)
    loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_under_autocast() -> None:
    """What training on a GPU or an AMX CPU does: float32 weights, products in bfloat16."""
    model = model_of(TINY, torch.float32)
    tokens = torch.from_numpy(IDS)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), model(tokens), rtol=0, atol=0.1)
