"""A run small enough to repeat: `python toy.py FOLDER STEPS [MOMENT]` trains it, and dies at MOMENT.

shard     SIGKILL when the checkpoint of step 4 is half written
rename    SIGKILL when it is written but has not got its name
update    SIGKILL in the step after, with the checkpoint in its place
apart     SIGTERM, to the first process when the others have gone on into the next step

With TOY_TEXT, a folder of `make_text`, in its environment it trains with `everything`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kogpt.config import ModelConfig
from kogpt.model import GPTJ
from kogpt.pretraining.mixture import Mixture, Source, Stage
from kogpt.pretraining.shards import Index, write_index, write_shard
from kogpt.training import checkpoints
from kogpt.training.averaging import AverageSettings
from kogpt.training.loop import Batch, Batches, Run
from kogpt.training.objective import ComputeSettings, Objective
from kogpt.training.optimizers import OptimizerSettings
from kogpt.training.processes import Processes, join
from kogpt.training.report import Report
from kogpt.training.schedule import Schedule
from kogpt.training.settings import LoopSettings, TrainingSettings

SHAPE = ModelConfig(n_layers=2, n_heads=2, d_model=32, d_ff=64, n_vocab=96, n_ctx=32, rotary_dim=8)
STEPS = 6


def batch(step: int) -> Batch:
    rows = np.random.default_rng((7, step)).integers(5, SHAPE.n_vocab, (8, 17))
    return Batch(rows[:, :-1], rows[:, 1:], tuple(f"noise {step}:{row}" for row in range(8)))


def make_text(folder: Path) -> Path:
    """Shards of two sources, read several times by a run of the toy."""
    rng = np.random.default_rng(5)
    for name, n_documents in (("large", 12), ("small", 2)):
        (folder / name).mkdir(parents=True)
        texts = [
            np.append(rng.integers(5, SHAPE.n_vocab, rng.integers(3, 40)), 1) for _ in range(n_documents)
        ]
        shard = write_shard(folder / name, 0, texts, "uint16")
        write_index(folder / name, Index("uint16", "t" * 64, (shard,)))
    return folder


def everything(text: Path) -> tuple[dict[str, Any], Batches]:
    """Settings of a run with all that a recipe can switch on, and its batches, which grow and get shorter."""
    settings = {
        "schedule": Schedule(steps=STEPS, warmup_steps=1, decay_steps=3, floor=0.1),
        "optimizer": OptimizerSettings(adamw_decay=0.1),
        "average": AverageSettings(first_step=1, every=2, decay=0.6),
    }
    sources = {"large": Source(shards="large", weight=3.0), "small": Source(shards="small")}
    stages = [Stage(length=16, rows=4), Stage(length=16, rows=8, first_step=2)]
    stages.append(Stage(length=8, rows=8, first_step=4))
    return settings, Mixture(sources, stages, 3, text, "epochs").batch


def make_run(folder: Path, processes: Processes | None = None, **settings: Any) -> Run:
    """A run of the toy; settings: fields of LoopSettings or TrainingSettings, report, objective."""
    processes = processes or Processes()
    torch.manual_seed(0)
    loop = {
        "tokens_per_pass": 48,
        "log_every": 1,
        "save_every": 2,
    }  # passes of three rows, the last one short
    loop |= {f.name: settings.pop(f.name) for f in fields(LoopSettings) if f.name in settings}
    report = settings.pop("report", None) or Report(folder)
    kind = settings.pop("objective", Objective)
    chosen = TrainingSettings(
        **{
            "schedule": Schedule(steps=STEPS, warmup_steps=2, decay_steps=2),
            "compute": ComputeSettings(dtype="bfloat16", compile="nothing"),
            "loop": LoopSettings(**loop),
            **settings,
        }
    )
    objective = kind(GPTJ(SHAPE), chosen.compute)
    processes.distribute(objective, objective.blocks(), chosen.compute.dtype_on(processes.device))
    return Run(folder, objective, chosen, processes, report, {})


def weights(folder: Path, part: str = "module") -> dict[str, torch.Tensor]:
    """Those of the newest checkpoint, or their average."""
    path = checkpoints.latest(folder)
    assert path is not None
    found = checkpoints.SavedTensors(path, SHAPE.tensor_shapes(), "model.", part)
    return {"model." + name: torch.from_numpy(value) for name, value in found.items()}


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing(file: int, sync: Callable[[int], None] = os.fsync) -> None:
    """The writer of shards syncs each when it is written; the table of them comes after."""
    if "step_00000004" in os.readlink(f"/proc/self/fd/{file}"):
        die()
    sync(file)


def main(folder: Path, steps: int, moment: str | None) -> None:
    torch.set_num_threads(1)
    with join("cpu") as processes:
        text = os.environ.get("TOY_TEXT")
        settings, read = everything(Path(text)) if text else ({}, batch)
        run = make_run(folder, processes, **settings)
        run.resume()
        if moment == "shard":
            vars(os)["fsync"] = die_while_writing
        if moment == "rename":
            vars(checkpoints)["sync"] = lambda path: die() if path.name.startswith("step_00000004") else None

        agree = run._agree

        def then_ask(saved_at: float) -> tuple[bool, bool]:
            agreed = agree(saved_at)
            if run.step == steps:
                signal.raise_signal(signal.SIGTERM)
            return agreed

        if moment == "apart" and processes.is_first:
            run._agree = then_ask  # type: ignore[method-assign]

        update = run.update

        def interrupted(batch: Batch) -> dict[str, Any]:
            if run.step == steps and not (moment == "apart" and processes.is_first):
                run.checkpoints.finish()
                os.kill(os.getpid(), signal.SIGKILL if moment == "update" else signal.SIGTERM)
            return update(batch)

        run.update = interrupted  # type: ignore[method-assign]
        run.train(read)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
