"""What computes on a GPU: plain torch, or the kernels of gpu_steps.py where they were measured to be faster.

Products with int8 and int4 weights are the kernels' on every GPU: plain torch unpacks a matrix for every
product and reads several times the bytes. Few rows of these formats take the three kernels of a layer too,
which multiply in the same way and are a tenth of the launches. Without Triton plain torch computes all of
it, and one line says so.
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


class Measured(NamedTuple):
    """How the steps of a card compare."""

    kernels: int  # rows up to which three kernels a layer took less time than the other steps
    paged: bool = False  # whether more rows are faster where a kernel attends through the block table


# Compute capability and dtype of the weights -> what was measured; bench/gpu.py prints the lines of a card.
# H200, 6b, 1, 8 and 64 rows (bench/results/gpu_h200_20261127.md); int8 and int4 by kernels that were replaced
# since, and are to be measured again.
MEASURED: Mapping[tuple[tuple[int, int], str], Measured] = {
    ((9, 0), "float16"): Measured(kernels=8, paged=True),
    ((9, 0), "int8"): Measured(kernels=8, paged=True),
    ((9, 0), "int4"): Measured(kernels=64, paged=False),
}
QUANTISED = Measured(kernels=16)  # int8 and int4 where no card was measured: what one tile of rows holds
UNMEASURED = Measured(kernels=0)

NEVER = StepPlan(PLAIN, 0, PLAIN)

logger = logging.getLogger(__name__)


Times = Mapping[int, float]  # number of rows -> time of a step


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
    if not gpu_steps.fits(config, dtype):
        return Choice(kernels.product, NEVER)
    found = measured(torch.cuda.get_device_capability(device), dtype)
    many = kernels.paged_steps() if found.paged else PLAIN
    return Choice(kernels.product, StepPlan(kernels.steps(), found.kernels, many))


def measured(capability: tuple[int, int], dtype: str) -> Measured:
    """The entry of MEASURED for a card, or the rule for cards that nobody measured."""
    return MEASURED.get((capability, dtype), QUANTISED if dtype in FORMATS else UNMEASURED)


def compare(kernels: Times, paged: Times, plain: Times) -> Measured:
    """The entry of MEASURED for times of a step by its number of rows.

    The kernels reach as far as they never lose; paged steps are taken above if the most rows gain by them.
    """
    rows = 0
    for n in sorted(kernels.keys() & plain.keys()):
        if kernels[n] >= min(plain[n], paged.get(n, plain[n])):
            break
        rows = n
    both = [n for n in paged.keys() & plain.keys() if n > rows]
    return Measured(rows, bool(both) and paged[max(both)] < plain[max(both)])


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
