"""Finished batches on disk: a killed evaluation goes on where it stopped.

Each run appends to its own file, named by the hash of everything that the scores depend on. A line is a batch
with its checksum. A line that a kill cut off is dropped, and its batch is computed again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zlib import crc32

from kogpt.evaluation.scoring import Scores, Store
from kogpt.files import hold, in_use, lock_folder, open_own, remove_leftovers


def key_of(parts: Mapping[str, Any]) -> str:
    """Hash of everything that the scores of a run depend on: model, tokenizer, prompt, data, dtype."""
    return sha256(_canonical(parts).encode()).hexdigest()


class BatchStore:
    """The batches of one run: `store[number] = scores`, `store.get(number)`; one process at a time."""

    def __init__(self, folder: Path, parts: Mapping[str, Any]) -> None:
        """Open or begin the file of a run; InputError if another process writes it."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{key_of(parts)[:32]}.jsonl"
        self._file = open_own(self.path, buffering=0)
        if not hold(self._file.fileno()):
            self.close()
            raise in_use(self.path, "kogpt eval")
        self._batches: dict[int, Scores] = {}
        self._read(_line({"run": dict(parts)}))

    def get(self, batch: int, /) -> Scores | None:
        """The scores of a finished batch."""
        return self._batches.get(batch)

    def __setitem__(self, batch: int, scores: Scores, /) -> None:
        assert batch not in self._batches, f"batch {batch} was finished before"
        self._append(_line({"batch": batch, "scores": scores}))
        self._batches[batch] = scores

    def close(self) -> None:
        """Close the file, which ends its lock."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, header: bytes) -> None:
        """Read the whole lines from the beginning; cut the file after the last of them."""
        self._file.seek(0)
        content = self._file.read()
        good = len(header) if content.startswith(header) else 0
        for line in content[good:].splitlines(keepends=True) if good else []:
            record = _parsed(line)
            if record is None:
                break
            self._batches[record["batch"]] = record["scores"]
            good += len(line)
        self._file.truncate(good)
        if not good:
            self._append(header)

    def _append(self, line: bytes) -> None:
        """Write a line, and wait until it is on the disk."""
        view = memoryview(line)
        while view:
            view = view[self._file.write(view) :]
        os.fsync(self._file.fileno())


def open_store(out: Path | None, parts: Mapping[str, Any]) -> AbstractContextManager[Store]:
    """The file of a run under `out`, or a dict that is forgotten. InputError if another process writes it."""
    if out is None:
        return nullcontext({})
    return BatchStore(out / "batches", parts)


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Hold a folder for one run and remove what killed runs left. InputError if another run has it."""
    (out / "batches").mkdir(parents=True, exist_ok=True)
    with lock_folder(out / "batches", "kogpt eval"):
        for parent, _, _ in os.walk(out):
            remove_leftovers(Path(parent))
        yield


def _canonical(record: Any) -> str:
    return json.dumps(record, ensure_ascii=False, sort_keys=True, allow_nan=False)


def _line(record: Any) -> bytes:
    body = _canonical(record).encode()
    return b"%08x %s\n" % (crc32(body), body)


def _parsed(line: bytes) -> Any:
    """The record of a line; None if its checksum is wrong or its end is missing."""
    checksum, _, body = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % crc32(body):
        return None
    return json.loads(body)
