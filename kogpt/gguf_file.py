"""One GGUF file of the Phi layout -> tensors: what `kogpt export gguf` wrote comes back.

Format: github.com/ggml-org/ggml, docs/gguf.md, version 3. Read are the types that KoGPT writes: F32, F16,
BF16, and Q8_0 and Q4_0, blocks of 32 weights with one float16 scale. Model and tokenizer come from the
config.json and the tokenizer.json beside the file, so metadata is stepped over.

Files are taken for hostile: every count and length is held to the bytes that are there.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kogpt.files import damaged
from kogpt.weights import SIZES, OpenFile, Source, WeightsFile, little_endian

NAME = re.compile(r"model\.(F32|F16|BF16|Q8_0|Q4_0)\.gguf")
MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
MAX_HEADER_BYTES = 64 << 20  # a vocabulary of 200,000 with its merges takes 15 MB
MAX_TENSORS = 1 << 16
BLOCK = 32  # weights with one scale
TYPES = {0: "float32", 1: "float16", 30: "bfloat16", 8: "Q8_0", 2: "Q4_0"}  # by their numbers
TYPE_NAMES = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
BLOCK_BYTES = {"Q8_0": 34, "Q4_0": 18}
# Metadata: number of a type -> bytes of its values; strings and arrays have lengths of their own.
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9
# Tensor in the file -> in a Phi: of the whole model, and of a block.
TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.final_layernorm",
    "output": "lm_head",
}
OF_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.dense",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
TENSOR = re.compile(r"(?:blk\.(0|[1-9]\d{0,3})\.)?([a-z_]+)\.(weight|bias)")


def to_name(phi: str) -> str:
    """The name in a GGUF file of a Phi's tensor."""
    module, _, kind = phi.rpartition(".")
    if module.startswith("model.layers."):
        layer, _, rest = module.removeprefix("model.layers.").partition(".")
        own = next(name for name, other in OF_BLOCK.items() if other == rest)
        return f"blk.{layer}.{own}.{kind}"
    return f"{next(name for name, other in TOP.items() if other == module)}.{kind}"


def open_gguf(path: Path, file: IO[bytes]) -> WeightsFile:
    """Check a header against its file; its tensors have a Phi's names, blocks become float32.

    CheckpointError for a file that cannot be what it claims to be.
    """
    n_bytes = os.fstat(file.fileno()).st_size
    header = _Header(path, file.read(min(n_bytes, MAX_HEADER_BYTES)))
    tensors = header.tensors()
    end = -(-header.position // ALIGNMENT) * ALIGNMENT
    weights = WeightsFile(path, file, {}, [("its header", None, end)])
    source, start = OpenFile(path, file.fileno()), end
    for name, dtype, shape, offset in sorted(tensors, key=lambda tensor: tensor[3]):
        begin, size = start + offset, _n_bytes(dtype, shape)
        if not end <= begin < end + ALIGNMENT:
            raise damaged(path, f"{name[:100]!r} begins at {offset:,}, expected {end - start:,}")
        if begin + size > n_bytes:
            raise damaged(
                path, f"{name[:100]!r} would end at byte {begin + size:,}, the file has {n_bytes:,}"
            )
        is_float = dtype not in BLOCK_BYTES
        weights.spans.append(("padding", None, begin - end))
        weights.spans.append((name, dtype if is_float else None, size))
        of_dtype = _floats if is_float else partial(_unpacked, path)
        unpack = partial(of_dtype, partial(source.read, begin, size), dtype, shape)
        weights.tensors[_phi_name(path, name)] = Source(dtype if is_float else "float32", shape, unpack)
        end = begin + size
    if n_bytes - end >= ALIGNMENT:
        raise damaged(path, f"its tensors end at byte {end:,}, the file has {n_bytes:,}")
    weights.spans.append(("padding", None, n_bytes - end))
    return weights


def _floats(read: Callable[[], NDArray[np.uint8]], dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    return read().view(little_endian(dtype)).reshape(shape)


def _unpacked(
    path: Path, read: Callable[[], NDArray[np.uint8]], dtype: str, shape: tuple[int, ...]
) -> NDArray[Any]:
    """Weight = scale x code; Q4_0 has the codes of the first half of a block in the low four bits, less 8."""
    blocks = read().reshape(-1, BLOCK_BYTES[dtype])
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    if not np.isfinite(scales).all():
        raise damaged(path, "it holds NaN or infinite scales")
    if dtype == "Q8_0":
        codes = blocks[:, 2:].view(np.int8).astype(np.float32)
    else:
        packed = blocks[:, 2:]
        codes = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32) - 8
    values = (codes * scales).reshape(shape)
    values.flags.writeable = False
    return values


def _n_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    if dtype in BLOCK_BYTES:
        return math.prod(shape) // BLOCK * BLOCK_BYTES[dtype]
    return math.prod(shape) * SIZES[dtype]


class _Header:
    """The bytes before the tensors, and how far they are read."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path = path
        self._data = data
        self.position = 0

    def tensors(self) -> list[tuple[str, str, tuple[int, ...], int]]:
        """Name, dtype, shape and first byte of each tensor."""
        if self._take(4) != MAGIC:
            raise damaged(self._path, "it does not begin with GGUF")
        if (version := self._number("<I")) != VERSION:
            raise damaged(self._path, f"it is GGUF version {version}, only {VERSION} is read")
        n_tensors, n_values = self._number("<Q"), self._number("<Q")
        if n_tensors > MAX_TENSORS:
            raise damaged(self._path, f"{n_tensors:,} tensors, at most {MAX_TENSORS:,} are read")
        for _ in range(n_values):
            self._string()
            self._step_over(self._number("<I"))
        found = [self._tensor() for _ in range(n_tensors)]
        if len({name for name, *_ in found}) < len(found):
            raise damaged(self._path, "two of its tensors have one name")
        return found

    def _tensor(self) -> tuple[str, str, tuple[int, ...], int]:
        name = self._string()
        n_dimensions = self._number("<I")
        if not 1 <= n_dimensions <= 2:
            raise damaged(self._path, f"{name[:100]!r} has {n_dimensions} dimensions, at most 2 are read")
        shape = tuple(self._number("<Q") for _ in range(n_dimensions))[::-1]
        kind, offset = self._number("<I"), self._number("<Q")
        if kind not in TYPES or (TYPES[kind] in BLOCK_BYTES and (shape[-1] % BLOCK or n_dimensions < 2)):
            raise damaged(self._path, f"{name[:100]!r} has type {kind}; {', '.join(TYPE_NAMES)} are read")
        return name, TYPES[kind], shape, offset

    def _step_over(self, kind: int) -> None:
        """Pass a value of the metadata."""
        if kind in SCALARS:
            self._take(SCALARS[kind])
        elif kind == STRING:
            self._string()
        elif kind == ARRAY:
            element, count = self._number("<I"), self._number("<Q")
            if element in SCALARS:
                self._take(SCALARS[element] * count)
                return
            if element != STRING:
                raise damaged(self._path, f"its metadata has an array of type {element}")
            for _ in range(count):
                self._string()
        else:
            raise damaged(self._path, f"its metadata has a value of type {kind}")

    def _string(self) -> str:
        return self._take(self._number("<Q")).decode("utf-8", "replace")

    def _number(self, kind: str) -> int:
        value: int = struct.unpack(kind, self._take(struct.calcsize(kind)))[0]
        return value

    def _take(self, n_bytes: int) -> bytes:
        if n_bytes > len(self._data) - self.position:
            raise damaged(self._path, "it ends within its header")
        self.position += n_bytes
        return self._data[self.position - n_bytes : self.position]


def _phi_name(path: Path, name: str) -> str:
    match = TENSOR.fullmatch(name)
    modules: Mapping[str, str] = OF_BLOCK if match and match[1] else TOP
    if not match or match[2] not in modules:
        raise damaged(path, f"{name[:100]!r} is no tensor of a Phi")
    layer = f"model.layers.{int(match[1])}." if match[1] else ""
    return f"{layer}{modules[match[2]]}.{match[3]}"
