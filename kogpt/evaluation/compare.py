"""Compare the reports of two models: which is better, and whether chance explains the difference.

Both have scored the same items, so every test is paired. The difference of a metric comes with the interval
of a paired bootstrap, in which the two models share the drawn items and runs; for single answers, McNemar's
exact test counts the items that only one model has right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kogpt.comparison import compare as count
from kogpt.errors import InputError, localized
from kogpt.files import read_json
from kogpt.metrics import METRICS, Metric, Outcome
from kogpt.texts import Record, read_records, read_text

MAX_REPORT_BYTES = 1 << 26
RESAMPLES = 2000
LEVEL = 0.95
# Conditions that two results must share, or their difference is not one of the models; with Korean names.
CONDITIONS = {
    "task version": "과제 버전",
    "metrics": "지표",
    "data": "데이터",
    "prompt wording": "프롬프트 문구",
    "scoring": "점수 계산 방식",
    "temperature": "온도",
    "shots": "예시",
}


@dataclass(frozen=True, slots=True)
class Difference:
    """Two models on one task with one prompt and one number of shots; the metric is a share, not percent."""

    task: str
    prompt: str
    shots: int
    metric: Metric
    n: int
    n_runs: int
    first: float
    second: float
    difference: float  # second - first
    interval: tuple[float, float] | None
    bootstrap_p: float
    only_first: int | None  # items that only one model has right; None with several runs
    only_second: int | None
    mcnemar_p: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences between two reports, and what only one of them has."""

    names: tuple[str, str]
    differences: list[Difference]
    left_out: tuple[list[str], list[str]]  # each with its reason, in English and Korean


def compare(first: Path, second: Path) -> Comparison:
    """Compare two folders that `kogpt eval` wrote. InputError if they have no measurement in common."""
    reports = [_report(folder) for folder in (first, second)]
    a, b = ({_key(result): result for result in report["results"]} for report in reports)
    reasons = {key: _unlike(a.get(key), b.get(key)) for key in {**a, **b}}
    en, ko = (
        [f"{' '.join(map(str, key))} ({reason[side]})" for key, reason in reasons.items() if reason]
        for side in (0, 1)
    )
    common = [key for key, reason in reasons.items() if reason is None]
    if not common:
        raise InputError(
            f"{first} and {second} have no measurement in common{_listed(en)}: measure both alike",
            f"{first}, {second}: 같은 조건의 결과가 없습니다{_listed(ko)}. 두 모델을 같은 옵션으로"
            " 평가하세요",
        )
    differences = [
        _difference((first, second), a[key], sorted(_seeds(a[key]) & _seeds(b[key]))) for key in common
    ]
    return Comparison(_names(reports, (first, second)), differences, (en, ko))


def _listed(reasons: Sequence[str]) -> str:
    """The first few reasons in parentheses; nothing where there are none."""
    return f" ({'; '.join(reasons[:3])})" if reasons else ""


def _unlike(a: dict[str, Any] | None, b: dict[str, Any] | None) -> tuple[str, str] | None:
    """Why two results are not compared, in English and Korean; None if they are."""
    if a is None or b is None:
        return "only in one report", "한 보고서에만 있음"
    seeds = _seeds(a) & _seeds(b)
    if not seeds:
        return "other seeds", "시드가 다름"
    pairs = zip(CONDITIONS, _conditions(a, seeds), _conditions(b, seeds), strict=True)
    if not (other := [name for name, first, second in pairs if first != second]):
        return None
    return f"other {', '.join(other)}", f"다른 조건: {', '.join(CONDITIONS[name] for name in other)}"


def _conditions(result: dict[str, Any], seeds: set[int]) -> tuple[object, ...]:
    """The conditions of a result, in the order of CONDITIONS."""
    prompt = result["prompt"]
    return (
        result.get("task_version"),
        list(result["mean"]),
        result.get("test", {}).get("digest"),
        [prompt.get(part) for part in ("instruction", "question", "choices", "separator")],
        result.get("scoring"),
        result.get("temperature"),
        {run["seed"]: run.get("shots") for run in result["seeds"] if run["seed"] in seeds},
    )


def _names(reports: Sequence[dict[str, Any]], folders: tuple[Path, Path]) -> tuple[str, str]:
    """The names of the models; with their precisions, or those of the folders, where they are equal."""
    a, b = (report["model"] for report in reports)
    for first, second in (
        (str(a.get("name")), str(b.get("name"))),
        (f"{a.get('name')} {a.get('dtype')}", f"{b.get('name')} {b.get('dtype')}"),
    ):
        if first != second:
            return first, second
    return str(folders[0]), str(folders[1])


def _report(folder: Path) -> dict[str, Any]:
    path = folder / "report.json"
    if not path.is_file():
        raise InputError(
            f"{folder} holds no report.json: name a folder that kogpt eval wrote",
            f"{folder}: report.json 파일이 없습니다. kogpt eval이 만든 폴더를 지정하세요",
        )
    report = read_json(path, MAX_REPORT_BYTES, InputError)
    if not isinstance(report.get("results"), list) or not isinstance(report.get("model"), dict):
        raise InputError(f"{path} is not a report of kogpt eval", f"{path}: kogpt eval의 보고서가 아닙니다")
    return report


def _key(result: dict[str, Any]) -> tuple[str, str, int]:
    return result["task"], result["prompt"]["name"], result["shots_wanted"]


def _seeds(result: dict[str, Any]) -> set[int]:
    return {run["seed"] for run in result["seeds"]}


def _difference(folders: tuple[Path, Path], result: dict[str, Any], seeds: Sequence[int]) -> Difference:
    task, prompt, shots = _key(result)
    metric: Metric = next(iter(result["mean"]))
    names = [f"{task}.{prompt}.{shots}.{seed}.jsonl" for seed in seeds]
    runs = [_paired(*(folder / "items" / name for folder in folders)) for name in names]
    first, second = (float(np.mean([METRICS[metric](run[side]) for run in runs])) for side in (0, 1))
    interval, p = bootstrap(metric, runs)
    counted = None
    if len(runs) == 1 and metric in ("accuracy", "macro_f1", "binary_f1"):
        a, b = runs[0]
        counted = count(*(list(map(str, x)) for x in (a.answers, a.predictions, b.predictions)))
    return Difference(
        task=task,
        prompt=prompt,
        shots=shots,
        metric=metric,
        n=len(runs[0][0].answers),
        n_runs=len(runs),
        first=first,
        second=second,
        difference=second - first,
        interval=interval,
        bootstrap_p=p,
        only_first=counted.only_first if counted else None,
        only_second=counted.only_second if counted else None,
        mcnemar_p=counted.p if counted else None,
    )


def _paired(first: Path, second: Path) -> tuple[Outcome, Outcome]:
    """The outcomes of two models on the same items. InputError if the items differ."""
    a, b = ([record.values for record in _records(path)] for path in (first, second))
    if [(row["id"], row["answer"]) for row in a] != [(row["id"], row["answer"]) for row in b]:
        raise InputError(
            f"{first} and {second} have other items: measure both models with the same data and --limit",
            f"{first}, {second}: 항목이 다릅니다. 두 모델을 같은 데이터와 --limit으로 평가하세요",
        )
    return _outcome(a), _outcome(b)


def _records(path: Path) -> Iterator[Record]:
    return read_records(read_text(path, "utf-8"), str(path), "jsonl")


def _outcome(rows: Sequence[dict[str, Any]]) -> Outcome:
    return Outcome(
        np.array([row["answer"] for row in rows], dtype=np.int64),
        np.array([row["prediction"] for row in rows], dtype=np.int64),
        np.array([np.nan if row["grade"] is None else row["grade"] for row in rows], dtype=np.float64),
        np.array([row["score"] for row in rows], dtype=np.float64),
    )


def bootstrap(
    metric: Metric, runs: Sequence[tuple[Outcome, Outcome]]
) -> tuple[tuple[float, float] | None, float]:
    """Interval of second - first, and the two-sided p of no difference; each resample draws items and runs.

    None where every resample gives the same difference: then the data say nothing about its spread.
    """
    rng = np.random.default_rng(0)
    n_items = len(runs[0][0].answers)
    values = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        rows = rng.integers(n_items, size=n_items)
        drawn = [runs[number] for number in rng.integers(len(runs), size=len(runs))]
        values[i] = np.mean([METRICS[metric](b.take(rows)) - METRICS[metric](a.take(rows)) for a, b in drawn])
    values = values[~np.isnan(values)]
    if not len(values) or values.min() == values.max():
        return None, 1.0
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    beyond = min((values <= 0).sum(), (values >= 0).sum())
    return (float(low), float(high)), min(1.0, 2 * (int(beyond) + 1) / (len(values) + 1))


def as_markdown(found: Comparison) -> str:
    """The comparison for readers, in percent and in the user's language."""
    head = (
        localized("task", "과제"),
        localized("prompt", "프롬프트"),
        localized("shots", "예시"),
        localized("metric", "지표"),
        *found.names,
        localized("difference [95 %]", "차이 [95 %]"),
        "p",
        localized("only one right", "한쪽만 맞힘"),
        localized("McNemar p", "맥니마 p"),
    )
    rows = [head, ("---",) * len(head)]
    for d in found.differences:
        between = "" if d.interval is None else f" [{100 * d.interval[0]:+.1f}, {100 * d.interval[1]:+.1f}]"
        only = "-" if d.mcnemar_p is None else f"{d.only_first} / {d.only_second}"
        rows.append(
            (
                *(d.task, d.prompt, str(d.shots), d.metric),
                *(f"{100 * d.first:.1f}", f"{100 * d.second:.1f}", f"{100 * d.difference:+.1f}{between}"),
                *(f"{d.bootstrap_p:.3g}", only, "-" if d.mcnemar_p is None else f"{d.mcnemar_p:.3g}"),
            )
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    en, ko = map("; ".join, found.left_out)
    if en:
        lines += ["", localized(f"Left out: {en}", f"뺀 것: {ko}")]
    return "\n".join(lines) + "\n"


def as_lines(found: Comparison) -> list[str]:
    """One JSON object for each difference."""
    models = dict(zip(("first_model", "second_model"), found.names, strict=True))
    return [json.dumps({**models, **asdict(d)}, ensure_ascii=False) for d in found.differences]
