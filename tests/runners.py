"""Every runner in every precision, for the suites that run over all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kogpt.checkpoint import Stored
from kogpt.config import ModelConfig
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


def stored(array: NDArray[Any], dtype: str = "float32") -> Stored:
    """An array as a checkpoint would hold it: rounded to `dtype` and read-only."""
    rounded = Stored("float32", array).to(dtype).view()
    rounded.flags.writeable = False
    return Stored(dtype, rounded)
