"""What this machine has, asked without importing torch."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass

QUERY = ("--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    total_bytes: int
    free_bytes: int


def gpus() -> list[Gpu]:
    """The GPUs that the driver reports; none where there is no driver, or it does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    answer = subprocess.run([program, *QUERY], capture_output=True, text=True, check=False)
    if answer.returncode:
        return []
    rows = [line.rsplit(",", 2) for line in answer.stdout.splitlines()]
    return [
        Gpu(name.strip(), int(total) * MIB, int(free) * MIB)
        for name, total, free in rows
        if total.strip().isdecimal() and free.strip().isdecimal()  # else [N/A], as on unified memory
    ]
