"""What computes on a GPU: plain torch, or the kernels of gpu_steps.py where they were measured to be faster.

Products with int8 and int4 weights are the kernels' on every GPU: plain torch unpacks a matrix for every
product and reads several times the bytes. Without Triton it does so all the same, and one line says it.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from typing import NamedTuple

import torch

from kogpt.config import ModelConfig
from kogpt.errors import localized
from kogpt.quantize import FORMATS
from kogpt.torch_linear import Product, plain_product
from kogpt.torch_pass import PLAIN, StepPlan

# Compute capability and dtype of the weights -> rows up to which a step by the kernels took less time than
# one in plain torch. bench/gpu.py prints the lines of a card; none was measured yet.
MEASURED: Mapping[tuple[tuple[int, int], str], int] = {}

NEVER = StepPlan(PLAIN, 0)

logger = logging.getLogger(__name__)


class Choice(NamedTuple):
    """The arithmetic of one device."""

    product: Product  # of quantised matrices
    plan: StepPlan  # of decoding steps


def choose(config: ModelConfig, dtype: str, device: torch.device) -> Choice:
    """What computes a model with weights in `dtype` on a device."""
    if device.type != "cuda":
        return Choice(plain_product, NEVER)
    if not has_triton():
        if dtype in FORMATS:
            logger.warning(localized(*without_triton(dtype)))
        return Choice(plain_product, NEVER)
    from kogpt import gpu_steps, gpu_tiles

    kernels = gpu_steps.GpuSteps(config, gpu_tiles.load(torch.cuda.get_device_name(device)))
    rows = kernel_rows(torch.cuda.get_device_capability(device), dtype)
    if not gpu_steps.fits(config):
        rows = 0
    return Choice(kernels.product, StepPlan(kernels.steps(), rows))


def kernel_rows(capability: tuple[int, int], dtype: str) -> int:
    """Rows up to which steps take the kernels: 0 where no card of this capability was measured."""
    return MEASURED.get((capability, dtype), 0)


def faster_rows(kernels: Mapping[int, float], plain: Mapping[int, float]) -> int:
    """The entry of MEASURED for times of a step by its number of rows: how far the kernels never lose."""
    rows = 0
    for n in sorted(kernels.keys() & plain.keys()):
        if kernels[n] >= plain[n]:
            break
        rows = n
    return rows


def has_triton() -> bool:
    """Whether the kernels can be compiled here; CUDA builds of torch for Linux bring Triton along."""
    return importlib.util.find_spec("triton") is not None


def without_triton(dtype: str) -> tuple[str, str]:
    """The line about plain torch instead of the kernels; English and Korean."""
    return (
        f"computing {dtype} in plain torch, which is several times slower: Triton is not installed; "
        "pip install 'kogpt[triton]', or choose --dtype float16",
        f"Triton이 설치되어 있지 않아 {dtype} 곱셈을 몇 배 느린 torch로 계산합니다. "
        "pip install 'kogpt[triton]'으로 설치하거나 --dtype float16을 지정하세요",
    )
