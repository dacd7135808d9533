"""Files: whole or not at all, locked, inside their folder, whatever fails and whoever is killed."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, random_tensors

from kogpt import checkpoint, files, peft
from kogpt.errors import CheckpointError, DiskError, InputError
from kogpt.evaluation.store import BatchStore, key_of
from kogpt.files import atomic_write, lock_folder, open_file, read_json, replace_all, share_folder

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "결과.json"
    with atomic_write(path) as file:
        file.write(b"old")
    with pytest.raises(KeyError), atomic_write(path) as file:
        file.write(b"new, but ")
        raise KeyError
    assert path.read_bytes() == b"old"
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def test_long_names_and_missing_folders(tmp_path: Path) -> None:
    with atomic_write(tmp_path / ("가" * 85)) as file:  # 255 bytes, the longest there is
        file.write(b"x")
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "gone" / "file"):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError), atomic_write(tmp_path / "folder"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "가" * 85]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for the disk: a write beyond it fails as one on a full disk does."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(DiskError, match=r"cannot write .*GB free.*make room"), atomic_write(path) as file:
            file.write(bytes(1 << 20))
        with pytest.raises(DiskError, match="cannot write"):
            checkpoint.save(tmp_path / "model", TINY, random_tensors(TINY))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


WRITER = """
import sys
from pathlib import Path
from kogpt.files import atomic_write
path, number = Path(sys.argv[1]), 0
while True:
    number += 1
    with atomic_write(path) as file:
        file.write(str(number).encode() * 100_000)
    if number == 1:
        print("ready", flush=True)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    rng = np.random.default_rng(0)
    search = os.pathsep.join([str(Path(files.__file__).parents[1]), *sys.path])
    for _ in range(8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)],
            env=os.environ | {"PYTHONPATH": search},
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0, 0.05))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        data = path.read_bytes()
        number = data[: len(data) // 100_000]
        assert number and data == number * 100_000
    with atomic_write(path) as file:
        file.write(b"the next one")
    assert list(tmp_path.iterdir()) == [path], "what the killed ones left is gone"


def test_a_write_beside_another_leaves_its_temporary_alone(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as slow:
        slow.write(b"slow")
        with atomic_write(tmp_path / "b") as quick:
            quick.write(b"quick")
    assert (tmp_path / "a").read_bytes() == b"slow" and (tmp_path / "b").read_bytes() == b"quick"


# -------------------------------------------------------------------------------------- sets of files


KILLED = """
import os, sys
from pathlib import Path
from kogpt import files
folder, call, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
target = os if call == "fsync" else Path
original = getattr(target, call)
def step(*arguments, **options):
    global count
    count -= 1
    if count == 0:
        os._exit(9)  # as after SIGKILL: nothing is cleaned up
    return original(*arguments, **options)
setattr(target, call, step)
import re
with files.replace_all(folder, ["a", "b", "c"], re.compile("old.*")) as written:
    for file in written.values():
        file.write(b"new")
"""


@pytest.mark.parametrize("call", ["fsync", "rename", "replace", "unlink"])
def test_a_writer_that_is_killed_at_any_step_leaves_the_old_set_or_the_new_one(
    tmp_path: Path, call: str
) -> None:
    old, new = {"a": "old", "b": "old", "old 1": "old"}, {"a": "new", "b": "new", "c": "new"}
    for k in range(1, 50):
        folder = tmp_path / str(k)
        folder.mkdir()
        for name, text in old.items():
            (folder / name).write_text(text)
        command = [sys.executable, "-c", KILLED, str(folder), call, str(k)]
        code = subprocess.run(command, env=ENVIRONMENT, check=False).returncode
        before, settled = contents(folder), files.settled_names(folder)
        try:
            with share_folder(folder):
                found = visible(folder)
            assert found in (old, new)
        except CheckpointError as error:
            assert list(folder.glob(".*.new")) and "write it again" in error.en
            found = new  # as the next writer finds it
        assert contents(folder) == before, "a reader changes nothing"
        with replace_all(folder, ["z"]) as written:
            written["z"].write(b"")
        assert visible(folder) == found | {"z": ""} and settled >= found.keys()
        assert not list(folder.glob(".*")), "the next writer clears away what was left"
        if code == 0:
            assert found == new
            return
        assert code == 9
    raise AssertionError("the writer never ended")


def visible(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if not path.name.startswith(".")}


def contents(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


SET = ".0123456789abcdef.new"


def test_a_folder_that_claims_a_set_cannot_reach_outside(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    waiting = folder / SET
    (folder / "kept").mkdir(parents=True)
    waiting.mkdir()
    (tmp_path / "mine").write_text("mine")
    (waiting / files.STALE_NAMES).write_text(json.dumps(["../mine", "..", 7, "/etc/hostname", "kept"]))
    (waiting / "config.json").symlink_to("../mine")
    with replace_all(folder, ["new"]):
        assert (folder / "config.json").is_symlink() and not waiting.exists()
    assert (tmp_path / "mine").read_text() == "mine" and (folder / "kept").is_dir()
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / SET).symlink_to(folder)
    for context in (share_folder(linked), replace_all(linked, ["new"])):
        enter(context)
        assert (folder / "config.json").is_symlink(), "a link to another folder is not a set"


def put(content: str | None) -> Callable[[Path], object]:
    """A folder with a set, and a list of names to remove unless it is None."""

    def put_set(folder: Path) -> None:
        (folder / SET).mkdir()
        (folder / SET / "config.json").write_text("new")
        if content is not None:
            (folder / SET / files.STALE_NAMES).write_text(content)

    return put_set


def put_pipe(folder: Path) -> None:
    put(None)(folder)
    os.mkfifo(folder / SET / files.STALE_NAMES)


@pytest.mark.parametrize(
    "write", [put(None), put('["model"]'), put("{"), put("7"), put("[" * 9000), put_pipe]
)
def test_a_reader_changes_nothing(write: Callable[[Path], object], tmp_path: Path) -> None:
    """A shipped set once replaced and deleted files of the folder when it was loaded."""
    for name in ("config.json", "model", "adapter_config.json"):
        (tmp_path / name).write_text("old")
    write(tmp_path)
    before = contents(tmp_path)
    stored = checkpoint.Checkpoint(tmp_path, TINY, {})
    for read in (checkpoint.load, lambda folder: peft.load(folder, stored), lambda f: enter(share_folder(f))):
        with pytest.raises(CheckpointError, match=f"is not finished, its new files are in {SET}: write it"):
            read(tmp_path)
    assert contents(tmp_path) == before


def enter(context: AbstractContextManager[object]) -> None:
    with context:
        pass


def test_a_set_that_has_moved_in_is_read_past(tmp_path: Path) -> None:
    """Its writer was killed when nothing was left to do but to remove the folder."""
    put("[]")(tmp_path)
    (tmp_path / SET / "config.json").rename(tmp_path / "config.json")
    enter(share_folder(tmp_path))
    assert files.settled_names(tmp_path) == {"config.json"}


@pytest.mark.parametrize("write", [put("{"), put("7"), put("[" * 9000), put_pipe])
def test_a_writer_refuses_a_list_that_it_did_not_write(
    write: Callable[[Path], object], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("old")
    write(tmp_path)
    with pytest.raises(InputError, match=f"KoGPT did not write it: delete .*{SET}"):
        enter(replace_all(tmp_path, ["a"]))
    assert (tmp_path / "config.json").read_text() == "old"


def test_a_folder_in_the_place_of_a_file_is_named_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "a").write_text("old")
    with pytest.raises(InputError, match=r"b is a folder, where a file is to be written: move it away"):
        enter(replace_all(tmp_path, ["a", "b"]))
    assert (tmp_path / "a").read_text() == "old" and not list(tmp_path.glob(".*"))


# -------------------------------------------------------------------------------------------- locks


HOLDER = """
import sys, time
from pathlib import Path
from kogpt.files import lock_folder
with lock_folder(Path(sys.argv[1]), "kogpt pretrain run"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_says_who_holds_it_and_goes_with_the_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        message = f"in use .kogpt pretrain run, process {holder.pid}.: wait"
        with pytest.raises(InputError, match=message), lock_folder(tmp_path, "kogpt pretrain run"):
            pass
        holder.kill()
        holder.wait()
    with lock_folder(tmp_path, "kogpt pretrain run"):
        pass


@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe", "folder"])
def test_what_leads_elsewhere_is_no_file_of_ours(kind: str, tmp_path: Path) -> None:
    """A lock of a folder from elsewhere: the file that a link leads to was emptied and written over."""
    folder, victim = tmp_path / "run", tmp_path / "victim"
    folder.mkdir()
    store = folder / "batches" / f"{key_of({})[:32]}.jsonl"
    store.parent.mkdir()
    for path in (folder / files.LOCK, store):
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to(victim)
    if kind == "link":
        victim.write_text("precious")
    for write in (lambda: enter(lock_folder(folder, "kogpt tune")), lambda: BatchStore(store.parent, {})):
        with pytest.raises(InputError, match="is a link or no regular file, and is not written: delete it"):
            write()
    assert not victim.exists() or victim.read_text() == "precious"


class Hung(Exception):
    """Raised by the clock; no OSError, which a write may pass over."""


def test_a_pipe_among_leftovers_does_not_hang(tmp_path: Path) -> None:
    def ring(*_: object) -> None:
        raise Hung

    os.mkfifo(tmp_path / ".0123456789abcdef.tmp")
    old = signal.signal(signal.SIGALRM, ring)
    signal.alarm(5)
    try:
        with atomic_write(tmp_path / "x") as file:
            file.write(b"whole")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


# -------------------------------------------------------------------------------------------- reading


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tokenizer.json")
    for path in (tmp_path / "tokenizer.json", tmp_path, Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="not a regular file"):
            open_file(path)


def test_json_has_a_limit_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    assert read_json(path, 8) == {"a": 1}
    with pytest.raises(InputError, match="has 8 bytes, at most 7 are read"):
        read_json(path, 7, InputError)


def test_a_whole_file_is_no_leftover_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process that begins a write in the folder just then removes leftovers, and not this file."""
    replace = Path.replace

    def replace_late(self: Path, target: Path) -> Path:
        files.remove_leftovers(tmp_path)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_late)
    with files.atomic_write(tmp_path / "a") as file:
        file.write(b"whole")
    assert (tmp_path / "a").read_bytes() == b"whole" and len(list(tmp_path.iterdir())) == 1
