"""The adapters that ship: rows, tuning, folder and card of each, by one command.

    python runs/adapters.py --data shared/data/eval --work /tmp/adapters [NAME ...]

It takes minutes of a GPU and most of a day of two cores. Each run continues where it was stopped.
kogpt/adapters/NAME is replaced once its run has ended; its files name the hash of kogpt-mini, so a new
edition of the model means running this again. Rows of test sets are never learnt from: `kogpt tune` refuses
or drops them by hash.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kogpt import checkpoint, peft
from kogpt.peft import SavedAdapter

ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "kogpt" / "adapters"
TITLE_CHARACTERS = 200  # of a text whose title is learnt
SHORT = 2000  # rows of sae4k, which would outnumber the others
PASSAGE_CHARACTERS = 120  # of a text that is to be found

Row = dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One adapter: `kogpt tune METHOD [TASK]` and its options; rows of its own where no task is named."""

    method: str = "lora"
    task: str | None = None
    options: tuple[str, ...]
    rows: Callable[[Path], Iterable[Row]] | None = None
    held_out: Callable[[Path], Iterable[Row]] | None = None


def table(folder: Path, name: str) -> list[Row]:
    """Rows of a packed set."""
    with gzip.open(folder / f"{name}.tsv.gz", "rt", encoding="utf-8") as file:
        columns, *lines = (line.rstrip("\n").split("\t") for line in file)
    return [dict(zip(columns, line, strict=True)) for line in lines]


def titled(folder: Path, split: str) -> Iterator[Row]:
    """Petitions and their titles, requests and the phrase that says what they ask for."""
    for row in table(folder, f"petitions_{split}"):
        yield _title(row["text"], row["title"])
    for row in table(folder, f"sae4k_{split}")[:SHORT]:
        yield _title(row["utterance"], row["phrase"])


def _title(text: str, title: str) -> Row:
    return {"prompt": f"{text[:TITLE_CHARACTERS]}\n제목:", "completion": f" {title}"}


def alike(folder: Path, split: str) -> Iterator[Row]:
    """Titles and texts, requests and their phrases, sentences of KorSTS with a grade of 4 or more."""
    for row in table(folder, f"summary_kowiki_{split}"):
        yield _pair(row["title"], row["lead"])
        yield _pair(row["lead"], row["body"])
    for row in table(folder, f"petitions_{split}"):
        yield _pair(row["title"], row["text"])
    for row in table(folder, f"sae4k_{split}")[:SHORT]:
        yield _pair(row["phrase"], row["utterance"])
    for row in table(folder, f"korsts_{split}"):
        if float(row["score"]) >= 4:
            yield _pair(row["sentence1"], row["sentence2"])


def _pair(one: str, other: str) -> Row:
    return {"text1": one[:PASSAGE_CHARACTERS], "text2": other[:PASSAGE_CHARACTERS]}


SMALL = ("--rank", "8", "--epochs", "3", "--checks", "2", "--skip-bad")
RECIPES = {
    "sentiment": Recipe(task="nsmc", options=(*SMALL, "--batch", "128", "--rate", "3e-4")),
    "profanity": Recipe(task="profanity", options=(*SMALL, "--batch", "32")),
    "intent": Recipe(task="intent", options=(*SMALL, "--batch", "64")),
    # Other texts of a batch are what a partner is told from, so a batch is as large as it can be.
    "search": Recipe(
        method="embed",
        rows=lambda folder: alike(folder, "train"),
        held_out=lambda folder: alike(folder, "test"),
        options=(*SMALL, "--batch", "128", "--rate", "1e-3", "--truncate"),
    ),
    "title": Recipe(
        rows=lambda folder: titled(folder, "train"),
        held_out=lambda folder: titled(folder, "test"),
        options=(*SMALL, "--batch", "16"),
    ),
}


def command(name: str, data: Path, work: Path) -> list[str]:
    """The `kogpt tune` command of an adapter; writes its rows first."""
    recipe = RECIPES[name]
    words = ["tune", recipe.method]
    if recipe.task is not None:
        words += [recipe.task, "--data", str(data)]
    elif recipe.rows is not None and recipe.held_out is not None:
        words += ["--data", str(write(work / f"{name}.jsonl", recipe.rows(data)))]
        words += ["--test", str(write(work / f"{name}_test.jsonl", recipe.held_out(data)))]
    return [*words, *recipe.options, "--out", str(work / name), "--json"]


def write(path: Path, rows: Iterable[Row]) -> Path:
    """Rows as JSON Lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def ship(name: str, work: Path) -> None:
    """The result of a run in float16, with the file that names its model; the card stays as it is."""
    stored = checkpoint.load("kogpt-mini")
    saved = peft.load(work / name / "adapter", stored)
    kept = SavedAdapter(saved.adapter, saved.head, saved.origin)
    peft.save(SHIPPED / name, kept, stored.config, "kogpt-mini", "float16")


def main() -> int:
    """Tune and ship the named adapters, by default all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    args = parser.parse_args()
    args.data, args.work = args.data.absolute(), args.work.absolute()  # the command runs in another folder
    for name in args.names or RECIPES:
        words = command(name, args.data, args.work)
        done = subprocess.run([sys.executable, "-m", "kogpt", *words], cwd=ROOT, check=False)
        if done.returncode:
            return done.returncode
        ship(name, args.work)
    return 0


if __name__ == "__main__":
    sys.exit(main())
