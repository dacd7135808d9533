"""`kogpt eval TASK...`: few-shot tables with prompts, shots, seeds, spread and baselines."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kogpt.cli.defaults import pass_over
from kogpt.cli.options import (
    add_adapter_option,
    add_model_options,
    load_model,
    read_amount,
    read_count,
    read_counts_from_0,
)
from kogpt.cli.progress import Progress
from kogpt.cli.workers import add_worker_options, require_workers, spread
from kogpt.errors import InputError, KoGPTError, columns, localized, pad, prefers_korean
from kogpt.files import require_folder

if TYPE_CHECKING:
    from kogpt.evaluation.evaluate import EvaluatedModel, Settings
    from kogpt.evaluation.report import Report
    from kogpt.evaluation.task import Prompt, Task

OF_TASKS = ("prompt", "shots", "seeds", "limit", "scoring", "sample", "data", "no_tfidf")  # ppl reads none
EPILOG = """tasks: nsmc ynat klue-sts korsts klue-nli kobest-boolq kobest-copa kobest-hellaswag
       kobest-sentineg kobest-wic, ppl (bits per byte of --text); list shows them all
       FILE.toml: a task of your own (docs/evaluation.md has an example)
       compare DIR DIR: two models' reports beside each other, with paired tests

Offline, --data or KOGPT_DATA names a folder with the data files; otherwise they are downloaded from where
they were published. The same command resumes an interrupted run."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Tasks, prompts, shots, and the folder of the report."""
    parser.epilog = EPILOG
    parser.add_argument(
        "tasks",
        nargs="+",
        metavar="TASK",
        help="task to measure, a FILE.toml, list, or compare DIR DIR (see below)",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="NAME",
        help="prompt wording, repeatable, or all (default: the task's first)",
    )
    parser.add_argument(
        "--shots",
        type=read_counts_from_0,
        default=(0, 5),
        metavar="N,N",
        help="numbers of solved examples before each question (default: 0,5)",
    )
    parser.add_argument(
        "--seeds", type=read_count, default=3, metavar="N", help="random draws of shots (default: 3)"
    )
    parser.add_argument(
        "--limit", type=read_count, metavar="N", help="score a fixed random subset of N items"
    )
    parser.add_argument(
        "--scoring",
        choices=("raw", "normalised", "calibrated"),
        help="how log-likelihoods are compared (default: the task's way)",
    )
    parser.add_argument(
        "--sample",
        type=read_amount,
        metavar="T",
        help="sample the label at temperature T instead of scoring every label",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with the data files")
    parser.add_argument(
        "--text", type=Path, action="append", metavar="FILE", help="text for ppl: .txt, .jsonl or .jsonl.zst"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for reports and finished batches (default: eval-results/MODEL)",
    )
    parser.add_argument("--no-tfidf", action="store_true", help="skip the TF-IDF baseline")
    parser.add_argument("--json", action="store_true", help="print one JSON object per value")
    add_model_options(parser)
    add_worker_options(parser)
    add_adapter_option(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, write the report, print its table."""
    from kogpt.evaluation import report as reports
    from kogpt.evaluation.store import only_run

    if "list" in args.tasks:
        return _list(args)
    if args.tasks[0] == "compare":
        return _compare(args)
    require_workers(args)
    chosen = _chosen(args)
    if "ppl" not in args.tasks:
        pass_over(args, "text")
    if ("ppl" in args.tasks) != bool(args.text):
        raise KoGPTError("ppl and --text FILE go together", "ppl 과제와 --text FILE은 함께 써야 합니다")
    if not chosen:
        _refuse_options_of_tasks(args)
    args.out = args.out or _default_out(args)
    require_folder(args.out)
    report = reports.Report(_evaluated_model(args), shlex.join(["kogpt", "eval", *_words(args)]))
    with only_run(args.out), Progress() as progress:
        reports.require_own_report(report.model, args.out)
        _measure(args, chosen, report, progress)
        for path in args.text or ():
            from kogpt.evaluation import perplexity

            report.texts.append(perplexity.measure(report.model, path, args.out, progress.show))
        paths = reports.write(report, args.out)
    if args.json:
        for row in reports.lines(report):
            print(json.dumps(row, ensure_ascii=False))
    else:
        print(reports.summary(report), end="")
    plotted = not report.results or any(path.suffix == ".png" for path in paths)
    print(f"kogpt: {closing(paths, plotted)}", file=sys.stderr)
    return 0


def _refuse_options_of_tasks(args: argparse.Namespace) -> None:
    """InputError for typed options that ppl does not read."""
    if typed := ", ".join(args.typed[name] for name in OF_TASKS if name in args.typed):
        raise InputError(
            f"ppl reads whole texts: name a task as well, or leave {typed} out",
            f"ppl은 글을 통째로 읽습니다. 과제를 더하거나 다음 옵션을 빼세요: {typed}",
        )


def closing(paths: Sequence[Path], is_plotted: bool) -> str:
    """The last line: the files of a report, and what plots need where there are none."""
    first, n_more = f"{paths[0]}, {paths[1].name}", len(paths) - 2
    line = localized(f"{first} and {n_more} more files", f"{first} 외 파일 {n_more}개")
    hint = localized("plots", "그래프") + ": pip install 'kogpt[eval]'"
    return line if is_plotted else f"{line} ({hint})"


def _list(args: argparse.Namespace) -> int:
    """Print every task with its metric, published number of shots and prompts."""
    from kogpt.evaluation import tasks

    if args.tasks != ["list"]:
        raise KoGPTError("list stands alone: kogpt eval list", "list는 혼자 쓰세요: kogpt eval list")
    head = ("task", "metric", "published shots", "prompts"), ("과제", "지표", "공개된 예시 수", "프롬프트")
    rows = [head[prefers_korean()]]
    for task in map(tasks.get, tasks.NAMES):
        prompts = [prompt.name for prompt in task.prompts]
        if args.json:
            row = {"task": task.name, "title": task.title, "metrics": task.metrics, "prompts": prompts}
            print(json.dumps({**row, "published_shots": task.published_shots}, ensure_ascii=False))
        rows.append((task.name, task.metrics[0], str(task.published_shots or "-"), " ".join(prompts)))
    if not args.json:
        any_text = localized("any text", "모든 글")
        rows.append(("ppl", "bits_per_byte", "-", f"({any_text}: --text FILE)"))
        widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
        for cells in rows:
            print("  ".join(pad(cell, width) for cell, width in zip(cells, widths, strict=True)).rstrip())
    return 0


def _compare(args: argparse.Namespace) -> int:
    """Print the differences of two reports; with --out, write them there too."""
    from kogpt.evaluation import compare
    from kogpt.files import atomic_write

    if len(args.tasks) != 3:
        raise KoGPTError(
            "two folders are compared: kogpt eval compare DIR DIR",
            "폴더 두 개를 비교합니다: kogpt eval compare 폴더 폴더",
        )
    found = compare.compare(Path(args.tasks[1]), Path(args.tasks[2]))
    text, lines = compare.as_markdown(found), "\n".join(compare.as_lines(found)) + "\n"
    print(lines if args.json else text, end="")
    if args.out is not None:
        require_folder(args.out)
        args.out.mkdir(parents=True, exist_ok=True)
        for name, content in (("comparison.md", text), ("comparison.jsonl", lines)):
            with atomic_write(args.out / name) as file:
                file.write(content.encode(errors="backslashreplace"))  # names of files may hold any bytes
    return 0


def _default_out(args: argparse.Namespace) -> Path:
    """A folder for each model and adapter, so that no run overwrites another model's report."""
    name = Path(args.model).resolve().name or "model"
    if args.revision is not None:
        name += f"-{args.revision.replace('/', '_')}"
    if args.adapter is not None:
        name += f"-{Path(args.adapter).resolve().name}"
    return Path("eval-results", name)


def _measure(
    args: argparse.Namespace, chosen: list[tuple[Task, list[Prompt]]], report: Report, progress: Progress
) -> None:
    """Measure every task with every prompt and number of shots, then the baselines of the task."""
    from dataclasses import replace

    from kogpt.evaluation import baselines
    from kogpt.evaluation.evaluate import evaluate

    settings = _settings(args)
    if args.workers is not None:
        _compute_batches(args, chosen)
    left = _TimeLeft(progress, _count_runs(args, chosen))
    for task, prompts in chosen:
        for prompt in prompts:
            for shots in args.shots:
                result = evaluate(report.model, task, prompt, replace(settings, shots=shots), left.show)
                report.results.append(result)
        results = [result for result in report.results if result.task is task]
        report.baselines[task.name] = baselines.of_task(task, results, args.out, tfidf=not args.no_tfidf)


def _chosen(args: argparse.Namespace) -> list[tuple[Task, list[Prompt]]]:
    """The tasks with their prompts. KoGPTError if two share a name, under which results are kept."""
    from kogpt.evaluation import tasks

    chosen = [(task, _prompts(task, args.prompt)) for task in map(tasks.get, _task_words(args))]
    names = [task.name.casefold() for task, _ in chosen]  # some file systems know no case
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise KoGPTError(
            f"two tasks are named {twice!r}: give each task once, and of two files one another `name`",
            f"이름이 {twice!r}인 과제가 둘입니다. 과제는 한 번씩만 쓰고, 다른 파일이면 한쪽에"
            " 다른 `name`을 적으세요",
        )
    return chosen


def _task_words(args: argparse.Namespace) -> list[str]:
    """The names or files of tasks."""
    return [word for word in args.tasks if word != "ppl"]


def _compute_batches(args: argparse.Namespace, chosen: list[tuple[Task, list[Prompt]]]) -> None:
    """Let workers compute the batches of every run; what follows finds them finished."""
    from kogpt.files import atomic_write

    runs = [
        (word, prompt.name, shots)
        for word, (_, prompts) in zip(_task_words(args), chosen, strict=True)
        for prompt in prompts
        for shots in args.shots
    ]
    for files in spread(args, partial(_worker, args), runs, {"command": _words(args)}):
        for name, text in files.items():
            path = args.out / "batches" / name
            if not path.exists():
                with atomic_write(path) as file:
                    file.write(text.encode())


def _worker(args: argparse.Namespace) -> Callable[[tuple[str, str, int]], dict[str, str]]:
    """A function that measures one run with a model of its own and returns its batch files by name."""
    model = _evaluated_model(args)

    def work(run: tuple[str, str, int]) -> dict[str, str]:
        from dataclasses import replace
        from tempfile import TemporaryDirectory

        from kogpt.evaluation import tasks
        from kogpt.evaluation.evaluate import evaluate

        task, prompt, shots = tasks.get(run[0]), run[1], run[2]
        with TemporaryDirectory() as folder:
            out = Path(folder)
            evaluate(model, task, task.prompt(prompt), replace(_settings(args), shots=shots, out=out))
            return {path.name: path.read_text(encoding="utf-8") for path in (out / "batches").glob("*.jsonl")}

    return work


def _count_runs(args: argparse.Namespace, chosen: list[tuple[Task, list[Prompt]]]) -> int:
    """How often a task's items are read: without shots and sampling, the seeds make no difference."""
    seeds = sum(args.seeds if shots or args.sample is not None else 1 for shots in args.shots)
    return seeds * sum(len(prompts) for _, prompts in chosen)


class _TimeLeft:
    """Progress over all runs: which one it is, and how long the rest takes at the pace so far."""

    def __init__(self, progress: Progress, n_runs: int) -> None:
        self._progress = progress
        self._n_runs = n_runs
        self._labels: list[str] = []
        self._started = time.monotonic()
        self._line = ""

    def show(self, label: str, done: int, total: int) -> None:
        """As Progress.show, with the runs that are left in the label."""
        if label not in self._labels:
            self._labels.append(label)
            finished = len(self._labels) - 1
            where = f"{finished + 1}/{self._n_runs}"
            if finished:
                seconds = (time.monotonic() - self._started) / finished * (self._n_runs - finished)
                left = localized(f"about {_shown(seconds)} left", f"약 {_shown(seconds)} 남음")
                where = f"{where}, {left}"
            self._line = f"{label} ({where})"
        self._progress.show(self._line, done, total)


def _shown(seconds: float) -> str:
    """A duration in words: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return localized(f"{seconds:.0f} s", f"{seconds:.0f}초")
    if seconds < 5400:
        return localized(f"{seconds / 60:.0f} min", f"{seconds / 60:.0f}분")
    return localized(f"{seconds / 3600:.1f} h", f"{seconds / 3600:.1f}시간")


def _settings(args: argparse.Namespace) -> Settings:
    from kogpt.evaluation.evaluate import Settings

    return Settings(
        seeds=tuple(range(1, args.seeds + 1)),
        limit=args.limit,
        scoring=args.scoring,
        sample=args.sample,
        folder=args.data,
        out=args.out,
    )


def _evaluated_model(args: argparse.Namespace) -> EvaluatedModel:
    from kogpt import hub
    from kogpt.evaluation.evaluate import EvaluatedModel, identify

    model = load_model(args)
    folder = hub.find_folder(args.model, args.revision)
    adapter = None if args.adapter is None else hub.find_adapter(args.adapter)
    name = args.model if adapter is None else f"{args.model} + {adapter.name}"
    return EvaluatedModel(name, model, identify(folder, model.engine.runner, adapter))


def _prompts(task: Task, names: list[str] | None) -> list[Prompt]:
    """The prompts that --prompt names; by default the task's first, with `all` every one."""
    if names == ["all"]:
        return list(task.prompts)
    return [task.prompt(name) for name in names or (None,)]


def _words(args: argparse.Namespace) -> list[str]:
    """The arguments that repeat this measurement, in a fixed order."""
    words = [*args.tasks, "--model", args.model, "--shots", ",".join(map(str, args.shots))]
    words += ["--seeds", str(args.seeds)]
    for name in ("revision", "adapter", "limit", "scoring", "sample", "dtype", "cache_dtype"):
        value = getattr(args, name)
        if value not in (None, "auto"):
            words += [f"--{name.replace('_', '-')}", str(value)]
    for name in args.prompt or ():
        words += ["--prompt", name]
    for path in args.text or ():
        words += ["--text", path.name]
    return words
