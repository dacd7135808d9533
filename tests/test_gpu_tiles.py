"""Tiles of the GPU kernels: defaults, files, and tuning with a clock of its own."""

from __future__ import annotations

import json
import logging
import time
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from kogpt import gpu_tiles
from kogpt.gpu_tiles import (
    DTYPES,
    GRID,
    KERNELS,
    MIN_INPUTS,
    SHIPPED,
    Job,
    Tile,
    Tiles,
    form_of,
    key,
    row_tile,
    shared_bytes,
    tune,
)

CARD = "NVIDIA H200"
# Bytes of shared memory that cards give one program (CUDA C++ Programming Guide, table of capabilities).
SHARED = {"A100": 163 << 10, "RTX 3090": 99 << 10, "H100": 227 << 10}
# What Triton 3.7 took at 64 rows of the 6B shape: the most of the three kernels and of sm_80, 86, 90 and 120.
COMPILED = {
    ("float16", Tile(16, 256, 3, 4)): 83_968,
    ("float16", Tile(16, 256, 4, 2)): 125_952,
    ("float16", Tile(16, 512, 3, 4)): 167_936,
    ("float16", Tile(32, 64, 5, 4)): 50_176,
    ("float16", Tile(32, 128, 3, 4)): 49_408,
    ("float16", Tile(32, 128, 5, 4)): 98_560,
    ("float16", Tile(64, 64, 5, 4)): 82_944,
    ("float16", Tile(64, 64, 8, 4)): 132_864,
    ("float16", Tile(64, 128, 4, 4)): 131_072,
    ("float32", Tile(16, 256, 3, 4)): 233_472,
    ("float32", Tile(32, 128, 5, 4)): 233_472,
    ("float32", Tile(64, 64, 5, 4)): 149_504,
    ("int8", Tile(64, 512, 1, 8)): 65_536,
    ("int8", Tile(16, 1024, 2, 16)): 32_768,
    ("int4", Tile(32, 2048, 1, 16)): 65_536,
}


def job(kernel: str, dtype: str, shape: tuple[int, int], seconds: Any = lambda tile: 1.0) -> Job:
    return Job(kernel, dtype, shape, seconds, SHARED["H100"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "kogpt" / "gpu_tiles.json"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_default_is_no_wider_than_the_matrix(kernel: str, dtype: str) -> None:
    tiles, least = Tiles(), MIN_INPUTS[form_of(dtype)]
    assert tiles.of(kernel, dtype, (4096, 4096)).inputs >= 64
    assert tiles.of(kernel, dtype, (64, 48)).inputs == max(64, least)
    assert tiles.of(kernel, dtype, (8, 3)).inputs == least


def test_rows_of_a_program_are_a_power_of_two_that_holds_them() -> None:
    assert [row_tile(n, "float") for n in (1, 16, 17, 33, 64, 1000)] == [16, 16, 32, 64, 64, 64]
    assert [row_tile(n, "int4") for n in (1, 8, 9, 1000)] == [8, 8, 16, 32]


def test_the_fastest_candidate_is_kept_and_found_again(cache: Path) -> None:
    name = key("qkv", "int8", (96, 32))
    default, *others = job("qkv", "int8", (96, 32)).candidates()
    fastest, unable = others[5], default

    def seconds(tile: Tile) -> float | None:
        return None if tile == unable else 0.5 + (tile != fastest)

    assert gpu_tiles.load(CARD).of("qkv", "int8", (96, 32)) != fastest
    jobs = [job("qkv", "int8", (96, 32), seconds), job("out", "int8", (1, 1), lambda tile: None)]
    assert tune(CARD, jobs) == {name: (fastest, 0.5)}
    assert gpu_tiles.load(CARD).of("qkv", "int8", (96, 32)) == fastest
    assert gpu_tiles.load("another card").of("qkv", "int8", (96, 32)) != fastest
    tune(CARD, [job("linear", "int4", (8, 8))])
    assert set(gpu_tiles.read(cache)[CARD]) == {name, "linear int4 8x8"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_candidates_begin_with_the_default_and_fit_the_format(kernel: str, dtype: str, cache: Path) -> None:
    own = job(kernel, dtype, (64, 48))
    tiles = own.candidates()
    assert tiles[0] == Tiles().of(kernel, dtype, (64, 48)) and len(set(tiles)) == len(tiles) <= 10
    for tile in tiles:
        gpu_tiles.keep(CARD, {own.key: tile}, cache)
        assert gpu_tiles.read(cache)[CARD] == {own.key: tile}
        assert tile.inputs >= MIN_INPUTS[form_of(dtype)]


@pytest.mark.parametrize(("dtype", "tile"), COMPILED)
def test_shared_memory_is_counted_for_the_most_rows(dtype: str, tile: Tile) -> None:
    assert COMPILED[dtype, tile] <= shared_bytes(tile, dtype) < 1.12 * COMPILED[dtype, tile]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_card_is_given_what_it_can_launch_with_any_number_of_rows(kernel: str, dtype: str) -> None:
    small, large = (
        Job(kernel, dtype, (4096, 4096), lambda tile: 1.0, SHARED[card]).candidates()
        for card in ("RTX 3090", "H100")
    )
    assert small and set(small) <= set(large)
    for tile in small:
        assert COMPILED.get((dtype, tile), 0) <= SHARED["RTX 3090"], tile
    assert set(GRID[form_of(dtype)]) <= set(large), "tiles that no card can have"
    assert Tile(64, 64, 8, 4) not in small


def test_each_dtype_has_tiles_of_its_own() -> None:
    own = Tile(16, 64, 3, 4)
    tiles = Tiles({key("qkv", "float16", (96, 32)): own})
    assert tiles.of("qkv", "float16", (96, 32)) == own != tiles.of("qkv", "float32", (96, 32))


def test_keys_before_dtypes_are_passed_over(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.parent.mkdir()
    old = {"qkv float 8x8": [16, 64, 3, 4], "qkv int8 8x8": [16, 64, 3, 4]}
    cache.write_text(json.dumps({"version": 1, "cards": {CARD: old}}))
    assert set(gpu_tiles.read(cache)[CARD]) == {"qkv int8 8x8"} and not caplog.records


def test_what_was_measured_in_time_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    jobs = [job("qkv", dtype, (8, 8), lambda tile: 1.0 / tile.outputs) for dtype in ("int8", "int4")]
    best = tune(CARD, jobs, until=3)
    assert list(best) == ["qkv int8 8x8"] and list(gpu_tiles.read(cache)[CARD]) == ["qkv int8 8x8"]
    tried = jobs[0].candidates()[:3]
    assert best["qkv int8 8x8"][0].outputs == max(tile.outputs for tile in tried)


def test_one_s_own_measurement_wins(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped, theirs, own = tmp_path / "shipped.json", Tile(16, 64, 3, 4), Tile(32, 64, 3, 4)
    monkeypatch.setattr(gpu_tiles, "SHIPPED", shipped)
    gpu_tiles.keep(CARD, {"out float16 8x8": theirs, "qkv float16 8x8": theirs}, shipped)
    gpu_tiles.keep(CARD, {"out float16 8x8": own}, cache)
    tiles = gpu_tiles.load(CARD)
    assert (tiles.of("out", "float16", (8, 8)), tiles.of("qkv", "float16", (8, 8))) == (own, theirs)


@pytest.mark.parametrize(
    "document",
    [
        "no json",
        "[]",
        json.dumps({"version": 2, "cards": {}}),
        json.dumps({"version": 1, "cards": {CARD: {"qkv float16 8x8": [64, 64, 3]}}}),
        json.dumps({"version": 1, "cards": {CARD: {"qkv float16 8x8": [63, 64, 3, 4]}}}),
        json.dumps({"version": 1, "cards": {CARD: {"qkv float16 8x8": [64, "64", 3, 4]}}}),
        json.dumps({"version": 1, "cards": {CARD: {"qkv float16 8x8": [64, 64, 99, 4]}}}),
        json.dumps({"version": 1, "cards": {CARD: {"qkv float16 8x8": [64, 8, 3, 4]}}}),
        json.dumps({"version": 1, "cards": {CARD: {"qkv int4 8x8": [64, 64, 3, 4]}}}),
        json.dumps({"version": 1, "cards": {CARD: {"qkv int3 8x8": [64, 64, 3, 4]}}}),
        json.dumps({"version": 1, "cards": {CARD: {"head float16 8x8": [64, 64, 3, 4]}}}),
        json.dumps({"version": 1, "cards": {CARD: {"8x8": [64, 64, 3, 4]}}}),
    ],
)
def test_a_damaged_file_is_said_and_left_alone(
    document: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir()
    cache.write_text(document)
    with caplog.at_level(logging.WARNING):
        tile = gpu_tiles.load(CARD).of("qkv", "float16", (8, 8))
    assert tile == Tiles().of("qkv", "float16", (8, 8))
    assert str(cache) in caplog.text


def test_what_is_shipped_can_be_read(caplog: pytest.LogCaptureFixture) -> None:
    assert SHIPPED.exists()
    gpu_tiles.read(SHIPPED)
    assert not caplog.records
