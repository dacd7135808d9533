"""The processes that train together, one or as many as torchrun started; each holds a share of weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from kogpt.errors import ConfigError

CPU = torch.device("cpu")

# Name of a parameter, first row, end -> those rows.
ReadRows = Callable[[str, int, int], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among its peers."""

    device: torch.device = CPU
    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Iterable[float]) -> list[float]:
        """Each value summed over the processes, in float64; a process alone does not wait for its GPU."""
        if self.count == 1:
            return [float(value) for value in values]
        total = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def send(self, values: NDArray[Any]) -> torch.Tensor:
        """A tensor on the device. What comes from pinned memory does not wait for the GPU's queue."""
        tensor = torch.from_numpy(values)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def wait(self) -> None:
        """Block until every process calls this."""
        if self.count > 1:
            dist.barrier()

    def distribute(
        self, objective: nn.Module, blocks: Iterable[nn.Module], gathered: torch.dtype | None = None
    ) -> None:
        """Move to the device; with peers, shard every weight and gather it block by block (FSDP2).

        gathered: dtype in which weights travel; None: their own. Shards, and the means of their gradients
        over the processes, stay float32. Parameters and buffers on the meta device get memory without values:
        call `fill`.
        """
        real = {
            name: value.detach().clone() for name, value in objective.named_parameters() if not value.is_meta
        }
        if self.count > 1:
            mesh = init_device_mesh(self.device.type, (self.count,))
            # Inputs keep their dtype: the residual stream is float32; autocast casts what products read.
            policy = MixedPrecisionPolicy(gathered, torch.float32, cast_forward_inputs=False)
            for module in [*blocks, objective]:
                fully_shard(module, mesh=mesh, mp_policy=policy)
        if len(real) == len(list(objective.parameters())):
            objective.to(self.device)
            return
        objective.to_empty(device=self.device)  # also forgets the values of what was not on the meta device
        for name, value in real.items():
            self.set_value(objective.get_parameter(name), value)

    def gather_in(self, objective: nn.Module, methods: Iterable[str]) -> None:
        """Let these methods gather the shards as `forward` does; for an objective that is distributed."""
        if self.count > 1:
            for name in methods:
                register_fsdp_forward_method(objective, name)

    def let_go(self, objective: nn.Module) -> None:
        """Put the shards back in place of the outer weights, which stay gathered after a forward pass."""
        if isinstance(objective, FSDPModule):
            objective.reshard()

    def fill(self, module: nn.Module, read: ReadRows) -> None:
        """Set the rows of every parameter that this process holds, one parameter after the other."""
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                mine, first = self._held(parameter)
                if len(mine):
                    values = np.require(read(name, first, first + len(mine)), requirements="W")
                    mine.copy_(torch.from_numpy(values))

    @torch.no_grad()
    def set_value(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        """Set the rows of one parameter that this process holds; value: all rows."""
        mine, first = self._held(parameter)
        mine.copy_(value[first : first + len(mine)])

    def _held(self, parameter: nn.Parameter) -> tuple[torch.Tensor, int]:
        """The rows of a parameter that this process holds, and the number of the first."""
        if not isinstance(parameter, DTensor):
            return parameter.data, 0
        return parameter.to_local(), self.rank * -(-len(parameter) // self.count)  # the split of torch.chunk


@contextmanager
def join(device: str | None = None) -> Iterator[Processes]:
    """Join the process group that torchrun's environment variables describe, and leave it at the end.

    device: "cpu" or "cuda"; None: cuda where torch sees a GPU. ConfigError for cuda without a GPU.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "--device cuda: torch sees no GPU here; use --device cpu, or install torch with CUDA",
            "--device cuda: torch가 GPU를 찾지 못했습니다. --device cpu를 쓰거나 CUDA용 torch를 설치하세요",
        )
    here = (
        torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)
    )
    if here.type == "cuda":
        torch.cuda.set_device(here)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes(here)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo")
    try:
        yield Processes(here, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
