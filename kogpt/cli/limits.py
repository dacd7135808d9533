"""What the machine can do at most: how fast it reads memory, how fast it multiplies matrices.

Measured with numpy, and with torch where that is installed. Knows no models: speed.py measures one beside
these, and bench/peers other engines.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 2048  # of the matrices: 17 GFLOP a product, 12 to 48 MB in all
MAX_READ = 1 << 30  # bytes; more tells nothing new


def read_bandwidth(n_bytes: int, threads: int) -> float:
    """Bytes per second of one sequential read of `n_bytes` (MAX_READ at most) from memory by `threads`.

    A sum of int64 is one load and one addition per 8 bytes: memory is what it waits for. As large as the
    weights that it is compared with, because a last-level cache may hold part of either.
    """
    words, pool = _words(min(n_bytes, MAX_READ) // 8), _pool(threads)
    pieces = np.array_split(words, threads)
    started = time.perf_counter()
    list(pool.map(np.sum, pieces))
    return words.nbytes / (time.perf_counter() - started)


def matrix_speed(dtype: str, threads: int) -> float | None:
    """Operations per second of one product of two SIZE x SIZE matrices; None where nothing at hand can do it.

    float32 by numpy, whose BLAS takes its number of threads from OPENBLAS_NUM_THREADS or OMP_NUM_THREADS when
    numpy is imported; bfloat16 by torch.
    """
    if dtype == "float32":
        product = _numpy_product()
    elif importlib.util.find_spec("torch") is not None:
        product = _torch_product(dtype, "cpu", threads)
    else:
        return None
    return _speed(product)


def gpu_read_bandwidth(n_bytes: int, device: str) -> float:
    """As `read_bandwidth`, of a GPU's own memory; torch sums int32 as int64, at a fifth of that speed."""
    import torch

    words = torch.ones(min(n_bytes, MAX_READ) // 8, dtype=torch.int64, device=device)
    words.sum().item()
    started = time.perf_counter()
    words.sum().item()
    return words.nbytes / (time.perf_counter() - started)


def gpu_matrix_speed(dtype: str, device: str) -> float:
    """As `matrix_speed`, on a GPU."""
    return _speed(_torch_product(dtype, device, 1))


def peak_memory() -> int | None:
    """The most memory that this process has had in RAM, in bytes, mapped files included; None if unknown.

    Linux counts it per program (VmHWM); getrusage's figure would begin with that of whoever started us.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    for line in status.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def _speed(product: Callable[[], Any]) -> float:
    started = time.perf_counter()
    product()
    return 2 * SIZE**3 / (time.perf_counter() - started)


@cache
def _words(n: int) -> NDArray[np.int64]:
    return np.ones(n, np.int64)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


@cache
def _numpy_product() -> Callable[[], Any]:
    a, out = np.ones((SIZE, SIZE), np.float32), np.empty((SIZE, SIZE), np.float32)
    np.matmul(a, a, out=out)  # starts the threads
    return lambda: np.matmul(a, a, out=out)


@cache
def _torch_product(dtype: str, device: str, threads: int) -> Callable[[], Any]:
    import torch

    if device == "cpu":
        torch.set_num_threads(threads)
    a = torch.ones((SIZE, SIZE), dtype=getattr(torch, dtype), device=device)

    def product() -> Any:
        # Weights (N, K) as in a layer: torch has no fast loop for others where bfloat16 is imitated.
        return (a @ a.T)[0, 0].item()  # .item() waits for the device

    product()
    return product
