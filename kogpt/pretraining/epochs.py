"""An order without replacement: an epoch of a source has each of its windows once.

For every epoch the documents of a source are put into a random order and laid end to end. That line is cut
into windows, and the windows are read in a random order too, since neighbours are often of one document. What
is less than a window at the end of the line is left out of this epoch; another epoch ends with other
documents. Everything is a function of the seed and of how many windows have been read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kogpt.pretraining.shards import Shards

GOLDEN = 11_400_714_819_323_198_485  # 2^64 divided by the golden ratio
COUNTED = 2**20  # rows at a time

Counts = NDArray[np.int64]  # (S,), by source


class Turns:
    """The source of each row. In every stretch of rows the shares are as even as they can be.

    Row n is at n / golden ratio modulo 1 (Weyl's sequence); a source has an interval as long as its weight.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        ends = np.cumsum(weights)[:-1] / sum(weights)
        largest = 1 - 2.0**-53  # so that a share that vanishes beside another stays a number of 64 bits
        self._ends = (np.minimum(ends, largest) * 2.0**64).astype(np.uint64)  # bounds between the sources
        self._n_sources = len(weights)
        self._offset = np.uint64(np.random.default_rng(seed).integers(2**64, dtype=np.uint64))
        self._known = 0, np.zeros(self._n_sources, dtype=np.int64)

    def of(self, first: int, end: int) -> NDArray[np.int64]:
        """(end - first,): the source of each of these rows."""
        rows = np.arange(first, end, dtype=np.uint64)
        places = rows * np.uint64(GOLDEN) + self._offset  # modulo 2^64
        return np.searchsorted(self._ends, places, side="right")

    def before(self, row: int) -> Counts:
        """How many of the rows before this one each source has; counted on from the last answer."""
        known, counts = self._known if self._known[0] <= row else (0, np.zeros_like(self._known[1]))
        for first in range(known, row, COUNTED):
            chosen = self.of(first, min(row, first + COUNTED))
            counts = counts + np.bincount(chosen, minlength=self._n_sources)
        self._known = row, counts
        return counts


class Epoch:
    """One epoch of a source, cut into windows of one length."""

    def __init__(self, documents: tuple[Counts, Counts], length: int, seed: Sequence[int]) -> None:
        """documents: where each starts in the shards, and how many tokens it has."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(documents[0]))
        self._starts, lengths = documents[0][order], documents[1][order]
        self._ends = np.cumsum(lengths)  # end of each document in this epoch
        self._begins = self._ends - lengths
        self._length = length
        self._order = rng.permutation(n_windows(int(self._ends[-1]), length))

    def pieces(self, number: int) -> list[tuple[int, int]]:
        """Start in the shards and length of each piece of window `number`, and of the token after it.

        The first document follows the last, so a source shorter than a window is repeated.
        """
        total = int(self._ends[-1])
        place = int(self._order[number]) * self._length
        left, found = self._length + 1, []
        while left:
            place %= total
            document = int(np.searchsorted(self._ends, place, side="right"))
            n = min(left, int(self._ends[document]) - place)
            found.append((int(self._starts[document]) + place - int(self._begins[document]), n))
            place, left = place + n, left - n
        return found


def n_windows(n_tokens: int, length: int) -> int:
    """Windows in an epoch."""
    return max(1, n_tokens // length)


class Epochs:
    """The windows of several sources, each in epochs of its own; they begin anew when the length changes."""

    def __init__(self, shards: Sequence[Shards], weights: Sequence[float], seed: int) -> None:
        self._shards = shards
        self._documents = [source.documents() for source in shards]
        self._turns = Turns(weights, seed)
        self._seed = seed
        self._open: dict[int, tuple[tuple[int, int, int], Epoch]] = {}  # newest epoch of each source

    def windows(self, rows: range, length: int, change: int) -> list[tuple[int, list[tuple[int, int]]]]:
        """Source and pieces of each of these rows, counted from the `change`th change of the length."""
        counts = self._turns.before(rows.start).copy()
        found = []
        for source in self._turns.of(rows.start, rows.stop).tolist():
            epoch, number = divmod(int(counts[source]), n_windows(len(self._shards[source]), length))
            counts[source] += 1
            found.append((source, self._epoch(source, length, (change, epoch)).pieces(number)))
        return found

    def _epoch(self, source: int, length: int, key: tuple[int, int]) -> Epoch:
        wanted = (length, *key)
        if source not in self._open or self._open[source][0] != wanted:
            seed = (self._seed, source, *key)
            self._open[source] = wanted, Epoch(self._documents[source], length, seed)
        return self._open[source][1]
