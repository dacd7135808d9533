"""The rows of a runner between requests: where a request's row comes from, and where it goes afterwards.

A row begins with a prefix that was kept, with an earlier text that begins alike (a closed row of
prefix_cache.py, or one that is still read or written), or with nothing. When its request ends it becomes a
prefix, stays for later texts, or is closed. Where memory is short the prefix cache is emptied first.
Shapes: L layers, P prefix positions, H heads, D head width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from kogpt.adapter import KeyValuePrefix
from kogpt.errors import NotEnoughMemory
from kogpt.prefix_cache import MIN_SHARED, Match, Owner, PrefixCache, n_shared
from kogpt.request import Ids, Request
from kogpt.rows import NO_IDS, Row
from kogpt.runner import Runner

Answer = TypeVar("Answer")


class Prefix(NamedTuple):
    """A kept text."""

    length: int
    adapter: int | None
    ids: Ids | None  # None for embeddings, keys and values
    owner: Owner | None = None  # whose later texts may begin with it once it is released; None: nobody's


@dataclass(slots=True)
class Counters:
    """What an engine has done since it was made, in tokens."""

    prompt: int = 0  # inputs of the requests that were admitted
    reused: int = 0  # inputs that an earlier text saved from being read again
    hits: int = 0  # requests that began with an earlier text
    written: int = 0


class RowStore:
    """Opens, forks, keeps and closes the rows of one runner."""

    def __init__(self, runner: Runner, max_cached: int) -> None:
        """max_cached: closed rows that are kept as a prefix cache."""
        self.counters = Counters()
        self._runner = runner
        self._max_cached = max_cached
        self._cache = PrefixCache(runner, max_cached)
        self._prefixes: dict[int, Prefix] = {}
        self._released: set[int] = set()  # prefixes to free once no waiting request needs them

    def prefix(self, request: Request) -> Prefix:
        """What the request begins with; of length 0 where it begins with nothing."""
        empty = Prefix(0, request.adapter, NO_IDS)
        return empty if request.prefix is None else self._prefixes[request.prefix]

    def length(self, prefix: int | None) -> int:
        """How many positions a prefix takes."""
        return 0 if prefix is None else self._prefixes[prefix].length

    def open(self, trunk: Row, running: Iterable[Row] = ()) -> Row:
        """The trunk of a request with its handle, and as much read as is known. Raises NotEnoughMemory.

        running: rows of other requests, which it may begin with as with those of the prefix cache.
        """
        self.counters.prompt += len(trunk.task.request.inputs)
        rows = list(running) if self._max_cached else []
        self._with_memory(lambda: self._open(trunk, rows))
        return trunk

    def fork(self, handle: int) -> int:
        """A row that has read what another has. Raises NotEnoughMemory."""
        return self._with_memory(lambda: self._runner.fork(handle))

    def keep(self, row: Row) -> int:
        """Make a row a prefix; its handle, freed by `release`."""
        task = row.task
        owner = None if _read_ids(row) is None else _owner(task.request)
        handle = row.take_handle()
        self._prefixes[handle] = Prefix(row.length, task.request.adapter, task.ids, owner)
        return handle

    def load(self, prefix: KeyValuePrefix, adapter: int | None) -> int:
        """Make a prefix of (L, P, H, D) keys and values that are given. Raises NotEnoughMemory."""
        handle = self._with_memory(lambda: self._runner.open(adapter))
        try:
            self._with_memory(lambda: self._runner.load_cache(handle, prefix.keys, prefix.values))
        except BaseException:
            self._runner.close(handle)
            raise
        self._prefixes[handle] = Prefix(self._runner.length(handle), adapter, None)
        return handle

    def retire(self, row: Row) -> None:
        """Close a row, or leave it to the prefix cache: one of each request."""
        task = row.task
        if row.number == 0 and (read := _read_ids(row)) is not None:
            self._cache.put(_owner(task.request), read, row.take_handle())
        else:
            self.close_row(row)

    def close_row(self, row: Row) -> None:
        """Close a row for good."""
        self._runner.close(row.take_handle())

    def release(self, prefix: int, waiting: Collection[Request]) -> None:
        """Free a prefix, once none of the waiting requests begins with it."""
        self._released.add(prefix)
        self.free_released(waiting)

    def free_released(self, waiting: Collection[Request]) -> None:
        """Close the released prefixes that no waiting request begins with, or leave them to the cache."""
        if self._released:
            for handle in self._released - {request.prefix for request in waiting}:
                self._released.remove(handle)
                prefix = self._prefixes.pop(handle)
                if prefix.owner is None or prefix.ids is None:
                    self._runner.close(handle)
                else:
                    self._cache.put(prefix.owner, prefix.ids, handle)

    def drop_adapter(self, adapter: int) -> None:
        """Forget a LoRA that no request and no prefix uses any more."""
        self._cache.drop_adapter(adapter)
        self._runner.drop_adapter(adapter)

    def room(self) -> int | None:
        """How many more positions memory holds (None: as many as there may be); reading it takes 0.1 ms."""
        return self._runner.room()

    def enlarge(self, room: int | None, n_positions: int) -> int | None:
        """The room, with the prefix cache emptied as far as so many positions take."""
        while room is not None and n_positions > room and self._cache.drop_oldest():
            room = self._runner.room()
        return room

    def make_room(self) -> bool:
        """Empty the prefix cache; whether that freed anything."""
        return self._cache.clear()

    def close(self) -> None:
        """Free the prefixes and the prefix cache."""
        for prefix in list(self._prefixes):
            self.release(prefix, ())
        self._cache.clear()

    def _open(self, trunk: Row, running: Collection[Row]) -> None:
        task, request, start = trunk.task, trunk.task.request, trunk.length
        match = self._find(trunk, running)
        if match is not None and match.length > start:
            trunk.handle = self._runner.fork(match.handle, match.length)
            trunk.n_read, trunk.length = match.length - start, match.length
            self.counters.hits += 1
            self.counters.reused += trunk.n_read
            task.n_cached = trunk.n_read
        elif request.prefix is not None:
            trunk.handle = self._runner.fork(request.prefix)
        else:
            trunk.handle = self._runner.open(request.adapter)

    def _find(self, trunk: Row, running: Collection[Row]) -> Match | None:
        """The row, closed or running, that begins with the most of what the trunk is to read."""
        task, owner = trunk.task, _owner(trunk.task.request)
        if not task.request.reusable or task.ids is None:
            return None
        most = trunk.length + min(trunk.first_output, len(trunk.inputs) - 1)  # something is left to read
        best = self._cache.find(owner, task.ids, most)
        for row in running:
            read = _read_ids(row) if _owner(row.task.request) == owner else None
            length = 0 if read is None else min(most, n_shared(read, task.ids))
            if length >= MIN_SHARED and (best is None or length > best.length):
                best = Match(row.handle, length)
        return best

    def _with_memory(self, do: Callable[[], Answer]) -> Answer:
        """Do what takes memory; where there is too little, once more without the prefix cache."""
        try:
            return do()
        except (NotEnoughMemory, MemoryError):
            if not self.make_room():
                raise
            return do()


def _owner(request: Request) -> Owner:
    return Owner(request.adapter, request.namespace)


def _read_ids(row: Row) -> Ids | None:
    """What a row has read, as far as it may serve other texts: None where it may not."""
    task = row.task
    if not task.request.reusable or task.ids is None or row.broken:
        return None
    return np.concatenate([task.ids, np.array(row.written, np.int64)])[: row.length]
