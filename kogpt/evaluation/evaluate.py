"""Run one task with one prompt at one number of shots over several seeds, and put the result together.

What a result holds is a function of model, data and settings: no times, no dates, so that a run that was
killed and resumed writes the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np

from kogpt import checkpoint
from kogpt.errors import KoGPTError
from kogpt.evaluation import data, fewshot, metrics, sampling_mode, scoring
from kogpt.evaluation.data import Table
from kogpt.evaluation.fewshot import Run
from kogpt.evaluation.metrics import METRICS, Outcome
from kogpt.evaluation.scoring import Scores
from kogpt.evaluation.store import BatchStore
from kogpt.evaluation.task import Example, Prompt, Scoring, Task
from kogpt.native_runner import NativeRunner
from kogpt.runner import Runner
from kogpt.tokenizer import Tokenizer

CODE_VERSION = 1  # raised whenever the same inputs would give other scores
SCORINGS: tuple[Scoring, ...] = ("raw", "normalised", "calibrated")

Progress = Callable[[str, int, int], None]  # what is being scored, items done, items in all


@dataclass(frozen=True, slots=True)
class Subject:
    """The model that is measured."""

    name: str
    runner: Runner
    tokenizer: Tokenizer
    identity: Mapping[str, str]  # hashes of its files, the precision and runner that they are run with


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a measurement is free to choose."""

    shots: int = 0
    seeds: tuple[int, ...] = (1, 2, 3)
    limit: int | None = None  # a fixed random subset of the test rows
    scoring: Scoring | None = None  # the task's own if None
    sample: float | None = None  # a temperature: the label is drawn from the model, not scored
    folder: Path | None = None  # of data files
    out: Path | None = None  # where finished batches are kept


@dataclass(frozen=True, slots=True)
class Rows:
    """The examples of a task, and what they were read from."""

    scored: list[Example]
    pool: list[Example]
    test_table: Table
    pool_table: Table | None
    n_test: int  # rows of the test file, before a subset was taken


@dataclass(frozen=True, slots=True)
class SeedResult:
    """One draw of shots."""

    seed: int
    run: Run
    scores: Scores
    outcome: Outcome
    values: dict[str, float]
    by_scoring: Mapping[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Result:
    """One task, one prompt, one number of shots, all seeds."""

    task: Task
    prompt: Prompt
    settings: Settings
    scoring: str
    rows: Rows
    seeds: tuple[SeedResult, ...]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def mean(self, metric: str) -> float:
        """Over the seeds."""
        return float(np.mean([seed.values[metric] for seed in self.seeds]))

    def std(self, metric: str) -> float | None:
        """Sample standard deviation over the seeds; None for a single run."""
        values = [seed.values[metric] for seed in self.seeds]
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    @property
    def shots_used(self) -> int:
        """The fewest shots that any seed had room for."""
        return min(len(seed.run.shots) for seed in self.seeds)


def identity(folder: Path, runner: Runner) -> dict[str, str]:
    """Hashes of a model folder's files, and how they are run; names every reason for scores to differ."""
    tokenizer = sha256((folder / "tokenizer.json").read_bytes())
    kernels = (
        f", {runner.isa}" if isinstance(runner, NativeRunner) else ""
    )  # their sums differ in the last bits
    return {
        "model_sha256": checkpoint.digest(folder),
        "tokenizer_sha256": tokenizer.hexdigest(),
        "runner": runner.name + kernels,
        "dtype": runner.dtype,
    }


def read_rows(task: Task, settings: Settings) -> Rows:
    """The rows to score and the pool of shots, which shares no text with them."""
    return _read_rows(task, settings.folder or data.data_folder(), settings.limit)


@lru_cache(maxsize=2)  # a task is asked with several prompts and numbers of shots in a row
def _read_rows(task: Task, folder: Path | None, limit: int | None) -> Rows:
    test = data.load(task.test, folder)
    examples = [task.read(row) for row in test.rows]
    if not task.pool:
        scored, pool = fewshot.split_pool(task, examples)
        return Rows(fewshot.sample(task, scored, limit), pool, test, None, len(examples))
    table = data.load(task.pool, folder)
    pool = [(task.read_pool or task.read)(row) for row in table.rows]
    return Rows(fewshot.sample(task, examples, limit), pool, test, table, len(examples))


def evaluate(
    subject: Subject, task: Task, prompt: Prompt, settings: Settings, progress: Progress | None = None
) -> Result:
    """Measure; with `settings.out`, what was finished by an earlier run is not done again."""
    chosen = settings.scoring or task.scoring
    if not prompt.fixed and (chosen == "calibrated" or settings.sample is not None):
        raise KoGPTError(
            f"{task.name} has other choices for every item: calibration and sampling need labels",
            f"{task.name} 과제는 항목마다 선택지가 달라 보정과 샘플링을 쓸 수 없습니다",
        )
    rows = read_rows(task, settings)
    seeds = settings.seeds if settings.shots or settings.sample is not None else settings.seeds[:1]
    results = tuple(_one_seed(subject, task, prompt, settings, (rows, seed, progress)) for seed in seeds)
    outcomes = [result.outcome for result in results]
    intervals: dict[str, tuple[float, float]] = {
        name: metrics.interval(name, outcomes) for name in task.metrics[:1]
    }
    mode = "sampled" if settings.sample is not None else chosen
    return Result(task, prompt, settings, mode, rows, results, intervals)


def _one_seed(
    subject: Subject,
    task: Task,
    prompt: Prompt,
    settings: Settings,
    what: tuple[Rows, int, Progress | None],
) -> SeedResult:
    """Draw shots, score what is not in the store, decide."""
    rows, seed, progress = what
    shots = fewshot.draw(task, rows.pool, rows.scored, settings.shots, seed)
    encoder = (subject.tokenizer.encode, subject.tokenizer.eos_token_id, subject.runner.config.n_ctx)
    run = fewshot.prepare(task, prompt, rows.scored, shots, encoder)
    label = f"{task.name} {prompt.name} {len(run.shots)} shots, seed {seed}"
    with _store(subject, task, prompt, settings, (rows, run, seed)) as store:
        if settings.sample is not None:
            steps = sampling_mode.answer(
                subject.runner, subject.tokenizer, run, settings.sample, (seed, prompt), store
            )
        else:
            steps = scoring.score(subject.runner, run.prefix, (*run.items, *run.content_free), store)
        scores: Scores = []
        for done, finished in steps:
            if progress is not None:
                progress(label, min(done, len(run.items)), len(run.items))
            scores = finished or scores
    return _decide(task, prompt, settings, (rows, run, seed), scores)


def _decide(
    task: Task, prompt: Prompt, settings: Settings, what: tuple[Rows, Run, int], scores: Scores
) -> SeedResult:
    """Predictions and metrics, by the scoring that was asked for and, for the record, by the others."""
    rows, run, seed = what
    own, free = scores[: len(run.items)], scores[len(run.items) :]
    chosen = settings.scoring or task.scoring
    if settings.sample is not None:
        outcome = _outcome(task, prompt, rows.scored, *sampling_mode.decide(own))
        return SeedResult(seed, run, own, outcome, _values(task, outcome), {})
    ways: Sequence[Scoring] = SCORINGS if free else SCORINGS[:2]
    outcomes = {
        way: _outcome(task, prompt, rows.scored, *scoring.decide(own, run.items, way, free)) for way in ways
    }
    by_scoring: dict[str, dict[str, float]] = {way: _values(task, outcomes[way]) for way in ways}
    return SeedResult(seed, run, own, outcomes[chosen], by_scoring[chosen], by_scoring)


def _outcome(
    task: Task,
    prompt: Prompt,
    examples: Sequence[Example],
    choices: metrics.Ints,
    probabilities: Sequence[metrics.Floats],
) -> Outcome:
    """Choices as labels; on a scale the expected grade decides, and is the score."""
    if prompt.grades:
        scores = np.array([float(row @ np.array(prompt.grades)) for row in probabilities])
        predictions = (scores >= task.grade_threshold).astype(np.int64)
    else:
        scores = np.array([float(row[1]) for row in probabilities])
        predictions = choices
    grades = [np.nan if example.grade is None else example.grade for example in examples]
    answers = np.array([example.answer for example in examples], dtype=np.int64)
    return Outcome(answers, predictions, np.array(grades), scores)


def _values(task: Task, outcome: Outcome) -> dict[str, float]:
    return {name: METRICS[name](outcome) for name in task.metrics}


def _store(
    subject: Subject, task: Task, prompt: Prompt, settings: Settings, what: tuple[Rows, Run, int]
) -> AbstractContextManager[scoring.Store]:
    """The file of this run's batches, named by all that its scores depend on."""
    if settings.out is None:
        return nullcontext(Memory())
    rows, run, seed = what
    parts = {
        "code": [CODE_VERSION, scoring.MAX_ROWS, scoring.MAX_TOKENS],
        **subject.identity,
        "task": f"{task.name} {task.version}",
        "prompt": [prompt.name, prompt.question, *prompt.choices],
        "prefix": sha256(run.prefix_text.encode()).hexdigest(),
        "data": rows.test_table.digest,
        "items": sha256("\n".join(example.id for example in rows.scored).encode()).hexdigest(),
        "sample": [settings.sample, seed] if settings.sample is not None else None,
    }
    return BatchStore(settings.out / "batches", parts)


class Memory(dict[int, Scores]):
    """A store that forgets."""
