"""Checkpoints of a run: torch's distributed checkpoint, made whole before it gets its name.

    FOLDER/step_00001200/    .metadata, *.distcp, run.json

A checkpoint is written as step_00001200.partial and renamed when every byte is on the disk. So a folder
without that suffix is whole, wherever process, disk or machine stopped. run.json holds the SHA-256
of every other file and of its own content, so that later damage and edits are found.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.optim import Optimizer

from kogpt.errors import CheckpointError
from kogpt.files import cannot_write, sync
from kogpt.training.averaging import Average
from kogpt.training.processes import Processes
from kogpt.training.reading import Reader, load
from kogpt.training.verdict import Best

NAME = re.compile(r"step_[0-9]{8,}")
PARTIAL = ".partial"
LEAVING = ".old" + PARTIAL
INFO = "run.json"
# Frozen parameters are not saved, so loading cannot be strict. A missing trained one is found when the files
# are read.
TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)
# Errors that a damaged run.json raises, and those that damaged other files raise.
DAMAGES = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
UNREADABLE = (*DAMAGES, RuntimeError, CheckpointException)


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """The state of a run beside weights and optimizers; run.json holds it."""

    step: int
    tokens: int
    seconds: float
    identity: Mapping[str, Any]  # of model, tokenizer and optimizer, see Run
    best: Best | None = None  # validation up to this step
    enough: bool = False  # validation ended the run
    averaged: int = 0  # weights in the average; 0: there is none


@dataclass(frozen=True, slots=True)
class Learner:
    """Model, optimizers and averages: the state that a checkpoint holds."""

    module: nn.Module
    optimizers: list[Optimizer]
    average: Average | None = None


class CheckpointWriter:
    """Writes checkpoints of a run in the background, one at a time."""

    def __init__(self, folder: Path, keep: int, processes: Processes) -> None:
        self.folder = folder
        self.keep = keep
        self.processes = processes
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        # A group of its own keeps the writer's messages apart from those of the next step.
        self._group = dist.new_group(backend="gloo") if processes.count > 1 else None
        self._pending: Future[None] | None = None
        _ignore_warning()  # for the whole process: the writing threads outlive any context

    def begin(self, learner: Learner, info: CheckpointInfo) -> None:
        """Copy the state of the run, then write it in the background; every process must call this.

        Waits for the checkpoint before it and raises what `finish` raises.
        """
        self.finish()
        final = self.folder / _name(info.step)
        partial = final.with_name(final.name + PARTIAL)
        if self.processes.is_first:
            shutil.rmtree(partial, ignore_errors=True)
        self.processes.wait()
        copied = async_save(
            _state(learner, info.averaged > 0),
            checkpoint_id=partial,
            process_group=self._group,
            no_dist=self._group is None,
        )
        assert isinstance(copied, Future)
        self._pending = self._pool.submit(self._complete, copied, final, info)

    def finish(self) -> None:
        """Wait until the checkpoint is whole; DiskError if it cannot be written. Older ones stay."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def check(self) -> None:
        """Raise the error of a checkpoint that has failed already; never waits."""
        if self._pending is not None and self._pending.done():
            self.finish()

    def _complete(self, copied: Future[Any], final: Path, info: CheckpointInfo) -> None:
        """Rename on rank 0, whose async_save returns once every rank has written."""
        partial = final.with_name(final.name + PARTIAL)
        try:
            copied.result()
            if self.processes.is_first:
                _write_info(partial, info)
                _rename(partial, final)
                _remove_old(self.folder, self.keep)
        except (OSError, RuntimeError, CheckpointException) as error:
            refused = cannot_write(final, _reason(error))  # torch's words do not mention a full disk
            shutil.rmtree(partial, ignore_errors=True)
            raise refused from error


def latest(folder: Path) -> Path | None:
    """The whole checkpoint of the highest step, or None."""
    return max(_whole(folder), default=None, key=step_of)


def best(folder: Path) -> Path | None:
    """The checkpoint of the best validation, or the newest where no validation was judged; None without any.

    CheckpointError if the newest, which knows the best, is damaged.
    """
    newest = latest(folder)
    if newest is None:
        return None
    try:
        return _best_of(newest) or newest
    except DAMAGES as error:
        raise _damaged(newest, error) from error


def verify(path: Path, processes: Processes | None = None) -> CheckpointInfo:
    """The state that a checkpoint holds; CheckpointError unless every file is as it was written.

    The first process reads the files, and all learn what it found.
    """
    processes = processes or Processes()
    damage: Exception | None = None
    try:
        info, digests = _read_info(path)
        if processes.is_first and (changed := dict(digests.items() ^ _digests(path).items())):
            damage = ValueError(f"SHA-256 of {', '.join(sorted(changed))}")
    except DAMAGES as error:
        damage = error
    (damaged,) = processes.sum((damage is not None,))
    if damaged:
        raise _damaged(path, damage)
    return info


def restore(
    path: Path, learner: Learner, identity: Mapping[str, Any], processes: Processes
) -> CheckpointInfo:
    """Load a checkpoint into module, optimizers and torch's random generators; frozen parameters stay.

    An average goes on from that of the checkpoint, or begins where it has none. CheckpointError for a
    checkpoint that is damaged, or of another model or optimizer than `identity` says.
    """
    info = verify(path, processes)
    _require_same(path, info.identity, identity)
    averaged = info.averaged if learner.average else 0
    state = _state(learner, averaged > 0)
    try:
        reader = Reader(path)
        # A run that began on a CPU has no generator of a GPU in its checkpoint.
        if "rng.cuda" not in reader.metadata.state_dict_metadata:
            state["rng"].pop("cuda", None)
        with _quiet():
            load(state, reader)
    except UNREADABLE as error:
        raise _damaged(path, error) from error
    set_state_dict(
        learner.module,
        learner.optimizers,
        model_state_dict=state["module"],
        optim_state_dict=state["optimizers"],
        options=TRAINED,
    )
    if learner.average:
        learner.average.count = averaged  # its weights were read in place
    torch.set_rng_state(state["rng"]["cpu"])
    if "cuda" in state["rng"]:
        torch.cuda.set_rng_state(state["rng"]["cuda"])
    return info


def _require_same(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise CheckpointError(
                f"checkpoint {path} was trained with {name} = {saved.get(name)!r}, not "
                f"{wanted.get(name)!r}: give the recipe that it began with, or another --out",
                f"체크포인트 {path}의 {name} 값은 {saved.get(name)!r}인데 지금은 {wanted.get(name)!r}입니다. "
                f"처음 설정을 쓰거나 다른 --out을 지정하세요",
            )


def _damaged(path: Path, error: BaseException | None) -> CheckpointError:
    """error: None if another process saw the damage."""
    reason = "" if error is None else f" ({_reason(error)})"
    return CheckpointError(
        f"checkpoint {path} is damaged{reason}: remove it to resume from the one before",
        f"손상된 체크포인트입니다: {path}{reason}. 지우고 그 앞의 체크포인트에서 이어서 학습하세요",
    )


def _write_info(folder: Path, info: CheckpointInfo) -> None:
    """Write run.json over the other files of a checkpoint, which must be there."""
    document = {**asdict(info), "sha256": _digests(folder)}
    document["digest"] = _digest(document)
    (folder / INFO).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _read_info(path: Path) -> tuple[CheckpointInfo, dict[str, str]]:
    """Read run.json: the state, and the SHA-256 of each file by name; DAMAGES if it was changed."""
    document = json.loads((path / INFO).read_text(encoding="utf-8"))
    if document.pop("digest") != _digest(document):
        raise ValueError(f"{INFO} was changed after it was written")
    digests = document.pop("sha256")
    found = document.pop("best")
    info = CheckpointInfo(**document, best=None if found is None else Best(**found))
    if path.name != _name(info.step):
        raise ValueError(f"it is the checkpoint of step {info.step}")
    return info, digests


def _digest(document: Mapping[str, Any]) -> str:
    """SHA-256 of the content of run.json."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint except run.json."""
    digests = {}
    for path in sorted(folder.iterdir()):
        if path.name != INFO:
            with path.open("rb") as file:
                digests[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


class SavedTensors(Mapping[str, NDArray[np.float32]]):
    """The weights of a checkpoint by name; each is read when it is asked for.

    CheckpointError then if the checkpoint is damaged.
    """

    def __init__(
        self, path: Path, shapes: Mapping[str, tuple[int, ...]], prefix: str = "", part: str = "module"
    ) -> None:
        self.path = path
        self.shapes = shapes  # by name, without `prefix`
        self.prefix = prefix  # of the names in the checkpoint
        self.part = part  # "module", or "average" of a checkpoint that has one
        self._reader: Reader | None = None

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        tensor = torch.empty(self.shapes[name])
        try:
            self._reader = self._reader or Reader(self.path)
            with _quiet():
                load({self.part: {self.prefix + name: tensor}}, self._reader, no_dist=True)
        except UNREADABLE as error:
            raise _damaged(self.path, error) from error
        return tensor.numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def _remove_old(folder: Path, keep: int) -> None:
    """Remove half-written checkpoints, and whole ones but the newest `keep` and those that they call best.

    The newest may be found damaged later: the one before it still has its best then.
    """
    for path in folder.glob("step_*" + PARTIAL):
        shutil.rmtree(path)
    whole = sorted(_whole(folder), key=step_of)
    kept: set[Path | None] = set(whole[-keep:])
    for path in whole[-keep:]:
        with suppress(*DAMAGES):
            kept.add(_best_of(path))
    for path in whole:
        if path not in kept:
            _remove(path)


def _best_of(path: Path) -> Path | None:
    """The best checkpoint that this one names; None if it names none. One of DAMAGES if it is damaged."""
    found = _read_info(path)[0].best
    return None if found is None else path.with_name(_name(found.step))


def _remove(path: Path) -> None:
    """Remove a whole checkpoint, which loses its name first: a kill half way leaves none that looks whole."""
    leaving = path.with_name(path.name + LEAVING)
    shutil.rmtree(leaving, ignore_errors=True)
    path.rename(leaving)
    shutil.rmtree(leaving)


def step_of(path: Path) -> int:
    """The step of a checkpoint by its name."""
    return int(path.name.removeprefix("step_"))


def _name(step: int) -> str:
    return f"step_{step:08d}"


def _whole(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step_*") if NAME.fullmatch(path.name)]


def _state(learner: Learner, with_average: bool) -> dict[str, Any]:
    weights, learning = get_state_dict(learner.module, learner.optimizers, options=TRAINED)
    rng = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        rng["cuda"] = torch.cuda.get_rng_state()
    state = {"module": weights, "optimizers": learning, "rng": rng}
    if with_average:
        assert learner.average is not None
        state["average"] = learner.average.weights
    return state


def _rename(partial: Path, final: Path) -> None:
    for path in [*partial.iterdir(), partial]:
        sync(path)
    if final.exists():
        _remove(final)
    partial.rename(final)
    sync(final.parent)


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[-1][:200] if str(error).strip() else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that it saves or loads in one process."""
    with warnings.catch_warnings():
        _ignore_warning()
        yield


def _ignore_warning() -> None:
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
