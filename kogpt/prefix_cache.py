"""Texts that were read and may be read again: closed rows of a runner, the least recently used dropped first.

A prompt often begins like an earlier one: a conversation repeats itself before each new turn, many questions
follow one instruction. The engine leaves closed rows here and forks the one that shares the most with a new
text. A fork of the native and the torch runner shares memory with its parent; one of the numpy runner copies
keys and values, which is still far cheaper than computing them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kogpt.runner import Runner

Ids = NDArray[np.int64]

MIN_SHARED = 8  # tokens; forking a row for fewer is not worth its bookkeeping
MEMORY_SHARE = 0.25  # of the positions that the runner could still cache if this cache were empty


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose rows may begin with whose: only those of one adapter and one user."""

    adapter: int | None
    namespace: str


@dataclass(frozen=True, slots=True)
class Match:
    """The row that begins like a text, and for how many tokens."""

    handle: int
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    owner: Owner
    ids: Ids  # (T,), the tokens that the row has read
    handle: int


class PrefixCache:
    """Owns rows of a runner that no request uses any more."""

    def __init__(self, runner: Runner, max_rows: int) -> None:
        """Keep at most `max_rows` rows; 0 keeps none."""
        self._runner = runner
        self._max_rows = max_rows
        self._entries: list[_Entry] = []  # the least recently used first

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, owner: Owner, ids: Ids, limit: int) -> Match | None:
        """The row of this owner that shares the most with (T,) ids, at most `limit` tokens."""
        mine = [entry for entry in self._entries if entry.owner == owner]
        shared = [min(limit, n_shared(entry.ids, ids)) for entry in mine]
        if max(shared, default=0) < MIN_SHARED:
            return None
        best = mine[shared.index(max(shared))]
        self._entries.remove(best)
        self._entries.append(best)
        return Match(best.handle, max(shared))

    def put(self, owner: Owner, ids: Ids, handle: int) -> None:
        """Take over a row that has read (T,) ids. One that another row begins with is closed at once."""
        mine = [entry for entry in self._entries if entry.owner == owner]
        if not self._max_rows or any(n_shared(entry.ids, ids) == len(ids) for entry in mine):
            self._runner.close(handle)
            return
        self._drop(lambda entry: entry.owner == owner and n_shared(entry.ids, ids) == len(entry.ids))
        self._entries.append(_Entry(owner, ids, handle))
        room, held = self._runner.room(), sum(len(entry.ids) for entry in self._entries)
        budget = held if room is None else MEMORY_SHARE * (room + held)
        while len(self._entries) > self._max_rows or held > budget:
            held -= len(self._entries[0].ids)
            self.drop_oldest()

    def drop_oldest(self) -> bool:
        """Close the row that was not used for the longest time; False where there is none."""
        if self._entries:
            self._runner.close(self._entries.pop(0).handle)
            return True
        return False

    def drop_adapter(self, adapter: int) -> None:
        """Close the rows of one adapter."""
        self._drop(lambda entry: entry.owner.adapter == adapter)

    def clear(self) -> bool:
        """Close every row; whether there was one."""
        had = bool(self._entries)
        self._drop(lambda entry: True)
        return had

    def _drop(self, unwanted: Callable[[_Entry], bool]) -> None:
        for entry in [entry for entry in self._entries if unwanted(entry)]:
            self._entries.remove(entry)
            self._runner.close(entry.handle)


def n_shared(a: Ids, b: Ids) -> int:
    """With how many equal tokens two texts begin."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
