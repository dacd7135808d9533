"""Folders of checkpoints: what runs nothing, what stays, and what a kill or a power cut leaves behind."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from kogpt.errors import CheckpointError
from kogpt.training import checkpoints, folder
from kogpt.training.checkpoints import CheckpointInfo, SavedTensors
from kogpt.training.report import METRICS, Report, read_metrics
from kogpt.training.verdict import Best

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import toy  # noqa: E402

WEIGHT = "model.transformer.wte.weight"


class Crafted:
    """A value whose pickle makes a folder when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A checkpoint of one step."""
    run = toy.make_run(tmp_path)
    run.resume()
    run.update(toy.batch(0))
    run.save()
    run.checkpoints.finish()
    return tmp_path / "step_00000001"


def change_metadata(path: Path, change: Callable[[Metadata], object]) -> None:
    """Replace .metadata by what `change` makes of it or returns, under a run.json that fits."""
    found = pickle.loads((path / ".metadata").read_bytes())
    returned = change(found)
    (path / ".metadata").write_bytes(pickle.dumps(found if returned is None else returned))
    checkpoints._write_info(path, checkpoints._read_info(path)[0])


def put(path: Path, metadata: Metadata, name: str, value: object) -> None:
    """Make `value` what the checkpoint holds as `name`, which is no tensor then."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    info = next(iter(metadata.storage_data.values()))
    crafted = type(info)("crafted.distcp", 0, len(buffer.getvalue()))
    (path / "crafted.distcp").write_bytes(buffer.getvalue())
    metadata.storage_data = {
        index: found for index, found in metadata.storage_data.items() if index.fqn != name
    } | {MetadataIndex(name): crafted}
    metadata.state_dict_metadata[name] = BytesStorageMetadata()


def lead_out(metadata: Metadata) -> None:
    """Let the table name files beside the checkpoint."""
    metadata.storage_data = {
        index: type(info)("../elsewhere", info.offset, info.length)
        for index, info in metadata.storage_data.items()
    }


def resume(path: Path) -> None:
    toy.make_run(path.parent).resume()


def export(path: Path) -> None:
    dict(SavedTensors(path, toy.SHAPE.tensor_shapes(), "model."))


@pytest.mark.parametrize("read", [resume, export])
@pytest.mark.parametrize("place", ["all", "within", "weight", "setting"])
def test_no_pickle_of_a_checkpoint_runs(place: str, read: Callable[[Path], None], saved: Path) -> None:
    crafted = Crafted(saved.parent / "ran")
    changes: dict[str, Callable[[Metadata], object]] = {
        "all": lambda metadata: crafted,
        "within": lambda metadata: setattr(metadata, "planner_data", crafted),
        "weight": lambda metadata: put(saved, metadata, "module." + WEIGHT, crafted),
        "setting": lambda metadata: put(saved, metadata, "optimizers.param_groups.0.lr", crafted),
    }
    change_metadata(saved, changes[place])
    if (place, read) == ("setting", export):  # which reads weights only
        read(saved)
    else:
        with pytest.raises(CheckpointError, match=r"step_00000001 is damaged \(.*\): remove it") as caught:
            read(saved)
        assert "\n" not in caught.value.en
        assert ("mkdir" if place in ("all", "within") else "more than numbers and text") in caught.value.en
    assert not crafted.mark.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda metadata: {}, "it is a dict"),
        (lambda metadata: setattr(metadata, "storage_data", None), "it is a Metadata"),
        (lambda metadata: setattr(metadata, "storage_data", 3), "cannot be read"),
        (lead_out, "outside the checkpoint, '../elsewhere'"),
        (lambda metadata: setattr(metadata, "state_dict_metadata", 3), "int"),
    ],
)
def test_a_table_that_is_none_is_one_line(
    change: Callable[[Metadata], object], reason: str, saved: Path
) -> None:
    change_metadata(saved, change)
    for read in (resume, export):
        with pytest.raises(CheckpointError, match=f"is damaged .*{reason}") as caught:
            read(saved)
        assert "\n" not in caught.value.en


@pytest.mark.parametrize("text", ["[" * 100_000, '{"step": ' + "1" * 5000 + "}", '{"digest": 1}', "\xff"])
def test_any_damage_of_run_json_is_one_line(text: str, saved: Path) -> None:
    (saved / "run.json").write_bytes(text.encode("latin-1"))
    for read in (checkpoints.verify, resume, lambda path: checkpoints.best(path.parent)):
        with pytest.raises(CheckpointError, match="is damaged"):
            read(saved)


@pytest.mark.parametrize(
    "line", [b"\xff", b"[" * 100_000, b"5", b"[]", b"", b'{"loss": 1.0}', b'{"step": ' + b"1" * 5000 + b"}"]
)
def test_any_damage_of_the_metrics_is_one_line(line: bytes, saved: Path) -> None:
    metrics = saved.parent / METRICS
    metrics.write_bytes(b'{"step": 0}\n' + line + b"\n")
    for read in (lambda: read_metrics(metrics), lambda: resume(saved)):
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl has a line that is not JSON"):
            read()


def test_only_a_last_line_without_its_end_is_dropped(tmp_path: Path) -> None:
    for text, steps in ((b"", []), (b'{"step": 1', []), (b'{"step": 1}\n{"step": 2, "\xec', [1])):
        (tmp_path / METRICS).write_bytes(text)
        assert [line["step"] for line in read_metrics(tmp_path / METRICS)] == steps


def keep(folder: Path, step: int, best: int | None = None) -> None:
    """A checkpoint of that step, and the best up to it; older ones but two make room."""
    path = folder / checkpoints._name(step)
    path.mkdir(parents=True)
    found = None if best is None else Best(best, {"dev_loss": 1.0})
    checkpoints._write_info(path, CheckpointInfo(step, 0, 0.0, {}, found))
    checkpoints._remove_old(folder, 2)


def steps(folder: Path) -> list[int]:
    return sorted(checkpoints.step_of(path) for path in folder.glob("step_*"))


def test_what_kept_checkpoints_call_best_is_kept(tmp_path: Path) -> None:
    for step, best in ((100, 100), (200, 100), (300, 300)):
        keep(tmp_path, step, best)
    assert steps(tmp_path) == [100, 200, 300]
    shutil.rmtree(tmp_path / "step_00000300")  # as the message for a damaged one advises
    assert checkpoints.best(tmp_path) == tmp_path / "step_00000100"
    keep(tmp_path, 300, 300)
    keep(tmp_path, 400, 300)
    assert steps(tmp_path) == [300, 400]
    (tmp_path / "step_00000400" / "run.json").write_text("{}", encoding="utf-8")
    keep(tmp_path, 500, 500)
    assert steps(tmp_path) == [400, 500]  # nobody knows what a damaged one calls best


def test_steps_of_nine_digits_come_after_those_of_eight(tmp_path: Path) -> None:
    for step in (99_999_998, 99_999_999, 100_000_000):
        keep(tmp_path, step)
    assert steps(tmp_path) == [99_999_999, 100_000_000]
    assert checkpoints.latest(tmp_path) == tmp_path / "step_100000000"
    assert checkpoints.verify(tmp_path / "step_100000000").step == 100_000_000


class Killed(BaseException):
    """What stands for SIGKILL."""


@pytest.mark.parametrize("again", [False, True])
def test_a_kill_while_a_checkpoint_is_removed_leaves_none_that_looks_whole(
    again: bool, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The removed one is old, or makes room for another of its step."""

    def remove_half(path: Path, **_: Any) -> None:
        if path.exists():
            (path / "run.json").unlink()
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", remove_half)
        with pytest.raises(Killed):
            if again:
                shutil.copytree(saved, saved.with_name(saved.name + ".partial"))
                checkpoints._rename(saved.with_name(saved.name + ".partial"), saved)
            else:
                for step in (2, 3):
                    keep(tmp_path, step)
    for path in checkpoints._whole(tmp_path):
        checkpoints.verify(path)
    for step in (4, 5):
        keep(tmp_path, step)
    assert steps(tmp_path) == [4, 5]  # and no rests


def test_the_start_is_on_the_disk_before_any_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, int]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        found = os.fstat(descriptor)
        synced.append((found.st_ino, found.st_size))

    run = toy.make_run(tmp_path, report=Report(tmp_path))
    run.resume()
    monkeypatch.setattr(os, "fsync", noted)
    folder.remember_start(run, {"init": "random"})
    file = (tmp_path / METRICS).stat()
    assert file.st_size and (file.st_ino, file.st_size) in synced
    assert tmp_path.stat().st_ino in [number for number, _ in synced]
