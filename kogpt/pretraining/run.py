"""Shards -> model: `kogpt pretrain run`. Puts recipe, mixture, objective and loop together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import nn

from kogpt import checkpoint
from kogpt.config import ModelConfig
from kogpt.errors import CheckpointError, ConfigError
from kogpt.model import GPTJ
from kogpt.pretraining import corpus, sample
from kogpt.pretraining.mixture import Mixture
from kogpt.pretraining.recipe import Recipe
from kogpt.tokenizer import Tokenizer
from kogpt.training import checkpoints
from kogpt.training.loop import Run, Settings
from kogpt.training.objective import Objective
from kogpt.training.report import flops_per_token, measured_peak
from kogpt.training.validation import Document, bits_per_byte
from kogpt.training.workers import Workers


def pretrain(recipe: Recipe, root: Path, folder: Path, workers: Workers, live: TextIO | None = None) -> bool:
    """Train until the schedule ends (True) or a signal (False); continues what `folder` holds.

    Paths of the recipe are relative to `root`. When it ends, `folder`/model is a model folder.
    """
    tokenizer = Tokenizer.from_file(tokenizer_file(recipe, root))
    config = model_config(recipe, tokenizer)
    mixture = Mixture(recipe.sources, recipe.stages, recipe.seed, root)
    objective = Objective(initial_model(config, recipe.seed), recipe.arithmetic)
    workers.distribute(objective, objective.blocks())
    run = Run(folder, objective, _settings(recipe), workers)
    run.report.live = live if workers.is_first else None
    peak = workers.count * measured_peak(workers.device, objective.dtype)
    run.flops = lambda length: flops_per_token(config, length) / peak
    sets = {
        name: list(read_documents(root / path, tokenizer, recipe.loop.validation_bytes))
        for name, path in recipe.validation.items()
    }

    def validate(step: int) -> Mapping[str, Any]:
        length = mixture.stage(step - 1).length
        return {"length": length, "bits_per_byte": bits_per_byte(objective, sets, length, workers)}

    run.resume()
    finished = run.train(mixture.batch, validate if sets else None)
    if finished and workers.is_first:
        export(recipe, root, folder, folder / "model")
    return finished


def export(recipe: Recipe, root: Path, folder: Path, out: Path, dtype: str = "float16") -> None:
    """The newest checkpoint of a run as a model folder; CheckpointError if there is none."""
    path = checkpoints.latest(folder)
    if path is None:
        raise CheckpointError(
            f"{folder} holds no checkpoint: train first", f"{folder}에 체크포인트가 없습니다. 먼저 학습하세요"
        )
    tokenizer = tokenizer_file(recipe, root)
    config = model_config(recipe, Tokenizer.from_file(tokenizer))
    objective = Objective(GPTJ(config), recipe.arithmetic)
    checkpoints.load_weights(path, objective)
    state = objective.model.state_dict()
    tensors = {name: state[name].numpy() for name in config.tensor_shapes()}
    checkpoint.save(out, config, tensors, dtype, tokenizer.parent)


def tokenizer_file(recipe: Recipe, root: Path) -> Path:
    """Where the recipe's tokenizer.json is."""
    path = root / recipe.tokenizer
    return path / "tokenizer.json" if path.is_dir() else path


def model_config(recipe: Recipe, tokenizer: Tokenizer) -> ModelConfig:
    """The shape with the tokenizer's vocabulary; ConfigError if a stage is longer than the context."""
    shape = recipe.model
    if (longest := max(stage.length for stage in recipe.stages)) > shape.n_ctx:
        raise ConfigError(
            f"a stage of {longest} tokens is longer than n_ctx, {shape.n_ctx}",
            f"구간 길이 {longest}이(가) n_ctx {shape.n_ctx}보다 깁니다",
        )
    return ModelConfig(
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        d_model=shape.d_model,
        d_ff=shape.d_ff or 4 * shape.d_model,
        n_vocab=tokenizer.n_vocab,
        n_ctx=shape.n_ctx,
        rotary_dim=shape.rotary_dim,
        tied_head=shape.tied_head,
    )


def initial_model(config: ModelConfig, seed: int) -> GPTJ:
    """Random weights: every block starts as the identity, its inner matrices keep the variance."""
    torch.manual_seed(seed)
    model = GPTJ(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("out_proj.weight", "fc_out.weight", ".bias")):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 2:
            is_words = name.startswith(("transformer.wte", "lm_head"))
            nn.init.normal_(parameter, std=0.02 if is_words else 1 / math.sqrt(config.d_model))
    return model


def read_documents(path: Path, tokenizer: Tokenizer, max_bytes: float = math.inf) -> Iterator[Document]:
    """Documents of a file in order, those left out that would not fit into `max_bytes` any more."""
    taken = 0
    files = corpus.find_files([str(path)])
    for text in sample.read_texts(files, corpus.Reading(), max_bad_share=0.0):
        size = len(text.encode())
        if taken + size <= max_bytes:
            taken += size
            yield Document(np.array(tokenizer.encode(text), dtype=np.int64), size)


def _settings(recipe: Recipe) -> Settings:
    pace = recipe.loop
    return Settings(
        schedule=recipe.schedule,
        rule=recipe.optimiser,
        clip=pace.clip,
        tokens_per_pass=pace.tokens_per_pass,
        log_every=pace.log_every,
        validate_every=pace.validate_every,
        save_every=pace.save_every,
        save_seconds=pace.save_seconds,
        keep=pace.keep,
    )
