"""pytorch_model.bin, the layout of 2021 -> tensors, without torch.

torch.save writes a zip archive of uncompressed members: archive/data.pkl, a pickle that describes the
tensors, and archive/data/KEY, the bytes of each storage (torch/serialization.py). The pickle is interpreted
here, opcode by opcode: it can make dictionaries, lists, tuples, numbers, strings and descriptions of tensors.
Every other global and opcode is refused, so that nothing is executed and nothing large is allocated.
"""

from __future__ import annotations

import math
import os
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import CheckpointError
from kogpt.files import damaged
from kogpt.weights import (
    BUFFER_BYTES,
    MASK,
    MAX_TENSORS,
    TENSOR_NAME,
    WIDTHS,
    OpenFile,
    Source,
    WeightsFile,
    is_sound,
    little_endian,
    unsound,
)

MAX_PICKLE_BYTES = 256 << 10  # a tensor takes about 150 bytes; interpreting takes up to 100 times this memory
MAX_DIMENSIONS = 4
MAX_READ = 16  # sizes of the file that its views may span together; those of a dense model span it once
ARCHIVE_ERRORS = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError)
ORDERED_DICT = "collections OrderedDict"
REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
REBUILD_PARAMETER = "torch._utils _rebuild_parameter"
STORAGES = {  # torch's class of each storage -> dtype of its elements
    "torch DoubleStorage": "float64",
    "torch FloatStorage": "float32",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch LongStorage": "int64",
    "torch IntStorage": "int32",
    "torch ShortStorage": "int16",
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool",
}
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Refused(Exception):
    """A pickle holds what no file of tensors needs."""


@dataclass(frozen=True, slots=True)
class Global:
    """An allowed global; it is compared by its name, never imported."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """One storage: a member of the archive."""

    dtype: str
    key: str
    n_elements: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def open_archive(path: Path, file: IO[bytes], copy: bool = False) -> WeightsFile:
    """Check the tensors of an archive; `copy` keeps them in memory.

    CheckpointError for anything but plain tensors of numbers.
    """
    members = _members(path, file)
    prefix, state = _read_state(path, file, members)
    n_bytes = os.fstat(file.fileno()).st_size
    weights = WeightsFile(path, file, {}, [("its archive", None, n_bytes)])
    source = OpenFile(path, file.fileno())
    room = 2 * n_bytes  # of tensors, in bytes; a tied head shares the embedding's storage
    unread = MAX_READ * n_bytes
    for name, tensor in state.items():
        if type(name) is not str or not TENSOR_NAME.fullmatch(name):
            raise damaged(path, f"{str(name)[:100]!r} is no tensor name")
        if MASK.fullmatch(name):
            continue
        _require_weights(path, name, tensor)
        member = members.get(f"{prefix}data/{tensor.storage.key}")
        if member is None:
            raise damaged(path, f"{name} has no storage in it")
        room -= math.prod(tensor.shape) * WIDTHS[tensor.storage.dtype]
        unread -= _n_spanned(tensor) * WIDTHS[tensor.storage.dtype]
        if room < 0:
            raise damaged(path, "its tensors claim more weights than the file holds")
        if unread < 0:
            raise damaged(path, f"its tensors span more than {MAX_READ} times the file")
        read = _reader(weights, name, tensor, member, source)
        array = read()
        for block in _blocks(array):
            if not is_sound(block, tensor.storage.dtype):
                raise unsound(path, name, tensor.storage.dtype)
        kept = partial(np.asarray, array) if copy else read
        weights.tensors[name] = Source(tensor.storage.dtype, tensor.shape, kept)
    return weights


def _members(path: Path, file: IO[bytes]) -> dict[str, zipfile.ZipInfo]:
    """The archive's directory; refuses what could unpack to more than its own size."""
    try:
        members = zipfile.ZipFile(file).infolist()
    except ARCHIVE_ERRORS as error:
        raise damaged(path, "it is not an archive as torch 1.6 and later write it") from error
    if sum(member.file_size for member in members) > os.fstat(file.fileno()).st_size:
        raise damaged(path, "its archive unpacks to more than its own size")
    return {member.filename: member for member in members}


def _read_state(
    path: Path, file: IO[bytes], members: Mapping[str, zipfile.ZipInfo]
) -> tuple[str, dict[str, Any]]:
    """Prefix of the archive's members, and the table of tensors that its pickle describes."""
    pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1 or members[pickles[0]].file_size > MAX_PICKLE_BYTES:
        raise damaged(path, f"it has no data.pkl, or one of more than {MAX_PICKLE_BYTES:,} bytes")
    prefix = pickles[0].removesuffix("data.pkl")
    try:
        state = interpret(_read_member(file, members[pickles[0]]))
        order = members.get(f"{prefix}byteorder")
        if order is not None and _read_member(file, order) != b"little":
            raise Refused("its numbers are not little-endian")
    except (Refused, *ARCHIVE_ERRORS) as error:
        reason = (str(error).splitlines() or [""])[0][:120]
        raise CheckpointError(
            f"{path} holds more than plain tensors, or is damaged: refused, nothing executed ({reason})",
            f"{path}: 텐서가 아닌 내용이 있거나 손상되어, 아무것도 실행하지 않고 거부했습니다 ({reason})",
        ) from error
    if type(state) is not dict or len(state) > MAX_TENSORS:
        raise damaged(path, "it is not a table of tensors")
    return prefix, state


def _start(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """The first byte of a stored member: after its local header, whose name and extra field vary in size."""
    header = b""
    if 0 <= member.header_offset < os.fstat(file.fileno()).st_size:  # larger ones may not be sought
        file.seek(member.header_offset)
        header = file.read(30)
    if member.compress_type != zipfile.ZIP_STORED or header[:4] != b"PK\x03\x04":
        raise Refused(f"{member.filename[:60]!r} is compressed or misplaced")
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return member.header_offset + 30 + name + extra


def _read_member(file: IO[bytes], member: zipfile.ZipInfo) -> bytes:
    file.seek(_start(file, member))
    data = file.read(member.file_size)
    if len(data) != member.file_size:
        raise Refused(f"{member.filename[:60]!r} is cut short")
    return data


def interpret(data: bytes) -> Any:
    """The value that a pickle of tensors describes. Raises Refused or ValueError; executes nothing."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        try:
            if name in ("PROTO", "FRAME"):
                continue
            if name == "STOP":
                return stack.pop()
            if name == "MARK":
                marks.append(len(stack))
            elif name in LITERALS:
                stack.append(argument)
            elif name in CONSTANTS:
                stack.append(CONSTANTS[name])
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "GLOBAL":
                stack.append(_allowed(str(argument)))
            else:
                _combine(name, stack, marks)
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise Refused(f"{name} does not fit what comes before it") from error
    raise Refused("it has no end")


def _combine(name: str, stack: list[Any], marks: list[int]) -> None:
    """The opcodes that make one value out of others on the stack."""
    if name in ("TUPLE", "APPENDS", "SETITEMS"):
        mark = marks.pop()
        items = stack[mark:]
        del stack[mark:]
        if name == "TUPLE":
            stack.append(tuple(items))
        elif name == "APPENDS":
            stack[-1].extend(items)
        else:
            for key, value in zip(items[::2], items[1::2], strict=True):
                _set(stack[-1], key, value)
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        size = int(name[-1])
        stack[-size:] = [tuple(stack[-size:])]
    elif name in ("EMPTY_DICT", "EMPTY_LIST"):
        stack.append({} if name == "EMPTY_DICT" else [])
    elif name == "APPEND":
        item = stack.pop()
        stack[-1].append(item)
    elif name == "SETITEM":
        value, key = stack.pop(), stack.pop()
        _set(stack[-1], key, value)
    elif name == "BINPERSID":
        stack.append(_storage(stack.pop()))
    elif name == "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        stack.append(_rebuild(function, arguments))
    elif name == "BUILD":  # an OrderedDict's own attributes: the versions of its modules
        if type(stack.pop()) is not dict or type(stack[-1]) is not dict:
            raise Refused("it sets the attributes of something")
    else:
        raise Refused(f"opcode {name}")


def _set(table: Any, key: Any, value: Any) -> None:
    if type(table) is not dict or type(key) is not str:
        raise Refused("a table with keys that are no names")
    table[key] = value


def _allowed(name: str) -> Global:
    if name not in (ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER) and name not in STORAGES:
        raise Refused(f"global {name[:80]}")
    return Global(name)


def _storage(identity: Any) -> Storage:
    """A storage from its persistent id: ("storage", class, key, device, elements)."""
    kind, storage, key, _, n_elements = identity
    if kind != "storage" or type(storage) is not Global or type(key) is not str:
        raise Refused("a persistent id that is no storage")
    if type(n_elements) is not int or n_elements < 0:
        raise Refused("a storage of no known size")
    return Storage(STORAGES[storage.name], key, n_elements)


def _rebuild(function: Any, arguments: Any) -> Any:
    """What an allowed function makes of its arguments."""
    name = function.name if type(function) is Global else ""
    if name == ORDERED_DICT and arguments == ():
        return {}
    if name == REBUILD_PARAMETER and type(arguments[0]) is Tensor:
        return arguments[0]
    if name != REBUILD_TENSOR:
        raise Refused(f"a call of {name or 'something'}")
    storage, offset, shape, strides = arguments[:4]
    for sizes in (shape, strides):  # one long list may serve thousands of tensors: it is not unpacked
        if type(sizes) is not tuple or len(sizes) > MAX_DIMENSIONS:
            raise Refused(f"a tensor whose shape is no tuple of at most {MAX_DIMENSIONS} numbers")
    counts = (offset, *shape, *strides)
    if type(storage) is not Storage or not all(type(n) is int and 0 <= n < 2**63 for n in counts):
        raise Refused("a tensor that is not described by whole numbers")
    return Tensor(storage, offset, shape, strides)


def _require_weights(path: Path, name: str, tensor: Any) -> None:
    """Refuse what is no dense tensor of floats within its storage."""
    dtype = tensor.storage.dtype if type(tensor) is Tensor else type(tensor).__name__
    if dtype not in WIDTHS:
        raise damaged(path, f"{name} is a {dtype[:40]}, only dense float tensors are weights")
    shape, strides = tensor.shape, tensor.strides
    if len(shape) != len(strides) or not all(shape):
        raise damaged(path, f"{name} has shape {str(list(shape))[:80]}")
    n_elements = tensor.storage.n_elements
    if tensor.offset + _n_spanned(tensor) > n_elements or math.prod(shape) > n_elements:
        raise damaged(path, f"{name} claims more weights than the file holds")


def _n_spanned(tensor: Tensor) -> int:
    """Elements of the storage from a view's first to its last."""
    return 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))


def _reader(
    weights: WeightsFile, name: str, tensor: Tensor, member: zipfile.ZipInfo, source: OpenFile
) -> Callable[[], NDArray[Any]]:
    """A function that reads one tensor; CheckpointError if it claims more than the file holds."""
    bits = little_endian(tensor.storage.dtype)
    n_bytes = tensor.storage.n_elements * bits.itemsize
    try:
        start = _start(weights.file, member)
    except Refused as error:
        raise damaged(weights.path, str(error)) from error
    if n_bytes > member.file_size or start + n_bytes > os.fstat(weights.file.fileno()).st_size:
        raise damaged(weights.path, f"{name} claims more weights than the file holds")
    start += tensor.offset * bits.itemsize
    size = _n_spanned(tensor) * bits.itemsize
    # Strides of dimensions of size 1 are never taken, and may be any number.
    strides = [
        stride * bits.itemsize * (n > 1) for n, stride in zip(tensor.shape, tensor.strides, strict=True)
    ]

    def read() -> NDArray[Any]:
        flat = source.read(start, size).view(bits)
        array = np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, tensor.shape, strides))
        array.flags.writeable = False
        return array

    return read


def _blocks(array: NDArray[Any]) -> Iterator[NDArray[np.uint8]]:
    flat = array.reshape(-1).view(np.uint8)
    for start in range(0, flat.size, BUFFER_BYTES):
        yield flat[start : start + BUFFER_BYTES]
