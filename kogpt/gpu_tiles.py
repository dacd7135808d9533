"""Tile sizes of the kernels for each card: defaults by dtype, until `tune` has measured better ones.

    {"version": 1, "cards": {"NVIDIA H200": {"qkv int8 12288x4096": [32, 128, 5, 2]}}}

Two files have this form: one is shipped with the package, for cards that were measured (none yet), and one
lies in the user's cache folder, written by `tune`; the second wins. Loading a model never measures anything.
A tile does not depend on the number of rows, so neither do the bits of a row.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kogpt.errors import localized
from kogpt.files import atomic_write

SHIPPED = Path(__file__).with_name("gpu_tiles.json")
VERSION = 1
KERNELS = ("qkv", "attention_fc_in", "out", "linear")
FLOATS = {"float16": 2, "bfloat16": 2, "float32": 4}  # bytes of a weight
DTYPES = (*FLOATS, "int8", "int4")  # formats of weights
# Floats: what a tensor core takes at a time. Codes: what a warp reads at a time, four runs of 16 bytes.
MIN_INPUTS = {"float": 16, "int8": 64, "int4": 128}

WIDEST = 256  # rows of a pass

logger = logging.getLogger(__name__)


class Tile(NamedTuple):
    """Size of the work of one program. Each field but `stages` is a power of two."""

    outputs: int
    inputs: int  # read at a time
    stages: int  # floats: tiles that the loop loads ahead; codes: turns that are unrolled into one
    warps: int


# Choices by the code that Triton compiles for Hopper; only those of floats were measured. With codes, each
# warp has a slice of the inputs. Registers leave room for 24 to 32 warps on a processor, and each thread has
# 64 or 128 bytes on their way.
DEFAULTS = {"float": Tile(64, 64, 5, 4), "int8": Tile(32, 512, 2, 8), "int4": Tile(32, 1024, 1, 8)}
# The sum over all inputs ends in E outputs only: small tiles, so that every processor has one or two.
OUT = {"float": Tile(32, 128, 5, 4), "int8": Tile(16, 1024, 2, 16), "int4": Tile(16, 1024, 2, 8)}
# Tiles that `tune` tries beside the defaults. They are few, because each takes seconds to compile.
GRID = {
    "float": (
        Tile(16, 256, 3, 4),
        Tile(16, 256, 4, 2),
        Tile(16, 512, 3, 4),
        Tile(32, 64, 5, 4),
        Tile(32, 128, 3, 4),
        Tile(32, 128, 5, 4),
        Tile(64, 64, 8, 4),
        Tile(64, 128, 4, 4),
    ),
    "int8": (
        Tile(16, 512, 2, 8),
        Tile(16, 512, 4, 8),
        Tile(16, 1024, 2, 16),
        Tile(32, 256, 2, 4),
        Tile(32, 512, 1, 8),
        Tile(32, 1024, 1, 16),
        Tile(64, 256, 1, 4),
        Tile(64, 512, 1, 8),
    ),
    "int4": (
        Tile(16, 512, 2, 4),
        Tile(16, 1024, 1, 8),
        Tile(16, 2048, 1, 16),
        Tile(16, 2048, 2, 16),
        Tile(32, 512, 1, 4),
        Tile(32, 1024, 2, 8),
        Tile(32, 2048, 1, 16),
        Tile(64, 512, 1, 4),
    ),
}


class Tiles:
    """The tiles of one card."""

    def __init__(self, measured: Mapping[str, Tile] | None = None) -> None:
        self._measured = dict(measured or {})

    def of(self, kernel: str, dtype: str, shape: tuple[int, int]) -> Tile:
        """The tile for a kernel on a matrix (N, K) of a dtype."""
        assert kernel in KERNELS and dtype in DTYPES, (kernel, dtype)
        if (found := self._measured.get(key(kernel, dtype, shape))) is not None:
            return found
        form = form_of(dtype)
        tile = (OUT if kernel == "out" else DEFAULTS)[form]
        widest = 1 << max(0, shape[1] - 1).bit_length()  # no wider than the matrix, for small models
        return tile._replace(inputs=max(MIN_INPUTS[form], min(tile.inputs, widest)))


def key(kernel: str, dtype: str, shape: tuple[int, int]) -> str:
    return f"{kernel} {dtype} {shape[0]}x{shape[1]}"


def form_of(dtype: str) -> str:
    """FORMAT of the kernels: how they read weights of a dtype."""
    return "float" if dtype in FLOATS else dtype


def row_tile(n_rows: int, form: str) -> int:
    """Rows of one program: all up to a limit, so that weights are read once."""
    fewest, widest = (16, 64) if form == "float" else (8, 32)  # codes: registers hold the inputs of every row
    return min(widest, max(fewest, 1 << (n_rows - 1).bit_length()))


def shared_bytes(tile: Tile, dtype: str) -> int:
    """Shared memory that a tile takes at most: at the most rows of one program."""
    form = form_of(dtype)
    rows = row_tile(WIDEST, form)
    if form == "float":
        # Turns of the loop that are loaded at a time: one less than stages, but for Hopper's instructions
        # (64 outputs and more) and for float32, whose normed inputs pass through. Gain and bias: two rows.
        turns = tile.stages if tile.outputs >= 64 or FLOATS[dtype] > 2 else max(1, tile.stages - 1)
        return turns * FLOATS[dtype] * tile.inputs * (tile.outputs + rows + 2)
    return 4 * tile.outputs * rows * tile.inputs // MIN_INPUTS[form]  # one sum for each slice


def load(card: str) -> Tiles:
    """The tiles of a card by its name; defaults where nobody measured it."""
    measured: dict[str, Tile] = {}
    for path in (SHIPPED, own_file()):
        measured |= read(path).get(card, {})
    return Tiles(measured)


def own_file() -> Path:
    """Path of the file that `tune` writes."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kogpt" / "gpu_tiles.json"


def read(path: Path) -> dict[str, dict[str, Tile]]:
    """Tiles by card and key; none from a missing file, and a warning about one that is not of this form."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["version"] != VERSION:
            raise ValueError(f"version {document['version']}")
        return {
            card: {name: _checked(name, values) for name, values in tiles.items() if not _is_old(name)}
            for card, tiles in document["cards"].items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning(
            localized(
                f"tiles of the GPU kernels cannot be read from {path} ({error}): using the defaults",
                f"GPU 커널의 타일 설정 파일을 읽을 수 없어 기본값을 씁니다: {path} ({error})",
            )
        )
        return {}


class Job(NamedTuple):
    """One kernel on a matrix (N, K) of one dtype, to be tuned."""

    kernel: str
    dtype: str
    shape: tuple[int, int]
    seconds: Callable[[Tile], float | None]  # time of a launch; None: the card cannot run this tile
    shared: int  # bytes of shared memory that the card gives one program

    @property
    def key(self) -> str:
        """Name of its tile in the files."""
        return key(self.kernel, self.dtype, self.shape)

    def candidates(self) -> list[Tile]:
        """Tiles to try, the default first: those that can be launched with any number of rows."""
        tiles = dict.fromkeys([Tiles().of(self.kernel, self.dtype, self.shape), *GRID[form_of(self.dtype)]])
        return [tile for tile in tiles if shared_bytes(tile, self.dtype) <= self.shared]


def tune(
    card: str, jobs: Iterable[Job], file: Path | None = None, until: float = math.inf
) -> dict[str, tuple[Tile, float]]:
    """Measure the candidates of all jobs and keep the fastest in the file; tile and seconds by key.

    until: time.monotonic() after which nothing more is measured. A job that was begun keeps its fastest.
    """
    best: dict[str, tuple[Tile, float]] = {}
    for job in jobs:
        timed = []
        for tile in job.candidates():
            if time.monotonic() < until and (seconds := job.seconds(tile)) is not None:
                timed.append((seconds, tile))
        if timed:
            seconds, tile = min(timed)
            best[job.key] = tile, seconds
            keep(card, {job.key: tile}, file or own_file())
    return best


def keep(card: str, tiles: Mapping[str, Tile], path: Path) -> None:
    """Add tiles to a file."""
    cards: dict[str, dict[str, Tile]] = read(path)
    cards[card] = cards.get(card, {}) | dict(tiles)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = json.dumps({"version": VERSION, "cards": cards}, indent=1)
    with atomic_write(path) as file:
        file.write(document.encode())


def _is_old(name: str) -> bool:
    """Whether a key is one of an earlier version, which had one key for all float dtypes."""
    return " float " in name


def _checked(name: str, values: Any) -> Tile:
    """A tile whose numbers the kernel that a key names can have; ValueError, TypeError."""
    kernel, dtype, _ = name.split(" ")
    if kernel not in KERNELS or dtype not in DTYPES:
        raise ValueError(f"kernel {name}")
    form = form_of(dtype)
    tile = Tile(*values)
    whole = all(type(value) is int for value in tile)
    powers = whole and all(n > 0 and n & (n - 1) == 0 for n in (tile.outputs, tile.inputs, tile.warps))
    if not powers or not (16 <= tile.outputs <= 256 and tile.inputs <= 2048 and tile.warps <= 16):
        raise ValueError(f"tile {values}")
    if tile.inputs < MIN_INPUTS[form]:
        raise ValueError(f"{tile.inputs} inputs of {form}, at least {MIN_INPUTS[form]}")
    if not 1 <= tile.stages <= 16:
        raise ValueError(f"stages {tile.stages}")
    return tile
