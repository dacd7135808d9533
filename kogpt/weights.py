"""One safetensors file <-> tensors.

Nothing is executed. A header is checked against the file's size before any tensor is touched;
`WeightsFile.scan` then reads every byte once, in blocks that stay in the second-level cache, for the file's
digest and for NaN.

That scan copies the tensors of small models. Those of large models are read once more, each when it is asked
for, so that a runner which converts them needs memory for one at a time. Nothing is memory-mapped: when a
mapped file is truncated, the system answers with SIGBUS, which ends the process; a read ends early instead.

Knows nothing of folders, manifests or models.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import CheckpointError
from kogpt.files import damaged, parse_json

WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}  # bytes per weight
# Bits of each format's exponent: a weight that has them all set is infinite or not a number.
EXPONENTS = {"float64": 0x7FF << 52, "float32": 0xFF << 23, "float16": 0x1F << 10, "bfloat16": 0xFF << 7}
SAFETENSORS_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
MASK_TYPES = {"BOOL": "bool", "U8": "uint8"}
INTEGER_TYPES = {"I8": "int8", "U8": "uint8"}  # codes of quantised weights
SIZES = WIDTHS | {"int8": 1, "uint8": 1, "bool": 1}

# The causal mask, which transformers stored with every layer until 2023. It is read over.
MASK = re.compile(r"transformer\.h\.\d{1,5}\.attn\.(bias|masked_bias)")
TENSOR_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9._/-]{1,256}")

MAX_COPIED_BYTES = 128 << 20  # model size up to which the scan copies all weights
MAX_TENSORS = 1 << 16
BUFFER_BYTES = 1 << 20
ALIGNMENT = 64  # bytes, of tensors in a Scratch


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor in memory, in the format of its file, read-only.

    `array` has the tensor's shape; bfloat16, which numpy lacks, is held as its uint16 bit patterns.
    Files written before 2023 may start a tensor at an odd byte; its copy may then be unaligned
    (`array.flags.aligned`).
    """

    dtype: str  # "float64", "float32", "float16" or "bfloat16"; codes of quantised weights: "int8", "uint8"
    array: NDArray[Any]

    def rows(self, first: int, end: int) -> Stored:
        """Rows first..end, without copying them."""
        return Stored(self.dtype, self.array[first:end])

    def to(self, dtype: str) -> NDArray[Any]:
        """The values in `dtype`, to nearest even where it is narrower; `array` itself where it is equal."""
        if dtype == self.dtype:
            return self.array
        wide = self.array
        if self.dtype == "bfloat16":
            wide = (wide.astype(np.uint32) << 16).view(np.float32)
        return _to_bfloat16(wide) if dtype == "bfloat16" else wide.astype(dtype)


class Scratch:
    """Memory for tensors that are needed for a moment: new pages cost more than what is read into them."""

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self._n_used = 0

    def take(self, n_bytes: int) -> NDArray[np.uint8]:
        """Room for one more tensor, whose memory stays its own until `clear`."""
        start = -(-self._n_used // ALIGNMENT) * ALIGNMENT
        if start + n_bytes > len(self._memory):  # what was taken before keeps the old memory
            self._memory, start = np.empty(max(n_bytes, 2 * len(self._memory)), np.uint8), 0
        self._n_used = start + n_bytes
        return self._memory[start : start + n_bytes]

    def clear(self) -> None:
        """Let all of it be overwritten."""
        self._n_used = 0


@dataclass(frozen=True, slots=True)
class Source:
    """One tensor of a file: in memory that `WeightsFile.scan` fills, or still on the disk."""

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]]  # the values in that shape, read-only
    # The same in memory of a Scratch, where the tensor is on the disk as it is.
    read_into: Callable[[Scratch], NDArray[Any]] | None = None

    def load(self, scratch: Scratch | None = None) -> Stored:
        """The tensor in memory, or in `scratch`. CheckpointError if its file was cut or written over."""
        if scratch is None or self.read_into is None:
            return Stored(self.dtype, self.read())
        return Stored(self.dtype, self.read_into(scratch))


class OpenFile:
    """A file to read parts of, however late; renaming a new file over it does no harm.

    descriptor: of the open file; it is duplicated.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = os.dup(descriptor)
        weakref.finalize(self, os.close, self._descriptor)
        self._state = self._look()

    def read(self, start: int, n_bytes: int, scratch: Scratch | None = None) -> NDArray[np.uint8]:
        """Bytes from `start`, read-only. CheckpointError if the file changed since it was opened."""
        memory = np.empty(n_bytes, np.uint8) if scratch is None else scratch.take(n_bytes)
        done = 0
        while done < n_bytes and (n := _read_at(self._descriptor, memory.data[done:], start + done)):
            done += n
        self.require_unchanged(done == n_bytes)
        memory.flags.writeable = False
        return memory

    def require_unchanged(self, is_whole: bool = True) -> None:
        """CheckpointError if the file changed since it was opened, or is not whole."""
        if not is_whole or self._look() != self._state:
            raise CheckpointError(
                f"{self._path} was cut or written over while it was read: get it again, and replace a model"
                " that is in use by renaming a new file over it",
                f"{self._path}: 읽는 동안 파일이 잘리거나 바뀌었습니다. 파일을 다시 받으세요. "
                "사용 중인 모델은 새 파일의 이름을 바꾸는 방법으로 교체하세요",
            )

    def _look(self) -> tuple[int, int]:
        """Size and time of the last change."""
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns


def _read_at(descriptor: int, block: memoryview, start: int) -> int:
    """Read into `block` from a position of a file; the number of bytes, 0 at the end of the file."""
    if sys.platform == "win32":
        os.lseek(descriptor, start, os.SEEK_SET)
        data = os.read(descriptor, len(block))
        block[: len(data)] = data
        return len(data)
    return os.preadv(descriptor, [block], start)  # a forked process shares the offset, so it is not used


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """An open file of weights: its tensors are on the disk, or in memory that `scan` fills."""

    path: Path
    file: IO[bytes]
    tensors: dict[str, Source]
    # What the file consists of, from its first byte to its last: name, dtype (None: no weights), bytes.
    spans: list[tuple[str, str | None, int]]
    # Memory of each copied tensor, one byte an element; empty where the tensors stay on the disk.
    buffers: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    def scan(self, with_digest: bool) -> str | None:
        """Read the file once; its SHA-256 if wanted. CheckpointError for a weight that is no number.

        Copied tensors have their values afterwards: the bytes that were checked are the bytes in use.
        """
        digest = hashlib.sha256()
        scratch = memoryview(bytearray(BUFFER_BYTES))
        self.file.seek(0)
        for name, dtype, n_bytes in self.spans:
            if dtype is None and not with_digest:
                self.file.seek(n_bytes, os.SEEK_CUR)
                continue
            copied = self.buffers.get(name)
            for start in range(0, n_bytes, BUFFER_BYTES):
                size = min(BUFFER_BYTES, n_bytes - start)
                block = scratch[:size] if copied is None else copied.data[start : start + size]
                if self.file.readinto(block) != size:  # type: ignore[attr-defined]
                    raise damaged(self.path, f"it ends within {name}")
                if with_digest:
                    digest.update(block)
                if dtype is not None and not is_sound(np.frombuffer(block, np.uint8), dtype):
                    raise unsound(self.path, name, dtype)
        return digest.hexdigest() if with_digest else None


def is_small(files: Iterable[IO[bytes]]) -> bool:
    """Whether a model's files of weights are together so small that they are copied at once."""
    return sum(os.fstat(file.fileno()).st_size for file in files) <= MAX_COPIED_BYTES


def open_safetensors(
    path: Path, file: IO[bytes], max_header: int, quantized: bool = False, copy: bool = False
) -> WeightsFile:
    """Check a header against its file; `copy`: `WeightsFile.scan` fills the memory of all tensors.

    max_header: bytes that the header may have. quantized: integers are read too, the codes of quantised
    weights. CheckpointError for a file that cannot be what it claims to be.

    Format (github.com/huggingface/safetensors): a little-endian u64 n, n bytes of JSON, the tensors' bytes.
    Stricter than the format: no duplicate, empty or oddly named tensors, and no gaps.
    """
    n_bytes = os.fstat(file.fileno()).st_size
    n_header = int.from_bytes(file.read(8), "little")
    start = 8 + n_header
    if n_bytes < 10 or start > n_bytes:
        raise damaged(path, f"its header would end at byte {start:,}, the file has {n_bytes:,}")
    if n_header > max_header:
        raise damaged(path, f"its header has {n_header:,} bytes, at most {max_header:,} are read")
    header = parse_json(file.read(n_header), f"the header of {path}")
    header.pop("__metadata__", None)
    weights = WeightsFile(path, file, {}, [("its header", None, start)])
    # One array for all tensors: numpy asks for huge pages, without which page faults double the time.
    memory = np.empty(n_bytes - start if copy else 0, np.uint8)
    source = OpenFile(path, file.fileno())
    end = start
    for name, dtype, shape, begin, size in _layout(path, header, quantized):
        if start + begin != end:
            raise damaged(path, f"{name} begins at {begin:,}, expected {end - start:,}: a gap or an overlap")
        if start + begin + size > n_bytes:
            raise damaged(path, f"{name} would end at byte {end + size:,}, the file has {n_bytes:,}")
        is_weight = not MASK.fullmatch(name)
        if is_weight and copy:
            weights.buffers[name] = memory[begin : begin + size]
        if is_weight:
            weights.tensors[name] = (
                Source(
                    dtype, shape, partial(_shaped, partial(_of_memory, weights.buffers[name]), dtype, shape)
                )
                if copy
                else _on_disk(source, end, dtype, shape)
            )
        weights.spans.append((name, dtype if is_weight else None, size))
        end += size
    if end != n_bytes:
        raise damaged(path, f"its tensors end at byte {end:,}, the file has {n_bytes:,}")
    return weights


def _of_memory(buffer: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A view of a buffer that `WeightsFile.scan` has filled, read-only."""
    view = buffer[:]
    view.flags.writeable = False
    return view


def _on_disk(file: OpenFile, start: int, dtype: str, shape: tuple[int, ...]) -> Source:
    """A tensor that is read when it is asked for."""
    size = math.prod(shape) * SIZES[dtype]

    def read(scratch: Scratch | None = None) -> NDArray[Any]:
        return _shaped(partial(file.read, start, size, scratch), dtype, shape)

    return Source(dtype, shape, read, read)


def _shaped(read: Callable[[], NDArray[np.uint8]], dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    return read().view(little_endian(dtype)).reshape(shape)


def little_endian(dtype: str) -> np.dtype[Any]:
    """The numpy type that holds a format's elements in a file; uint16 for bfloat16."""
    return np.dtype("<u2" if dtype == "bfloat16" else dtype).newbyteorder("<")


def _layout(
    path: Path, header: dict[str, Any], quantized: bool
) -> list[tuple[str, str, tuple[int, ...], int, int]]:
    """Name, dtype, shape, first byte and bytes of each tensor of a header, in the file's order."""
    if len(header) > MAX_TENSORS:
        raise damaged(path, f"{len(header):,} tensors, at most {MAX_TENSORS:,} are read")
    layout = []
    for name, entry in header.items():
        if not TENSOR_NAME.fullmatch(name):
            raise damaged(path, f"{name[:100]!r} is no tensor name")
        if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise damaged(path, f"{name} is not described by dtype, shape and data_offsets")
        types = SAFETENSORS_TYPES | (INTEGER_TYPES if quantized else {})
        types |= MASK_TYPES if MASK.fullmatch(name) else {}
        dtype = types.get(str(entry["dtype"]))
        if dtype is None:
            shown = str(entry["dtype"])[:40]
            raise damaged(
                path, f"{name} has dtype {shown!r}, only floats are weights where no manifest says more"
            )
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not _are_counts(shape, 4) or not all(shape):
            raise damaged(path, f"{name} has shape {str(shape)[:80]}")
        if not _are_counts(offsets, 2) or len(offsets) != 2:
            raise damaged(path, f"{name} has data_offsets {str(offsets)[:80]}")
        size = math.prod(shape) * SIZES[dtype]
        if offsets[1] - offsets[0] != size:
            raise damaged(path, f"{name} spans {offsets[1] - offsets[0]:,} bytes, its shape says {size:,}")
        layout.append((name, dtype, tuple(shape), offsets[0], size))
    return sorted(layout, key=lambda tensor: tensor[3])


def _are_counts(value: object, at_most: int) -> bool:
    """Whether a JSON value is a list of at most `at_most` whole numbers, none negative."""
    if type(value) is not list or len(value) > at_most:
        return False
    return all(type(n) is int and 0 <= n < 2**63 for n in value)


def write_safetensors(
    file: IO[bytes], parts: Mapping[str, tuple[str, tuple[int, ...]]], tensors: Iterable[tuple[str, Stored]]
) -> tuple[int, str]:
    """Write tensors and return the file's size and SHA-256.

    parts: dtype and shape of each, in the file's order, in which `tensors` then gives them, one at a time;
    each is converted a little at a time. CheckpointError if one has another shape, or a value that is no
    number or too large for its dtype.
    """
    kinds = {dtype: kind for kind, dtype in (SAFETENSORS_TYPES | INTEGER_TYPES).items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers insists on it
    end = 0
    for name, (dtype, shape) in parts.items():
        begin, end = end, end + math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": kinds[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that every tensor starts at a multiple of its width
    start = len(text).to_bytes(8, "little") + text
    file.write(start)
    digest = hashlib.sha256(start)
    for (name, (dtype, shape)), (given, tensor) in zip(parts.items(), tensors, strict=True):
        assert name == given, (name, given)
        for piece in _converted(name, shape, tensor, dtype):
            file.write(piece)
            digest.update(piece)
    return len(start) + end, digest.hexdigest()


def _converted(name: str, shape: tuple[int, ...], stored: Stored, dtype: str) -> Iterator[memoryview]:
    """The little-endian bytes of a tensor in `dtype`, piece by piece."""
    assert stored.dtype in WIDTHS or stored.dtype == dtype, (name, stored.dtype, dtype)
    if stored.array.shape != shape:
        raise wrong_shape(name, shape, stored.array.shape)
    flat = stored.array.reshape(-1)
    n_piece = BUFFER_BYTES // 8
    for start in range(0, flat.size, n_piece):
        with np.errstate(over="ignore"):  # an overflow is refused by name, just below
            piece = Stored(stored.dtype, flat[start : start + n_piece]).to(dtype)
        data = np.ascontiguousarray(piece, piece.dtype.newbyteorder("<")).view(np.uint8)
        if not is_sound(data, dtype):
            raise CheckpointError(
                f"tensor {name} does not fit {dtype}: it holds NaN, infinite or too large weights; "
                "if the model itself is sound, store it as bfloat16 or float32",
                f"텐서 {name}: {dtype} 형식으로 나타낼 수 없는 값(NaN, 무한대, 너무 큰 수)이 있습니다. "
                "모델에 이상이 없다면 bfloat16이나 float32로 저장하세요",
            )
        yield data.data


def is_sound(data: NDArray[np.uint8], dtype: str) -> bool:
    """Whether no weight in these bytes has every bit of its exponent set, or is int8's unused -128.

    Read as integers, infinities and NaN are the largest of the patterns without a sign, and of those with
    one: two maxima find them at 40 GB/s, without a temporary array.
    """
    if dtype not in EXPONENTS:
        return dtype != "int8" or int(data.view(np.int8).min()) > -128
    exponent, width = EXPONENTS[dtype], WIDTHS[dtype]
    largest_positive = int(data.view(f"<i{width}").max())
    largest = int(data.view(f"<u{width}").max())
    return largest_positive < exponent and largest < exponent | 1 << (8 * width - 1)


def _to_bfloat16(wide: NDArray[Any]) -> NDArray[np.uint16]:
    """Bit patterns of the nearest bfloat16, ties to even; NaN stays NaN."""
    single = np.ascontiguousarray(wide, dtype=np.float32)
    bits = single.view(np.uint32)
    if wide.dtype == np.float64:
        bits = _rounded_to_odd(wide, single)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(single), 0x7FC0, rounded).astype(np.uint16)


def _rounded_to_odd(wide: NDArray[np.float64], single: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Bits of each value as a float32; of the two beside a value that is none, that with the last bit set.

    single: the nearest float32. Rounding the result again is as rounding the value once (Boldo and Melquiond
    2008): what lies beside a tie stays there.
    """
    bits = single.view(np.uint32)
    steps = np.where(np.abs(single) < np.abs(wide), 1, -1).astype(np.uint32)  # -1 as 2^32 - 1
    return np.where((single == wide) | (bits & 1 == 1), bits, bits + steps)


def wrong_shape(name: str, expected: tuple[int, ...], found: tuple[int, ...]) -> CheckpointError:
    """The error for a tensor that does not fit the config."""
    return CheckpointError(
        f"tensor {name}: config.json asks for shape {list(expected)}, found {list(found)}",
        f"텐서 {name}: config.json에 따른 크기는 {list(expected)}, 발견한 크기는 {list(found)}",
    )


def unsound(path: Path, name: str, dtype: str) -> CheckpointError:
    if dtype == "int8":
        return damaged(path, f"{name} holds -128, codes are -127 to 127")
    return CheckpointError(
        f"{path}: tensor {name} holds NaN or infinite weights; the checkpoint is broken, get it again",
        f"{path}: 텐서 {name}에 NaN 또는 무한대 값이 있습니다. 체크포인트를 다시 받으세요",
    )
