"""Between host and device without making either wait.

A copy from or to ordinary memory waits for everything that is queued on the device. From pinned memory it is
queued itself, and torch frees the pinned memory only when the copy is done.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PIECE = 64 << 20  # bytes of a tensor that are converted and pinned at a time while a model is loaded
LEAST_PINNED = 64 << 10  # bytes of the smallest piece that is pinned

Wait = Callable[[], None]  # makes what is queued next wait for a copy


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy on the device, queued behind what is computed there; on the CPU the array's own memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def queue_copy(array: NDArray[Any], target: Tensor) -> None:
    """Copy an array into a tensor of its shape and dtype, behind what is queued on the device."""
    _queue(torch.from_numpy(array), target)


def borrowed(array: NDArray[Any]) -> Tensor:
    """A tensor on the array's own memory; a copy only where it is not aligned or not row by row.

    numpy has no bfloat16: uint16 stands for its bits, as in weights.Stored.
    """
    array = np.require(array, requirements=["C", "A"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor


def placed(array: NDArray[Any], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The array's values on a device; dtype None: its own. On the CPU its own memory, where dtypes agree."""
    if is_host(device):
        return borrowed(array).to(device, dtype)
    if dtype is None:
        dtype = borrowed(array[:1]).dtype
    target = torch.empty(array.shape, dtype=dtype, device=device)
    rows = max(1, PIECE * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), rows):
        piece = borrowed(array[start : start + rows]).to(dtype)
        _queue(piece, target[start : start + rows])
    return target


def is_host(device: torch.device) -> bool:
    """Whether a device computes in the host's own memory."""
    return device.type == "cpu"


def host_buffers(n_bytes: int, device: torch.device) -> list[Tensor]:
    """Host memory, uint8, in pieces one after the other, from which copies to the device are queued."""
    pinned = device.type == "cuda"
    return [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for size in pinned_sizes(n_bytes)]


def pinned_sizes(n_bytes: int) -> list[int]:
    """Powers of two that make up `n_bytes`, the largest first; the last may be larger than what is left.

    torch rounds pinned memory up to a power of two: a third of the whole for a block of the 6B shape.
    """
    n_bytes = -(-n_bytes // LEAST_PINNED) * LEAST_PINNED
    return [1 << i for i in reversed(range(n_bytes.bit_length())) if n_bytes >> i & 1]


class Copies:
    """Copies to a device beside what is computed there, on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, sources: Sequence[Tensor], target: Tensor) -> Wait:
        """Copy host buffers, end to end, to the device once everything that is queued now is done."""
        places = target.split([len(source) for source in sources])
        if self._stream is None:
            for source, place in zip(sources, places, strict=True):
                place.copy_(source)
            return lambda: None
        self._stream.wait_stream(torch.cuda.current_stream(target.device))
        with torch.cuda.stream(self._stream):
            for source, place in zip(sources, places, strict=True):
                place.copy_(source, non_blocking=True)
            done = self._stream.record_event()
        return lambda: torch.cuda.current_stream(target.device).wait_event(done)


class Reading:
    """A copy to the host, queued behind what is computed on the device until now."""

    def __init__(self, tensor: Tensor) -> None:
        on_gpu = tensor.device.type == "cuda"
        self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
        self._host.copy_(tensor, non_blocking=True)
        self._done = torch.cuda.current_stream(tensor.device).record_event() if on_gpu else None

    def result(self) -> Tensor:
        """The copy, once it is there; what was queued after it may still run."""
        if self._done is not None:
            self._done.synchronize()
        return self._host


def _queue(tensor: Tensor, target: Tensor) -> None:
    on_gpu = target.device.type == "cuda"
    target.copy_(tensor.pin_memory() if on_gpu else tensor, non_blocking=on_gpu)
