"""A model's name -> its local folder: a folder, a built-in model, or a model of the Hugging Face hub."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from kogpt.errors import CheckpointError
from kogpt.manifest import MANIFEST, read_manifest

BUILT_IN = {"kogpt-mini": Path(__file__).parent / "mini"}
ADAPTERS = Path(__file__).parent / "adapters"  # those that ship, by name
DEFAULT_REVISIONS = {"kakaobrain/kogpt": "KoGPT6B-ryan1.5b-float16"}  # as in the original's command line
SETTINGS = ("*.json",)
CARD = ("README.md", "LICENSE*")
# Weights that are read, in the order in which a folder's are looked for.
WEIGHTS = ("*.safetensors", "*.bin", "model.*.gguf")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def find_folder(name: str | Path, revision: str | None = None, weights: bool = True) -> Path:
    """The local folder of a model; a model of the hub is downloaded, or found in the hub's cache.

    A built-in name goes before a folder of that name (which "./NAME" or a Path means), a folder before a hub
    name. Without `weights` only the small files of a hub model are fetched: settings, card and licence.
    """
    if isinstance(name, str) and name in BUILT_IN:
        name = BUILT_IN[name]
    elif isinstance(name, str) and HUB_NAME.fullmatch(name) and not os.path.lexists(name):
        return _download(name, revision or DEFAULT_REVISIONS.get(name), weights)
    if not _is_folder(name):
        shown = repr(str(name)[:200])
        raise CheckpointError(
            f"no model folder {shown}: give a folder with a config.json, a hub name such as "
            "kakaobrain/kogpt, or kogpt-mini",
            f"모델 폴더가 없습니다: {shown} (config.json이 있는 폴더나 kakaobrain/kogpt 같은 허브 이름, "
            "또는 kogpt-mini를 지정하세요)",
        )
    if revision is not None:
        raise CheckpointError(
            f"{name} is a local folder and has no revision {revision!r}: leave the revision out",
            f"{name}: 로컬 폴더에는 리비전({revision!r})이 없습니다. 리비전을 빼고 다시 실행하세요",
        )
    return Path(name)


def find_adapter(name: str | Path) -> Path:
    """The folder of an adapter; a name that ships goes before a folder of that name, which "./NAME" means."""
    if isinstance(name, str) and name in adapter_names():
        return ADAPTERS / name
    if not _is_folder(name):
        shown, known = repr(str(name)[:200]), ", ".join(adapter_names())
        raise CheckpointError(
            f"no adapter {shown}: give a folder that KoGPT or PEFT wrote, or one of {known}",
            f"어댑터가 없습니다: {shown} (KoGPT나 PEFT가 만든 폴더 또는 {known} 중 하나를 지정하세요)",
        )
    return Path(name)


def _is_folder(name: object) -> bool:
    """Whether a name, which may be anything, names a folder; the empty one is not the current folder."""
    return isinstance(name, str | os.PathLike) and bool(str(name)) and os.path.isdir(name)


def adapter_names() -> tuple[str, ...]:
    """Names of the adapters that ship."""
    return tuple(sorted(path.parent.name for path in ADAPTERS.glob("*/adapter_config.json")))


def _download(name: str, revision: str | None, weights: bool) -> Path:
    """The hub's folder: its small files, then what its manifest lists, else one kind of weights."""
    folder = _fetch(name, revision, SETTINGS, CARD)
    if not weights:
        return folder
    commit = folder.name  # a branch may move meanwhile
    if os.path.lexists(folder / MANIFEST):
        if missing := _missing(folder):
            _fetch(name, commit, missing)
        return folder
    for kind in WEIGHTS:
        _fetch(name, commit, [kind])
        if any(folder.glob(kind)):
            break
    return folder


def _missing(folder: Path) -> list[str]:
    """Patterns of the files that a folder's manifest lists and the folder lacks. CheckpointError."""
    manifest = read_manifest(folder)
    listed = () if manifest is None else manifest.files
    return [glob.escape(name) for name in listed if not os.path.exists(folder / name)]


def _fetch(name: str, revision: str | None, needed: Sequence[str], beside: Sequence[str] = ()) -> Path:
    """The folder in the hub's cache with the files of these patterns; CheckpointError where it cannot be had.

    beside: patterns of files that may be missing.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    at = f"{name} ({revision})" if revision else name
    try:
        return _snapshot(name, revision, needed, beside)
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise CheckpointError(
            f"the hub has no {at}, or it needs `hf auth login`: check the name and the revision",
            f"허브에 {at} 모델이 없거나 `hf auth login`이 필요합니다. 이름과 리비전을 확인하세요",
        ) from error
    except Exception as error:  # no network, no answer, a full disk: the client has no common base for them
        kind = type(error).__name__
        raise CheckpointError(
            f"no folder {name}, and {at} could not be downloaded from the hub ({kind}): "
            "connect to the network, or give the folder of a copy",
            f"{name} 폴더가 없고, 허브에서 {at} 모델을 내려받을 수도 없습니다 ({kind}). "
            "네트워크에 연결하거나 이미 받은 폴더를 지정하세요",
        ) from error


def _snapshot(name: str, revision: str | None, needed: Sequence[str], beside: Sequence[str]) -> Path:
    import huggingface_hub as hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=[*needed, *beside]))
    except LocalEntryNotFoundError:  # no network, and a cache that lacks one of them
        if not beside:
            raise
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=[*needed]))
