"""The tasks, one small file each, imported when one is asked for."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from kogpt.errors import InputError, KoGPTError
from kogpt.evaluation.own import read_task
from kogpt.evaluation.task import Task

NAMES = (
    "nsmc",
    "ynat",
    "klue-sts",
    "korsts",
    "klue-nli",
    "kobest-boolq",
    "kobest-copa",
    "kobest-hellaswag",
    "kobest-sentineg",
    "kobest-wic",
)


def get(name: str) -> Task:
    """A task by its name, or from a TOML file of one's own; KoGPTError if there is none."""
    if name.endswith(".toml"):
        task = read_task(Path(name))
        if task.name in (*NAMES, "ppl"):
            raise InputError(
                f"{name}: name is {task.name!r}, which is a task of KoGPT's: choose another name",
                f"{name}: name 값 {task.name!r}: KoGPT에 이미 있는 과제입니다. 다른 이름을 쓰세요",
            )
        return task
    if name not in NAMES:
        close = get_close_matches(name, NAMES, n=1) or [", ".join(NAMES)]
        raise KoGPTError(
            f"there is no task {name!r}, try {close[0]}", f"{name!r} 과제가 없습니다 (예: {close[0]})"
        )
    found: Task = import_module(f"kogpt.evaluation.tasks.{name.replace('-', '_')}").TASK
    return found
