"""The GPU benchmark where there is no GPU: every line that needs none, on a tiny shape."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # `bench` is no package that is installed

from bench import gpu, gpu_agreement, gpu_profile, gpu_training, gpu_weights
from kogpt.quantize import FORMATS
from kogpt.torch_runner import TorchRunner
from kogpt.training import objective

TINY = ["--device", "cpu", "--shape", "tiny"]


def test_the_benchmark_runs_and_writes_each_figure_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.jsonl"
    parts = ["--parts", "load", "prompts", "run", "torch", "ids"]
    gpu.main([*TINY, *parts, "--rows", "1", "8", "--rounds", "1", "--out", str(out)])
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    figures = {(line["column"], line["name"]): line["value"] for line in lines}
    assert all(value == "torch" for value in figures.values() if isinstance(value, str))
    assert all(value >= 0 for value in figures.values() if not isinstance(value, str))
    assert {column for column, _ in figures} >= {"float32, torch", "float16", *FORMATS}
    assert {value for (_, name), value in figures.items() if name.startswith("numpy's ids")} == {1.0}
    for dtype in ("float16", *FORMATS):
        wanted = {(f"{dtype}, torch", "8 rows, ms a step"), (dtype, "whole run, tokens/s")}
        assert wanted <= figures.keys()
    table = capsys.readouterr().out.partition("\n| |")[2]
    assert "| 1 row, tokens/s |" in table and ">= 0.76" not in table


def test_ids_alone_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "gpu.jsonl"
    gpu.main([*TINY, "--parts", "ids", "--dtypes", "int8", "--out", str(out)])
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    found = {line["column"]: line["value"] for line in lines if line["name"].startswith("numpy's ids")}
    columns = [f"{dtype}, {part}" for dtype in ("float32", "int8") for part in gpu.columns_on("cpu")]
    assert found == dict.fromkeys(columns, 1.0)


def test_a_profile_of_training_stays_on_the_device_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def join(device: str | None = None) -> None:
        raise Asked(device)

    monkeypatch.setattr(gpu_profile, "join", join)
    for device, kind in (("cpu", "cpu"), ("cuda:1", "cuda")):
        with pytest.raises(Asked, match=kind):
            gpu_profile.training(gpu_weights.TINY, device)


def test_every_part_of_a_training_step_is_measured_and_its_other_forms_agree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(objective, "_multiplies_bfloat16", lambda device: False)  # float32 on every processor
    gpu_training.main(TINY)
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.endswith(" ms") for line in lines) == 2 + 2 * len(gpu_training.LOGITS) + 3
    apart = [float(line.split()[-1]) for line in lines if line.startswith("apart")]
    assert len(apart) == 3 and max(apart) < 1e-5


def test_what_no_longer_fits_into_the_time_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.main([*TINY, "--parts", "load", "--dtypes", "float16", "--seconds", "0"])
    assert "left out: no time" in capsys.readouterr().out


def test_a_fault_shows_in_the_agreement(monkeypatch: pytest.MonkeyPatch) -> None:
    small = gpu_weights.TINY
    runner = TorchRunner(small, gpu_weights.random_weights(small, "float32"), "float32")
    monkeypatch.setattr(runner, "_head", lambda hidden: runner._model.head(hidden).roll(1, -1))
    found = gpu_agreement.agreement(runner, small, 2, 1)
    assert found.error > 1 and found.ids < 1


@pytest.mark.parametrize("dtype", FORMATS)
def test_random_codes_are_codes(dtype: str) -> None:
    weights = gpu_weights.random_weights(gpu_weights.TINY, dtype)
    matrix = weights["transformer.h.0.mlp.fc_in.weight"]
    assert matrix.dtype == dtype
    floats = matrix.to("float32")
    assert 0.01 < floats.std() < 0.03 and abs(floats).max() < 0.1
    if dtype == "int8":
        assert matrix.codes.min() > -128  # type: ignore[union-attr]
    TorchRunner(gpu_weights.TINY, weights, dtype)


def test_the_lines_of_the_table_of_choices() -> None:
    args = gpu.read_arguments(["--dtypes", "float16", "int8"])
    report = gpu.Report(None, 0.0)
    times = {"float16, torch": (2.0, 3.0), "float16, kernels": (1.0, 4.0), "float16, paged": (3.0, 2.0)}
    for column, own in {**times, "int8, torch": (1.0, 2.0)}.items():
        for rows, ms in zip((1, 8), own, strict=True):
            report.figures[column, gpu.step_name(rows)] = ms
    (line,) = gpu.measured_lines(report, torch.device("cpu"), args)
    assert line == "    ((0, 0), 'float16'): Measured(kernels=1, paged=True),"
