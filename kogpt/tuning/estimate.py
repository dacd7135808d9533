"""What a run takes, before it is started: `kogpt tune --dry-run`."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from kogpt.training.processes import Processes
from kogpt.tuning.measure import measure
from kogpt.tuning.methods import TuningObjective
from kogpt.tuning.plan import PROGRAM, first_fit, memory, n_trained, options, peak
from kogpt.tuning.rows import padded
from kogpt.tuning.run import Job, build, free_memory, work_of

SLOW = 10.0  # seconds of a batch that is timed once


def estimate(job: Job, processes: Processes) -> dict[str, Any]:
    """What a run takes: steps; memory by the planner; seconds, measured on batches of it where it fits.

    The options in `instead` would fit; None where it fits, and where nothing does.
    """
    config, work, free = job.stored.config, work_of(job, processes), free_memory(processes)
    steps = job.settings.training(job.batches).schedule.steps
    found: dict[str, Any] = {"rows": len(job.train), "dev_rows": len(job.dev), "steps": steps}
    found |= {"passes_per_step": work.n_passes, "trained_weights": n_trained(config, work)}
    found |= {f"{name.replace(' ', '_')}_bytes": round(size) for name, size in memory(config, work).items()}
    need = peak(config, work, processes.device.type)
    found["memory_bytes"] = round(need + PROGRAM[processes.device.type])
    if free is None or need <= free:  # the program is loaded: what it takes is not free any more
        return {**found, "fits": True, "instead": None, "seconds": round(_seconds(job, processes), 1)}
    way = first_fit(config, work, free, processes.device.type)
    return {**found, "fits": False, "instead": None if way is None else options(way), "seconds": None}


def _seconds(job: Job, processes: Processes) -> float:
    """Seconds of the whole run, from the median batch and a part of dev."""
    objective = build(job, processes)
    training = job.settings.training(job.batches)
    order = range(job.batches.per_epoch)
    widths = [max(len(row.ids) for row in job.batches.rows_of(step)) for step in order]
    middle = int(np.argsort(widths)[len(widths) // 2])
    seconds = _gradient(job, objective, middle, processes)
    for _ in range(2 if seconds < SLOW else 0):  # warm-up counts little in a slow batch
        seconds = min(seconds, _gradient(job, objective, middle, processes))
    begin = time.monotonic()
    sample = job.dev[:64]
    measure(objective, sample, processes)
    checking = (time.monotonic() - begin) * len(job.dev) / len(sample)
    steps = training.schedule.steps
    return steps * seconds + -(-steps // training.loop.validate_every) * checking


def _gradient(job: Job, objective: TuningObjective, step: int, processes: Processes) -> float:
    """Seconds of forward and backward passes over a batch, from one of its passes."""
    work = work_of(job, processes)
    begin = time.monotonic()
    rows = job.batches.rows_of(step)[: -(-job.batches.size // work.n_passes)]
    inputs, targets = (torch.from_numpy(ids).to(processes.device) for ids in padded(rows))
    torch.autograd.backward(objective(inputs, targets))
    if processes.device.type == "cuda":
        torch.cuda.synchronize(processes.device)
    return work.n_passes * (time.monotonic() - begin)
