"""Checkpoints of a run: torch's distributed checkpoint, made whole before it gets its name.

    FOLDER/step_00001200/    .metadata, *.distcp, run.json

A checkpoint is written as step_00001200.partial and renamed when every byte is on the disk. So a name without
that suffix is a whole checkpoint, wherever the process, the disk or the machine stopped. run.json has the
SHA-256 of every other file, so that one which was damaged later is not taken for whole either.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed as dist
from torch import nn
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.optim import Optimizer

from kogpt.errors import CheckpointError
from kogpt.training.report import cannot_write
from kogpt.training.workers import Workers

NAME = re.compile(r"step_(\d{8})")
PARTIAL = ".partial"
FACTS = "run.json"
TRAINED = StateDictOptions(ignore_frozen_params=True)


@dataclass(frozen=True, slots=True)
class Facts:
    """What run.json says, but for the files."""

    step: int
    tokens: int
    seconds: float
    identity: Mapping[str, Any]  # of model and optimizer, see Run


class Writer:
    """Writes checkpoints of a run while the run goes on, one at a time."""

    def __init__(self, folder: Path, keep: int, workers: Workers) -> None:
        self.folder = folder
        self.keep = keep
        self.workers = workers
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        # Of its own, so that its messages and those of the next step do not meet.
        self._group = dist.new_group(backend="gloo") if workers.count > 1 else None
        self._pending: Future[None] | None = None
        _ignore_warning()  # for good: the writing threads outlive any context

    def begin(self, module: nn.Module, optimizers: list[Optimizer], facts: Facts) -> None:
        """Copy all that the next step depends on, and write it in the background, with every process.

        Waits for the checkpoint before it, see `finish`.
        """
        self.finish()
        final = self.folder / f"step_{facts.step:08d}"
        partial = final.with_name(final.name + PARTIAL)
        if self.workers.is_first:
            shutil.rmtree(partial, ignore_errors=True)
        self.workers.wait()
        copied = async_save(
            _state(module, optimizers),
            checkpoint_id=partial,
            process_group=self._group,
            no_dist=self._group is None,
        )
        assert isinstance(copied, Future)
        self._pending = self._pool.submit(self._complete, copied, final, facts)

    def finish(self) -> None:
        """Wait until the checkpoint is whole; CheckpointError if it cannot be, and older ones stay."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def check(self) -> None:
        """Raise what `finish` would, if it is known already; never waits."""
        if self._pending is not None and self._pending.done():
            self.finish()

    def _complete(self, copied: Future[Any], final: Path, facts: Facts) -> None:
        """The first process's part ends when every process has written its own: then the name is due."""
        partial = final.with_name(final.name + PARTIAL)
        try:
            copied.result()
            if self.workers.is_first:
                document = {**asdict(facts), "sha256": _digests(partial)}
                (partial / FACTS).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
                _rename(partial, final)
                _remove_old(self.folder, self.keep)
        except (OSError, RuntimeError, CheckpointException) as error:
            refused = cannot_write(final, _reason(error))  # torch's own words tell nothing of a full disk
            shutil.rmtree(partial, ignore_errors=True)
            raise refused from error


def latest(folder: Path) -> Path | None:
    """The whole checkpoint of the highest step, or None."""
    return max(_whole(folder), default=None)


def verify(path: Path, workers: Workers | None = None) -> Facts:
    """What a checkpoint says of itself, if its files are as they were written; CheckpointError if not.

    Of several processes the first reads the files, and all learn what it found.
    """
    workers = workers or Workers()
    damage: Exception | None = None
    try:
        document = json.loads((path / FACTS).read_text(encoding="utf-8"))
        digests = document.pop("sha256")
        facts = Facts(**document)
        if workers.is_first and (changed := dict(digests.items() ^ _digests(path).items())):
            damage = ValueError(f"SHA-256 of {', '.join(sorted(changed))}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        damage = error
    (damaged,) = workers.sum((damage is not None,))
    if damaged:
        raise _damaged(path, damage)
    return facts


def restore(
    path: Path,
    module: nn.Module,
    optimizers: list[Optimizer],
    identity: Mapping[str, Any],
    workers: Workers,
) -> Facts:
    """Load a checkpoint into module, optimizers and torch's generators.

    CheckpointError if it is of another model or optimizer than `identity` says, or damaged.
    """
    facts = verify(path, workers)
    _require_same(path, facts.identity, identity)
    state = _state(module, optimizers)
    try:
        # A run that moved to a GPU: its checkpoint has no generator of one.
        if "rng.cuda" not in FileSystemReader(path).read_metadata().state_dict_metadata:
            state["rng"].pop("cuda", None)
        with _quiet():
            state_dict_loader.load(state, checkpoint_id=path)
    except (OSError, ValueError, RuntimeError, KeyError, CheckpointException) as error:
        raise _damaged(path, error) from error
    set_state_dict(
        module,
        optimizers,
        model_state_dict=state["module"],
        optim_state_dict=state["optimizers"],
        options=TRAINED,
    )
    torch.set_rng_state(state["rng"]["cpu"])
    if "cuda" in state["rng"]:
        torch.cuda.set_rng_state(state["rng"]["cuda"])
    return facts


def _require_same(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise CheckpointError(
                f"checkpoint {path} was trained with {name} = {saved.get(name)!r}, not "
                f"{wanted.get(name)!r}: give the recipe that it began with, or another --out",
                f"체크포인트 {path}의 {name} 값은 {wanted.get(name)!r}이(가) 아니라 "
                f"{saved.get(name)!r}입니다. "
                f"처음의 설정을 쓰거나 다른 --out을 지정하세요",
            )


def _damaged(path: Path, error: BaseException | None) -> CheckpointError:
    """error: None where another process saw it."""
    reason = "" if error is None else f" ({_reason(error)})"
    return CheckpointError(
        f"checkpoint {path} is damaged{reason}: remove it to resume from the one before",
        f"체크포인트 {path}이(가) 손상되었습니다{reason}. 지우면 그 앞의 것에서 이어집니다",
    )


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint but run.json."""
    digests = {}
    for path in sorted(folder.iterdir()):
        if path.name != FACTS:
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


class Weights(Mapping[str, NDArray[np.float32]]):
    """The weights in a checkpoint by name, each read when it is asked for: nobody has to hold them all."""

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> None:
        self.path = path
        self.shapes = shapes  # of those that are to be had, without `prefix`
        self.prefix = prefix  # of their names in the module that was trained

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        tensor = torch.empty(self.shapes[name])
        with _quiet():
            state = {"module": {self.prefix + name: tensor}}
            state_dict_loader.load(state, checkpoint_id=self.path, no_dist=True)
        return tensor.numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def _remove_old(folder: Path, keep: int) -> None:
    """Remove all but the newest checkpoints, and what was left half written."""
    for path in [*folder.glob("step_*" + PARTIAL), *sorted(_whole(folder))[:-keep]]:
        shutil.rmtree(path)


def _whole(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step_*") if NAME.fullmatch(path.name)]


def _state(module: nn.Module, optimizers: list[Optimizer]) -> dict[str, Any]:
    weights, learning = get_state_dict(module, optimizers, options=TRAINED)
    rng = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state()
    return {"module": weights, "optimizers": learning, "rng": rng}


def _rename(partial: Path, final: Path) -> None:
    for path in [*partial.iterdir(), partial]:
        _sync(path)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that one process alone is meant."""
    with warnings.catch_warnings():
        _ignore_warning()
        yield


def _ignore_warning() -> None:
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
