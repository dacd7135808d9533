"""The README's evaluation table in one command: every task, 0, 5 and the published numbers of shots.

    python runs/tables.py --data DIR                  kogpt-mini on two cores, within an hour
    python runs/tables.py --limit 200 --data DIR      a first look: at most 200 items a task
    python runs/tables.py --model kakaobrain/kogpt --revision KoGPT6B-ryan1.5b-float16 --device cuda

The last is the row of the published 6B model for whoever has its weights. Without --data the files are
fetched from where they were published. A run that was interrupted goes on where it was. Writes report.md,
plots and one line per item for each task, and table.md, the table of all; `--table --docs` puts that into
docs/evaluation.md, from where scripts/docs takes the READMEs' table.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from kogpt import cli
from kogpt.evaluation import published, tasks
from kogpt.evaluation.report import table

PAGE = Path(__file__).parents[1] / "docs" / "evaluation.md"
TABLE = re.compile(r"(?<=<!-- scores -->\n).*?(?=<!-- end -->)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Part:
    """One task of the table."""

    task: str
    shots: tuple[int, ...]
    limit: int | None = None  # a fixed random subset, where the whole file would not fit the hour


# The last number of shots of each task is the published one, or KoBEST's 10 (its cards have 0, 5, 10 and 50).
PLAN = (
    Part("nsmc", (0, 5, 70), 10_000),
    Part("ynat", (0, 5, 70), 4_000),
    Part("klue-sts", (0, 5, 40)),
    Part("korsts", (0, 5)),
    Part("klue-nli", (0, 5)),
    Part("kobest-boolq", (0, 5, 10)),
    Part("kobest-copa", (0, 5, 10)),
    Part("kobest-hellaswag", (0, 5, 10)),
    Part("kobest-sentineg", (0, 5, 50)),
    Part("kobest-wic", (0, 5, 10)),
)


def main() -> int:
    """Measure every task of the plan, then write the table of all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most N items a task")
    parser.add_argument("--whole", action="store_true", help="every item of every file")
    parser.add_argument("--table", action="store_true", help="write table.md from the reports that are there")
    parser.add_argument("--docs", action="store_true", help="put the table into docs/evaluation.md as well")
    parser.add_argument("--only", nargs="+", metavar="TASK", help="some of the tasks")
    parser.add_argument("--model", default="kogpt-mini")
    parser.add_argument("--out", type=Path, default=Path("eval-results/tables"))
    args, forwarded = parser.parse_known_args()
    done = [part for part in PLAN if args.only is None or part.task in args.only]
    for part in [] if args.table else done:
        words = ["eval", part.task, "--model", args.model, "--out", str(args.out / part.task), *forwarded]
        words += ["--shots", ",".join(map(str, part.shots))]
        if (limit := _limit(part, args)) is not None:
            words += ["--limit", str(limit)]
        if code := cli.main(words):
            return code
    text = as_table(
        [json.loads((args.out / part.task / "report.json").read_text()) for part in done], args.model
    )
    (args.out / "table.md").write_text(text, encoding="utf-8")
    if args.docs:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(TABLE.sub(lambda _: text, page), encoding="utf-8")
    print(text, end="")
    return 0


def _limit(part: Part, args: argparse.Namespace) -> int | None:
    limits = [limit for limit in (args.limit, None if args.whole else part.limit) if limit is not None]
    return min(limits, default=None)


def as_table(reports: list[dict[str, Any]], model: str) -> str:
    """Markdown: measured scores with their spread and baselines, then the original's table beside them."""
    measured = [_row(report) for report in reports]
    head = (
        "task",
        "metric",
        "items",
        "constant",
        "TF-IDF",
        "0 shots",
        "5 shots",
        "published shots",
        "KoGPT 6B, published",
    )
    parts = [table(head, measured)]
    parts.append(
        f"{model}, mean ± standard deviation over seeds, percent; items: scored of the file's.\n"
        "constant: the best constant answer. TF-IDF: with logistic regression on the whole pool of shots.\n"
        "(n): the shots that fit the context."
    )
    rows = [_published_row(row) for row in published.README]
    original = [report for report in reports if report["results"][0]["task"] in ("nsmc", "ynat", "klue-sts")]
    best = {report["results"][0]["task"]: _cell(report["results"][-1]) for report in original}
    size = reports[0]["model"]["parameters"] / 1e6
    cells = [best.get(name, "") for name in ("nsmc", "ynat", "klue-sts")]
    rows.append((f"{model} {size:.0f}M (measured here)", *cells))
    parts.append(table(("model", "NSMC (accuracy)", "YNAT (macro-F1)", "KLUE-STS (F1)"), rows))
    return "\n\n".join(parts) + "\n"


def _row(report: dict[str, Any]) -> tuple[str, ...]:
    first = report["results"][0]
    name = first["task"]
    task = tasks.get(name)
    metric = task.metrics[0]
    by_shots = {result["shots_wanted"]: result for result in report["results"]}
    beside = report["baselines"][name]
    constants = [values[metric] for values in beside["constants"].values() if metric in values]
    pool = (beside["tfidf_pool"] or {}).get(metric)
    last = max(by_shots)
    return (
        task.title,
        metric.replace("_f1", "-F1"),
        f"{first['n']:,} of {first['n_test_file']:,}",
        f"{100 * max(constants):.1f}" if constants else "–",
        f"{100 * pool:.1f}" if pool is not None else "–",
        _cell(by_shots.get(0)),
        _cell(by_shots.get(5)),
        _cell(by_shots[last]) if last > 5 else "–",
        _original(name, last),
    )


def _cell(result: dict[str, Any] | None) -> str:
    """Mean ± deviation of a result's first metric; (n) where fewer shots fitted than were asked for."""
    if result is None:
        return "–"
    metric = tasks.get(result["task"]).metrics[0]
    text = f"{100 * result['mean'][metric]:.1f}"
    if result["std"][metric] is not None:
        text += f" ± {100 * result['std'][metric]:.1f}"
    used = min(len(seed["shots"]) for seed in result["seeds"])
    return text if used in (0, 5) and used == result["shots_wanted"] else f"{text} ({used})" if used else text


def _original(task: str, shots: int) -> str:
    """The published value of KoGPT 6B with as many shots, or with those that were never published."""
    for row, count, value in published.of_task(task):
        if row.model == "KoGPT 6B" and count in (None, shots):
            return f"{value:.1f}"
    return "–"


def _published_row(row: published.Published) -> tuple[str, ...]:
    values = [row.values[name, None] for name in ("nsmc", "ynat", "klue-sts")]
    return (f"{row.model} (published)", *(f"{value:.1f}" for value in values))


if __name__ == "__main__":
    sys.exit(main())
