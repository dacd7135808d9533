"""What every run does around the loop: require memory, remember its start, export its model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kogpt import checkpoint
from kogpt.config import ModelConfig
from kogpt.errors import CheckpointError, ConfigError, josa
from kogpt.memory import require_memory
from kogpt.training import checkpoints
from kogpt.training.loop import Run
from kogpt.training.processes import Processes
from kogpt.training.report import METRICS, read_metrics

INIT = ("init", "init_sha256")  # facts of a run that began from weights


def require_training_memory(
    config: ModelConfig, processes: Processes, n_trained: int | None = None, averages: bool = False
) -> None:
    """NotEnoughMemory if weights, gradients and one moment do not fit, in float32; a lower bound.

    n_trained: parameters that get gradients; None: all. averages: they are averaged too. Each process holds
    its share.
    """
    free = torch.cuda.mem_get_info(processes.device)[0] if processes.device.type == "cuda" else None
    trained = config.n_parameters if n_trained is None else n_trained
    n_bytes = (4 * config.n_parameters + (12 if averages else 8) * trained) // processes.count
    require_memory(n_bytes, "training this model", "이 모델의 학습", free, _remedies(averages))


def _remedies(averages: bool) -> tuple[str, str]:
    """Remedies within a recipe, in English and Korean."""
    without, without_ko = (" no [average],", " [average]를 빼거나,") if averages else ("", "")
    return (
        f"choose a smaller [model] or init,{without} or more processes",
        f"더 작은 [model]이나 init을 쓰거나,{without_ko} 프로세스를 늘리세요",
    )


def require_same_start(
    run: Run,
    facts: Mapping[str, str],
    usual: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
) -> None:
    """ConfigError if the folder's run, which is to be resumed, began with other `facts`.

    To be asked before the run is resumed: a checkpoint of other shapes would look damaged. facts: strings by
    name; `init`, the folder that the weights came from, and `init_sha256`, its digest, are left out by a run
    from random weights; `init` itself may differ, for folders move. usual: what facts are where an older
    version did not note them, or noted None. settings: what a recipe calls a fact, where that is not the
    fact's own name.
    """
    path = run.folder / METRICS
    is_begun = checkpoints.latest(run.folder) is not None
    lines = read_metrics(path) if is_begun and path.exists() else []
    run.processes.wait()  # every process has read the file before it changes
    if is_begun:
        noted = next((line for line in lines if line["step"] == 0), {})
        noted = _completed(noted, usual or {})
        _require_noted(run.folder, noted, facts)
        _compare(run.folder, noted, facts, settings or {})


def remember_start(run: Run, facts: Mapping[str, str]) -> None:
    """Write `facts` of a run's start into the first line of its metrics, unless the run was resumed.

    The line is on the disk then: no checkpoint is resumed without it.
    """
    if not run.step and run.processes.is_first:
        run.report.write({"step": 0, "tokens": 0, "seconds": 0.0, **facts})
        run.report.secure()


def _completed(noted: Mapping[str, Any], usual: Mapping[str, str]) -> dict[str, Any]:
    """What was noted, with what is usual in the places of what was not."""
    kept = {name: value for name, value in noted.items() if name not in usual or value != str(None)}
    return {**usual, **kept}


def _require_noted(folder: Path, noted: Mapping[str, Any], facts: Mapping[str, str]) -> None:
    """ConfigError where nobody knows how the run began; a start without `init` is one from random weights."""
    missing = next((name for name in facts if name not in (*noted, *INIT)), None)
    if missing is None:
        return
    is_there = (folder / METRICS).exists()
    why = f"lacks {missing}" if is_there else "is missing"
    why_ko = f"파일에 {missing} 값이 없습니다" if is_there else "파일이 없습니다"
    raise ConfigError(
        f"{folder} has a checkpoint, but its start is not noted ({METRICS} {why}): restore that file, or "
        "give another --out",
        f"{folder}의 학습이 어떻게 시작했는지 알 수 없습니다({METRICS} {why_ko}). 그 파일을 되살리거나 다른 "
        "--out을 지정하세요",
    )


def _compare(
    folder: Path, noted: Mapping[str, Any], facts: Mapping[str, str], settings: Mapping[str, str]
) -> None:
    if noted.get("data_sha256") != facts.get("data_sha256"):
        raise ConfigError(
            f"{folder} began with other rows, or other words for them: give those again, or another --out",
            f"{josa(folder, '은/는')} 다른 행이나 다른 낱말로 시작했습니다. 처음 것을 쓰거나 다른 --out을 "
            "지정하세요",
        )
    if noted.get("init_sha256") != facts.get("init_sha256"):
        began, now = (line.get("init", "random weights") for line in (noted, facts))
        raise ConfigError(
            f"{folder} began from {began}, not from {now}: give another --out",
            f"{josa(folder, '은/는')} {now} 대신 {began}에서 시작했습니다. 다른 --out을 지정하세요",
        )
    for name, now in facts.items():
        if name not in INIT and (began := noted[name]) != now:
            back, back_ko = _way_back(name, began, settings.get(name))
            raise ConfigError(
                f"{folder} began with {name} {began}, not {now}: {back}, or give another --out",
                f"{josa(folder, '은/는')} 처음의 {name} 값이 {began}인데 지금은 {now}입니다. "
                f"{back_ko} 다른 --out을 지정하세요",
            )


def _way_back(name: str, began: str, setting: str | None) -> tuple[str, str]:
    """How to get the first value again, in both languages: perhaps the user changed the machine only."""
    if setting is None:
        return f"set {name} = {began} again", f"{name} 값을 되돌리거나"
    line = f'{setting} = "{began}"'
    return f"set {line}", f"{josa(line, '으로/로')} 지정하거나"


def require_checkpoint(folder: Path) -> Path:
    """The newest checkpoint of a run; CheckpointError if there is none."""
    path = checkpoints.latest(folder)
    if path is None:
        raise CheckpointError(
            f"{folder} holds no checkpoint: train first", f"{folder}에 체크포인트가 없습니다. 먼저 학습하세요"
        )
    return path


def export_model(path: Path, config: ModelConfig, tokenizer: Path, out: Path, dtype: str = "float16") -> None:
    """Write the model of a run's checkpoint as a model folder: averaged weights where it has them.

    CheckpointError if it is damaged.
    tokenizer: a tokenizer.json, or a folder that has one.
    """
    part = "average" if checkpoints.verify(path).averaged else "module"
    tensors = checkpoints.SavedTensors(path, config.tensor_shapes(), "model.", part)
    checkpoint.save(out, config, tensors, dtype, tokenizer)
