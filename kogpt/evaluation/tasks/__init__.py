"""The tasks, one small file each, imported when one is asked for."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module

from kogpt.errors import KoGPTError
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
    """A task by its name; KoGPTError if there is none."""
    if name not in NAMES:
        close = get_close_matches(name, NAMES, n=1) or [", ".join(NAMES)]
        raise KoGPTError(
            f"there is no task {name!r}, try {close[0]}", f"{name!r} 과제가 없습니다 (예: {close[0]})"
        )
    task: Task = import_module(f"kogpt.evaluation.tasks.{name.replace('-', '_')}").TASK
    return task
