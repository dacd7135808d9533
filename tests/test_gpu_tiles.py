"""Tiles of the GPU kernels: defaults, files, and tuning with a clock of its own."""

from __future__ import annotations

import json
import logging
import time
from itertools import count
from pathlib import Path

import pytest

from kogpt import gpu_tiles
from kogpt.gpu_tiles import FORMATS, KERNELS, MIN_INPUTS, SHIPPED, Job, Tile, Tiles, key, row_tile, tune

CARD = "NVIDIA H200"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "kogpt" / "gpu_tiles.json"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_default_is_no_wider_than_the_matrix(kernel: str, form: str) -> None:
    tiles = Tiles()
    assert tiles.of(kernel, form, (4096, 4096)).inputs >= 64
    assert tiles.of(kernel, form, (64, 48)).inputs == max(64, MIN_INPUTS[form])
    assert tiles.of(kernel, form, (8, 3)).inputs == gpu_tiles.MIN_INPUTS[form]


def test_rows_of_a_program_are_a_power_of_two_that_holds_them() -> None:
    assert [row_tile(n, "float") for n in (1, 16, 17, 33, 64, 1000)] == [16, 16, 32, 64, 64, 64]
    assert [row_tile(n, "int4") for n in (1, 8, 9, 1000)] == [8, 8, 16, 32]


def test_the_fastest_candidate_is_kept_and_found_again(cache: Path) -> None:
    name = key("qkv", "int8", (96, 32))
    default, *others = Job("qkv", "int8", (96, 32), lambda tile: 1.0).candidates()
    fastest, unable = others[5], default

    def seconds(tile: Tile) -> float | None:
        return None if tile == unable else 0.5 + (tile != fastest)

    assert gpu_tiles.load(CARD).of("qkv", "int8", (96, 32)) != fastest
    jobs = [Job("qkv", "int8", (96, 32), seconds), Job("out", "int8", (1, 1), lambda tile: None)]
    assert tune(CARD, jobs) == {name: (fastest, 0.5)}
    assert gpu_tiles.load(CARD).of("qkv", "int8", (96, 32)) == fastest
    assert gpu_tiles.load("another card").of("qkv", "int8", (96, 32)) != fastest
    tune(CARD, [Job("linear", "int4", (8, 8), lambda tile: 1.0)])
    assert set(gpu_tiles.read(cache)[CARD]) == {name, "linear int4 8x8"}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_candidates_begin_with_the_default_and_fit_the_format(kernel: str, form: str, cache: Path) -> None:
    job = Job(kernel, form, (64, 48), lambda tile: 1.0)
    tiles = job.candidates()
    assert tiles[0] == Tiles().of(kernel, form, (64, 48)) and len(set(tiles)) == len(tiles) <= 10
    for tile in tiles:
        gpu_tiles.keep(CARD, {job.key: tile}, cache)
        assert gpu_tiles.read(cache)[CARD] == {job.key: tile} and tile.inputs >= MIN_INPUTS[form]


def test_what_was_measured_in_time_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    jobs = [Job("qkv", form, (8, 8), lambda tile: 1.0 / tile.outputs) for form in ("int8", "int4")]
    best = tune(CARD, jobs, until=3)
    assert list(best) == ["qkv int8 8x8"] and list(gpu_tiles.read(cache)[CARD]) == ["qkv int8 8x8"]
    tried = jobs[0].candidates()[:3]
    assert best["qkv int8 8x8"][0].outputs == max(tile.outputs for tile in tried)


def test_one_s_own_measurement_wins(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped, theirs, own = tmp_path / "shipped.json", Tile(16, 64, 3, 4), Tile(32, 64, 3, 4)
    monkeypatch.setattr(gpu_tiles, "SHIPPED", shipped)
    gpu_tiles.keep(CARD, {"out float 8x8": theirs, "qkv float 8x8": theirs}, shipped)
    gpu_tiles.keep(CARD, {"out float 8x8": own}, cache)
    tiles = gpu_tiles.load(CARD)
    assert (tiles.of("out", "float", (8, 8)), tiles.of("qkv", "float", (8, 8))) == (own, theirs)


@pytest.mark.parametrize(
    "document",
    [
        "no json",
        "[]",
        json.dumps({"version": 2, "cards": {}}),
        json.dumps({"version": 1, "cards": {CARD: {"qkv float 8x8": [64, 64, 3]}}}),
        json.dumps({"version": 1, "cards": {CARD: {"qkv float 8x8": [63, 64, 3, 4]}}}),
        json.dumps({"version": 1, "cards": {CARD: {"qkv float 8x8": [64, "64", 3, 4]}}}),
        json.dumps({"version": 1, "cards": {CARD: {"qkv float 8x8": [64, 64, 99, 4]}}}),
        json.dumps({"version": 1, "cards": {CARD: {"qkv float 8x8": [64, 8, 3, 4]}}}),
        json.dumps({"version": 1, "cards": {CARD: {"qkv int4 8x8": [64, 64, 3, 4]}}}),
        json.dumps({"version": 1, "cards": {CARD: {"qkv int3 8x8": [64, 64, 3, 4]}}}),
        json.dumps({"version": 1, "cards": {CARD: {"head float 8x8": [64, 64, 3, 4]}}}),
        json.dumps({"version": 1, "cards": {CARD: {"8x8": [64, 64, 3, 4]}}}),
    ],
)
def test_a_damaged_file_is_said_and_left_alone(
    document: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir()
    cache.write_text(document)
    with caplog.at_level(logging.WARNING):
        assert gpu_tiles.load(CARD).of("qkv", "float", (8, 8)) == Tiles().of("qkv", "float", (8, 8))
    assert str(cache) in caplog.text


def test_what_is_shipped_can_be_read(caplog: pytest.LogCaptureFixture) -> None:
    assert SHIPPED.exists()
    gpu_tiles.read(SHIPPED)
    assert not caplog.records
