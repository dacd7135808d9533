"""What computes on a GPU: plain torch, or the kernels of gpu_steps.py where they were measured to be faster.

Products with int8 and int4 weights are the kernels', measured or not: plain torch unpacks a matrix for every
product and reads several times the bytes. Few rows of these formats take the three kernels of a layer too,
which multiply in the same way and are a tenth of the launches. Where the kernels cannot run (no Triton,
nothing that it could compile its driver with, an older GPU) plain torch computes all of it, and one line says
so.
"""

from __future__ import annotations

import importlib.util
import logging
import subprocess
from collections.abc import Mapping, Sequence
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
# Capability of the first cards with the instruction m16n8k16 on tensor cores. Triton's code for older ones
# does without it, and int4 takes twice the shared memory that they have (Triton 3.7, sm_75).
OLDEST = (8, 0)

logger = logging.getLogger(__name__)


Times = Mapping[int, float]  # number of rows -> time of a step


class Choice(NamedTuple):
    """The arithmetic of one device."""

    product: Product  # of quantised matrices
    plan: StepPlan  # of decoding steps


def choose(config: ModelConfig, dtype: str, devices: Sequence[torch.device]) -> Choice:
    """The products and steps of a model with weights in `dtype`, whose stages lie on these devices."""
    if any(device.type != "cuda" for device in devices):
        return Choice(plain_product, NEVER)
    capability = min(torch.cuda.get_device_capability(device) for device in devices)
    found = measured(capability, dtype)
    if found == UNMEASURED:  # nothing of the kernels is used, so nothing is compiled for them
        return Choice(plain_product, NEVER)
    if (hindered := obstacle(capability)) is not None:
        logger.warning(localized(*without_kernels(dtype, hindered)))
        return Choice(plain_product, NEVER)
    from kogpt import gpu_steps, gpu_tiles

    cards = {torch.cuda.get_device_name(device) for device in devices}
    tiles = gpu_tiles.load(cards.pop()) if len(cards) == 1 else gpu_tiles.Tiles()
    kernels = gpu_steps.GpuSteps(config, tiles)
    if not gpu_steps.fits(config, dtype):
        return Choice(kernels.product, NEVER)
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


class Obstacle(NamedTuple):
    """Why kernels cannot run, and what helps beside another --dtype; each in English and Korean."""

    reason: tuple[str, str]
    remedies: Sequence[tuple[str, str]] = ()


NO_TRITON = Obstacle(
    ("Triton is not installed", "Triton이 설치되어 있지 않음"),
    [("pip install 'kogpt[triton]'", "pip install 'kogpt[triton]'으로 설치하세요")],
)
COMPILER = (
    "install a C compiler and Python's headers (apt install gcc python3-dev)",
    "C 컴파일러와 Python 헤더를 설치하세요(apt install gcc python3-dev)",
)
OTHER_DTYPE = ("choose --dtype float16", "--dtype float16을 지정하세요")


def obstacle(capability: tuple[int, int]) -> Obstacle | None:
    """The reason why kernels cannot run on GPUs of at least this compute capability; None if they can."""
    if capability < OLDEST:
        own, oldest = (f"{major}.{minor}" for major, minor in (capability, OLDEST))
        en = f"the kernels need a GPU of compute capability {oldest}, this one has {own}"
        return Obstacle((en, f"커널에 필요한 compute capability는 {oldest}, 이 GPU는 {own}"))
    if not has_triton():
        return NO_TRITON
    if (fault := driver_fault()) is not None:
        return Obstacle((f"Triton cannot compile: {fault}", f"Triton 컴파일 실패: {fault}"), [COMPILER])
    return None


def driver_fault() -> str | None:
    """The reason why Triton has no driver, which it compiles at its first use; None if it has one."""
    try:
        import triton

        triton.runtime.driver.active.get_current_target()
    except (ImportError, OSError, RuntimeError, AssertionError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}".partition("\n")[0][:200]
    return None


def without_kernels(dtype: str, found: Obstacle) -> tuple[str, str]:
    """The line about plain torch instead of the kernels; English and Korean."""
    times, times_ko = ("several times ", "몇 배 ") if dtype in FORMATS else ("", "더 ")
    remedies = [*found.remedies, *([OTHER_DTYPE] if dtype in FORMATS else [])]
    reason, reason_ko = found.reason
    return (
        f"computing {dtype} in plain torch, which is {times}slower ({reason}): "
        + ", or ".join(en for en, _ in remedies),
        f"{dtype} 모델을 {times_ko}느린 torch로 계산합니다({reason_ko}). "
        + ". 아니면 ".join(ko for _, ko in remedies),
    )
