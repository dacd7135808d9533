"""How long until something is on the screen, and how much an install takes; prints one JSON object.

    python bench/start.py                    start-up times of this Python's kogpt
    python bench/start.py --install          also a fresh install into an empty virtual environment

Times are medians of `--runs` processes, in seconds of wall clock from the start of the process, files warm.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import pty
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KOGPT = [sys.executable, "-m", "kogpt"]
# From the import of the package until a model can be asked; large weights are verified beside the first step.
READY = "from kogpt import KoGPT; model = KoGPT.from_pretrained(sys.argv[1], device='cpu')"
LIMITS = {"import_kogpt": 0.05, "prompt_on_screen": 0.2, "first_token": 0.5, "install_mb": 120.0}  # design.md


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--model", default="kogpt-mini")
    parser.add_argument("--install", action="store_true")
    args = parser.parse_args()
    generate = [*KOGPT, "generate", "제1조(목적) 이 법은", "--max-tokens", "8", "--model", args.model]
    measured: dict[str, float] = {
        "python": median(args.runs, lambda: until_end([sys.executable, "-c", "pass"])),
        "import_kogpt": median(args.runs, lambda: inside("import kogpt")),
        "help": median(args.runs, lambda: until_end([*KOGPT, "--help"])),
        "prompt_on_screen": median(args.runs, lambda: until_prompt([*KOGPT, "--model", args.model])),
        "first_token": median(args.runs, lambda: until_output(generate)),
        "eight_tokens": median(args.runs, lambda: until_end(generate)),
        "ready": median(args.runs, lambda: inside(READY, args.model)),
    }
    if args.install:
        measured |= installed()
    result = {
        "measured": {name: round(value, 4) for name, value in measured.items()},
        "limits": {name: limit for name, limit in LIMITS.items() if name in measured},
        "held": all(measured[name] <= limit for name, limit in LIMITS.items() if name in measured),
        "runs": args.runs,
        "model": args.model,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
    }
    print(json.dumps(result, ensure_ascii=False, indent=1))


def median(runs: int, measure: Callable[[], float]) -> float:
    """One unmeasured run that warms the files, then the median of so many."""
    measure()
    return statistics.median(measure() for _ in range(runs))


def until_end(command: list[str]) -> float:
    """Seconds until a command ends."""
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def inside(code: str, *arguments: str) -> float:
    """Seconds that a program takes inside a running interpreter."""
    program = f"import sys, time; started = time.perf_counter(); {code}; print(time.perf_counter() - started)"
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return float(done.stdout)


def until_output(command: list[str]) -> float:
    """Seconds until a command writes its first byte of text."""
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 1)
        seconds = time.perf_counter() - started
        process.stdout.read()
    assert process.returncode == 0, command
    return seconds


def until_prompt(command: list[str]) -> float:
    """Seconds until a terminal shows `prompt> `."""
    screen, terminal = pty.openpty()
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdin=terminal, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        shown = b""
        while b"prompt> " not in shown:
            shown += os.read(screen, 4096)
        seconds = time.perf_counter() - started
        process.kill()
    os.close(screen)
    return seconds


def installed() -> dict[str, float]:
    """Megabytes (of 10^6 bytes) that a fresh install adds to an empty environment; `pip check` must agree."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = str(Path(folder, "bin", "python"))
        (library,) = Path(folder, "lib").glob("python*/site-packages")
        empty = size(library)
        pip = [python, "-m", "pip", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", str(ROOT)], check=True, stdout=sys.stderr)
        subprocess.run([*pip, "check"], check=True, stdout=sys.stderr)
        total, own, mini = size(library) - empty, size(library / "kogpt"), size(library / "kogpt" / "mini")
    return {"install_mb": (total - mini) / 1e6, "kogpt_mb": (own - mini) / 1e6, "kogpt_mini_mb": mini / 1e6}


def size(folder: Path) -> int:
    """Bytes of the files below a folder, without compiled bytecode."""
    return sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc")


def cpu_name() -> str:
    """What the kernel calls the processor."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if sys.platform == "linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
