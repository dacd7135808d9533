"""Two processes tune to the result of one, by every method."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kogpt import checkpoint, peft
from kogpt.errors import ConfigError
from kogpt.training.processes import Processes
from kogpt.tuning.data import Choice, Files, Wording, read_data
from kogpt.tuning.run import TuningSettings, prepare, tune

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import together  # noqa: E402


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [{"text": f"글 {n} {'나라' if n % 2 else '바다'}", "label": n % 2} for n in range(60)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def two(rows: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of the runs of two processes."""
    out = tmp_path_factory.mktemp("two")
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(20_002 + os.getpid() % 20_000)}
    common = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), **world}
    command = [sys.executable, "-W", "error", str(HERE / "together.py"), *map(str, (rows, tiny_folder, out))]
    processes = [
        subprocess.Popen(command, env={**common, "RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, message = process.communicate()
            assert process.returncode == 0, message
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return out


def results(folder: Path) -> dict[str, Any]:
    """The arrays of an adapter, or the weights of a model."""
    if (folder / "model").exists():
        tensors = checkpoint.load(folder / "model").floats()
        return {name: tensor.to("float32") for name, tensor in tensors.items()}
    from safetensors.numpy import load_file

    return dict(load_file(folder / "adapter" / peft.WEIGHTS))


@pytest.mark.parametrize("name", [name for name in together.METHODS if name != "lora int8"])
def test_two_processes_tune_to_the_result_of_one(
    name: str, two: Path, rows: Path, tiny_folder: Path, tmp_path: Path, no_fsync: None
) -> None:
    alone = together.tune_by(name, rows, tiny_folder, tmp_path, Processes())
    found, expected = results(two / name), results(tmp_path / name)
    assert found.keys() == expected.keys()
    # Adam turns rounding of a gradient near 0 into a whole step of its sign.
    for tensor, value in expected.items():
        assert np.abs(found[tensor] - value).mean() <= 2e-3 * np.abs(value).mean() + 1e-6, tensor
    lines = [json.loads(line) for line in (two / name / "metrics.jsonl").read_text().splitlines()]
    for metric, number in alone.metrics["dev"].items():
        assert lines[-1]["dev"][metric] == pytest.approx(number, rel=1e-3), metric


@pytest.mark.parametrize(("dtype", "apart"), [("bfloat16", 0.002), ("int8", 0.005), ("int4", 0.05)])
def test_lora_on_a_narrow_base_learns_as_on_float32(dtype: str, apart: float, two: Path) -> None:
    """By the loss on dev, relative; from 6.8 before tuning."""
    exact, narrow = (
        json.loads((two / name / "metrics.jsonl").read_text().splitlines()[-1])["dev"]["loss"]
        for name in ("lora", f"lora {dtype}")
    )
    assert narrow == pytest.approx(exact, rel=apart) and narrow != exact


def test_a_batch_that_cannot_be_shared_is_refused(rows: Path, tiny_folder: Path, tmp_path: Path) -> None:
    made = prepare(
        TuningSettings(method="lora", batch=15),
        str(tiny_folder),
        read_data(Files(train=rows), Wording(), Choice(dev_share=0.2)),
        None,
    )
    with pytest.raises(ConfigError, match="2 processes cannot share a batch of 15"):
        tune(made, tmp_path / "run", Processes(rank=1, count=2))
