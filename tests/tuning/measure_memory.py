"""The planner's bytes beside the peak memory of real steps, each in a process of its own.

    python tests/tuning/measure_memory.py [NAME...]     every case, or those named

Prints one line for each case: planned, measured, their ratio. The weights are constants that no file holds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np

from kogpt.config import SHAPES, ModelConfig
from kogpt.tuning.plan import Work, peak

MINI = ModelConfig(n_layers=8, n_heads=8, d_model=512, d_ff=1920, n_vocab=8192, n_ctx=2048, rotary_dim=32)
LARGE = SHAPES["kogpt-1b"]
CONFIGS = {"mini": MINI, "1b": LARGE, "1b of 3 layers": replace(LARGE, n_layers=3)}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("mini", {"method": "full", "rows": 16, "width": 128}),
    "lora": ("mini", {"method": "lora", "rows": 16, "width": 128}),
    "lora int4": ("mini", {"method": "lora", "rows": 16, "width": 128, "base_dtype": "int4"}),
    "p-tuning": ("mini", {"method": "p-tuning", "rows": 16, "width": 128}),
    "prefix": ("mini", {"method": "prefix", "rows": 16, "width": 128}),
    "two passes": ("mini", {"method": "full", "rows": 8, "width": 128, "n_passes": 2}),
    "full 1b": ("1b of 3 layers", {"method": "full", "rows": 2, "width": 32}),
    "lora 1b": ("1b", {"method": "lora", "rows": 2, "width": 64}),
    "lora 1b int8": ("1b", {"method": "lora", "rows": 2, "width": 64, "base_dtype": "int8"}),
    "lora 1b int4": ("1b", {"method": "lora", "rows": 2, "width": 64, "base_dtype": "int4"}),
    "prefix 1b bfloat16": ("1b", {"method": "prefix", "rows": 2, "width": 64, "base_dtype": "bfloat16"}),
}
AGAIN: dict[str, tuple[str, dict[str, Any]]] = {  # blocks computed twice
    "full": ("mini", {"method": "full", "rows": 32, "width": 128}),
    "lora": ("mini", {"method": "lora", "rows": 32, "width": 128}),
    "lora, short": ("mini", {"method": "lora", "rows": 8, "width": 128}),
    "lora, long": ("mini", {"method": "lora", "rows": 8, "width": 512}),
    "p-tuning int4": ("mini", {"method": "p-tuning", "rows": 32, "width": 128, "base_dtype": "int4"}),
    "prefix": ("mini", {"method": "prefix", "rows": 32, "width": 128}),
    "two passes": ("mini", {"method": "full", "rows": 16, "width": 128, "n_passes": 2}),
    "full 1b": ("1b of 3 layers", {"method": "full", "rows": 4, "width": 64}),
    "lora 1b int8": ("1b", {"method": "lora", "rows": 8, "width": 128, "base_dtype": "int8"}),
}
CASES |= {
    f"{name}, checkpointing": (shape, {**work, "checkpointing": True})
    for name, (shape, work) in AGAIN.items()
}


def measured(name: str) -> tuple[float, float]:
    """Bytes before the weights are there, and at the peak of three steps."""
    done = subprocess.run(
        [sys.executable, __file__, "--alone", name], capture_output=True, text=True, check=True
    )
    before, most = json.loads(done.stdout.splitlines()[-1])
    return before, most


def planned(name: str) -> float:
    """Bytes beside the program's own."""
    shape, work = CASES[name]
    return peak(CONFIGS[shape], Work(**work), "cpu")


def step(name: str) -> None:
    """Three steps in this process; prints its memory before and at the peak."""
    import torch

    from kogpt.cli.limits import peak_memory
    from kogpt.training.loop import Batch, Run
    from kogpt.training.processes import Processes
    from kogpt.training.report import Report
    from kogpt.tuning import run as tuning
    from kogpt.tuning.rows import Batches, Row

    torch.set_num_threads(1)
    shape, given = CASES[name]
    config, work = CONFIGS[shape], Work(**given)
    settings = tuning.TuningSettings(
        method=work.method,
        batch=work.rows * work.n_passes,
        dtype=work.dtype,
        base_dtype=work.base_dtype,
        checkpoint_blocks=work.checkpointing,
    )
    ids = np.random.default_rng(0).integers(2, config.n_vocab, work.width + 1)
    rows = [Row(ids, 1, (), None, "", 0)] * settings.batch
    batches = Batches(rows, settings.batch, 0)
    stored = constant(config, work.base_dtype)
    empty: list[Row] = []
    job = tuning.Job(
        settings, stored, "", cast(Any, None), None, cast(Any, None), rows, empty, empty, batches
    )
    torch.autograd.backward(torch.nn.Linear(64, 64)(torch.ones(64, 64)).sum())  # loads what torch loads late
    before = resident()
    with TemporaryDirectory() as folder:
        objective = tuning.build(job, Processes())
        training = settings.training(batches)
        loop = replace(training.loop, tokens_per_pass=work.rows * work.width)
        run = Run(
            Path(folder), objective, replace(training, loop=loop), Processes(), Report(Path(folder)), {}
        )
        batch: Batch = batches(0)
        for _ in range(3):
            run.update(batch)
    print(json.dumps([before, peak_memory()]))


def constant(config: ModelConfig, dtype: str) -> Any:
    """A checkpoint whose tensors are one number each, or one row of codes."""
    from kogpt.checkpoint import Checkpoint
    from kogpt.quantize import Quantized, matrices
    from kogpt.weights import Stored

    tensors: dict[str, Any] = {
        name: Stored("float16", np.broadcast_to(np.float16(0.01), shape))
        for name, shape in config.tensor_shapes().items()
    }
    for name, (n, k) in matrices(config).items() if dtype in ("int8", "int4") else ():
        width, kind = (k, np.int8) if dtype == "int8" else (-(-k // 2), np.uint8)
        groups = None if dtype == "int8" else np.broadcast_to(np.uint8(1), (n, -(-k // 32)))
        codes = np.broadcast_to(np.array(3, kind), (n, width))
        tensors[name] = Quantized(dtype, (n, k), codes, groups, np.full(n, 1e-3, np.float32))
    return Checkpoint(Path(), config, tensors, dtype if dtype in ("int8", "int4") else None)


def resident() -> int:
    """Bytes of this process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def main(names: list[str]) -> None:
    for name in names or CASES:
        before, most = measured(name)
        want = before + planned(name)
        print(f"{name:29} {want / 1e6:9,.0f} {most / 1e6:9,.0f} MB  {want / most:.3f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        step(sys.argv[2])
    else:
        main(sys.argv[1:])
