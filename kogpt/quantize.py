"""int8 and int4 weights as files hold them, row by row: codes and scales, and back to floats.

int8    weight = scale of its output x code; 8 bits a weight, codes -127 to 127
int4    weight = scale of its output x entry(group scale, code); 4.25 bits a weight. 32 inputs share a group
        scale of one byte: entry = CODEBOOK[code] x (group scale & 127) / 127, rounded, and with its sign
        turned where the group scale is 128 or more

A file holds no layout of one processor's kernels: the fastest layout changes with every kernel, and a folder
must outlive that. Tiles are made when a model is loaded, at the speed
of memory, and into huge pages.

A matrix NAME (N, K) lies in a safetensors file as

    NAME          int8: I8 (1, N, K); int4: U8 (1, N, ceil(K / 2)), the even input in the low four bits
    NAME.groups   int4: U8 (N, ceil(K / 32))
    NAME.scales   F32 (N,)

The first has three dimensions so that a program which takes it for the weights stops at its shape, as
transformers does. The manifest says that a folder is quantised, and how; nothing is guessed from names.
Every projection is quantised; the embedding keeps 16 bits, vectors have float32. A head that is tied to the
embedding is stored once more, as `lm_head.weight`.

Knows nothing of files and rounding: checkpoint.py, rounding.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from kogpt.config import ModelConfig
from kogpt.errors import CheckpointError, KoGPTError
from kogpt.weights import Scratch, Stored

FORMATS = ("int8", "int4")
VERSION = 1
GROUP = 32
CODEBOOK = (-127, -100, -79, -62, -47, -34, -21, -9, 2, 14, 25, 37, 50, 65, 83, 107)  # native/codebook.h
EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"
ROWS_BYTES = 1 << 22  # float32 bytes unpacked at a time

Part = tuple[str, tuple[int, ...]]  # dtype and shape of a tensor in a file


@dataclass(frozen=True, slots=True)
class Quantized:
    """A matrix (N, K) in int8 or int4; the module's docstring says what the arrays mean."""

    dtype: str  # "int8" or "int4"
    shape: tuple[int, int]
    codes: NDArray[Any]  # int8 (N, K), or uint8 (N, ceil(K / 2))
    groups: NDArray[np.uint8] | None  # int4: (N, ceil(K / 32))
    scales: NDArray[np.float32]  # (N,)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.groups is None else self.groups.nbytes)

    def rows(self, first: int, end: int) -> Self:
        """Rows first..end, without unpacking them."""
        groups = None if self.groups is None else self.groups[first:end]
        shape = (min(end, self.shape[0]) - first, self.shape[1])
        return replace(
            self, shape=shape, codes=self.codes[first:end], groups=groups, scales=self.scales[first:end]
        )

    def to(self, dtype: str) -> NDArray[Any]:
        """The weights as floats in `dtype`, as Stored.to gives them."""
        return Stored("float32", self.unpack()).to(dtype)

    def unpack(self) -> NDArray[np.float32]:
        """The weights that the codes stand for, (N, K) float32."""
        values = np.empty(self.shape, np.float32)
        step = max(1, ROWS_BYTES // (4 * self.shape[1]))
        for start in range(0, len(values), step):
            rows = slice(start, start + step)
            np.multiply(self._integers(rows), self.scales[rows, None], out=values[rows])
        return values

    def _integers(self, rows: slice) -> NDArray[np.int8]:
        if self.groups is None:
            integers: NDArray[np.int8] = self.codes[rows]
            return integers
        pairs, groups = self.codes[rows], self.groups[rows]
        codes = np.zeros((len(pairs), groups.shape[1] * GROUP), np.uint8)
        codes[:, 0 : 2 * pairs.shape[1] : 2] = pairs & 15
        codes[:, 1 : 2 * pairs.shape[1] : 2] = pairs >> 4
        entries = table()[groups[:, :, None], codes.reshape(len(pairs), -1, GROUP)]
        return entries.reshape(codes.shape)[:, : self.shape[1]]

    @classmethod
    def of_parts(cls, name: str, dtype: str, shape: tuple[int, int], found: Mapping[str, Stored]) -> Self:
        """The matrix `name` from the tensors of a file; their dtypes and shapes are those of `parts`."""
        groups = found[f"{name}.groups"].array if dtype == "int4" else None
        scales = np.require(found[f"{name}.scales"].to("float32"), requirements=("C", "A"))
        return cls(dtype, shape, found[name].array[0], groups, scales)

    def parts(self, name: str) -> dict[str, Stored]:
        """The tensors of a file that hold the matrix `name`, in the file's order."""
        arrays = {name: self.codes[None], f"{name}.scales": self.scales}
        if self.groups is not None:
            arrays[f"{name}.groups"] = self.groups
        return {
            part: Stored(arrays[part].dtype.name, arrays[part])
            for part in parts(name, self.dtype, self.shape)
        }


Tensor = TypeVar("Tensor", covariant=True)


class Lazy(Mapping[str, Tensor]):
    """Tensors under fixed names; a subclass makes each when it is asked for."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict.fromkeys(names)  # in order, and found at once

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def passing(self, name: str, scratch: Scratch) -> Tensor:
        """A tensor that may lie in `scratch`."""
        return self[name]


class Floats(Lazy[Stored]):
    """A quantised model's tensors as floats, each unpacked when it is asked for."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Stored | Quantized]) -> None:
        super().__init__(config.tensor_shapes())
        self._tensors = tensors

    def __getitem__(self, name: str) -> Stored:
        tensor = self._tensors[name]
        return tensor if isinstance(tensor, Stored) else Stored("float32", tensor.unpack())


def table() -> NDArray[np.int8]:
    """(256, 16): the integer of each group scale and code."""
    sizes = np.arange(256)
    products = np.array(CODEBOOK) * (sizes & 127)[:, None] / 127
    entries: NDArray[np.int8] = np.rint(np.where(sizes[:, None] < 128, products, -products)).astype(np.int8)
    return entries


def parts(name: str, dtype: str, shape: tuple[int, int]) -> dict[str, Part]:
    """Dtype and shape of each tensor of a file that holds the matrix `name`."""
    n, k = shape
    if dtype == "int8":
        return {name: ("int8", (1, n, k)), f"{name}.scales": ("float32", (n,))}
    return {
        name: ("uint8", (1, n, -(-k // 2))),
        f"{name}.groups": ("uint8", (n, -(-k // GROUP))),
        f"{name}.scales": ("float32", (n,)),
    }


def matrices(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Name and shape of every matrix that a quantised folder quantises: all but the embedding."""
    shapes = {name: shape for name, shape in config.tensor_shapes().items() if len(shape) == 2}
    embedding = shapes.pop(EMBEDDING)
    shapes.setdefault(HEAD, embedding)
    return {name: (shape[0], shape[1]) for name, shape in shapes.items()}


def statement(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The manifest's entry about quantised weights."""
    facts: dict[str, Any] = {"format": dtype, "version": VERSION}
    if dtype == "int4":
        facts |= {"group_size": GROUP, "codebook": list(CODEBOOK)}
    return facts | {"tensors": list(matrices(config))}


def read_statement(document: Any, config: ModelConfig, where: str) -> str | None:
    """The format that a manifest states, None for floats; CheckpointError if it cannot be read here."""
    if document is None:
        return None
    facts = document if type(document) is dict else {}
    dtype = facts.get("format")
    if dtype not in FORMATS or facts.get("version") != VERSION:
        shown = f"{dtype!r} {facts.get('version')!r}"[:80]
        raise CheckpointError(
            f"{where} states quantised weights of format and version {shown}, this KoGPT reads "
            f"{' and '.join(FORMATS)} of version {VERSION}: upgrade kogpt",
            f"{where}: 양자화 형식과 버전이 {shown}입니다 (지원: {', '.join(FORMATS)}, 버전 {VERSION}). "
            "kogpt를 업그레이드하세요",
        )
    expected = statement(config, dtype)
    for key in expected.keys() | facts.keys():
        if facts.get(key) != expected.get(key):
            shown = str(facts.get(key))[:80]
            raise CheckpointError(
                f"{where} states quantised weights with {key[:40]!r} = {shown}, not what {dtype} of this "
                "model has: get the folder again, or export it again",
                f"{where}: 양자화 항목 {key[:40]!r}의 값이 이 모델의 {dtype} 형식과 다릅니다: {shown}. "
                "폴더를 다시 받거나 다시 내보내세요",
            )
    return str(dtype)


def wrong_dtype(stored: str, wanted: str) -> KoGPTError:
    """The error for quantising quantised weights again."""
    return KoGPTError(
        f"the model is stored in {stored} and cannot become {wanted}, which would round it twice: use "
        "--dtype auto, a float format, or the model that it was exported from",
        f"모델이 {stored} 형식으로 저장되어 있어 {wanted} 형식으로 다시 양자화하지 않습니다. --dtype auto나 "
        "실수 형식을 쓰거나, 내보내기 전의 원래 모델을 쓰세요",
    )
