"""The same logits and the same greedy text as transformers' GPTJForCausalLM, on random checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from conftest import random_tensors
from numpy.typing import NDArray
from runners import KINDS
from transformers import GPTJConfig, GPTJForCausalLM

from kogpt.config import ModelConfig
from kogpt.runner import Chunk, Runner

BASE = ModelConfig(n_layers=2, n_heads=3, d_model=42, d_ff=77, n_vocab=101, n_ctx=64, rotary_dim=6)
SHAPES = {
    "odd widths": BASE,
    "one pair turned": replace(BASE, rotary_dim=2),
    "whole heads turned": replace(BASE, rotary_dim=14),
    "tied head": replace(BASE, tied_head=True),
    "one head": replace(BASE, n_heads=1, rotary_dim=42),
    "heads of 256": replace(BASE, n_heads=2, d_model=512, d_ff=1024, rotary_dim=64),
    "another epsilon": replace(BASE, layer_norm_epsilon=0.1),
}
LENGTHS = (1, 40, 7)  # of the rows of one batch


def theirs(config: ModelConfig, tensors: Mapping[str, NDArray[np.float32]]) -> GPTJForCausalLM:
    model = GPTJForCausalLM(GPTJConfig(**config.to_json()))
    model.eval()
    state = {name: torch.from_numpy(array) for name, array in tensors.items()}
    missing = model.load_state_dict(state, strict=False)
    assert set(missing.missing_keys) <= {"lm_head.weight"} and not missing.unexpected_keys
    model.tie_weights()
    return model


def greedy(runner: Runner, batch: list[NDArray[np.int64]], n_new: int) -> list[list[int]]:
    rows = [runner.open() for _ in batch]
    written: list[list[int]] = [[] for _ in batch]
    inputs = batch
    for _ in range(n_new):
        logits = runner.forward([Chunk(row, ids) for row, ids in zip(rows, inputs, strict=True)])
        inputs = [last.argmax(-1) for last in logits]
        for ids, token in zip(written, inputs, strict=True):
            ids.append(int(token[0]))
    return written


@pytest.mark.parametrize("name", ["numpy-float32", "torch-float32"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@torch.inference_mode()
def test_logits_and_greedy_text(name: str, shape: ModelConfig) -> None:
    tensors = random_tensors(shape, seed=5)
    model, runner = theirs(shape, tensors), KINDS[name].make(shape, tensors)
    rng = np.random.default_rng(6)
    batch = [rng.integers(2, shape.n_vocab, length) for length in LENGTHS]
    found = runner.forward([Chunk(runner.open(), ids, len(ids)) for ids in batch])
    for ids, logits in zip(batch, found, strict=True):
        wanted = model(torch.from_numpy(ids)[None]).logits[0].numpy()
        assert np.abs(wanted - logits).max() <= 1e-4
    texts = [
        cast(Any, model)
        .generate(
            torch.from_numpy(ids)[None],
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, len(ids) :]
        .tolist()
        for ids in batch
    ]
    assert greedy(runner, batch, 20) == texts
