"""pytorch_model.bin of anybody: what a small file can cost, and what any damage to it says."""

from __future__ import annotations

import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kogpt.errors import CheckpointError
from kogpt.torch_archive import MAX_PICKLE_BYTES, Refused, interpret, open_archive
from kogpt.weights import WeightsFile

N = 1_250_000  # floats of a storage of 5 MB


def number(n: int) -> bytes:
    return b"\x8a\x09" + n.to_bytes(9, "little")  # LONG1


def numbers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def storage(n: int) -> bytes:
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(n) + b"tQ"


def view(n: int, offset: int, shape: Sequence[int], strides: Sequence[int]) -> bytes:
    """A tensor of `n` floats that are stored."""
    where = storage(n) + number(offset) + numbers(shape) + numbers(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + where + b"tR"


def archive(path: Path, views: Sequence[bytes], values: np.ndarray) -> Path:
    """An archive whose tensors t0, t1, ... are views of one storage."""
    items = b"".join(text(f"t{i}") + view for i, view in enumerate(views))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", b"\x80\x02}(" + items + b"u.")
        file.writestr("archive/data/0", values.astype("<f4").tobytes())
    return path


def load(path: Path, copy: bool = False) -> WeightsFile:
    with path.open("rb") as file:
        return open_archive(path, file, copy)


def arrays(path: Path, copy: bool) -> list[np.ndarray]:
    with path.open("rb") as file:
        return [np.array(tensor.read()) for tensor in open_archive(path, file, copy).tensors.values()]


def peak_bytes(do: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        kept = do()
        assert kept is not None
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("copy", [False, True])
def test_views_of_one_storage_are_those_of_numpy(tmp_path: Path, copy: bool) -> None:
    values = np.arange(64)
    views = {
        (0, (64,), (1,)): values,
        (5, (), ()): values[5],
        (3, (2, 4), (8, 1)): values.reshape(8, 8)[:2, 3:7],
        (8, (4, 2), (1, 16)): values[8:].copy().reshape(-1, 8)[::2, :4][:2].T,
        (63, (1,), (1,)): values[63:],
        (7, (3,), (0,)): values[[7, 7, 7]],
        (60, (1, 4), (2**62, 1)): values[None, 60:],  # the stride of one row is never taken
        (60, (1, 1, 1, 4), (0, 2**62, 9, 1)): values[None, None, None, 60:],
    }
    path = archive(tmp_path / "x.bin", [view(64, *where) for where in views], values)
    for found, expected in zip(arrays(path, copy), views.values(), strict=True):
        assert np.array_equal(found.reshape(expected.shape), expected)


@pytest.mark.parametrize("copy", [False, True])
def test_a_view_costs_the_memory_of_what_it_spans(tmp_path: Path, copy: bool) -> None:
    """Forty weights of one storage of 5 MB took 200 MB."""
    path = archive(tmp_path / "x.bin", [view(N, i, (1,), (1,)) for i in range(40)], np.zeros(N))
    assert peak_bytes(lambda: load(path, copy)) < 1 << 20


def test_views_may_not_span_the_file_over_and_over(tmp_path: Path) -> None:
    """Two weights each, at both ends of a storage that would be read a thousand times."""
    path = archive(tmp_path / "x.bin", [view(N, 0, (2,), (N - 1,))] * 1000, np.zeros(N))
    started = time.process_time()
    with pytest.raises(CheckpointError, match="its tensors span more than 16 times the file"):
        load(path)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("sizes", [b"(" + number(1) * 5 + b"t", b"](" + number(1) + b"e", number(1), b"N"])
@pytest.mark.parametrize("place", ["shape", "strides"])
def test_sizes_are_a_tuple_of_at_most_four(sizes: bytes, place: str) -> None:
    both = sizes + numbers([1]) if place == "shape" else numbers([1]) + sizes
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(1) + number(0) + both + b"tR"
    with pytest.raises(Refused, match="no tuple of at most 4 numbers"):
        interpret(b"\x80\x02" + tensor + b".")


def test_one_long_list_for_many_tensors_takes_no_memory() -> None:
    """The list of 20,000 ones stood once in the pickle and a thousand times in memory: 400 MB."""
    listed = b"]q\x00(" + b"K\x01" * 20_000 + b"e"
    function = b"ctorch._utils\n_rebuild_tensor_v2\nq\x01(" + storage(4) + b"K\x00h\x00h\x00tq\x02"
    data = b"\x80\x02" + listed + function + b"h\x01h\x02R" * 1000 + b"}."
    assert len(data) < MAX_PICKLE_BYTES

    def refused() -> bool:
        with pytest.raises(Refused):
            interpret(data)
        return True

    assert peak_bytes(refused) < 8 << 20


@pytest.mark.parametrize("offset", [2**63 + 5, 2**64 - 1, 2**40])
def test_a_member_beyond_the_file_is_misplaced(tmp_path: Path, offset: int) -> None:
    """By the 64-bit field of the archive's directory, which names what cannot be sought."""
    path = archive(tmp_path / "x.bin", [view(4, 0, (4,), (1,))], np.zeros(4))
    data = bytearray(path.read_bytes())
    entry, end = data.rfind(b"PK\x01\x02"), data.rfind(b"PK\x05\x06")
    extra = struct.pack("<HHQ", 1, 8, offset)
    data[end + 12 : end + 16] = struct.pack("<I", int.from_bytes(data[end + 12 : end + 16], "little") + 12)
    data[entry + 30 : entry + 32] = struct.pack("<H", len(extra))
    data[entry + 42 : entry + 46] = b"\xff" * 4
    after = entry + 46 + int.from_bytes(data[entry + 28 : entry + 30], "little")
    data[after:after] = extra
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is compressed or misplaced"):
        load(path)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # of pickletools, in what is refused anyway
@given(data=st.data())
@settings(deadline=None, max_examples=500)
def test_any_damage_is_one_line(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("damaged", numbered=True)
    path = archive(folder / "x.bin", [view(8, 0, (2, 4), (4, 1)), view(8, 4, (1, 4), (9, 1))], np.zeros(8))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        size = data.draw(st.sampled_from([1, 4, 8]))
        value = data.draw(st.sampled_from([b"\0", b"\1", b"\x7f", b"\x80", b"\xff"]) | st.binary(max_size=8))
        content[at : at + size] = (value * size)[:size]
    path.write_bytes(content)
    try:
        load(path, data.draw(st.booleans()))
    except CheckpointError as error:
        assert "\n" not in error.en + error.ko
