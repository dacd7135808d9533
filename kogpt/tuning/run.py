"""Examples -> adapter or model: `kogpt tune`. Puts data, method and loop together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import torch

from kogpt import checkpoint, peft
from kogpt.adapter import unchanged
from kogpt.checkpoint import Checkpoint
from kogpt.errors import ConfigError, NotEnoughMemory, localized
from kogpt.files import atomic_write, explain_disk_errors, lock_folder
from kogpt.memory import amount, available_memory
from kogpt.model import GPTJ
from kogpt.peft import Origin, SavedAdapter
from kogpt.tokenizer import Tokenizer
from kogpt.training import checkpoints
from kogpt.training.folder import export_model, remember_start, require_same_start
from kogpt.training.loop import End, Run
from kogpt.training.objective import ComputeSettings
from kogpt.training.optimizers import OptimizerSettings
from kogpt.training.processes import Processes
from kogpt.training.report import Report
from kogpt.training.schedule import Schedule
from kogpt.training.settings import LoopSettings, TrainingSettings, require_seed
from kogpt.training.start import meta_model, stored_rows
from kogpt.training.verdict import Best, Verdict, judge
from kogpt.tuning.data import Data
from kogpt.tuning.frozen import base_dtype, fill_quantized, freeze
from kogpt.tuning.measure import measure
from kogpt.tuning.methods import (
    MATRICES,
    ContrastObjective,
    LoraObjective,
    PrefixObjective,
    PromptObjective,
    TuningObjective,
    n_trained,
)
from kogpt.tuning.plan import Work, first_fit, options, peak
from kogpt.tuning.rows import Batches, Form, Row, encode
from kogpt.tuning.samples import sample_answers
from kogpt.weights import Stored, write_safetensors

# Peak learning rate of AdamW. Full: KoGPT2-subtasks's; soft prompts learn at ten times LoRA's rate
# (PEFT's comparison of methods).
RATES = {"full": 5e-5, "lora": 5e-4, "p-tuning": 5e-3, "prefix": 5e-3, "embed": 5e-4}
ENCODER = "p_tuning_encoder.safetensors"
UNNOTED = {"prompt_loss_weight": "0.0"}  # values of settings that older runs did not note
SPLITS = {"dev": "검증", "test": "시험"}  # Korean names
WARMUP, DECAY = 0.1, 0.3  # shares of the steps; the second is wsd's


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningSettings:
    """How to tune; ConfigError for values that cannot be meant."""

    method: str
    epochs: float = 3.0
    batch: int = 32  # rows
    rate: float | None = None  # peak; None: the method's
    rank: int = 16  # LoRA's
    alpha: float = 16.0
    targets: tuple[str, ...] = MATRICES
    head: bool = False  # a linear layer answers instead of words
    virtual_tokens: int = 20  # of P-tuning and prefix tuning
    encoder: str = "mlp"  # of P-tuning
    init_text: str | None = None  # that virtual tokens begin from; None: the first training rows
    checks: int = 4  # validations in an epoch
    patience: int = 4  # validations that may pass without a better one
    length: int | None = None  # tokens of a row; None: the model's context
    truncate: bool = False
    seed: int = 0
    dtype: str = "auto"
    base_dtype: str = "auto"  # of a frozen model, see kogpt/tuning/frozen.py
    checkpoint_blocks: bool = False
    schedule: str = "cosine"  # of SHAPES in kogpt/training/schedule.py
    tokens_per_pass: int = 4096  # a step of more tokens is made of several passes
    prompt_loss_weight: float = 0.0  # of a prompt's token beside one of the answer

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch",
            "rank",
            "alpha",
            "virtual_tokens",
            "checks",
            "patience",
            "tokens_per_pass",
        ):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigError(
                    f"{name} is {value}: it must be a number above 0",
                    f"{name} 값이 {value}입니다. 0보다 큰 수를 쓰세요",
                )
        require_seed(self.seed)
        if not 0 <= self.prompt_loss_weight < math.inf:  # NaN is refused too
            raise ConfigError(
                f"prompt_loss_weight is {self.prompt_loss_weight}: it must be 0 or a finite number above "
                "(0.05 is usual)",
                f"prompt_loss_weight 값이 {self.prompt_loss_weight}입니다. 0 이상의 유한한 수를 쓰세요 "
                "(보통 0.05)",
            )
        is_begun = self.method == "prefix" or (self.method == "p-tuning" and self.encoder == "none")
        if self.init_text is not None and not (is_begun and self.init_text.strip()):
            raise ConfigError(
                "--init-text is empty, or begins nothing here: write a text, and use prefix, or p-tuning "
                "with --encoder none",
                "--init-text가 비어 있거나 이 방법에서는 쓰이지 않습니다. 글을 쓰고, prefix나 "
                "p-tuning --encoder none과 함께 쓰세요",
            )

    def training(self, batches: Batches) -> TrainingSettings:
        """The settings of the loop."""
        steps = max(1, round(self.epochs * batches.per_epoch))
        every = max(1, batches.per_epoch // self.checks)
        rate = RATES[self.method] if self.rate is None else self.rate
        decay = 0.01 if self.method == "full" else 0.0
        # The texts of a batch of pairs are compared with each other, so they share a pass.
        tokens = 1 << 30 if self.method == "embed" else self.tokens_per_pass
        warmup = round(WARMUP * steps)
        return TrainingSettings(
            schedule=Schedule(
                steps=steps,
                warmup_steps=warmup,
                decay_steps=min(steps - warmup, round(DECAY * steps)),
                shape=self.schedule,
            ),
            optimizer=OptimizerSettings(name="adamw", adamw_rate=rate, adamw_decay=decay, betas=(0.9, 0.999)),
            # Rows have many lengths, each of which would be compiled.
            compute=ComputeSettings(
                dtype=self.dtype, compile="nothing", checkpoint_blocks=self.checkpoint_blocks
            ),
            loop=LoopSettings(
                tokens_per_pass=tokens, log_every=min(10, every), validate_every=every, save_every=10 * every
            ),
        )


@dataclass(frozen=True, slots=True)
class Job:
    """A tuning run whose inputs are read and checked."""

    settings: TuningSettings
    stored: Checkpoint
    base: str  # the model's name, for other programs
    data: Data
    task: str | None
    tokenizer: Tokenizer
    train: list[Row]
    dev: list[Row]
    test: list[Row]  # empty: it is not to be measured
    batches: Batches


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended, and what it reached at its best; metrics by split, empty if it was stopped."""

    end: End
    metrics: Mapping[str, Mapping[str, float]]
    n_trained: int
    result: Path


def prepare(
    settings: TuningSettings,
    model: str,
    data: Data,
    task: str | None,
    score_test: bool = False,
    revision: str | None = None,
) -> Job:
    """Read the model and tokenize the data; errors of both, before anything is trained."""
    stored = checkpoint.load(model, revision)
    tokenizer = Tokenizer.from_file(stored.folder / "tokenizer.json")
    tokenizer.check_fits(stored.config)
    room = stored.config.n_ctx
    if settings.method in ("p-tuning", "prefix"):
        room -= settings.virtual_tokens
    longest = min(room, settings.length or room)
    if longest < 2:
        raise ConfigError(
            f"rows would have {longest} tokens of {stored.config.n_ctx}: take fewer virtual tokens, or a "
            "larger --length",
            f"글에 남는 토큰이 {stored.config.n_ctx}개 중 {longest}개입니다. 가상 토큰을 줄이거나 --length를 "
            "늘리세요",
        )
    _require_meant(settings, data)
    form = Form(labels=data.wording.labels, longest=longest, truncate=settings.truncate, head=settings.head)
    train, dev, test = (
        encode(rows, tokenizer, form) for rows in (data.train, data.dev, data.test if score_test else ())
    )
    batches = Batches(train, settings.batch, settings.seed)
    return Job(settings, stored, model, data, task, tokenizer, train, dev, test, batches)


def tune(job: Job, folder: Path, processes: Processes, live: TextIO | None = None) -> Outcome:
    """Tune until the schedule ends, dev stops improving or a signal comes; continues the run in `folder`.

    Afterwards `folder`/adapter or `folder`/model holds the best checkpoint; of full tuning with a head both,
    the head being an adapter that changes nothing else. InputError while another run uses
    `folder`, ConfigError for a run that began otherwise. Several processes tune together.
    """
    if not processes.is_first:
        return _tune(job, Report(folder), folder, processes)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder, "kogpt tune"):
        return _tune(job, Report(folder, live), folder, processes)


def _tune(job: Job, report: Report, folder: Path, processes: Processes) -> Outcome:
    _require_shares(job, processes)
    objective = build(job, processes)
    training = job.settings.training(job.batches)
    run = Run(folder, objective, training, processes, report, _identity(job))
    facts = _facts(job)
    require_same_start(run, facts, UNNOTED | {"rate": str(RATES[job.settings.method])})
    run.resume()
    remember_start(run, facts)
    measured: dict[int, dict[str, float]] = {}  # of dev, by step
    end = run.train(job.batches, lambda step, best: _validate(job, run, best, measured))
    result = folder / ("model" if job.settings.method == "full" else "adapter")
    if end is End.STOPPED:
        return Outcome(end, {}, n_trained(objective), result)
    processes.wait()  # the first process names the last checkpoint
    path = checkpoints.best(folder)
    assert path is not None  # the last step is saved
    checkpoints.restore(path, run.learner, run.identity, processes)
    metrics = _final(job, objective, run, measured.get(checkpoints.step_of(path)))
    adapter, encoder, head = objective.adapter(), objective.encoder_state(), objective.head()
    if processes.is_first:
        report.write({"step": run.step, "tokens": run.tokens, "seconds": run.seconds, **metrics})
        if adapter is None:
            export_model(path, job.stored.config, job.stored.folder, result)
            if head is not None:
                tuned = checkpoint.load(result)
                saved = SavedAdapter(unchanged(tuned.config), head, _origin(job, tuned))
                peft.save(folder / "adapter", saved, tuned.config, str(result))
        else:
            _write(job, SavedAdapter(adapter, head, _origin(job, job.stored)), encoder, result)
    processes.wait()
    return Outcome(end, metrics, n_trained(objective), result)


def _origin(job: Job, stored: Checkpoint) -> Origin:
    """Origin for the adapter's folder: its model, and how it was tuned."""
    wording = job.data.wording
    template = wording.template if job.data.asked else None
    return replace(Origin.of(stored, job.task, wording.labels, template), settings=_recorded(job))


def build(job: Job, processes: Processes) -> TuningObjective:
    """The objective with the model's weights on the device; NotEnoughMemory if they cannot be trained."""
    settings, stored = job.settings, job.stored
    compute = settings.training(job.batches).compute
    is_full = settings.method == "full"
    _require_room(job, processes)
    torch.manual_seed(settings.seed)
    model = meta_model(stored.config)
    if not is_full:
        freeze(model, base_dtype(settings.base_dtype, stored, compute.dtype_on(processes.device)))
    objective = _objective(model, settings, compute)
    objective.prompt_loss_weight = settings.prompt_loss_weight
    if settings.head:
        objective.add_head(len(job.data.wording.labels) or 1)
    # Weights of full tuning travel in the dtype of products; a frozen base has its own.
    is_narrowed = is_full and processes.device.type == "cuda"
    processes.distribute(
        objective, objective.blocks(), compute.dtype_on(processes.device) if is_narrowed else None
    )
    model.tie()
    own = [name for name in objective.gathering if hasattr(objective, name)]  # no method has all of them
    processes.gather_in(objective, own)
    processes.fill(model, stored_rows(Checkpoint(stored.folder, stored.config, stored.floats())))
    fill_quantized(model, stored)
    values = objective.starting_values(_starting_text(job))
    processes.let_go(objective)
    for name, value in values.items():
        processes.set_value(objective.get_parameter(name), value)
    return objective


def _objective(model: GPTJ, settings: TuningSettings, compute: ComputeSettings) -> TuningObjective:
    kinds = {"lora": LoraObjective, "embed": ContrastObjective}
    if kind := kinds.get(settings.method):
        return kind(model, compute, settings.rank, settings.alpha, settings.targets)
    if settings.method == "p-tuning":
        return PromptObjective(model, compute, settings.virtual_tokens, settings.encoder)
    if settings.method == "prefix":
        return PrefixObjective(model, compute, settings.virtual_tokens)
    return TuningObjective(model, compute)


def work_of(job: Job, processes: Processes) -> Work:
    """What a step of the longest rows takes, for the planner."""
    settings, batch = job.settings, job.batches.size // processes.count
    training = settings.training(job.batches)
    product = training.compute.dtype_on(processes.device)
    width = max(row.longest for row in job.train)
    longest_answer = max(len(row.ids) - row.first for row in job.train)
    rows = min(batch, max(1, training.loop.tokens_per_pass // width))
    is_full = settings.method == "full"
    return Work(
        method=settings.method,
        rows=rows * (2 if settings.method == "embed" else 1),
        batch=job.batches.size,
        width=width,
        scored=None if settings.prompt_loss_weight else rows * longest_answer,
        n_passes=-(-batch // rows),
        dtype=str(product).removeprefix("torch."),
        base_dtype="float32" if is_full else base_dtype(settings.base_dtype, job.stored, product),
        quantization=job.stored.quantization,
        checkpointing=settings.checkpoint_blocks,
        rank=settings.rank,
        targets=settings.targets,
        virtual_tokens=settings.virtual_tokens,
        encoder=settings.encoder,
        n_processes=processes.count,
    )


def free_memory(processes: Processes) -> int | None:
    """Bytes that the device has left; None where the system does not say."""
    if processes.device.type == "cuda":
        return int(torch.cuda.mem_get_info(processes.device)[0])
    return available_memory()


def _require_room(job: Job, processes: Processes) -> None:
    """NotEnoughMemory, with options that would do, if a step does not fit."""
    config, work, free = job.stored.config, work_of(job, processes), free_memory(processes)
    device = processes.device.type
    need = peak(config, work, device)
    if free is None or need <= free:
        return
    way = first_fit(config, work, free, device)
    remedy, instead = _remedies(work) if way is None else (" ".join(options(way)),) * 2
    raise NotEnoughMemory(
        f"not enough memory: {job.settings.method} of this model needs {amount(int(need))}, "
        f"{amount(free)} is free: use {remedy}",
        f"메모리가 부족합니다: {amount(int(need))}가 필요하지만 {amount(free)}만 남아 있습니다. "
        f"다음을 쓰세요: {instead}",
    )


def _remedies(work: Work) -> tuple[str, str]:
    """What to do where no way fits, in both languages."""
    if work.method == "embed":  # its pairs share one pass of one process
        return (
            "a smaller --batch, a shorter --length or a smaller model",
            "더 작은 --batch나 --length, 더 작은 모델",
        )
    return "a smaller model, or more GPUs under torchrun", "더 작은 모델이나 torchrun으로 더 많은 GPU"


def _require_shares(job: Job, processes: Processes) -> None:
    """ConfigError unless every process gets as many rows of a batch as the others; pairs need them all."""
    if job.settings.method == "embed" and processes.count > 1:
        raise ConfigError(
            f"{processes.count} processes cannot compare the pairs of one batch: start one, without torchrun",
            f"프로세스 {processes.count}개로는 배치의 쌍을 견줄 수 없습니다. torchrun 없이 실행하세요",
        )
    if job.batches.size % processes.count:
        raise ConfigError(
            f"{processes.count} processes cannot share a batch of {job.batches.size} rows: set --batch to a "
            "multiple of them",
            f"배치 {job.batches.size}행을 프로세스 {processes.count}개가 똑같이 나눌 수 없습니다. --batch를 "
            "그 배수로 지정하세요",
        )


def _require_meant(settings: TuningSettings, data: Data) -> None:
    """ConfigError for a head or a weight that the rows have no use for, or a head that they need."""
    first = data.train[0]
    if settings.prompt_loss_weight and not any(example.prompt for example in data.train):
        raise ConfigError(
            "these rows have no prompts, so --prompt-loss-weight changes nothing: leave it out",
            "프롬프트가 없는 행이라 --prompt-loss-weight는 아무것도 바꾸지 않습니다. 빼세요",
        )
    if settings.head and (first.choices or (first.label is None and first.grade is None)):
        raise ConfigError(
            "these rows have neither labels nor scores: a head cannot answer them; leave --head out",
            "레이블도 점수도 없는 행이라 헤드가 답할 수 없습니다. --head를 빼세요",
        )
    if data.graded and not settings.head:
        raise ConfigError(
            "these rows have scores, which a head learns: add --head",
            "점수는 헤드가 배웁니다. --head를 붙이세요",
        )


def _identity(job: Job) -> dict[str, Any]:
    settings = job.settings
    shape = {
        "lora": settings.rank,
        "embed": settings.rank,
        "p-tuning": settings.virtual_tokens,
        "prefix": settings.virtual_tokens,
    }
    return {**job.stored.config.to_json(), "method": settings.method, "size": shape.get(settings.method, 0)}


def _facts(job: Job) -> dict[str, str]:
    """What a resumed run must share with its beginning."""
    rate = job.settings.training(job.batches).optimizer.adamw_rate
    facts = {name: str(value) for name, value in asdict(replace(job.settings, rate=rate)).items()}
    facts |= {"data_sha256": job.data.digest(), "template": job.data.wording.template}
    return facts | {"init": str(job.stored.folder), "init_sha256": checkpoint.digest(job.stored.folder)}


def _validate(job: Job, run: Run, best: Best | None, measured: dict[int, dict[str, float]]) -> Verdict:
    """Dev loss decides; accuracy and a few answers are told."""
    objective = run.objective
    assert isinstance(objective, TuningObjective)
    measured[run.step] = _measure("dev", job.dev, objective, run)
    found: dict[str, Any] = {f"dev_{name}": value for name, value in measured[run.step].items()}
    if samples := sample_answers(objective, job.dev, job.tokenizer, run.processes):
        found["samples"] = samples
    return judge(found, "dev_loss", best, job.settings.patience, lower_is_better=True)


def _final(
    job: Job, objective: TuningObjective, run: Run, dev: dict[str, float] | None
) -> dict[str, dict[str, float]]:
    """Metrics of dev, and of test where that is wanted; each is computed from its own rows only."""
    objective.eval()
    found = {"dev": dev or _measure("dev", job.dev, objective, run)}
    return found | ({"test": _measure("test", job.test, objective, run)} if job.test else {})


def _measure(split: str, rows: Sequence[Row], objective: TuningObjective, run: Run) -> dict[str, float]:
    run.report.tell(
        localized(
            f"measuring {split}: {len(rows):,} rows ...", f"{SPLITS[split]} 행 {len(rows):,}개를 재는 중 ..."
        )
    )
    return measure(objective, rows, run.processes, interval=True)


def _recorded(job: Job) -> dict[str, Any]:
    """The settings for kogpt_adapter.json, with what "the method's" rate is."""
    rate = job.settings.training(job.batches).optimizer.adamw_rate
    return {**asdict(job.settings), "rate": rate, "targets": list(job.settings.targets)}


def _starting_text(job: Job) -> list[int]:
    """Ids of the given text or of the first training rows, repeated up to the number of virtual tokens."""
    n, text = job.settings.virtual_tokens, job.settings.init_text
    if text is None:
        ids = list(chain.from_iterable(row.ids.tolist() for row in job.train[:n]))
    else:
        ids = [int(token) for token in job.tokenizer.encode(text)]
    return (ids * -(-n // len(ids)))[:n]


def _write(job: Job, saved: SavedAdapter, encoder: Mapping[str, torch.Tensor], result: Path) -> None:
    """The adapter as a folder; its encoder first, for without the adapter the folder is none."""
    state = {name: tensor.cpu().numpy() for name, tensor in encoder.items()}
    if state:
        result.mkdir(parents=True, exist_ok=True)
        parts = {name: ("float32", array.shape) for name, array in state.items()}
        with explain_disk_errors(result), atomic_write(result / ENCODER) as file:
            write_safetensors(file, parts, ((name, Stored("float32", a)) for name, a in state.items()))
    peft.save(result, saved, job.stored.config, job.base)
