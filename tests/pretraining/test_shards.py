"""Shards on disk, windows across their borders, and the mixture as a pure function of the step."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kogpt.errors import ConfigError, InputError
from kogpt.pretraining.mixture import Mixture, Source, Stage
from kogpt.pretraining.shards import (
    Index,
    Shard,
    Shards,
    id_dtype,
    read_index,
    write_index,
    write_shard,
)


def make(
    folder: Path,
    lengths: list[list[int]],
    first: int = 0,
    sha: str = "t" * 64,
    n_vocab: int | None = None,
) -> Path:
    """Shards of documents whose ids count up over the whole folder, from `first`."""
    folder.mkdir()
    shards: list[Shard] = []
    for number, documents in enumerate(lengths):
        arrays = []
        for length in documents:
            arrays.append(np.arange(first, first + length, dtype=np.uint16))
            first += length
        shards.append(write_shard(folder, number, arrays, "uint16"))
    write_index(folder, Index("uint16", sha, tuple(shards), n_vocab))
    return folder


def test_windows_run_across_documents_and_shards(tmp_path: Path) -> None:
    shards = Shards(make(tmp_path / "a", [[3, 4], [1], [], [5]]))
    assert len(shards) == 13
    for start in range(13):
        for length in range(1, 13 - start + 1):
            assert shards.window(start, length).tolist() == list(range(start, start + length))


def test_the_index_says_what_was_promised(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", [[3, 4], [1]])
    document = json.loads((folder / "index.json").read_text())
    assert document["version"] == 1 and document["dtype"] == "uint16" and document["n_tokens"] == 8
    assert document["n_vocab"] is None
    first = document["shards"][0]
    assert (first["file"], first["tokens"], first["documents"]) == ("shard_00000.bin", 7, 2)
    assert (folder / "shard_00000.bin").read_bytes()[:6] == b"\0\0\1\0\2\0"  # little-endian
    Shards(folder).verify()


def test_a_flipped_bit_is_found_and_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", [[3], [4]])
    path = folder / "shard_00001.bin"
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    with pytest.raises(InputError, match=r"shard_00001.bin is damaged.*SHA-256") as error:
        Shards(folder).verify()
    assert "기대값" in error.value.ko and "expected" not in error.value.ko


def test_ids_beyond_the_vocabulary_are_found(tmp_path: Path) -> None:
    """Whatever wrote them, with a SHA-256 that fits; a folder that does not say its vocabulary passes."""
    Shards(make(tmp_path / "fits", [[3], [], [4]], n_vocab=7)).verify()
    Shards(make(tmp_path / "silent", [[3], [4]])).verify()
    with pytest.raises(InputError, match=r"shard_00002.bin .*id 6 in a vocabulary of 6"):
        Shards(make(tmp_path / "beyond", [[3], [], [4]], n_vocab=6)).verify()


def test_a_shard_that_shrinks_after_opening_is_found(tmp_path: Path) -> None:
    shards = Shards(make(tmp_path / "a", [[3], [4]]))
    (tmp_path / "a" / "shard_00001.bin").unlink()
    (tmp_path / "a" / "shard_00001.bin").write_bytes(b"\0\0\0")
    with pytest.raises(InputError, match="3 bytes, expected 8"):
        shards.verify()


def test_what_is_no_whole_folder_of_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no index\.json"):
        Shards(tmp_path)
    folder = make(tmp_path / "a", [[3], [4]])
    (folder / "shard_00001.bin").write_bytes(b"\0\0")
    with pytest.raises(InputError, match="2 bytes, expected 8"):
        Shards(folder)
    index = json.loads((folder / "index.json").read_text())
    for change in ({"version": 2}, {"dtype": "int4"}, {"n_vocab": "7"}, {"shards": [{"file": "x"}]}):
        (folder / "index.json").write_text(json.dumps(index | change))
        with pytest.raises(InputError, match="damaged or foreign"):
            read_index(folder)


def test_an_index_that_points_outside_its_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\0\0")
    folder = make(tmp_path / "a", [[3]])
    index = json.loads((folder / "index.json").read_text())
    index["shards"] = [{"file": "../secret.bin", "tokens": 1, "documents": 1, "sha256": ""}]
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="outside the folder"):
        Shards(folder)


def test_ids_take_two_bytes_where_the_vocabulary_allows_it() -> None:
    assert [id_dtype(n) for n in (64512, 2**16, 2**16 + 1)] == ["uint16", "uint16", "uint32"]


def mixture(tmp_path: Path, seed: int = 1, stages: tuple[Stage, ...] = (Stage(length=8, rows=4),)) -> Mixture:
    for name, first in (("low", 0), ("high", 10_000)):
        if not (tmp_path / name).exists():
            make(tmp_path / name, [[300], [200]], first)
    sources = {"low": Source(shards="low", weight=3.0), "high": Source(shards="high")}
    return Mixture(sources, stages, seed, tmp_path)


def test_a_batch_depends_on_seed_and_step_only(tmp_path: Path) -> None:
    one, other = mixture(tmp_path), mixture(tmp_path)
    assert np.array_equal(one.batch(5).inputs, other.batch(5).inputs)
    assert not np.array_equal(one.batch(5).inputs, one.batch(6).inputs)
    assert not np.array_equal(one.batch(5).inputs, mixture(tmp_path, seed=2).batch(5).inputs)


def test_targets_follow_inputs_and_origins_name_them(tmp_path: Path) -> None:
    batch = mixture(tmp_path).batch(0)
    assert batch.inputs.shape == batch.targets.shape == (4, 8)
    assert np.array_equal(batch.targets, batch.inputs + 1)  # the ids count up
    for row, origin in zip(batch.inputs, batch.origins, strict=True):
        name, _, place = origin.partition(" at ")
        assert row[0] == int(place) + (10_000 if name == "high" else 0)


def test_sources_come_by_weight(tmp_path: Path) -> None:
    drawn = mixture(tmp_path)
    names = Counter(o.split()[0] for step in range(500) for o in drawn.batch(step).origins)
    assert names["low"] / names.total() == pytest.approx(0.75, abs=0.03)


def test_stages_follow_one_another(tmp_path: Path) -> None:
    stages = (Stage(first_step=10, length=16, rows=2), Stage(length=8, rows=4))
    drawn = mixture(tmp_path, stages=stages)
    assert [drawn.batch(step).inputs.shape for step in (0, 9, 10, 99)] == [(4, 8), (4, 8), (2, 16), (2, 16)]


def test_a_source_shorter_than_a_window_is_repeated(tmp_path: Path) -> None:
    make(tmp_path / "short", [[3]])
    drawn = Mixture({"s": Source(shards="short")}, (Stage(length=7, rows=1),), 0, tmp_path)
    assert drawn.batch(0).inputs.tolist() == [[0, 1, 2, 0, 1, 2, 0]]


def test_impossible_mixtures_are_refused(tmp_path: Path) -> None:
    make(tmp_path / "other", [[9]], sha="u" * 64)
    mixture(tmp_path)
    low = {"low": Source(shards="low")}
    stage = (Stage(length=4, rows=1),)
    for sources, stages, message in (
        ({}, stage, "at least one source"),
        ({"low": Source(shards="low", weight=0.0)}, stage, "weight .*above 0"),
        (low, (Stage(first_step=1, length=4, rows=1),), "start at 0"),
        (low, (Stage(length=0, rows=1),), "at least 2 and 1"),
        ({**low, "other": Source(shards="other")}, stage, "different tokenizers"),
    ):
        with pytest.raises(ConfigError, match=message):
            Mixture(sources, stages, 0, tmp_path)
