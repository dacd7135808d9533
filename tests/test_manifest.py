"""The manifest of a folder: of any number of files, and of names that every system has."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from kogpt import checkpoint, manifest
from kogpt.errors import CheckpointError
from kogpt.files import open_inside

pytestmark = pytest.mark.usefixtures("no_fsync")


def test_more_files_than_a_process_may_open(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    for number in range(300):
        (folder / f"note {number}.txt").write_text("x")
    manifest.write_manifest(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    n_open = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_open + 100, hard))
    try:
        checkpoint.load(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (folder / "note 7.txt").write_text("y")
    with pytest.raises(CheckpointError, match=r"note 7.txt is not as kogpt.manifest.json describes it"):
        checkpoint.load(folder)


def test_a_file_that_grows_after_its_size_was_read_is_found(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)

    def grow(folder: Path, name: str) -> object:
        with (folder / "tokenizer.json").open("ab") as file:
            file.write(b" ")
        return open_inside(folder, name)

    monkeypatch.setattr(manifest, "open_inside", grow)
    with pytest.raises(CheckpointError, match=r"tokenizer.json is not as kogpt.manifest.json describes it"):
        checkpoint.load(folder)


def write_model(folder: Path) -> None:
    """A new model in a folder whose other files go into its manifest."""
    stored = checkpoint.load("kogpt-mini")
    checkpoint.save(folder, stored.config, stored.tensors)


@pytest.mark.parametrize(
    "name", [b"a:b.safetensors", "한글.safetensors".encode("cp949"), b"a\\b.safetensors", b"a\nb.safetensors"]
)
@pytest.mark.parametrize("use", [manifest.write_manifest, checkpoint.digest, write_model])
def test_a_name_that_some_system_lacks_is_named_as_such(
    name: bytes, use: Callable[[Path], object], tmp_path: Path
) -> None:
    """It was said to name a file outside its folder."""
    (tmp_path / "config.json").write_text("{}")
    with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
        pass
    with pytest.raises(CheckpointError, match=r"no file can be called .*: rename it") as caught:
        use(tmp_path)
    for line in (caught.value.en, caught.value.ko):
        assert "\n" not in line and line.encode()
