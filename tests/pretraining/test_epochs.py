"""The order without replacement: each window once an epoch, whoever asks, and from whatever step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kogpt.errors import ConfigError
from kogpt.pretraining.epochs import Epoch, Turns, n_windows
from kogpt.pretraining.mixture import Mixture, Source, Stage, rows_before
from kogpt.pretraining.shards import Index, Shards, write_index, write_shard

EOS = 1


def make(folder: Path, shards: list[list[int]], first: int) -> Path:
    """Documents of these lengths, [EOS] included, whose other ids are all different."""
    folder.mkdir()
    written = []
    for number, lengths in enumerate(shards):
        documents = []
        for length in lengths:
            documents.append(np.array([*range(first, first + length - 1), EOS], dtype=np.uint16))
            first += length
        written.append(write_shard(folder, number, documents, "uint16"))
    write_index(folder, Index("uint16", "t" * 64, tuple(written)))
    return folder


SOURCES = {"a": Source(shards="a", weight=3.0), "b": Source(shards="b"), "c": Source(shards="c", weight=0.2)}
LENGTHS = {"a": [[9, 30, 1, 17], [64, 2, 21]], "b": [[40, 9]], "c": [[3, 2]]}  # c is shorter than a window
STAGES = [
    Stage(length=8, rows=4),
    Stage(length=8, rows=12, first_step=6),
    Stage(length=16, rows=6, first_step=10),
    Stage(length=8, rows=6, first_step=13),
]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for first, (name, lengths) in enumerate(LENGTHS.items()):
        make(tmp_path / name, lengths, 10 + 1000 * first)
    return tmp_path


def mixture(root: Path, seed: int = 0) -> Mixture:
    return Mixture(SOURCES, STAGES, seed, root, "epochs")


def lines(root: Path, name: str, length: int, seed: list[int]) -> list[list[int]]:
    """The slow twin of an epoch: documents in the generator's order in one list, cut into windows."""
    rng = np.random.default_rng(seed)
    shards = Shards(root / name)
    tokens = shards.window(0, len(shards)).tolist()
    documents: list[list[int]] = [[]]
    for token in tokens:
        documents[-1].append(token)
        if token == EOS:
            documents.append([])
    line = [token for number in rng.permutation(len(documents) - 1) for token in documents[number]]
    windows = rng.permutation(n_windows(len(line), length))
    around = line * (2 + length // len(line))
    return [around[start * length : (start + 1) * length + 1] for start in windows]


def test_every_window_is_read_once_an_epoch_as_written_out_by_hand(root: Path) -> None:
    mixed = mixture(root)
    expected: dict[tuple[str, int], list[list[int]]] = {}
    change = read = 0
    names = list(SOURCES)
    for step in range(15):
        stage = mixed.stage(step)
        if step in (10, 13):  # the length changes
            change, read, expected = change + 1, 0, {}
        batch = mixed.batch(step)
        assert rows_before(STAGES, step) == (change, read)
        assert batch.inputs.shape == (stage.rows, stage.length)
        for row, target, origin in zip(batch.inputs, batch.targets, batch.origins, strict=True):
            name = origin[0]
            queue = next((q for (n, _), q in expected.items() if n == name and q), None)
            if queue is None:
                epoch = sum(n == name for n, _ in expected)
                queue = lines(root, name, stage.length, [0, names.index(name), change, epoch])
                expected[name, epoch] = queue
            window = queue.pop(0)
            assert row.tolist() == window[:-1] and target.tolist() == window[1:]
        read += stage.rows
    assert len([key for key in expected if key[0] == "b"]) >= 1


def test_tokens_are_read_equally_often_and_in_another_order_each_epoch(root: Path) -> None:
    shards = Shards(root / "a")
    starts, lengths = shards.documents()
    assert lengths.tolist() == [9, 30, 1, 17, 64, 2, 21]
    seen = [Epoch((starts, lengths), 8, [3, number]) for number in range(6)]
    orders = []
    for epoch in seen:
        read: Counter[int] = Counter()
        order = []
        for number in range(n_windows(len(shards), 8)):
            pieces = epoch.pieces(number)
            order.append(pieces[0][0])
            places = [start + n for start, length in pieces for n in range(length)]
            assert len(places) == 9
            read.update(places[:-1])
        assert set(read.values()) == {1} and len(read) == 144 // 8 * 8
        orders.append(tuple(order))
    assert len(set(orders)) == len(orders)


def test_any_step_may_be_the_first_that_is_asked_for(root: Path) -> None:
    whole = mixture(root)
    batches = {step: whole.batch(step) for step in range(15)}
    for steps in ([14], [7, 3, 12, 12, 0]):
        other = mixture(root)
        for step in steps:
            found = other.batch(step)
            assert (
                np.array_equal(found.inputs, batches[step].inputs) and found.origins == batches[step].origins
            )
    assert not np.array_equal(mixture(root, seed=1).batch(0).inputs, batches[0].inputs)


def test_shares_are_those_of_the_weights_in_every_stretch() -> None:
    turns = Turns([0.6, 0.3, 0.1], seed=4)
    rows = turns.of(0, 10_000)
    for first in (0, 777, 9000):
        counts = np.bincount(rows[first : first + 1000], minlength=3)
        assert counts.tolist() == pytest.approx([600, 300, 100], abs=4)
    for row in (0, 1, 5000, 4999, 10_000):
        assert turns.before(row).tolist() == np.bincount(rows[:row], minlength=3).tolist()


def test_a_share_that_vanishes_beside_another_is_no_mistake() -> None:
    assert Turns([1.0, 1e-300], seed=0).before(1000).tolist() == [1000, 0]


def test_an_unknown_order_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match="order 'sorted' is unknown: choose one of random, epochs"):
        Mixture(SOURCES, STAGES, 0, root, "sorted")
