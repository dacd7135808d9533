"""How much memory may still be taken, and what is said when it is too little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kogpt import memory
from kogpt.errors import NotEnoughMemory

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_what_fits_is_let_through() -> None:
    memory.require_memory(90, "it", "그것", available=100)
    with pytest.raises(NotEnoughMemory):
        memory.require_memory(91, "it", "그것", available=100)


def test_the_refusal_names_need_limit_and_remedy() -> None:
    with pytest.raises(NotEnoughMemory) as error:
        memory.require_memory(12_340_000_000, "this model", "이 모델", available=8_000_000_000)
    for text in (error.value.en, error.value.ko):
        assert "12.3 GB" in text and "8.0 GB" in text and "--dtype" in text
    assert "this model" in error.value.en and "이 모델" in error.value.ko


def test_nothing_is_refused_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "sunos5")
    assert memory.available_memory() is None
    memory.require_memory(10**18, "it", "그것")


@linux
def test_the_machine_sets_a_limit() -> None:
    free = memory.available_memory()
    assert free is not None and 10**6 < free < 10**14
    with pytest.raises(NotEnoughMemory):
        memory.require_memory(10**15, "it", "그것")


@linux
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_a_limit_of_the_process(limit: str) -> None:
    program = (
        f"import resource; resource.setrlimit(resource.{limit}, (2**28, 2**28))\n"
        "from kogpt.memory import available_memory; print(available_memory())"
    )
    root = Path(__file__).parents[1]
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True
    )
    assert 2**26 < int(result.stdout) < 2**28


@pytest.mark.parametrize(("limit", "free"), [("max", []), ("1000000", [700_000])])
def test_a_limit_of_the_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str, free: list[int]
) -> None:
    """Pages of files that the kernel may drop count as free."""
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("500000\n")
    (tmp_path / "memory.stat").write_text("anon 300000\nactive_file 150000\ninactive_file 50000\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory._container_bytes() == free


def test_no_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory._container_bytes() == []


HOLES = """
import sys
from pathlib import Path
from kogpt.memory import return_freed_blocks

def resident():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

if sys.argv[1] == "returned":
    return_freed_blocks()
bytearray(b"x" * (16 << 20))  # malloc keeps blocks of this size from now on
before, kept = resident(), []
blocks = []
for _ in range(16):
    blocks.append(bytearray(b"x") * (8 << 20))
    kept.append(bytearray(b"x") * (64 << 10))  # what lives in between
del blocks
print(resident() - before)
"""


@linux
def test_freed_blocks_go_back_to_the_system() -> None:
    def held(what: str) -> int:
        command = [sys.executable, "-c", HOLES, what]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert held("returned") < 16 << 20 < 64 << 20 < held("kept")
