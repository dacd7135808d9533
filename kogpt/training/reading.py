"""Reads a checkpoint of a run without running what its files say.

torch's distributed checkpoint holds pickles, which can name any function: .metadata, and one for each value
that is no tensor. Here the first may name the parts of a table of tensors only, and the others are read as
torch reads weights alone. Tensors are read so by torch itself.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem

METADATA = ".metadata"
# What .metadata may name beside torch's dtypes and a path, by module.
PARTS = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}
PATHS = {"PosixPath", "WindowsPath"}  # of the writer's system, in a module that depends on its Python


class Reader(FileSystemReader):
    """The files of one checkpoint.

    ValueError for a .metadata that is damaged, names what no checkpoint needs, or leads out of the folder.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.metadata = _read_metadata(path / METADATA)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """What the constructor has read: torch would unpickle the file."""
        return self.metadata


def load(state: dict[str, Any], reader: Reader, no_dist: bool = False) -> None:
    """Fill `state` from a checkpoint, as torch's function of that name."""
    state_dict_loader.load(state, storage_reader=reader, planner=_Planner(), no_dist=no_dist)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in PATHS and module.split(".")[0] == "pathlib":
            return PurePath
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in PARTS.get(module, ()):
            return super().find_class(module, name)
        raise ValueError(f"it names {module}.{name}, which no checkpoint needs")


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Hand on a copy that is known to hold plain values: torch's own method would run what it reads."""
        try:
            found = torch.load(value, weights_only=True)
        except pickle.UnpicklingError:  # its words advise to load the file all the same
            raise ValueError(f"{read_item.dest_index.fqn} is more than numbers and text") from None
        plain = io.BytesIO()
        torch.save(found, plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)


def _read_metadata(path: Path) -> Metadata:
    with path.open("rb") as file:
        try:
            found = _Unpickler(file).load()
            _require_inside(found)
        except Exception as error:  # a damaged pickle can raise any
            raise ValueError(f"{METADATA} cannot be read: {error}") from None
    assert isinstance(found, Metadata)
    return found


def _require_inside(metadata: object) -> None:
    """ValueError unless it is the table of a checkpoint whose files are in the checkpoint's own folder."""
    if not isinstance(metadata, Metadata) or metadata.storage_data is None:
        raise ValueError(f"it is a {type(metadata).__name__}")
    for info in metadata.storage_data.values():
        if Path(info.relative_path).name != info.relative_path:
            raise ValueError(f"it names a file outside the checkpoint, {info.relative_path!r}")
