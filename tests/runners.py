"""Every runner in every precision, for the suites that run over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kogpt import memory, native_runner, numpy_runner, torch_cache, torch_weights
from kogpt.checkpoint import Stored
from kogpt.config import ModelConfig
from kogpt.native_runner import NativeRunner
from kogpt.numpy_runner import NumpyRunner
from kogpt.runner import Runner
from kogpt.torch_runner import TorchRunner


@dataclass(frozen=True, slots=True)
class Kind:
    """A runner class in one precision, and how far its logits may be from those of float64."""

    runner: Callable[[ModelConfig, Mapping[str, Stored], str], Runner]
    dtype: str
    tolerance: float

    def make(self, config: ModelConfig, tensors: Mapping[str, NDArray[np.float32]]) -> Runner:
        return self.runner(config, {name: stored(array) for name, array in tensors.items()}, self.dtype)


KINDS = {
    "numpy-float64": Kind(NumpyRunner, "float64", 1e-12),
    "numpy-float32": Kind(NumpyRunner, "float32", 2e-5),
    "torch-float64": Kind(TorchRunner, "float64", 1e-12),
    "torch-float32": Kind(TorchRunner, "float32", 2e-5),
    "torch-float16": Kind(TorchRunner, "float16", 0.012),
    "torch-bfloat16": Kind(TorchRunner, "bfloat16", 0.1),
}

if torch.cuda.is_available():
    on_gpu = partial(TorchRunner, device="cuda")
    KINDS |= {
        "cuda-float64": Kind(on_gpu, "float64", 1e-11),
        "cuda-float32": Kind(on_gpu, "float32", 1e-4),
        "cuda-float16": Kind(on_gpu, "float16", 0.02),
        "cuda-bfloat16": Kind(on_gpu, "bfloat16", 0.15),
    }

if native_runner.available():
    KINDS |= {
        "native-float32": Kind(NativeRunner, "float32", 2e-5),
        "native-float16": Kind(NativeRunner, "float16", 0.03),
        "native-bfloat16": Kind(NativeRunner, "bfloat16", 0.1),
        "native-int8": Kind(NativeRunner, "int8", 0.2),
        "torch-int8": Kind(TorchRunner, "int8", 0.2),
    }


def stored(array: NDArray[Any], dtype: str = "float32") -> Stored:
    """An array as a checkpoint would hold it: rounded to `dtype` and read-only."""
    rounded = Stored("float32", array).to(dtype).view()
    rounded.flags.writeable = False
    return Stored(dtype, rounded)


def pretend_free(monkeypatch: pytest.MonkeyPatch, free: Callable[[torch.device | None], int]) -> None:
    """Make the runners believe that so many bytes are free on a device, or without one in RAM."""
    for module in (memory, numpy_runner):
        monkeypatch.setattr(module, "available_memory", lambda: free(None))
    for module in (torch_cache, torch_weights):
        monkeypatch.setattr(module, "free_bytes", free)
