"""Between host and device without making either wait.

A copy from or to ordinary memory waits for everything that is queued on the device. From pinned memory it is
queued itself, and torch frees the pinned memory only when the copy is done.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def to_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy on the device, queued behind what is computed there; on the CPU the array's own memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def queue_copy(array: NDArray[Any], target: Tensor) -> None:
    """Copy an array into a tensor of its shape and dtype, behind what is queued on the device."""
    tensor = torch.from_numpy(array)
    on_gpu = target.device.type == "cuda"
    target.copy_(tensor.pin_memory() if on_gpu else tensor, non_blocking=on_gpu)


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
