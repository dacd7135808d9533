"""Shapes and random weights for the GPU benchmarks: floats, or codes that nobody has to round."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kogpt.cli import speed
from kogpt.cli.bench import SHAPES, shape_config
from kogpt.config import ModelConfig
from kogpt.quantize import FORMATS, Lazy, Quantized, matrices, parts
from kogpt.weights import Stored

NAMES = ("tiny", *SHAPES)
# For a dry run of the benchmarks where there is no GPU, the kernels in Triton's interpreter.
TINY = ModelConfig(n_layers=1, n_heads=2, d_model=32, d_ff=64, n_vocab=48, n_ctx=64, rotary_dim=8)
DEVIATION = {"int8": 73.0, "int4": 40.0}  # standard deviation of the integers that random codes decode to
WEIGHT = 0.02  # deviation of the weights


def named_shape(name: str) -> ModelConfig:
    """The dimensions behind --shape."""
    return TINY if name == "tiny" else shape_config(name)


def random_weights(config: ModelConfig, dtype: str) -> Mapping[str, Stored | Quantized]:
    """Tensors that TorchRunner takes in `dtype`; each is made when it is asked for."""
    floats = speed.random_tensors(config, "int8")  # views: they take no memory
    return RandomCodes(config, floats, dtype) if dtype in FORMATS else floats


class RandomCodes(Lazy[Stored | Quantized]):
    """A quantised model of random bytes: rounding the 6B shape would take a minute."""

    def __init__(self, config: ModelConfig, floats: Mapping[str, Stored], dtype: str) -> None:
        self._matrices = matrices(config)
        super().__init__((*config.tensor_shapes(), *self._matrices))
        self._floats = floats
        self._dtype = dtype
        self._noise = np.random.default_rng(0).integers(1, 256, speed.NOISE, np.uint8)  # 0 - 128 is no code

    def __getitem__(self, name: str) -> Stored | Quantized:
        if name not in self._matrices:
            return self._floats[name]
        shape = self._matrices[name]
        found = {}
        for part, (kind, size) in parts(name, self._dtype, shape).items():
            if kind == "float32":
                array = np.full(size, WEIGHT / DEVIATION[self._dtype], np.float32)
            else:
                array = (np.resize(self._noise, size) - (kind == "int8") * np.uint8(128)).view(kind)
            found[part] = Stored(kind, array)
        return Quantized.of_parts(name, self._dtype, shape, found)
