"""Measure a model on one task, with one prompt and one number of shots, over several seeds.

A result depends on model, data and settings alone. It holds no times and no dates, so a run that was killed
and resumed writes the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np

from kogpt import data_files, metrics, peft
from kogpt.data_files import Table
from kogpt.datasets import Example
from kogpt.errors import KoGPTError
from kogpt.evaluation import fewshot, sampling_mode, scoring
from kogpt.evaluation.fewshot import EncodedTask
from kogpt.evaluation.scoring import Scores, Store
from kogpt.evaluation.store import open_store
from kogpt.evaluation.task import Prompt, Scoring, Task
from kogpt.generation import KoGPT
from kogpt.metrics import METRICS, Outcome
from kogpt.native_runner import NativeRunner, cache_dtype_for
from kogpt.runner import Runner
from kogpt.sampling import Sampling
from kogpt.session import Session
from kogpt.tokenizer import Tokenizer

# Raised whenever the same inputs would give other scores. 2: the border rule of Tokenizer.encode_choices.
CODE_VERSION = 2
SCORINGS: tuple[Scoring, ...] = ("raw", "normalised", "calibrated")

Progress = Callable[[str, int, int], None]  # label of the run, finished items, all items


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """The model that is measured, and everything that identifies it."""

    name: str
    model: KoGPT
    identity: Mapping[str, str]  # hashes of its files; its precision and runner

    @property
    def session(self) -> Session:
        """The model's own session."""
        return self.model.session

    @property
    def runner(self) -> Runner:
        """The runner under the engine."""
        return self.model.engine.runner

    @property
    def n_ctx(self) -> int:
        """Positions that a tuned prefix leaves."""
        return self.runner.config.n_ctx - self.model.engine.length(self.model.handles.prefix)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.model.tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The choices of a measurement."""

    shots: int = 0
    seeds: tuple[int, ...] = (1, 2, 3)
    limit: int | None = None  # a fixed random subset of the test rows
    scoring: Scoring | None = None  # the task's own if None
    sample: float | None = None  # temperature at which labels are sampled; None: they are scored
    folder: Path | None = None  # folder of data files
    out: Path | None = None  # folder for finished batches


@dataclass(frozen=True, slots=True)
class TaskData:
    """The examples of a task, and the files that they come from."""

    scored: list[Example]
    pool: list[Example]
    test_table: Table
    pool_table: Table | None
    n_test: int  # rows of the test file, before a subset was taken


@dataclass(frozen=True, slots=True)
class SeedResult:
    """The result of one draw of shots."""

    seed: int
    encoded: EncodedTask
    scores: Scores
    outcome: Outcome
    values: dict[str, float]
    by_scoring: Mapping[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Result:
    """The results of one task with one prompt and one number of shots: one for each seed."""

    task: Task
    prompt: Prompt
    settings: Settings
    scoring: str
    data: TaskData
    seeds: tuple[SeedResult, ...]
    intervals: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)

    def mean(self, metric: str) -> float:
        """Mean of a metric over the seeds."""
        return float(np.mean([seed.values[metric] for seed in self.seeds]))

    def std(self, metric: str) -> float | None:
        """Sample standard deviation of a metric over the seeds; None for a single run."""
        values = [seed.values[metric] for seed in self.seeds]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    @property
    def shots_used(self) -> int:
        """The smallest number of shots that fitted the context of a seed's run."""
        return min(len(seed.encoded.shots) for seed in self.seeds)


def identify(folder: Path, runner: Runner, adapter: Path | None = None) -> dict[str, str]:
    """Hashes of a model's files, runner and precision: every reason of the model for other scores."""
    # Kernels of other instruction sets round the last bits of a sum differently.
    kernels = f", {runner.isa}" if isinstance(runner, NativeRunner) else ""
    return {
        **peft.digests(folder, adapter),
        "runner": runner.name + kernels,
        "dtype": runner.dtype,
        **_cache_format(runner),
    }


def _cache_format(runner: Runner) -> dict[str, str]:
    """The format of keys and values where it is not the usual one; older batches name none."""
    if not isinstance(runner, NativeRunner) or runner.cache_dtype == cache_dtype_for(runner.dtype):
        return {}
    return {"cache_dtype": runner.cache_dtype}


def read_data(task: Task, settings: Settings) -> TaskData:
    """The rows to score, and the pool of shots, which shares no text with them. Raises InputError."""
    return _read_data(task, settings.folder or data_files.data_folder(), settings.limit)


@lru_cache(maxsize=2)  # a command measures a task with several prompts and numbers of shots in a row
def _read_data(task: Task, folder: Path | None, limit: int | None) -> TaskData:
    test = data_files.load(task.test, folder)
    examples = [task.read(row) for row in test.rows]
    if not task.pool:
        scored, pool = fewshot.split_pool(task, examples)
        return TaskData(fewshot.sample(task, scored, limit), pool, test, None, len(examples))
    table = data_files.load(task.pool, folder)
    pool = [(task.read_pool or task.read)(row) for row in table.rows]
    return TaskData(fewshot.sample(task, examples, limit), pool, test, table, len(examples))


def evaluate(
    model: EvaluatedModel, task: Task, prompt: Prompt, settings: Settings, progress: Progress | None = None
) -> Result:
    """Measure a model on a task. With `settings.out`, batches that an earlier run finished are reused.

    Raises KoGPTError for settings that the task or the prompt does not allow, InputError for data files.
    """
    calibrated = (settings.scoring or task.scoring) == "calibrated"
    if not prompt.fixed and (calibrated or settings.sample is not None):
        raise KoGPTError(
            f"{task.name} has other choices for every item: calibration and sampling need labels",
            f"{task.name} 과제는 항목마다 선택지가 달라 보정과 샘플링을 쓸 수 없습니다",
        )
    return Measurement(model, task, prompt, settings, read_data(task, settings), progress).run()


@dataclass(frozen=True, slots=True)
class Measurement:
    """One model on one task, with one prompt and one number of shots."""

    model: EvaluatedModel
    task: Task
    prompt: Prompt
    settings: Settings
    data: TaskData
    progress: Progress | None = None

    @property
    def scoring(self) -> Scoring:
        """How log-likelihoods are compared."""
        return self.settings.scoring or self.task.scoring

    def run(self) -> Result:
        """Measure every seed. Without shots and sampling, seeds make no difference: one run."""
        settings = self.settings
        drawn = settings.shots or settings.sample is not None
        results = tuple(
            self._measure_seed(seed) for seed in (settings.seeds if drawn else settings.seeds[:1])
        )
        name = self.task.metrics[0]
        intervals: dict[str, tuple[float, float] | None] = {
            name: metrics.interval(name, [result.outcome for result in results])
        }
        mode = self.scoring if settings.sample is None else "sampled"
        return Result(self.task, self.prompt, settings, mode, self.data, results, intervals)

    def _measure_seed(self, seed: int) -> SeedResult:
        """Draw shots, compute the batches that the store lacks, decide."""
        shots = fewshot.draw(self.task, self.data.pool, self.data.scored, self.settings.shots, seed)
        tokenizer, n_ctx = self.model.tokenizer, self.model.n_ctx
        encoded = fewshot.encode_task(self.task, self.prompt, self.data.scored, shots, tokenizer, n_ctx)
        label = f"{self.task.name} {self.prompt.name} {len(encoded.shots)} shots, seed {seed}"
        scores: Scores = []
        with self._open_store(encoded, seed) as store:
            for done, finished in self._steps(encoded, seed, store):
                if self.progress is not None:
                    self.progress(label, min(done, len(encoded.items)), len(encoded.items))
                scores = finished or scores
        return self._decide(encoded, seed, scores)

    def _steps(self, encoded: EncodedTask, seed: int, store: Store) -> Iterator[tuple[int, Scores | None]]:
        """Score every choice, or sample an answer; yields as scoring.score does."""
        if self.settings.sample is None:
            items = (*encoded.items, *encoded.content_free)
            return scoring.score(self.model.session, encoded.prefix, items, store, self.model.model.handles)
        sampling = Sampling(temperature=self.settings.sample, seed=seed)
        return sampling_mode.answer(self.model.session, encoded, sampling, store, self.model.model.handles)

    def _open_store(self, encoded: EncodedTask, seed: int) -> AbstractContextManager[Store]:
        """The store of one seed's batches, named by everything that their scores depend on."""
        sample = self.settings.sample
        parts = {
            "code": [CODE_VERSION, scoring.MAX_ROWS, scoring.MAX_TOKENS],
            **self.model.identity,
            "task": f"{self.task.name} {self.task.version}",
            "prompt": [self.prompt.name, self.prompt.question, *self.prompt.choices],
            "prefix": sha256(encoded.prefix_text.encode()).hexdigest(),
            "data": self.data.test_table.digest,
            "items": sha256("\n".join(example.id for example in self.data.scored).encode()).hexdigest(),
            "sample": None if sample is None else [sample, seed],
        }
        return open_store(self.settings.out, parts)

    def _decide(self, encoded: EncodedTask, seed: int, scores: Scores) -> SeedResult:
        """Predictions and metrics by the chosen way of scoring; metrics by the other ways for the record."""
        own, free = scores[: len(encoded.items)], scores[len(encoded.items) :]
        if self.settings.sample is not None:
            outcome = self._outcome(*sampling_mode.decide(own))
            return SeedResult(seed, encoded, own, outcome, self._values(outcome), {})
        ways: Sequence[Scoring] = SCORINGS if free else SCORINGS[:2]
        outcomes = {way: self._outcome(*scoring.decide(own, encoded.items, way, free)) for way in ways}
        by_scoring: dict[str, dict[str, float]] = {way: self._values(outcomes[way]) for way in ways}
        chosen = self.scoring
        return SeedResult(seed, encoded, own, outcomes[chosen], by_scoring[chosen], by_scoring)

    def _outcome(self, choices: metrics.Ints, probabilities: Sequence[metrics.Floats]) -> Outcome:
        """Choices as labels. On a scale, the expected grade is the score and decides a readable label."""
        if self.prompt.grades:
            scores = np.array([float(row @ np.array(self.prompt.grades)) for row in probabilities])
            unreadable = choices == sampling_mode.UNREADABLE
            predictions = np.where(unreadable, choices, scores >= self.task.grade_threshold)
        else:
            scores = np.array([float(row[1]) for row in probabilities])
            predictions = choices
        examples = self.data.scored
        grades = [np.nan if example.grade is None else example.grade for example in examples]
        answers = np.array([example.answer for example in examples], dtype=np.int64)
        return Outcome(answers, predictions, np.array(grades), scores)

    def _values(self, outcome: Outcome) -> dict[str, float]:
        return {name: METRICS[name](outcome) for name in self.task.metrics}
