"""The processes that train together: one alone, or as many as torchrun started, sharing the weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Workers:
    """This process among its peers."""

    device: torch.device = CPU
    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Iterable[float]) -> list[float]:
        """Each value summed over the processes, in float64."""
        total = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        if self.count > 1:
            dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            dist.barrier()

    def distribute(self, objective: nn.Module, blocks: Iterable[nn.Module]) -> None:
        """Move to the device; with peers, keep a share of every weight and gather block by block (FSDP2).

        Gradients are then means over the processes.
        """
        objective.to(self.device)
        if self.count == 1:
            return
        mesh = init_device_mesh(self.device.type, (self.count,))
        for module in [*blocks, objective]:
            fully_shard(module, mesh=mesh)


@contextmanager
def join(device: str | None = None) -> Iterator[Workers]:
    """Meet the processes that torchrun's environment variables name, and part at the end."""
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    here = (
        torch.device(kind, int(os.environ.get("LOCAL_RANK", "0"))) if kind == "cuda" else torch.device(kind)
    )
    if here.type == "cuda":
        torch.cuda.set_device(here)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Workers(here)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if here.type == "cuda" else "gloo")
    try:
        yield Workers(here, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
