"""lm-evaluation-harness: `kogpt` as one of its models, and the Korean tasks that it lacks.

    from kogpt.evaluation import harness
    harness.evaluate(["kobest_copa", "nsmc"], "pretrained=kogpt-mini", num_fewshot=5)

or, as a command with the harness' own options: python -m kogpt.evaluation.harness run --model kogpt ...
Its index of 14,000 tasks is not built: only KoBEST and the tasks of this folder are.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kogpt.errors import MissingExtra

if TYPE_CHECKING:
    from kogpt.generation import KoGPT

FOLDER = Path(__file__).parent
TASKS = ("nsmc", "klue_ynat", "klue_sts", "korsts")
KOBEST = ("kobest_boolq", "kobest_copa", "kobest_hellaswag", "kobest_sentineg", "kobest_wic")


def register() -> None:
    """Make `kogpt` known to the harness; loaded when it is used."""
    require()
    import lm_eval.models  # first: the harness fills its registry only while that is empty  # noqa: F401
    from lm_eval.api.registry import model_registry

    if "kogpt" not in model_registry:
        model_registry.register("kogpt", target="kogpt.evaluation.harness.model:KoGPTLM")


def evaluate(
    tasks: Sequence[str],
    model: Any,
    rows: Mapping[str, Callable[..., Any]] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """lm_eval.simple_evaluate on tasks of KoBEST and of this folder; its results.

    model: the harness' model arguments ("pretrained=kogpt-mini"), a KoGPT, or any of its LM objects.
    rows: task -> what gives its {"train", "test"}, the first rows of "train" being the shots; without it
    KoBEST is read from the same checked files as here, not from the hub.
    """
    register()
    import lm_eval

    from kogpt.evaluation.harness import rows as files

    chosen: dict[str, Any] = {"model": model}
    if isinstance(model, str):
        chosen = {"model": "kogpt", "model_args": model}
    elif hasattr(model, "engine"):
        chosen = {"model": language_model(model)}
    changed: dict[str, dict[str, Any]] = {
        name: {"custom_dataset": partial(files.dataset, name)} for name in tasks if name in KOBEST
    }
    for name, load in (rows or {}).items():
        changed[name] = {"custom_dataset": load, "fewshot_config": {"sampler": "first_n"}}
    asked: list[Any] = [name for name in tasks if name not in changed]
    if changed:  # only inside a group does the harness add settings to a task that it knows
        members = [{"task": name, **changed[name]} for name in tasks if name in changed]
        asked.append({"group": "kogpt_rows", "task": members})
    results = lm_eval.simple_evaluate(tasks=asked, task_manager=task_manager(), **chosen, **options)
    assert results is not None, "the harness gives results to its first process only, and there is no other"
    return dict(results)


def language_model(model: KoGPT) -> Any:
    """A KoGPT as one of the harness' LM objects; its `n_tokens_run` counts the tokens read for scores."""
    require()
    from kogpt.evaluation.harness.model import KoGPTLM

    return KoGPTLM(model)


def task_manager() -> Any:
    """A TaskManager that knows KoBEST and the tasks of this folder, and nothing else."""
    require()
    import lm_eval
    from lm_eval.tasks import TaskManager

    kobest = Path(lm_eval.__file__).parent / "tasks" / "kobest"
    return TaskManager(include_path=[str(FOLDER), str(kobest)], include_defaults=False)


def require() -> None:
    """MissingExtra if the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtra("lm-evaluation-harness", "harness")
