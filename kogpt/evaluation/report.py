"""Write results as JSON, Markdown and plots, with everything that is needed to repeat them."""

from __future__ import annotations

import importlib.util
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from kogpt import __version__
from kogpt.errors import InputError, localized
from kogpt.evaluation import published
from kogpt.evaluation.baselines import Baselines
from kogpt.evaluation.evaluate import EvaluatedModel, Result, SeedResult
from kogpt.evaluation.perplexity import Perplexity
from kogpt.evaluation.task import Prompt, Task
from kogpt.files import atomic_write, read_json

MAX_REPORT_BYTES = 2**26
SAME_MODEL = (
    "model_sha256",
    "tokenizer_sha256",
    "adapter_sha256",
    "dtype",
    "cache_dtype",
)  # what two reports of one model have in common

HOW_TO_READ = (
    "Scores are percent: the mean over the runs, ± the sample standard deviation over the seeds that drew the"
    " shots, and in brackets the 95 % bootstrap interval over runs and items. No brackets: all resamples gave"
    " one value, which says nothing about the spread. `report.json` has every run with the ids and the"
    " text of its shots, every metric and every way of scoring; `items/` has every answer."
)


@dataclass(frozen=True, slots=True)
class Report:
    """The results of one command."""

    model: EvaluatedModel
    command: str
    results: list[Result] = field(default_factory=list)
    baselines: dict[str, Baselines] = field(default_factory=dict)  # by task
    texts: list[Perplexity] = field(default_factory=list)

    def tasks(self) -> list[Task]:
        """The tasks that were measured, in order, each once."""
        return list({result.task.name: result.task for result in self.results}.values())


def write(report: Report, folder: Path) -> list[Path]:
    """Write report.json, report.md, a line for each item and, with matplotlib, a plot for each task.

    Returns the paths. Callers first make sure that the folder holds no other model's report
    (require_own_report).
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "report.json", folder / "report.md"]
    document = json.dumps(as_json(report), ensure_ascii=False, indent=1, allow_nan=False)
    for path, text in zip(paths, (document + "\n", as_markdown(report)), strict=True):
        with atomic_write(path) as file:
            file.write(text.encode(errors="backslashreplace"))  # names of files may hold any bytes
    for result in report.results:
        for seed in result.seeds:
            paths.append(_write_items(result, seed, folder / "items"))
    if importlib.util.find_spec("matplotlib") is not None:
        paths += [plot(report, task, folder / f"{task.name}.png") for task in report.tasks()]
    return paths


def require_own_report(model: EvaluatedModel, folder: Path) -> None:
    """InputError if the folder holds the report of another model or precision, or a damaged report."""
    path = folder / "report.json"
    if not path.exists():
        return
    document = read_json(path, MAX_REPORT_BYTES)
    found = document.get("model")
    theirs = found if isinstance(found, dict) else {}
    if any(theirs.get(key) != model.identity.get(key) for key in SAME_MODEL):
        kept = f"{str(theirs.get('name'))[:80]} ({_precision(theirs)})"
        ours = _precision(model.identity)
        raise InputError(
            f"{path} is the report of {kept}, which {model.name} ({ours}) would overwrite: choose another"
            " folder with --out",
            f"{path} 파일은 다른 모델의 보고서입니다: {kept}. 덮어쓰지 않도록 --out으로 다른 폴더를"
            f" 지정하세요 (지금 모델: {model.name}, {ours})",
        )


def _precision(identity: Mapping[str, Any]) -> str:
    """The format of the weights, and that of the cache where it is not the usual one."""
    dtype, cache_dtype = str(identity.get("dtype"))[:20], identity.get("cache_dtype")
    return dtype if cache_dtype is None else f"{dtype}, --cache-dtype {str(cache_dtype)[:20]}"


def lines(report: Report) -> list[dict[str, Any]]:
    """One flat object for every metric of every run: the lines of `kogpt eval --json`."""
    rows: list[dict[str, Any]] = []
    for result in report.results:
        for seed in result.seeds:
            for metric, value in seed.values.items():
                rows.append(
                    {
                        "task": result.task.name,
                        "prompt": result.prompt.name,
                        "shots": len(seed.encoded.shots),
                        "seed": seed.seed,
                        "metric": metric,
                        "value": _number(value),
                        "n": len(result.data.scored),
                        "baselines": _baseline_values(report, result.task, metric),
                    }
                )
    for text in report.texts:
        row = {"task": "ppl", "prompt": text.file, "shots": 0, "seed": None, "metric": "bits_per_byte"}
        rows.append({**row, "value": text.bits_per_byte, "n": text.n_bytes, "baselines": {}})
    return rows


def as_json(report: Report) -> dict[str, Any]:
    """The content of report.json."""
    return {
        "command": report.command,
        "versions": versions(),
        "model": {
            "name": report.model.name,
            "parameters": report.model.runner.config.n_parameters,
            **report.model.identity,
        },
        "results": [_result(result) for result in report.results],
        "baselines": {name: _baselines(baselines) for name, baselines in report.baselines.items()},
        "published": [
            {"task": task.name, "model": row.model, "shots": shots, "value": value, "source": row.source}
            for task in report.tasks()
            for row, shots, value in published.of_task(task.name)
        ],
        "texts": [
            {
                "file": text.file,
                "bits_per_byte": text.bits_per_byte,
                "perplexity_per_token": text.per_token,
                "documents": text.n_documents,
                "bytes": text.n_bytes,
                "tokens": text.n_tokens,
            }
            for text in report.texts
        ],
    }


def versions() -> dict[str, str]:
    """Versions of the packages that the numbers depend on."""
    found = {"kogpt": __version__, "python": platform.python_version()}
    for name in ("numpy", "tokenizers", "scikit-learn", "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def as_markdown(report: Report) -> str:
    """The report for readers: each task's table, baselines, published scores and data."""
    facts = {"parameters": f"{report.model.runner.config.n_parameters:,}", **report.model.identity}
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in versions().items())
    parts = [f"# Evaluation of {report.model.name}", f"`{report.command}`"]
    parts.append("\n".join(f"- {key}: {value}" for key, value in facts.items()))
    if report.results:
        parts.append(HOW_TO_READ)
    parts += [_task_section(report, task) for task in report.tasks()]
    if report.texts:
        rows = [
            (text.file, f"{text.bits_per_byte:.4f}", f"{text.per_token:.2f}", f"{text.n_bytes:,}")
            for text in report.texts
        ]
        parts += ["## Bits per byte", table(("text", "bits per byte", "perplexity per token", "bytes"), rows)]
    return "\n\n".join(parts) + "\n"


def summary(report: Report) -> str:
    """One line for each result, beside the best baseline: what a command shows at its end."""
    head = (
        localized("task", "과제"),
        localized("prompt", "프롬프트"),
        localized("shots", "예시"),
        localized("metric", "지표"),
        localized("mean ± std [95 %]", "평균 ± 표준편차 [95 %]"),
        localized("best baseline", "가장 나은 기준선"),
    )
    rows: list[Sequence[str]] = []
    for result in report.results:
        metric = result.task.metrics[0]
        values = _baseline_values(report, result.task, metric)
        best = f"{100 * max(values.values()):.1f}" if values else "-"
        shots = localized(*_shots_text(result))
        rows.append((result.task.name, result.prompt.name, shots, metric, score_text(result), best))
    per_byte = localized("bits per byte", "바이트당 비트")
    for text in report.texts:
        rows.append((text.file, "-", "-", per_byte, f"{text.bits_per_byte:.4f}", "-"))
    return table(head, rows) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def score_text(result: Result) -> str:
    """Mean, deviation over the seeds and bootstrap interval of the published metric, in percent."""
    metric = result.task.metrics[0]
    std, interval = result.std(metric), result.intervals[metric]
    text = f"{100 * result.mean(metric):.1f}"
    if std is not None:
        text += f" ± {100 * std:.1f}"
    if interval is not None:
        text += f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    return text


def _task_section(report: Report, task: Task) -> str:
    results = [result for result in report.results if result.task is task]
    rows = []
    for result in results:
        n = f"{len(result.data.scored):,} of {result.data.n_test:,}"
        rows.append(
            (
                result.prompt.name,
                _shots_text(result)[0],
                score_text(result),
                _runs_text(result),
                n,
                result.scoring,
            )
        )
    first = results[0]
    notes = [f"scored: {first.data.test_table.note} (`{first.data.test_table.digest[:23]}`)"]
    if first.data.pool_table is not None:
        notes.append(f"shots: {first.data.pool_table.note} (`{first.data.pool_table.digest[:23]}`)")
    else:
        notes.append("shots: a fixed tenth of the same file, set apart")
    notes.append(f"contamination: {task.contamination}; of other models nothing is known here")
    notes += report.baselines[task.name].notes if task.name in report.baselines else ()
    notes += _counts(results)
    head = ("prompt", "shots", f"{task.metrics[0]}, mean ± std [95 %]", "runs", "items", "scoring")
    parts = [f"## {task.title} ({task.metrics[0]}, percent)", table(head, rows)]
    parts += [
        _prompt_text(prompt) for prompt in {result.prompt.name: result.prompt for result in results}.values()
    ]
    parts.append(table(("beside it", task.metrics[0]), _comparisons(report, task)))
    parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts)


def _runs_text(result: Result) -> str:
    if len(result.seeds) == 1:
        return "one run"
    return "seeds " + ", ".join(str(seed.seed) for seed in result.seeds)


def _prompt_text(prompt: Prompt) -> str:
    """The wording of a question and the choices that are scored after it."""
    choices = " ".join(f"`{choice}`" for choice in prompt.choices)
    block = f"```text\n{prompt.instruction}{prompt.question}\n```"
    return f"Prompt `{prompt.name}` ({prompt.source}); scored after it: {choices}\n\n{block}"


def _counts(results: Sequence[Result]) -> list[str]:
    """How many items were cut or have a token across the border, if any."""
    counts = {
        "items cut at their beginning to fit the context": [
            seed.encoded.n_cut for r in results for seed in r.seeds
        ],
        "items whose label begins inside a token": [
            seed.encoded.n_moved for r in results for seed in r.seeds
        ],
    }
    return [f"{what}: {max(n):,} in a run at most" for what, n in counts.items() if max(n)]


def _shots_text(result: Result) -> tuple[str, str]:
    """How many shots an item had, in English and Korean."""
    used, wanted = result.shots_used, result.settings.shots
    if used == wanted:
        return str(used), str(used)
    return (
        f"{used} (of {wanted}: no more fit the context)",
        f"{used} ({wanted}개 가운데 문맥에 들어가는 만큼)",
    )


def _comparisons(report: Report, task: Task) -> list[tuple[str, str]]:
    values = _baseline_values(report, task, task.metrics[0])
    rows = [(name, f"{100 * value:.1f}") for name, value in values.items()]
    for row, shots, value in published.of_task(task.name):
        count = "shots unpublished" if shots is None else f"{shots} shots"
        rows.append((f"published: {row.model}, {count} ({row.source})", f"{value:.1f}"))
    return rows


def _baseline_values(report: Report, task: Task, metric: str) -> dict[str, float]:
    """The baselines of a task by one metric; of those trained on shots, the mean over the seeds."""
    if task.name not in report.baselines:
        return {}
    baselines = report.baselines[task.name]
    found = {name: values[metric] for name, values in baselines.constants.items() if metric in values}
    if baselines.pool is not None and metric in baselines.pool:
        found["TF-IDF + regression, whole pool"] = baselines.pool[metric]
    for shots, runs in baselines.shots.items():
        values = [run[metric] for run in runs if metric in run]
        if values:
            found[f"TF-IDF + regression, the same {shots} shots"] = sum(values) / len(values)
    return found


def _result(result: Result) -> dict[str, Any]:
    metrics = result.task.metrics
    return {
        "task": result.task.name,
        "task_version": result.task.version,
        "prompt": {
            "name": result.prompt.name,
            "source": result.prompt.source,
            "instruction": result.prompt.instruction,
            "question": result.prompt.question,
            "choices": list(result.prompt.choices),
            "separator": result.prompt.separator,
        },
        "scoring": result.scoring,
        "temperature": result.settings.sample,
        "shots_wanted": result.settings.shots,
        "n": len(result.data.scored),
        "n_test_file": result.data.n_test,
        "mean": {metric: _number(result.mean(metric)) for metric in metrics},
        "std": {metric: _number(result.std(metric)) for metric in metrics},
        "interval_95": {
            metric: None if pair is None else list(map(_number, pair))
            for metric, pair in result.intervals.items()
        },
        "test": _table_json(result.data.test_table),
        "pool": _table_json(result.data.pool_table) if result.data.pool_table is not None else "test",
        "contamination": result.task.contamination,
        "seeds": [_seed(seed) for seed in result.seeds],
    }


def _seed(seed: SeedResult) -> dict[str, Any]:
    return {
        "seed": seed.seed,
        "shots": [shot.id for shot in seed.encoded.shots],
        "text_before_each_question": seed.encoded.prefix_text,
        "values": {metric: _number(value) for metric, value in seed.values.items()},
        "by_scoring": {
            way: {metric: _number(value) for metric, value in values.items()}
            for way, values in seed.by_scoring.items()
        },
        "items_cut_at_the_beginning": seed.encoded.n_cut,
        "labels_inside_a_token": seed.encoded.n_moved,
        "tokens": seed.encoded.n_tokens,
    }


def _table_json(source: Any) -> dict[str, str]:
    return {"file": source.file, "digest": source.digest, "note": source.note}


def _baselines(baselines: Baselines) -> dict[str, Any]:
    return {
        "constants": {name: dict(values) for name, values in baselines.constants.items()},
        "tfidf_pool": baselines.pool,
        "tfidf_shots": {str(shots): list(runs) for shots, runs in baselines.shots.items()},
        "notes": list(baselines.notes),
    }


def _write_items(result: Result, seed: SeedResult, folder: Path) -> Path:
    """One line per item: right answer, prediction and log-likelihood of each choice."""
    name = f"{result.task.name}.{result.prompt.name}.{result.settings.shots}.{seed.seed}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / name) as file:
        for i, example in enumerate(result.data.scored):
            record = {
                "id": example.id,
                "answer": int(seed.outcome.answers[i]),
                "prediction": int(seed.outcome.predictions[i]),
                "scores": seed.scores[i],
                "grade": example.grade,
                "score": float(seed.outcome.scores[i]),
            }
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    return folder / name


def plot(report: Report, task: Task, path: Path) -> Path:
    """Plot the score against the number of shots, and beside published models by their size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    metric = task.metrics[0]
    by_prompt: dict[str, list[Result]] = {}
    for result in report.results:
        if result.task is task:
            by_prompt.setdefault(result.prompt.name, []).append(result)
    for name, results in by_prompt.items():
        results = sorted(results, key=lambda result: result.shots_used)
        means = [100 * result.mean(metric) for result in results]
        spread = [100 * (result.std(metric) or 0) for result in results]
        label = f"{report.model.name}, prompt {name}"
        left.errorbar([r.shots_used for r in results], means, spread, marker="o", capsize=3, label=label)
    for style, (name, value) in zip((":", "--", "-."), _lines(report, task), strict=False):
        for axes in (left, right):
            axes.axhline(100 * value, color="grey", linestyle=style, linewidth=1, label=name)
    left.set(xlabel="shots", ylabel=f"{metric}, percent", title=f"{task.title}: score against shots")
    _plot_sizes(right, report, task)
    for axes in (left, right):
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 100)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return path


def _lines(report: Report, task: Task) -> list[tuple[str, float]]:
    """The two baselines of a plot: the best constant answer, and the regression on the whole pool."""
    beside = report.baselines.get(task.name)
    if beside is None:
        return []
    metric = task.metrics[0]
    lines = [("TF-IDF + regression, whole pool", (beside.pool or {}).get(metric))]
    lines.append(
        (
            "best constant answer",
            max((v[metric] for v in beside.constants.values() if metric in v), default=None),
        )
    )
    return [(name, value) for name, value in lines if value is not None]


def _plot_sizes(axes: Any, report: Report, task: Task) -> None:
    """Plot published values by billions of parameters, and the best result of this report."""
    best = max((r for r in report.results if r.task is task), key=lambda result: result.mean(task.metrics[0]))
    size = report.model.runner.config.n_parameters / 1e9
    label = f"{report.model.name}, measured, {best.shots_used} shots (its best)"
    axes.plot([size], [100 * best.mean(task.metrics[0])], "*", markersize=12, label=label)
    families: dict[str, list[tuple[float, float]]] = {}
    for row, shots, value in published.of_task(task.name):
        label = f"{row.model.rsplit(' ', 1)[0]}, published, {'? ' if shots is None else f'{shots} '}shots"
        families.setdefault(label, []).append((row.parameters, value))
    for label, points in families.items():
        axes.plot(*zip(*sorted(points), strict=True), marker=".", linewidth=1, label=label)
    axes.set(xscale="log", xlabel="parameters, billions", title="beside published values, by size")


def _number(value: float | None) -> float | None:
    """The value for JSON, which has no NaN: null stands for a metric that is not defined."""
    return None if value is None or value != value else value
