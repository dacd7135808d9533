"""One file of weights <-> tensors: safetensors, and where torch is installed pytorch_model.bin of 2021.

Nothing is copied and nothing executed. A header is checked against the file's size before any tensor is
touched; `WeightsFile.scan` then reads every byte once, through a buffer that stays in the second-level
cache, for the file's digest and for NaN. It reads the file, not the memory map, so that the map stays cold
and no page of it counts as this process's memory.

Knows nothing of folders, manifests or models.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import CheckpointError, KoGPTError, MissingExtra

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

MAX_JSON_BYTES = 16 << 20
MAX_TENSORS = 1 << 16
BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor as it lies in its file: memory-mapped, read-only, not copied.

    `array` has the tensor's shape; bfloat16, which numpy lacks, is held as its uint16 bit patterns.
    Files written before 2023 may start a tensor at an odd address (`array.flags.aligned`).
    """

    dtype: str  # "float64", "float32", "float16" or "bfloat16"; codes of quantised weights: "int8", "uint8"
    array: NDArray[Any]

    def rows(self, first: int, end: int) -> Stored:
        """Rows first..end, still not read."""
        return Stored(self.dtype, self.array[first:end])

    def to(self, dtype: str) -> NDArray[Any]:
        """The values in `dtype`, to nearest even where it is narrower; `array` itself where it is equal."""
        if dtype == self.dtype:
            return self.array
        wide = self.array
        if self.dtype == "bfloat16":
            wide = (wide.astype(np.uint32) << 16).view(np.float32)
        return _to_bfloat16(wide) if dtype == "bfloat16" else wide.astype(dtype)


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """An open file of weights, its tensors mapped but not yet read."""

    path: Path
    file: IO[bytes]
    tensors: dict[str, Stored]
    # What the file consists of, from its first byte to its last: name, dtype (None: no weights), bytes.
    spans: list[tuple[str, str | None, int]]

    def scan(self, with_digest: bool) -> str | None:
        """Read the file once; its SHA-256 if wanted. CheckpointError for a weight that is no number."""
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(BUFFER_BYTES))
        self.file.seek(0)
        for name, dtype, n_bytes in self.spans:
            if dtype is None and not with_digest:
                self.file.seek(n_bytes, os.SEEK_CUR)
                continue
            for start in range(0, n_bytes, BUFFER_BYTES):
                block = buffer[: min(BUFFER_BYTES, n_bytes - start)]
                if self.file.readinto(block) != len(block):  # type: ignore[attr-defined]
                    raise damaged(self.path, f"it ends within {name}")
                if with_digest:
                    digest.update(block)
                if dtype is not None and not _is_sound(np.frombuffer(block, np.uint8), dtype):
                    raise _unsound(self.path, name, dtype)
        return digest.hexdigest() if with_digest else None


def open_weights(
    path: Path, stack: ExitStack, max_header: int = MAX_JSON_BYTES, quantized: bool = False
) -> WeightsFile:
    """Open a .safetensors or .bin file, which stays open as long as `stack`. Raises CheckpointError.

    quantized: integers are read too, the codes of quantised weights.
    """
    file = stack.enter_context(path.open("rb"))
    if path.suffix == ".safetensors":
        return _open_safetensors(path, file, max_header, quantized)
    return _open_legacy(path, file)


# ------------------------------------------------------------------------------------------ safetensors


def _open_safetensors(path: Path, file: IO[bytes], max_header: int, quantized: bool) -> WeightsFile:
    """Check a header and map its tensors.

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
    data = mmap.mmap(file.fileno(), n_bytes, access=mmap.ACCESS_READ)
    end = start
    for name, dtype, shape, begin, size in _layout(path, header, quantized):
        if start + begin != end:
            raise damaged(path, f"{name} begins at {begin:,}, expected {end - start:,}: a gap or an overlap")
        if start + begin + size > n_bytes:
            raise damaged(path, f"{name} would end at byte {end + size:,}, the file has {n_bytes:,}")
        is_weight = not MASK.fullmatch(name)
        if is_weight:
            bits = np.dtype("<u2" if dtype == "bfloat16" else dtype).newbyteorder("<")
            array = np.frombuffer(data, bits, math.prod(shape), end).reshape(shape)
            weights.tensors[name] = Stored(dtype, array)
        weights.spans.append((name, dtype if is_weight else None, size))
        end += size
    if end != n_bytes:
        raise damaged(path, f"its tensors end at byte {end:,}, the file has {n_bytes:,}")
    return weights


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
    """Whether a JSON value is a list of at most so many whole numbers, none negative."""
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
        with np.errstate(over="ignore"):  # what overflows is refused by name, just below
            piece = Stored(stored.dtype, flat[start : start + n_piece]).to(dtype)
        data = np.ascontiguousarray(piece, piece.dtype.newbyteorder("<")).view(np.uint8)
        if not _is_sound(data, dtype):
            raise CheckpointError(
                f"tensor {name} does not fit {dtype}: it holds NaN, infinite or too large weights; "
                "if the model itself is sound, store it as bfloat16 or float32",
                f"텐서 {name}: {dtype} 형식으로 나타낼 수 없는 값(NaN, 무한대, 너무 큰 수)이 있습니다. "
                "모델에 이상이 없다면 bfloat16이나 float32로 저장하세요",
            )
        yield data.data


# ---------------------------------------------------------------------------------- pytorch_model.bin


def _open_legacy(path: Path, file: IO[bytes]) -> WeightsFile:
    """Map a file that torch saved, with its weights-only reader, which executes nothing."""
    try:
        import torch
    except ImportError as error:
        raise MissingExtra(f"{path.name} (a checkpoint of 2021)", "torch") from error

    _guard_archive(path, file)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the reader raises whatever a hostile stream drives it into
        reason = (str(error).splitlines() or [""])[0][:120]
        raise CheckpointError(
            f"{path} holds more than plain tensors, or is damaged: refused, nothing executed ({reason})",
            f"{path}: 텐서가 아닌 내용이 있거나 손상되어, 아무것도 실행하지 않고 거부했습니다 ({reason})",
        ) from error
    if not isinstance(state, Mapping) or len(state) > MAX_TENSORS:
        raise damaged(path, "it is not a table of tensors")
    weights = WeightsFile(path, file, {}, [("its archive", None, path.stat().st_size)])
    for name, tensor in state.items():
        if type(name) is not str or not TENSOR_NAME.fullmatch(name):
            raise damaged(path, f"{str(name)[:100]!r} is no tensor name")
        if not MASK.fullmatch(name):
            weights.tensors[name] = _from_torch(path, name, tensor)
    return weights


def _guard_archive(path: Path, file: IO[bytes]) -> None:
    """Refuse what could unpack to more than its own size; reads the archive's directory only."""
    import zipfile

    try:
        members = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise damaged(path, "it is not an archive as torch 1.6 and later write it") from error
    n_bytes = os.fstat(file.fileno()).st_size
    if sum(member.file_size for member in members) > n_bytes:
        raise damaged(path, "its archive unpacks to more than its own size")
    if any(member.filename.endswith(".pkl") and member.file_size > MAX_JSON_BYTES for member in members):
        raise damaged(path, f"its pickle has more than {MAX_JSON_BYTES:,} bytes")


def _from_torch(path: Path, name: str, tensor: Any) -> Stored:
    """One tensor of a state dict, checked as `scan` checks the others: this layout has no plain spans."""
    import torch

    dtype = str(getattr(tensor, "dtype", type(tensor).__name__)).removeprefix("torch.")
    if dtype not in WIDTHS or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise damaged(path, f"{name} is a {dtype[:40]}, only dense float tensors are weights")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise damaged(path, f"{name} claims more weights than the file holds")
    plain = tensor.detach().contiguous()
    array = (plain.view(torch.uint16) if dtype == "bfloat16" else plain).numpy()
    array.flags.writeable = False
    flat = array.reshape(-1).view(np.uint8)
    for start in range(0, flat.size, BUFFER_BYTES):
        if not _is_sound(flat[start : start + BUFFER_BYTES], dtype):
            raise _unsound(path, name, dtype)
    return Stored(dtype, array)


# ------------------------------------------------------------------------------------------------- bits


def _is_sound(data: NDArray[np.uint8], dtype: str) -> bool:
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
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(single), 0x7FC0, rounded).astype(np.uint16)


# ----------------------------------------------------------------------------------------- JSON, errors


def parse_json(data: bytes, where: str, error: type[KoGPTError] = CheckpointError) -> dict[str, Any]:
    """A JSON object from bytes that may be hostile: no duplicate keys, no NaN, no endless nesting."""
    try:
        document = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as cause:
        reason = str(cause)[:200]
        raise error(
            f"{where} is not valid JSON: {reason}", f"{where}: 올바른 JSON이 아닙니다 ({reason})"
        ) from cause
    if type(document) is not dict:
        raise error(f"{where} is not a JSON object", f"{where}: JSON 객체가 아닙니다")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def damaged(path: Path, reason: str) -> CheckpointError:
    """The error for a file that cannot be what it claims to be."""
    return CheckpointError(
        f"{path} is damaged or not a checkpoint: {reason}; get it again",
        f"{path}: 손상되었거나 체크포인트가 아닙니다 ({reason}). 파일을 다시 받으세요",
    )


def wrong_shape(name: str, expected: tuple[int, ...], found: tuple[int, ...]) -> CheckpointError:
    """The error for a tensor that does not fit the config."""
    return CheckpointError(
        f"tensor {name}: config.json asks for shape {list(expected)}, found {list(found)}",
        f"텐서 {name}: config.json에 따른 크기는 {list(expected)}, 발견한 크기는 {list(found)}",
    )


def _unsound(path: Path, name: str, dtype: str) -> CheckpointError:
    if dtype == "int8":
        return damaged(path, f"{name} holds -128, codes are -127 to 127")
    return CheckpointError(
        f"{path}: tensor {name} holds NaN or infinite weights; the checkpoint is broken, get it again",
        f"{path}: 텐서 {name}에 NaN 또는 무한대 값이 있습니다. 체크포인트를 다시 받으세요",
    )
