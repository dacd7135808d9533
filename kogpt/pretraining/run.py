"""Shards -> model: `kogpt pretrain run`. Puts recipe, mixture, objective and loop together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from kogpt import checkpoint
from kogpt.checkpoint import Checkpoint
from kogpt.config import ModelConfig
from kogpt.errors import CheckpointError, ConfigError
from kogpt.files import lock_folder
from kogpt.memory import require_memory
from kogpt.pretraining import corpus, sample
from kogpt.pretraining.mixture import Mixture
from kogpt.pretraining.recipe import Recipe
from kogpt.pretraining.start import (
    find_start,
    meta_model,
    random_rows,
    require_tokenizer,
    stored_rows,
)
from kogpt.tokenizer import Tokenizer
from kogpt.training import checkpoints
from kogpt.training.loop import Run, Settings
from kogpt.training.objective import Objective
from kogpt.training.report import METRICS, flops_per_token, measured_peak, read_metrics
from kogpt.training.validation import Document, bits_per_byte
from kogpt.training.workers import Workers


def pretrain(
    recipe: Recipe,
    root: Path,
    folder: Path,
    workers: Workers,
    live: TextIO | None = None,
    tensorboard: bool = False,
) -> bool:
    """Train until the schedule ends (True) or a signal (False); continues what `folder` holds.

    Paths of the recipe are relative to `root`. When it ends, `folder`/model is a model folder. InputError
    while another run has `folder`.
    """
    if not workers.is_first:
        return _pretrain(recipe, root, folder, workers, live, tensorboard)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder, "kogpt pretrain run"):
        return _pretrain(recipe, root, folder, workers, live, tensorboard)


def _pretrain(
    recipe: Recipe, root: Path, folder: Path, workers: Workers, live: TextIO | None, tensorboard: bool
) -> bool:
    _require_rows(recipe, workers.count)
    tokenizer = Tokenizer.from_file(tokenizer_file(recipe, root))
    mixture = Mixture(recipe.sources, recipe.stages, recipe.seed, root)
    require_tokenizer(tokenizer_file(recipe, root), mixture.tokenizer_sha256)
    mixture.verify(workers.rank, workers.count)
    start = find_start(recipe.init, root) if recipe.init else None
    if start:
        require_tokenizer(start.folder / "tokenizer.json", mixture.tokenizer_sha256)
        tokenizer.check_fits(start.config)
    config = model_config(recipe, tokenizer, start)
    _require_memory(config, workers)
    torch.manual_seed(recipe.seed)
    objective = Objective(meta_model(config), recipe.arithmetic)
    dtype = recipe.arithmetic.dtype_on(workers.device)
    # Not on CPUs: nothing travels far there, and torch sums an embedding's gradient in its own dtype.
    gathered = dtype if workers.device.type == "cuda" else None
    workers.distribute(objective, objective.blocks(), gathered)
    objective.model.tie()
    identity = {**config.to_json(), "tokenizer_sha256": mixture.tokenizer_sha256}
    run = Run(folder, objective, _settings(recipe, dtype), workers, identity)
    run.report.live = live if workers.is_first else None
    run.report.tensorboard = tensorboard
    peak = workers.count * measured_peak(workers.device, dtype)
    run.flops = lambda length: flops_per_token(config, length) / peak
    sets = {
        name: _validation_set(root / path, tokenizer, recipe.loop.validation_bytes)
        for name, path in recipe.validation.items()
    }

    def validate(step: int) -> Mapping[str, Any]:
        length = mixture.stage(step - 1).length
        return {"length": length, "bits_per_byte": bits_per_byte(objective, sets, length, workers)}

    if not run.resume():
        workers.fill(objective.model, stored_rows(start) if start else random_rows(config, recipe.seed))
    _remember_start(run, start, dtype)
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
    checkpoints.verify(path)
    tokenizer = tokenizer_file(recipe, root)
    start = find_start(recipe.init, root) if recipe.init else None
    config = model_config(recipe, Tokenizer.from_file(tokenizer), start)
    weights = checkpoints.Weights(path, config.tensor_shapes(), "model.")
    checkpoint.save(out, config, weights, dtype, tokenizer.parent)


def tokenizer_file(recipe: Recipe, root: Path) -> Path:
    """Where the recipe's tokenizer.json is."""
    path = root / recipe.tokenizer
    return path / "tokenizer.json" if path.is_dir() else path


def model_config(recipe: Recipe, tokenizer: Tokenizer, start: Checkpoint | None = None) -> ModelConfig:
    """The shape of `start`, or the recipe's with the tokenizer's vocabulary.

    ConfigError if a stage is longer than the context.
    """
    config = start.config if start else _own_config(recipe, tokenizer)
    if (longest := max(stage.length for stage in recipe.stages)) > config.n_ctx:
        raise ConfigError(
            f"a stage of {longest} tokens is longer than n_ctx, {config.n_ctx}: shorten it, or raise "
            "model.n_ctx",
            f"구간 길이 {longest}이(가) n_ctx {config.n_ctx}보다 깁니다. 줄이거나 model.n_ctx를 늘리세요",
        )
    return config


def _own_config(recipe: Recipe, tokenizer: Tokenizer) -> ModelConfig:
    shape = recipe.model
    assert shape is not None  # a recipe has it, or init
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


def _require_memory(config: ModelConfig, workers: Workers) -> None:
    """NotEnoughMemory if not even a process's share of weights, gradients and one moment fits, in float32."""
    free = torch.cuda.mem_get_info(workers.device)[0] if workers.device.type == "cuda" else None
    n_bytes = 12 * config.n_parameters // workers.count
    require_memory(n_bytes, "training this model", "이 모델의 학습", free)


def _require_rows(recipe: Recipe, n_processes: int) -> None:
    """Every process must take part in every pass: they wait for each other's shares of the weights."""
    for stage in recipe.stages:
        if stage.rows % n_processes:
            raise ConfigError(
                f"a stage of {stage.rows} rows does not divide among {n_processes} processes: "
                f"make rows a multiple of {n_processes}, or start fewer processes",
                f"구간의 rows {stage.rows}을(를) 프로세스 {n_processes}개에 나눌 수 없습니다. "
                f"rows를 {n_processes}의 배수로 하거나 프로세스를 줄이세요",
            )


def _remember_start(run: Run, start: Checkpoint | None, dtype: torch.dtype) -> None:
    """Note in the metrics what the run starts from and multiplies in; ConfigError if it began otherwise."""
    path = run.folder / METRICS
    run.workers.wait()  # the first process may have shortened the file
    lines = read_metrics(path) if path.exists() else []
    noted = next((line for line in lines if line["step"] == 0), {})
    facts = {"dtype": str(dtype).removeprefix("torch.")}
    if start:
        facts |= {"init": str(start.folder), "init_sha256": checkpoint.digest(start.folder)}
    run.workers.wait()  # all have read it before it grows
    if run.step:
        _require_same_start(run.folder, noted, facts)
    elif run.workers.is_first:
        run.report.write({"step": 0, "tokens": 0, "seconds": 0.0, **facts})


def _require_same_start(folder: Path, noted: Mapping[str, Any], facts: Mapping[str, str]) -> None:
    """ConfigError unless a run that noted this may go on with `facts`."""
    if noted.get("init_sha256") != facts.get("init_sha256"):
        began, now = (line.get("init", "random weights") for line in (noted, facts))
        raise ConfigError(
            f"{folder} began from {began}, not from {now}: give another --out",
            f"{folder}은(는) {now}이(가) 아닌 {began}에서 시작했습니다. 다른 --out을 지정하세요",
        )
    if (began := noted.get("dtype", facts["dtype"])) != facts["dtype"]:  # early runs did not note it
        remedy = f"--set 'arithmetic.dtype=\"{began}\"'"
        raise ConfigError(
            f"{folder} began with products in {began}, not {facts['dtype']}: give {remedy} or another --out",
            f"{folder}은(는) {facts['dtype']}이(가) 아닌 {began} 곱셈으로 시작했습니다. "
            f"{remedy} 또는 다른 --out을 지정하세요",
        )


def _validation_set(path: Path, tokenizer: Tokenizer, max_bytes: int) -> list[Document]:
    documents = list(read_documents(path, tokenizer, max_bytes))
    if not documents:
        raise ConfigError(
            f"validation set {path} has no text of at most {max_bytes} bytes: leave it out, give a file that "
            "has some, or raise loop.validation_bytes",
            f"검증 파일 {path}에 {max_bytes}바이트 이하의 글이 없습니다. "
            "빼거나, 글이 있는 파일을 지정하거나, loop.validation_bytes를 늘리세요",
        )
    return documents


def read_documents(path: Path, tokenizer: Tokenizer, max_bytes: float = math.inf) -> Iterator[Document]:
    """Documents of a file in order, those left out that would not fit into `max_bytes` any more.

    A first one that is larger is cut.
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


def _settings(recipe: Recipe, dtype: torch.dtype) -> Settings:
    pace = recipe.loop
    return Settings(
        schedule=recipe.schedule,
        rule=recipe.optimizer,
        dtype=dtype,
        clip=pace.clip,
        tokens_per_pass=pace.tokens_per_pass,
        log_every=pace.log_every,
        validate_every=pace.validate_every,
        save_every=pace.save_every,
        save_seconds=pace.save_seconds,
        keep=pace.keep,
    )
