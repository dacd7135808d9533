"""The training loop that pretraining and tuning share: batch -> loss -> gradient -> update, until done.

Knows nothing of text or of what the loss is: an objective maps (inputs, targets) to a summed loss, a source
gives the batch of any step by its number. All that the next step depends on is in a checkpoint or a function
of the step's number, so a resumed run is the unbroken run.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
from kogpt.training.loss import IGNORED
from kogpt.training.optimizers import Rule, build, set_rate
from kogpt.training.report import Report
from kogpt.training.schedule import Schedule
from kogpt.training.workers import Workers


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's rows, and where each came from."""

    inputs: NDArray[np.int64]  # (B, T)
    targets: NDArray[np.int64]  # (B, T), the ids that follow, or IGNORED
    origins: tuple[str, ...]  # B names, for messages


Batches = Callable[[int], Batch]  # by the number of the step, from 0
Validate = Callable[[int], Mapping[str, Any]]  # after so many steps -> metrics


class TrainingStopped(KoGPTError):
    """The loss is not finite: nothing was updated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """How to train, but for the model, its loss and the data."""

    schedule: Schedule
    rule: Rule
    dtype: torch.dtype = torch.float32  # of the products in an update
    clip: float = 1.0  # norm of all gradients together
    tokens_per_pass: int = 16384  # of one process; a step with more is made of several passes
    log_every: int = 10
    validate_every: int = 250
    save_every: int = 1000
    save_seconds: float = 600.0  # whichever comes first
    keep: int = 2


class Run:
    """One training run in one folder: metrics.jsonl and checkpoints."""

    def __init__(
        self,
        folder: Path,
        objective: nn.Module,
        settings: Settings,
        workers: Workers,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        """identity: what its checkpoints are good for, by name, as JSON; none of another is resumed."""
        self.folder = folder
        self.objective = objective  # distributed already: its parameters are what is trained
        self.settings = settings
        self.workers = workers
        self.optimizers = build(objective, settings.rule, settings.dtype)
        self.identity = {**(identity or {}), "optimizer": settings.rule.name}
        self.report = Report(folder)
        self.checkpoints = checkpoints.Writer(folder, settings.keep, workers)
        self.flops: Callable[[int], float] | None = None  # tokens per row -> share of the machine per token/s
        self.step = 0  # updates made
        self.tokens = 0  # targets trained on
        self.seconds = 0.0  # of training, all sittings together
        self._asked = False  # to stop, this process

    def resume(self) -> bool:
        """Continue from the newest whole checkpoint of the folder, if there is one.

        Model and optimizer must be the checkpoint's, else CheckpointError; rates, schedule and data are those
        of today.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = checkpoints.latest(self.folder)
        if path is not None:
            rates = _hyperparameters(self.optimizers)
            facts = checkpoints.restore(path, self.objective, self.optimizers, self.identity, self.workers)
            for group, wanted in zip(_groups(self.optimizers), rates, strict=True):
                group.update(wanted)
            self.step, self.tokens, self.seconds = facts.step, facts.tokens, facts.seconds
        if self.workers.is_first:
            self.report.begin(self.step)
        return path is not None

    def train(self, batches: Batches, validate: Validate | None = None) -> bool:
        """Until the last step: True; or until SIGTERM or Ctrl-C, which end it after a step: False."""
        n_steps = self.settings.schedule.steps
        every = self.settings
        saved, saved_at = self.step, time.monotonic()
        stop = False
        with self._signals():
            while self.step < n_steps and not stop:
                metrics = self.update(batches(self.step))
                is_last = self.step == n_steps
                if self.step % every.log_every == 0 or is_last:
                    self._log(metrics, n_steps)
                if validate and (self.step % every.validate_every == 0 or is_last):
                    self._write(validate(self.step))
                self.checkpoints.check()
                stop, is_due = self._agree(saved_at)
                if is_due or self.step % every.save_every == 0:
                    self.save()
                    saved, saved_at = self.step, time.monotonic()
            if saved != self.step:
                self.save()
            self.checkpoints.finish()
        self.report.end()
        return self.step >= n_steps

    def update(self, batch: Batch) -> dict[str, Any]:
        """One step of the optimizers; TrainingStopped before it if loss or gradient is not finite."""
        begin = time.monotonic()
        n_targets = max(1, int((batch.targets != IGNORED).sum()))
        losses = [self._backward(*part, n_targets) for part in self._passes(batch)]
        (loss,) = self.workers.sum((float(sum(losses)),))
        norm = _value(nn.utils.clip_grad_norm_(self.objective.parameters(), self.settings.clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise _not_finite(self.step, loss, norm, batch.origins)
        factor = self.settings.schedule.factor(self.step)
        set_rate(self.optimizers, factor)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.tokens += n_targets
        taken = time.monotonic() - begin
        self.seconds += taken
        speed = {"seconds_per_step": taken, "tokens_per_second": n_targets / taken}
        if self.flops is not None:
            speed["mfu"] = self.flops(batch.inputs.shape[1]) * batch.inputs.size / taken
        return {"loss": loss, "gradient_norm": norm, "rate": factor, **speed}

    def save(self) -> None:
        """Begin a checkpoint of this step; `checkpoints.finish` waits for it."""
        facts = checkpoints.Facts(self.step, self.tokens, self.seconds, self.identity)
        self.checkpoints.begin(self.objective, self.optimizers, facts)

    def _passes(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's rows, as many at a time as fit into one pass."""
        mine = slice(self.workers.rank, None, self.workers.count)
        inputs = torch.from_numpy(batch.inputs[mine]).to(self.workers.device)
        targets = torch.from_numpy(batch.targets[mine]).to(self.workers.device)
        rows = max(1, self.settings.tokens_per_pass // inputs.shape[1])
        for start in range(0, len(inputs), rows):
            yield inputs[start : start + rows], targets[start : start + rows]

    def _backward(self, inputs: Tensor, targets: Tensor, n_targets: int) -> Tensor:
        loss: Tensor = self.objective(inputs, targets) / n_targets
        torch.autograd.backward(loss * self.workers.count)  # the mean over the processes is then the sum
        return loss.detach()

    def _agree(self, saved_at: float) -> tuple[bool, bool]:
        """Whether to stop, if any process was asked; whether to save, by the first one's clock."""
        overdue = self.workers.is_first and time.monotonic() - saved_at > self.settings.save_seconds
        stop, is_due = self.workers.sum((self._asked, overdue))
        return stop > 0, is_due > 0

    def _log(self, metrics: dict[str, Any], n_steps: int) -> None:
        self._write(metrics)
        if self.workers.is_first:
            self.report.show({"step": self.step, **metrics}, n_steps)

    def _write(self, metrics: Mapping[str, Any]) -> None:
        if self.workers.is_first:
            place = {"step": self.step, "tokens": self.tokens, "seconds": round(self.seconds, 3)}
            self.report.write({**place, **metrics})

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT only ask to stop, while this lasts."""

        def ask(number: int, frame: FrameType | None) -> None:
            self._asked = True

        previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def _groups(optimizers: Iterable[Optimizer]) -> Iterator[dict[str, Any]]:
    for optimizer in optimizers:
        yield from optimizer.param_groups


def _hyperparameters(optimizers: Iterable[Optimizer]) -> list[dict[str, Any]]:
    """Of every group: rates, decay, betas and the like."""
    return [
        {name: value for name, value in group.items() if name != "params"} for group in _groups(optimizers)
    ]


def _value(norm: Tensor) -> float:
    """A norm whose shares lie in several processes, as a number."""
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _not_finite(step: int, loss: float, norm: float, origins: tuple[str, ...]) -> TrainingStopped:
    shown = ", ".join(origins[:8]) + (", ..." if len(origins) > 8 else "")
    return TrainingStopped(
        f"step {step}: loss {loss}, gradient norm {norm}; nothing was updated. Batch: {shown}. "
        f"Resume with a lower learning rate, or without that text",
        f"{step}단계: 손실 {loss}, 기울기 크기 {norm}. 갱신하지 않고 멈췄습니다. 배치: {shown}. "
        f"학습률을 낮추거나 그 텍스트를 빼고 이어서 학습하세요",
    )
