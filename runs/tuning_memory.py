"""The table of docs/tuning.md: what fits on a GPU for the 6B model, by the planner, and the command for it.

    python runs/tuning_memory.py            prints the table
    python runs/tuning_memory.py --docs     puts it into docs/tuning.md and docs/ko/tuning.md

Needs no GPU, no weights and no torch.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from kogpt.config import SHAPES, ModelConfig
from kogpt.tuning.plan import METHODS, PROGRAM, USABLE, Work, command, first_fit, peak

ROOT = Path(__file__).parents[1]
PAGES = {"en": ROOT / "docs" / "tuning.md", "ko": ROOT / "docs" / "ko" / "tuning.md"}
TABLE = re.compile(r"(?<=<!-- memory -->\n).*?(?=<!-- end -->)", re.DOTALL)
MODEL = "kakaobrain/kogpt"
GIGABYTES = (8, 16, 24, 40, 80)
WIDTH, BATCH = 512, 8  # tokens of a row, rows of a step
GPUS = (1, 2, 4, 8)
HEADS = {
    "en": "| GPU | needs, each | command |",
    "ko": "| GPU | GPU마다 필요 | 명령 |",
}
NOTHING = {"en": "{}: does not fit", "ko": "{}: 들어가지 않습니다"}


def find(config: ModelConfig, method: str, gigabytes: int) -> Work | None:
    """The way of fewest GPUs, then of most rows in a pass, that fits; None: none."""
    room = gigabytes * 2**30 * USABLE - PROGRAM["cuda"]
    for count in GPUS:
        for rows in (8, 4, 2, 1):
            if rows * count <= BATCH:
                work = Work(method=method, rows=rows, width=WIDTH, dtype="bfloat16", n_processes=count)
                work = replace(work, n_passes=BATCH // (rows * count))
                if (way := first_fit(config, work, room)) is not None:
                    return way
    return None


def rows(config: ModelConfig, locale: str) -> list[str]:
    """A line of the table for each size of GPU and each method."""
    lines = []
    for gigabytes in GIGABYTES:
        for method in METHODS:
            way = find(config, method, gigabytes)
            if way is None:
                lines.append(f"| {gigabytes} GB | - | {NOTHING[locale].format(method)} |")
                continue
            need = (peak(config, way) + PROGRAM["cuda"]) / 2**30
            count = f"{way.n_processes} x " if way.n_processes > 1 else ""
            lines.append(f"| {count}{gigabytes} GB | {need:.1f} GB | `{command(way, MODEL)}` |")
    return lines


def table(locale: str) -> str:
    """The table in Markdown."""
    return "\n".join([HEADS[locale], "|---|---:|---|", *rows(SHAPES["kogpt-6b"], locale)]) + "\n"


def main() -> None:
    """Print the table, or write it into the pages."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--docs", action="store_true", help="put the table into the pages")
    if not parser.parse_args().docs:
        print(table("en"))
        return
    for locale, page in PAGES.items():
        text = page.read_text(encoding="utf-8")
        found = TABLE.search(text)
        assert found is not None, page
        page.write_text(text[: found.start()] + table(locale) + text[found.end() :], encoding="utf-8")


if __name__ == "__main__":
    main()
