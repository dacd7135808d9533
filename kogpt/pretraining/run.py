"""Shards -> model: `kogpt pretrain run`. Puts recipe, mixture, objective and loop together."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch

from kogpt.checkpoint import Checkpoint
from kogpt.checkpoint import digest as digest_folder
from kogpt.config import ModelConfig
from kogpt.errors import ConfigError, josa
from kogpt.files import lock_folder
from kogpt.pretraining import corpus, sample
from kogpt.pretraining.mixture import Mixture
from kogpt.pretraining.recipe import Recipe
from kogpt.tokenizer import Tokenizer
from kogpt.training.folder import (
    export_model,
    remember_start,
    require_checkpoint,
    require_same_start,
    require_training_memory,
)
from kogpt.training.loop import End, Run, Validate
from kogpt.training.objective import Objective
from kogpt.training.processes import Processes
from kogpt.training.report import Report, Work, flops_per_token, measure_peak
from kogpt.training.start import find_start, meta_model, random_rows, stored_rows
from kogpt.training.validation import Document, bits_per_byte
from kogpt.training.verdict import Best, Verdict


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a recipe names, read and checked."""

    tokenizer: Tokenizer
    mixture: Mixture
    start: Checkpoint | None  # None: random weights
    config: ModelConfig


def pretrain(
    recipe: Recipe,
    root: Path,
    folder: Path,
    processes: Processes,
    live: TextIO | None = None,
    tensorboard: bool = False,
) -> End:
    """Train until the schedule ends or a signal stops it; continues the run that `folder` holds.

    Paths of the recipe are relative to `root`. When the schedule ends, `folder`/model is a model folder.
    InputError while another run uses `folder`.
    """
    if not processes.is_first:
        return _pretrain(recipe, root, folder, processes, None, tensorboard)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder, "kogpt pretrain run"):
        end = _pretrain(recipe, root, folder, processes, live, tensorboard)
        if end is End.DONE:
            export(recipe, root, folder, folder / "model")
        return end


def _pretrain(
    recipe: Recipe, root: Path, folder: Path, processes: Processes, live: TextIO | None, tensorboard: bool
) -> End:
    inputs = _read_inputs(recipe, root, processes)
    config, start = inputs.config, inputs.start
    require_training_memory(config, processes, averages=recipe.average is not None)
    torch.manual_seed(recipe.seed)
    objective = _distribute(recipe, config, processes)
    dtype = recipe.compute.dtype_on(processes.device)
    peak = processes.count * measure_peak(processes.device, dtype)
    report = Report(folder, live, tensorboard, Work(lambda length: flops_per_token(config, length), peak))
    identity = {**config.to_json(), "tokenizer_sha256": inputs.mixture.tokenizer_sha256}
    run = Run(folder, objective, recipe, processes, report, identity)
    validate = _validation(recipe, root, inputs, run)
    facts = {"dtype": str(dtype).removeprefix("torch.")}
    if start:
        facts |= {"init": str(start.folder), "init_sha256": digest_folder(start.folder)}
    require_same_start(run, facts, settings={"dtype": "compute.dtype"})
    if not run.resume():
        processes.fill(objective.model, stored_rows(start) if start else random_rows(config, recipe.seed))
    _require_end_ahead(recipe, run.step)
    remember_start(run, facts)
    return run.train(inputs.mixture.batch, validate)


def _read_inputs(recipe: Recipe, root: Path, processes: Processes) -> Inputs:
    """ConfigError or InputError for files that are damaged or do not fit together."""
    _require_rows(recipe, processes.count)
    tokenizer = Tokenizer.from_file(tokenizer_file(recipe, root))
    mixture = Mixture(recipe.sources, recipe.stages, recipe.seed, root, recipe.order)
    _require_tokenizer(tokenizer_file(recipe, root), mixture.tokenizer_sha256)
    mixture.verify(processes.rank, processes.count)
    start = find_start(recipe.init, root) if recipe.init else None
    if start:
        _require_tokenizer(start.folder / "tokenizer.json", mixture.tokenizer_sha256)
        tokenizer.check_fits(start.config)
    return Inputs(tokenizer, mixture, start, model_config(recipe, tokenizer, start))


def _require_end_ahead(recipe: Recipe, step: int) -> None:
    """ConfigError if the run is past its end: its newest weights may not have decayed."""
    if step > recipe.schedule.steps:
        raise ConfigError(
            f"the run has made {step} steps, more than schedule.steps, {recipe.schedule.steps}: set "
            f"schedule.steps to {step} or more, or give another --out",
            f"이미 {step}스텝까지 학습했는데 schedule.steps 값은 {recipe.schedule.steps}입니다. "
            f"schedule.steps를 {step} 이상으로 하거나 다른 --out을 지정하세요",
        )


def _distribute(recipe: Recipe, config: ModelConfig, processes: Processes) -> Objective:
    """The objective without values, its weights sharded among the processes."""
    objective = Objective(meta_model(config), recipe.compute)
    # GPUs gather in the dtype of products. CPUs gather in float32: little travels, and torch sums an
    # embedding's gradient in the gathered dtype.
    is_gpu = processes.device.type == "cuda"
    gathered = recipe.compute.dtype_on(processes.device) if is_gpu else None
    processes.distribute(objective, objective.blocks(), gathered)
    objective.model.tie()
    return objective


def _validation(recipe: Recipe, root: Path, inputs: Inputs, run: Run) -> Validate | None:
    """Bits per byte of the recipe's validation sets in windows of the stage's length; None without sets."""
    sets = {
        name: _validation_set(root / path, inputs.tokenizer, recipe.validation_bytes)
        for name, path in recipe.validation.items()
    }

    def validate(step: int, best: Best | None) -> Verdict:
        length = inputs.mixture.stage(step - 1).length
        found = bits_per_byte(run.objective, sets, length, run.processes)
        return Verdict({"length": length, "bits_per_byte": found})

    return validate if sets else None


def export(recipe: Recipe, root: Path, folder: Path, out: Path, dtype: str = "float16") -> None:
    """The newest checkpoint of a run as a model folder; CheckpointError if there is none."""
    path = require_checkpoint(folder)
    tokenizer = tokenizer_file(recipe, root)  # of any name, perhaps beside another's tokenizer.json
    start = find_start(recipe.init, root) if recipe.init else None
    config = model_config(recipe, Tokenizer.from_file(tokenizer), start)
    export_model(path, config, tokenizer, out, dtype)


def tokenizer_file(recipe: Recipe, root: Path) -> Path:
    """Where the recipe's tokenizer is: a file of any name, or the tokenizer.json of a folder."""
    path = root / recipe.tokenizer
    return path / "tokenizer.json" if path.is_dir() else path


def model_config(recipe: Recipe, tokenizer: Tokenizer, start: Checkpoint | None = None) -> ModelConfig:
    """The shape of `start`, or else the recipe's [model] with the tokenizer's vocabulary.

    ConfigError if a stage is longer than the context.
    """
    config = start.config if start else _own_config(recipe, tokenizer)
    if (longest := max(stage.length for stage in recipe.stages)) > config.n_ctx:
        raise ConfigError(
            f"a stage of {longest} tokens is longer than n_ctx, {config.n_ctx}: shorten it, or raise "
            "model.n_ctx",
            f"구간 길이 {josa(longest, '이/가')} n_ctx {config.n_ctx}보다 깁니다. "
            "줄이거나 model.n_ctx를 늘리세요",
        )
    return config


def _own_config(recipe: Recipe, tokenizer: Tokenizer) -> ModelConfig:
    shape = recipe.model
    assert shape is not None  # a recipe has either [model] or init
    return ModelConfig(
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        d_model=shape.d_model,
        d_ff=4 * shape.d_model if shape.d_ff is None else shape.d_ff,
        n_vocab=tokenizer.n_vocab,
        n_ctx=shape.n_ctx,
        rotary_dim=shape.rotary_dim,
        tied_head=shape.tied_head,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def _require_tokenizer(path: Path, sha256: str) -> None:
    """ConfigError unless `path` is the tokenizer.json that the shards were packed with."""
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ConfigError(
            f"the shards were packed with another tokenizer (SHA-256 {sha256[:16]}...) than {path}: "
            f"pack the text again with {path}, or name the tokenizer of the shards",
            f"샤드를 만든 토크나이저(SHA-256 {sha256[:16]}...)가 {josa(path, '과/와')} 다릅니다. "
            f"{path} 파일로 말뭉치를 다시 묶거나 샤드를 만든 토크나이저를 지정하세요",
        )


def _require_rows(recipe: Recipe, n_processes: int) -> None:
    """ConfigError unless the processes get equal numbers of rows: in every pass they gather the weights."""
    for stage in recipe.stages:
        if stage.rows % n_processes:
            raise ConfigError(
                f"a stage of {stage.rows} rows does not divide among {n_processes} processes: "
                f"make rows a multiple of {n_processes}, or start fewer processes",
                f"구간의 rows {josa(stage.rows, '을/를')} 프로세스 {n_processes}개에 나눌 수 없습니다. "
                f"rows를 {n_processes}의 배수로 하거나 프로세스를 줄이세요",
            )


def _validation_set(path: Path, tokenizer: Tokenizer, max_bytes: int) -> list[Document]:
    documents = list(read_documents(path, tokenizer, max_bytes))
    if not documents:
        raise ConfigError(
            f"validation set {path} has no text of at most {max_bytes} bytes: leave it out, give a file that "
            "has some, or raise validation_bytes",
            f"검증 파일 {path}에 {max_bytes}바이트 이하의 글이 없습니다. "
            "빼거나, 글이 있는 파일을 지정하거나, validation_bytes를 늘리세요",
        )
    return documents


def read_documents(path: Path, tokenizer: Tokenizer, max_bytes: float = math.inf) -> Iterator[Document]:
    """The documents of a file in order, as many whole ones as fit into `max_bytes` of UTF-8.

    One that does not fit is skipped; the first is cut instead. InputError for a bad record.
    """
    taken = 0
    files = corpus.find_files([str(path)])
    for text in sample.read_texts(files, corpus.Reading(), max_bad_share=0.0):
        raw = text.encode()
        if taken == 0 and len(raw) > max_bytes:
            text = raw[: int(max_bytes)].decode(errors="ignore")
            raw = text.encode()
        if raw and taken + len(raw) <= max_bytes:
            taken += len(raw)
            yield Document(np.array(tokenizer.encode(text), dtype=np.int64), len(raw))
