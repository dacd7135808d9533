"""How much memory and how many processors this process may use, and the refusal to take more memory.

Knows no model: callers say how many bytes they are about to allocate, and for what.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from kogpt.errors import NotEnoughMemory

# The rest stays free for the allocator, temporaries of one layer, and all else that runs on the machine.
USABLE_SHARE = 0.9
UNITS = ((1e9, 1, "GB"), (1e6, 0, "MB"), (1e3, 0, "kB"))
M_MMAP_THRESHOLD = -3  # number of the option in malloc.h, for mallopt(3)
RETURNED = 1 << 20  # bytes; larger blocks bypass malloc's heap
CGROUP = Path("/sys/fs/cgroup")  # of a container: its own cgroup, version 2
# Remedies of a program that reads and writes texts, in English and Korean.
REMEDIES = (
    "choose a smaller --dtype or model, or run fewer or shorter texts at once",
    "더 작은 --dtype 또는 모델을 쓰거나, 더 적고 짧은 글을 한 번에 처리하세요",
)


def available_memory() -> int | None:
    """Bytes that can still be allocated without swapping; None where the system does not say.

    The smallest of three limits: the machine's memory (page cache counts as free), the container's (cgroup
    v2) and the process's (RLIMIT_AS, RLIMIT_DATA).
    """
    if sys.platform != "linux":
        return None
    return min([_machine_bytes(), *_container_bytes(), *_process_bytes()])


def require_memory(
    n_bytes: int,
    what_en: str,
    what_ko: str,
    available: int | None = None,
    remedies: tuple[str, str] = REMEDIES,
) -> None:
    """Raise NotEnoughMemory if `n_bytes` for `what` do not fit; `available` is of this machine if None.

    remedies: what else to do than to close other programs, in English and Korean.
    """
    if available is None:
        available = available_memory()
    if available is None or n_bytes <= USABLE_SHARE * available:
        return
    need, free = amount(n_bytes), amount(available)
    remedy, remedy_ko = remedies
    raise NotEnoughMemory(
        f"not enough memory: {what_en} needs {need}, {free} is free: close other programs, {remedy}",
        f"메모리가 부족합니다: {what_ko}에 {need}가 필요하지만 {free}만 남아 있습니다. "
        f"다른 프로그램을 닫거나, {remedy_ko}",
    )


def return_freed_blocks() -> None:
    """Let malloc give blocks of RETURNED bytes and more back to the system as soon as they are freed.

    glibc keeps those below 32 MiB for later use, in holes that add up to more than what lives. New pages
    cost time, so this is for work that asks for little memory. Does nothing where libc has no mallopt(3).
    """
    if sys.platform == "linux":
        from ctypes import CDLL

        libc = CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(M_MMAP_THRESHOLD, RETURNED)


def usable_cpus() -> int:
    """Processors that this process may run on, no more than its container may keep busy (cgroup v2)."""
    n = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = CGROUP / "cpu.max"
    limit, period = quota.read_text(encoding="ascii").split() if quota.exists() else ("max", "1")
    return n if limit == "max" else min(n, max(1, -(-int(limit) // int(period))))


def amount(n_bytes: int) -> str:
    """Bytes as text, in the largest unit that fits: 6.5 GB, 30 MB."""
    unit, digits, name = next(unit for unit in UNITS if n_bytes >= unit[0] or unit is UNITS[-1])
    return f"{n_bytes / unit:.{digits}f} {name}"


def _machine_bytes() -> int:
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def _container_bytes() -> list[int]:
    """What is left of the memory limit of the container's own cgroup, if there is one."""
    path = CGROUP / "memory.max"
    limit = path.read_text(encoding="ascii").strip() if path.exists() else "max"
    if limit == "max":
        return []
    lines = (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    usage = {name: int(value) for name, value in map(str.split, lines)}
    reclaimable = usage["active_file"] + usage["inactive_file"]
    return [int(limit) - int((CGROUP / "memory.current").read_text(encoding="ascii")) + reclaimable]


def _process_bytes() -> list[int]:
    """What is left of this process's address space and data segment, where they are limited."""
    from resource import RLIM_INFINITY, RLIMIT_AS, RLIMIT_DATA, getrlimit  # absent on Windows

    status = Path("/proc/self/status")
    limits = ((getrlimit(RLIMIT_AS)[0], "VmSize"), (getrlimit(RLIMIT_DATA)[0], "VmData"))
    return [limit - _kilobytes(status, name) for limit, name in limits if limit != RLIM_INFINITY]


def _kilobytes(path: Path, name: str) -> int:
    """The line `name:   123 kB` of a file under /proc, in bytes."""
    with path.open(encoding="ascii") as lines:
        value = next(line for line in lines if line.startswith(f"{name}:"))
    return int(value.split()[1]) * 1024
