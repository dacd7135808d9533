"""Hostile and damaged model folders: each is refused with one line, runs nothing, opens nothing else, leaves
nothing behind, and is fast about it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import hostile
import pytest
from conftest import plain
from hypothesis import given, settings
from hypothesis import strategies as st

from kogpt import KoGPT, checkpoint, files, manifest
from kogpt.errors import CheckpointError, ConfigError, KoGPTError
from kogpt.export.folder import export
from kogpt.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("no_fsync")

# Of these a checkpoint reader has no need; a hook cannot be removed, so it looks at a switch.
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect")
_watched: list[tuple[str, str]] | None = None


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _watched is not None and (event in FORBIDDEN or event == "open"):
        _watched.append((event, os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else ""))


sys.addaudithook(_watch)


@pytest.fixture
def events() -> Iterator[list[tuple[str, str]]]:
    """What the interpreter did since: (event, path)."""
    global _watched
    import torch  # whose import opens and runs a good deal

    assert torch
    _watched = []
    yield _watched
    _watched = None


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", hostile.CASES)
def test_a_bad_folder_is_refused(
    name: str, tiny_folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    _, error, message = hostile.CASES[name]
    folder = tmp_path / "model"
    hostile.make(name, tiny_folder, folder)
    before = listing(tmp_path)
    events = request.getfixturevalue("events")
    started = time.process_time()
    with pytest.raises(error, match=message) as caught:
        checkpoint.load(folder)
    seconds = time.process_time() - started
    happened = list(events)
    assert type(caught.value) is error
    for line in (caught.value.en, caught.value.ko):
        assert "\n" not in line and len(line.replace(str(folder), "")) < 450
    assert re.search("[가-힣]", caught.value.ko)
    assert not [event for event, _ in happened if event in FORBIDDEN]
    opened = {Path(path) for event, path in happened if event == "open" and path.startswith(str(tmp_path))}
    assert all(path.is_relative_to(folder) for path in opened)
    assert listing(tmp_path) == before  # no canary, no temporary file
    assert seconds < 3.0, seconds  # beside a busy machine


def test_no_guard_is_an_assert(tiny_folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-O", hostile.__file__, str(tiny_folder), str(tmp_path)]
    path = os.pathsep.join([str(Path(checkpoint.__file__).parents[1]), *sys.path])
    run = subprocess.run(command, capture_output=True, env=os.environ | {"PYTHONPATH": path}, check=True)
    answers = json.loads(run.stdout)
    assert answers == {name: error.__name__ for name, (_, error, _) in hostile.CASES.items()}
    assert not list(tmp_path.glob("**/canary"))


# ------------------------------------------------------------------------------------------------ at random


@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_every_flipped_bit_is_found(
    data: st.DataObject, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any single bit of any file that the manifest lists."""
    folder = tmp_path_factory.mktemp("flip", numbered=True) / "model"
    name = data.draw(
        st.sampled_from(["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
    )
    bit = data.draw(st.integers(0, 8 * (tiny_folder / name).stat().st_size - 1))
    folder.mkdir()
    for path in tiny_folder.iterdir():
        os.link(path, folder / path.name)
    changed = bytearray((tiny_folder / name).read_bytes())
    changed[bit // 8] ^= 1 << bit % 8
    (folder / name).unlink()
    (folder / name).write_bytes(changed)
    with pytest.raises(KoGPTError):
        checkpoint.load(folder)


@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_a_random_header_is_refused_or_read_by_the_library_too(
    data: st.DataObject, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Change a few characters of a header: what this reader accepts, the format's own library accepts."""
    from safetensors import safe_open

    folder = tmp_path_factory.mktemp("header", numbered=True)
    source = bytearray((tiny_folder / "model.safetensors").read_bytes())
    n_header = int.from_bytes(source[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        source[data.draw(st.integers(0, 7 + n_header))] = data.draw(st.integers(0, 255))
    (folder / "model.safetensors").write_bytes(source)
    os.link(tiny_folder / "config.json", folder / "config.json")
    try:
        loaded = checkpoint.load(folder)
    except KoGPTError:
        return
    with safe_open(folder / "model.safetensors", "np") as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == {  # noqa: SIM118
            name: stored.array.shape for name, stored in plain(loaded.tensors).items()
        }


PARTS = st.sampled_from(
    [
        "..",
        ".",
        "",
        "a",
        "가",
        "가",
        "%2e%2e",
        "\0",
        "\\",
        "x" * 300,
        "link",
        "inside",
        "~",
        "c:",
        "\ud800",
        "\n",
    ]
)


@given(st.lists(PARTS, min_size=1, max_size=5).map("/".join), st.booleans())
@settings(deadline=None, max_examples=1000)
def test_no_name_leads_outside(joined: Path, name: str, absolute: bool) -> None:
    name = "/" + name if absolute else name
    try:
        path = files.safe_join(joined, name)
    except (CheckpointError, OSError):
        return
    assert path.resolve().is_relative_to(joined.resolve()) and path.is_file()


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files, a folder in it, links inside and outside, and a file to steal beside it."""
    folder = tmp_path_factory.mktemp("join") / "model"
    (folder / "a").mkdir(parents=True)
    for path in (folder / "가", folder / "a" / "a", folder / "a" / "가", folder.parent / "a"):
        path.write_text("x")
    (folder / "link").symlink_to("..")
    (folder / "inside").symlink_to("a")
    return folder


def test_names_inside_are_found(joined: Path) -> None:
    for name in ("가", "a/a", "inside/가", "a/가"):
        assert files.safe_join(joined, name).read_text() == "x"


def test_the_hub_s_cache_may_link_to_its_own_blobs_only(tmp_path: Path) -> None:
    repository = tmp_path / "models--o--m"
    snapshot = repository / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "abc").write_text("{}")
    (tmp_path / "secret").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    (snapshot / "secret").symlink_to("../../../secret")
    assert files.safe_join(snapshot, "config.json").read_text() == "{}"
    with pytest.raises(CheckpointError, match="outside"):
        files.safe_join(snapshot, "secret")


# --------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", ["gone", "/gone", "a/b/c", "../gone", "x" * 5000, "\0", "kogpt-mimi", "한글"]
)
def test_a_folder_that_does_not_exist(name: str) -> None:
    with pytest.raises(CheckpointError, match="no model folder"):
        checkpoint.load(name)


def test_a_file_is_not_a_folder(tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no model folder"):
        checkpoint.load(tiny_folder / "config.json")


def test_a_local_folder_has_no_revision(tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="leave the revision out"):
        checkpoint.load(tiny_folder, "KoGPT6B-ryan1.5b")


# ----------------------------------------------------------------------------------------- code in a folder


def test_code_beside_a_model_is_never_imported(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    evil = f"open({str(tmp_path / 'canary')!r}, 'w').close()"
    for name in ("modeling_evil.py", "tokenization_evil.py", "__init__.py", "sitecustomize.py"):
        (folder / name).write_text(evil)
    auto_map = {"auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}}
    hostile.edit_json(folder / "tokenizer_config.json", lambda document: document.update(auto_map))
    manifest.write_manifest(folder)
    checkpoint.load(folder)
    Tokenizer.from_file(folder / "tokenizer.json")
    hostile.edit_json(folder / "config.json", lambda document: document.update(auto_map))
    manifest.write_manifest(folder)
    with pytest.raises(ConfigError, match="auto_map"):
        checkpoint.load(folder)
    assert not (tmp_path / "canary").exists()


def test_the_package_has_no_reader_that_executes() -> None:
    """Every way in which Python's libraries run what a file says is absent from the source.

    training/reading.py has an unpickler that names nothing but the parts of a table of tensors.
    """
    ways = r"import (pickle|dill|joblib|shelve|marshal)\b|weights_only=False|allow_pickle=True"
    ways += r"|trust_remote_code=True|(?<![.\w])(eval|exec)\("
    sources = sorted(Path(checkpoint.__file__).parent.rglob("*.py"))
    assert len(sources) > 10
    for path in sources:
        text = path.read_text(encoding="utf-8")
        if path.parts[-2:] == ("training", "reading.py"):
            assert text.count("pickle.") == text.count("pickle.Unpickler") + text.count(
                "pickle.UnpicklingError"
            )
            text = text.replace("import pickle\n", "")
        assert not re.search(ways, text), path
        assert text.count("torch.load(") == text.count("weights_only=True"), path


# ------------------------------------------------------------------------------------ every file of a folder

FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "LICENSE")


def make_exportable(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder)
    (folder / "LICENSE").write_text("Apache")
    (folder / "special_tokens_map.json").write_text("{}")
    (folder / "kogpt.manifest.json").unlink()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link outside", "pipe", "device", "folder"])
def test_no_file_of_a_folder_is_opened_elsewhere(
    tiny_folder: Path, tmp_path: Path, name: str, kind: str
) -> None:
    """Export copies tokenizer and licence: never a file from outside, and it never waits for a pipe."""
    folder = tmp_path / "model"
    make_exportable(tiny_folder, folder)
    secret = tmp_path / "secret"
    secret.write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    if kind == "pipe":
        os.mkfifo(folder / name)
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to(secret if kind == "link outside" else "/dev/zero")
    with pytest.raises(KoGPTError, match=r"outside|not a regular file"):
        export(checkpoint.load(folder), "float16", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    if "token" in name:
        with pytest.raises(KoGPTError, match=r"outside|not a regular file"):
            KoGPT.from_pretrained(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "special_tokens_map.json", "generation_config.json"])
def test_what_is_read_must_be_in_the_manifest(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / name).write_text("{}")
    hostile.edit_json(folder / "kogpt.manifest.json", lambda document: document["files"].pop(name, None))
    with pytest.raises(CheckpointError, match=f"{name} is not as kogpt.manifest.json describes it"):
        checkpoint.load(folder)


def test_weights_without_tensors_have_no_format(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    hostile.make("header: no tensors", tiny_folder, folder)
    with pytest.raises(CheckpointError, match="it holds no tensors"):
        checkpoint.stored_format(folder)
