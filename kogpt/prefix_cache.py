"""Texts that were read and may be read again: closed rows of a runner, the least recently used dropped first.

A prompt often begins like an earlier one: a conversation repeats itself before each new turn, many questions
follow one instruction. The engine leaves closed rows here and forks the one that shares the most with a new
text. A fork of the native and the torch runner shares memory with its parent; one of the numpy runner copies
keys and values, which is still far cheaper than computing them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kogpt.runner import Runner

Ids = NDArray[np.int64]

MIN_SHARED = 8  # tokens; forking a row for fewer is not worth its bookkeeping
MEMORY_SHARE = 0.25  # of the positions that the runner could still cache if this cache were empty


class Owner(NamedTuple):
    """Whose rows may begin with whose: only those of one adapter and one user."""

    adapter: int | None
    namespace: str


class Match(NamedTuple):
    """The row that begins like a text, and for how many tokens."""

    handle: int
    length: int


class _Entry(NamedTuple):
    owner: Owner
    start: bytes  # the first MIN_SHARED ids: rows that differ there share nothing worth a fork
    ids: Ids  # (T,), the tokens that the row has read


class PrefixCache:
    """Owns rows of a runner that no request uses any more."""

    def __init__(self, runner: Runner, max_rows: int) -> None:
        """Keep at most `max_rows` rows; 0 keeps none."""
        self._runner = runner
        self._max_rows = max_rows
        self._entries: dict[int, _Entry] = {}  # by handle, the least recently used first

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, owner: Owner, ids: Ids, limit: int) -> Match | None:
        """The row of this owner that shares the most with (T,) ids, at most `limit` tokens."""
        shared = self._shared(owner, ids)
        if not shared or limit < MIN_SHARED:
            return None
        best = max(shared, key=shared.__getitem__)
        self._entries[best] = self._entries.pop(best)
        return Match(best, min(limit, shared[best]))

    def put(self, owner: Owner, ids: Ids, handle: int) -> None:
        """Take over a row that has read (T,) ids. One that another row begins with is closed at once."""
        shared = self._shared(owner, ids)
        if not self._max_rows or len(ids) < MIN_SHARED or len(ids) in shared.values():
            self._runner.close(handle)
            return
        for other, n in shared.items():
            if n == len(self._entries[other].ids):
                self._drop(other)
        self._entries[handle] = _Entry(owner, _start(ids), ids)
        room, held = self._runner.room(), sum(len(entry.ids) for entry in self._entries.values())
        budget = held if room is None else MEMORY_SHARE * (room + held)
        while len(self._entries) > self._max_rows or held > budget:
            held -= len(next(iter(self._entries.values())).ids)
            self.drop_oldest()

    def drop_oldest(self) -> bool:
        """Close the row that was not used for the longest time; False where there is none."""
        if self._entries:
            self._drop(next(iter(self._entries)))
            return True
        return False

    def drop_adapter(self, adapter: int) -> None:
        """Close the rows of one adapter."""
        for handle in [handle for handle, entry in self._entries.items() if entry.owner.adapter == adapter]:
            self._drop(handle)

    def clear(self) -> bool:
        """Close every row; whether there was one."""
        had = bool(self._entries)
        while self.drop_oldest():
            pass
        return had

    def _drop(self, handle: int) -> None:
        del self._entries[handle]
        self._runner.close(handle)

    def _shared(self, owner: Owner, ids: Ids) -> dict[int, int]:
        """Row -> with how many tokens it begins as (T,) ids do, where those are MIN_SHARED or more."""
        start = _start(ids)
        return {
            handle: n_shared(entry.ids, ids)
            for handle, entry in self._entries.items()
            if entry.start == start and entry.owner == owner
        }


def _start(ids: Ids) -> bytes:
    return ids[:MIN_SHARED].tobytes()


def n_shared(a: Ids, b: Ids) -> int:
    """With how many equal tokens two texts begin."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
