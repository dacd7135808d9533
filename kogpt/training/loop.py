"""The training loop that pretraining and tuning share: batch -> loss -> gradients -> update, until the end.

The loop knows neither text nor losses: an objective turns (inputs, targets) into a summed loss, and a
function gives the batch of each step. The next step depends on the checkpoint and on the step's number only,
so a resumed run equals the unbroken one.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from kogpt.errors import KoGPTError
from kogpt.training import checkpoints
from kogpt.training.ahead import ahead
from kogpt.training.averaging import Average
from kogpt.training.loss import IGNORED
from kogpt.training.objective import Objective
from kogpt.training.optimizers import build_optimizers, hyperparameters, set_hyperparameters
from kogpt.training.processes import Processes
from kogpt.training.report import Report
from kogpt.training.settings import TrainingSettings
from kogpt.training.verdict import Best, Verdict


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one step; B must be a multiple of the number of processes."""

    inputs: NDArray[np.int64]  # (B, T) ids
    targets: NDArray[np.int64] | NDArray[np.float32]  # (B, T); IGNORED, or NaN, where nothing is scored
    origins: tuple[str, ...]  # where each row is from, for messages

    def scored(self) -> NDArray[np.bool_]:
        """(B, T): which targets count."""
        found: NDArray[np.bool_] = (
            ~np.isnan(self.targets) if self.targets.dtype.kind == "f" else self.targets != IGNORED
        )
        return found

    def lengths(self) -> NDArray[np.int64]:
        """(B,): tokens of each row up to its last scored target; causal models need no others."""
        scored = self.scored()
        last = scored.shape[1] - scored[:, ::-1].argmax(1)
        return np.where(scored.any(1), last, 0)


Batches = Callable[[int], Batch]  # number of the step, from 0 -> its rows
Validate = Callable[[int, Best | None], Verdict]  # steps made, best validation so far -> verdict on this one


class End(Enum):
    """Why training ended."""

    DONE = "done"  # the schedule is through
    ENOUGH = "enough"  # validation said so
    STOPPED = "stopped"  # SIGTERM or Ctrl-C; the same command goes on


class TrainingStopped(KoGPTError):
    """The loss is not finite: nothing was updated."""


class Run:
    """One training run in one folder: metrics.jsonl and checkpoints."""

    def __init__(
        self,
        folder: Path,
        objective: Objective,
        settings: TrainingSettings,
        processes: Processes,
        report: Report,
        identity: Mapping[str, Any],
    ) -> None:
        """objective: distributed already. identity: JSON by name; others' checkpoints are refused."""
        self.folder = folder
        self.objective = objective
        self.settings = settings
        self.processes = processes
        self.report = report
        self.optimizers = _build_optimizers(objective, settings, processes.device)
        self.peaks = hyperparameters(self.optimizers)
        self.average = Average(objective, settings.average) if settings.average else None
        self.identity = {**identity, "optimizer": settings.optimizer.name}
        self.checkpoints = checkpoints.CheckpointWriter(folder, settings.loop.keep, processes)
        self.step = 0  # updates made
        self.tokens = 0  # read in training
        self.seconds = 0.0  # of training, all sittings together
        self.best: Best | None = None  # validation
        self.enough = False  # by validation
        self._asked = False  # this process was asked to stop

    def resume(self) -> bool:
        """Continue from the newest whole checkpoint of the folder; False if there is none.

        Learning rates, schedule and data come from the settings of today; frozen parameters must be set by
        the caller. CheckpointError for a checkpoint that is damaged, or of another model or optimizer.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = checkpoints.latest(self.folder)
        if path is not None:
            info = checkpoints.restore(path, self.learner, self.identity, self.processes)
            self.step, self.tokens, self.seconds = info.step, info.tokens, info.seconds
            self.best, self.enough = info.best, info.enough
        if self.processes.is_first:
            self.report.begin(self.step)
        return path is not None

    def train(self, batches: Batches, validate: Validate | None = None) -> End:
        """Train until the last step, until validation has enough, or until a signal; then save."""
        n_steps, every = self.settings.schedule.steps, self.settings.loop
        saved, saved_at = self.step, time.monotonic()
        stop = False
        self.objective.train()
        with self._signals(), ahead(batches, n_steps) as batch:
            while self.step < n_steps and not self.enough and not stop:
                metrics = self.update(batch(self.step))
                is_last = self.step == n_steps
                if self.step % every.log_every == 0 or is_last:
                    self._log(metrics, n_steps)
                is_due = False
                if validate and (self.step % every.validate_every == 0 or is_last):
                    is_due = self._validate(validate)
                self.checkpoints.check()
                stop, is_late = self._agree(saved_at)
                if is_due or is_late or self.step % every.save_every == 0:
                    self.save()
                    saved, saved_at = self.step, time.monotonic()
            if saved != self.step:
                self.save()
            self.checkpoints.finish()
        self.report.end()
        if self.step >= n_steps:
            return End.DONE
        return End.ENOUGH if self.enough else End.STOPPED

    def update(self, batch: Batch) -> dict[str, Any]:
        """One step of the optimizers; TrainingStopped before it if loss or gradient is not finite."""
        begin = time.monotonic()
        n_targets, lengths = int(batch.scored().sum()), batch.lengths()
        losses = [self._backward(*part, max(1, n_targets)) for part in self._passes(batch, lengths)]
        clipped = nn.utils.clip_grad_norm_(self.objective.parameters(), self.settings.loop.clip)
        (loss,) = self.processes.sum((float(sum(losses)),))  # the one wait for a GPU
        norm = _value(clipped)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise _not_finite(self.step, loss, norm, batch.origins)
        factor = self.settings.schedule.factor(self.step)
        set_hyperparameters(self.optimizers, self.peaks, factor)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        if self.average and self.average.settings.is_due(self.step):
            self.average.add(self.objective)
        self.tokens += int(lengths.sum())
        taken = time.monotonic() - begin
        self.seconds += taken
        return {
            "loss": loss,
            "gradient_norm": norm,
            "rate": factor,
            "seconds_per_step": taken,
            "tokens_per_second": int(lengths.sum()) / taken,
            "targets_per_second": n_targets / taken,
            **self.report.utilization(lengths, taken),
        }

    def save(self) -> None:
        """Begin a checkpoint of this step; `checkpoints.finish` waits for it."""
        averaged = self.average.count if self.average else 0
        info = checkpoints.CheckpointInfo(
            self.step, self.tokens, self.seconds, self.identity, self.best, self.enough, averaged
        )
        self.checkpoints.begin(self.learner, info)

    @property
    def learner(self) -> checkpoints.Learner:
        """State that a checkpoint holds."""
        return checkpoints.Learner(self.objective, self.optimizers, self.average)

    def _passes(self, batch: Batch, lengths: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's rows in passes of similar length, longest first; each is cut to its longest row.

        The order depends on lengths only; rows of one length stay in the batch's order. All processes make
        the same number of passes, for they gather the weights together.
        """
        count, rank = self.processes.count, self.processes.rank
        assert len(batch.inputs) % count == 0, (len(batch.inputs), count)
        order = np.argsort(-lengths, kind="stable")
        while len(order):
            width = max(1, int(lengths[order[0]]))
            n_rows = count * max(1, self.settings.loop.tokens_per_pass // width)
            rows, order = order[:n_rows][rank::count], order[n_rows:]
            yield (
                self.processes.send(batch.inputs[rows, :width]),
                self.processes.send(batch.targets[rows, :width]),
            )

    def _backward(self, inputs: Tensor, targets: Tensor, n_targets: int) -> Tensor:
        loss: Tensor = self.objective(inputs, targets) / n_targets
        # FSDP takes the mean over the processes, which makes this the sum.
        torch.autograd.backward(loss * self.processes.count)
        return loss.detach()

    def _validate(self, validate: Validate) -> bool:
        """Validate and remember the verdict, which is the first process's; whether it was better."""
        self.objective.eval()
        with torch.no_grad(), self._averaged():
            verdict = validate(self.step, self.best)
        self.objective.train()
        self._write(verdict.metrics)
        first = self.processes.is_first
        better, enough = self.processes.sum((first and verdict.better, first and verdict.enough))
        if better:
            self.best = Best(self.step, verdict.metrics)
        elif self.best:
            self.best = replace(self.best, misses=self.best.misses + 1)
        self.enough = enough > 0
        return better > 0

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """With the averaged weights in the objective, once there are any."""
        if not (self.average and self.average.count):
            yield
            return
        self.processes.let_go(self.objective)
        self.average.exchange(self.objective)
        try:
            yield
        finally:
            self.processes.let_go(self.objective)
            self.average.exchange(self.objective)

    def _agree(self, saved_at: float) -> tuple[bool, bool]:
        """Whether to stop, if any process was asked; whether to save, by the first process's clock."""
        overdue = self.processes.is_first and time.monotonic() - saved_at > self.settings.loop.save_seconds
        stop, is_due = self.processes.sum((self._asked, overdue))
        return stop > 0, is_due > 0

    def _log(self, metrics: dict[str, Any], n_steps: int) -> None:
        self._write(metrics)
        if self.processes.is_first:
            self.report.show({"step": self.step, **metrics}, n_steps)

    def _write(self, metrics: Mapping[str, Any]) -> None:
        if self.processes.is_first:
            place = {"step": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 3)}
            self.report.write({**place, **metrics})

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT only ask to stop."""

        def ask(number: int, frame: FrameType | None) -> None:
            self._asked = True

        previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _build_optimizers(
    objective: Objective, settings: TrainingSettings, device: torch.device
) -> list[Optimizer]:
    groups = objective.groups()
    named = [id(parameter) for group in groups for parameter in group.parameters]
    trained = [id(parameter) for parameter in objective.parameters() if parameter.requires_grad]
    assert sorted(named) == sorted(trained), "every trainable parameter belongs to exactly one group"
    return build_optimizers(groups, settings.optimizer, settings.compute.dtype_on(device))


def _value(norm: Tensor) -> float:
    """A norm as a number; its shards may lie in several processes."""
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _not_finite(step: int, loss: float, norm: float, origins: tuple[str, ...]) -> TrainingStopped:
    shown = ", ".join(origins[:8]) + (", ..." if len(origins) > 8 else "")
    return TrainingStopped(
        f"step {step}: loss {loss}, gradient norm {norm}; nothing was updated. Batch: {shown}. "
        f"Lower the learning rate, or leave that text out",
        f"{step}스텝: 손실 {loss}, 기울기 크기 {norm}. 갱신하지 않고 멈췄습니다. 배치: {shown}. "
        f"학습률을 낮추거나 그 텍스트를 빼세요",
    )
