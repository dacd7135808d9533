"""Floats to int8 and int4 by rounding to nearest, with searched group scales: needs no data."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from kogpt.config import ModelConfig
from kogpt.errors import KoGPTError
from kogpt.memory import usable_cpus
from kogpt.native_runner import FORMATS, isa, library, require_memory_ok
from kogpt.quantize import EMBEDDING, Lazy, Quantized, matrices, parts
from kogpt.weights import Stored


class Rounded(Lazy[Stored | Quantized]):
    """A model's tensors with every matrix in int8 or int4, each rounded when it is asked for."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Stored], dtype: str) -> None:
        self._tensors = tensors
        self._dtype = dtype
        self._matrices = matrices(config)
        super().__init__((*config.tensor_shapes(), *self._matrices))

    def __getitem__(self, name: str) -> Stored | Quantized:
        if name not in self._matrices:
            return self._tensors[name]
        tensor = self._tensors[name if name in self._tensors else EMBEDDING]  # a tied head
        return nearest(tensor, self._dtype)


def nearest(tensor: Stored, dtype: str, importance: NDArray[np.float32] | None = None) -> Quantized:
    """Round a matrix (N, K) to nearest; importance (K,): the weight of an error on each input (int4)."""
    assert dtype in ("int8", "int4") and tensor.array.ndim == 2, (dtype, tensor.array.shape)
    n, k = tensor.array.shape
    source = tensor if tensor.dtype in FORMATS else Stored("float32", tensor.to("float32"))
    array = np.require(source.array, requirements=("C", "A"))
    arrays = [np.empty(shape, kind) for kind, shape in parts("", dtype, (n, k)).values()]
    codes, scales, groups = arrays[0][0], arrays[-1], arrays[1] if dtype == "int4" else None
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    arguments = (FORMATS[source.dtype], array.ctypes.data, n, k, _address(weights), FORMATS[dtype])
    outputs = (codes.ctypes.data, _address(groups), scales.ctypes.data)
    require_memory_ok(kernels().kogpt_quantize(usable_cpus(), *arguments, *outputs))
    return Quantized(dtype, (n, k), codes, groups, scales)


def kernels() -> ctypes.CDLL:
    """The native library; KoGPTError where it was not built, or KOGPT_ISA names one that this CPU lacks."""
    loaded = library()
    if loaded is None:
        raise KoGPTError(
            "quantising needs the native kernels, which were not built: install a C++ compiler, then KoGPT",
            "네이티브 커널이 빌드되지 않아 양자화할 수 없습니다. C++ 컴파일러를 설치하고 다시 설치하세요",
        )
    isa()
    return loaded


def _address(array: NDArray[np.float32] | NDArray[np.uint8] | None) -> int | None:
    return None if array is None else array.ctypes.data
