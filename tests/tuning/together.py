"""Tunes by every method among the processes of torchrun; a script for test_together.py.

together.py ROWS MODEL OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from kogpt.training.processes import Processes, join
from kogpt.tuning.data import Choice, Files, Wording, read_data
from kogpt.tuning.run import Outcome, TuningSettings, prepare, tune

METHODS = {
    "full": {"rate": 1e-3},
    "lora": {"rate": 3e-3},
    "lora int8": {"rate": 3e-3, "base_dtype": "int8"},
    "lora int4": {"rate": 3e-3, "base_dtype": "int4"},
    "lora bfloat16": {"rate": 3e-3, "base_dtype": "bfloat16"},
    "p-tuning": {"rate": 5e-3},
    "p-tuning words": {"rate": 5e-3, "encoder": "none"},
    "prefix": {"rate": 2e-2},
}


def tune_by(name: str, rows: Path, model: Path, out: Path, processes: Processes) -> Outcome:
    """One short run, in OUT/NAME."""
    data = read_data(Files(train=rows), Wording(words={"0": " 부정", "1": " 긍정"}), Choice(dev_share=0.2))
    common = {"epochs": 1, "batch": 16, "checks": 1, "dtype": "float32", "virtual_tokens": 5}
    settings = TuningSettings(method=name.split()[0], **common, **METHODS[name])  # type: ignore[arg-type]
    return tune(prepare(settings, str(model), data, None), out / name, processes)


def main(rows: Path, model: Path, out: Path) -> None:
    torch.set_num_threads(1)
    with join("cpu") as processes:
        for name in METHODS:
            tune_by(name, rows, model, out, processes)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
