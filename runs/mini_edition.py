"""Whether a trained kogpt-mini takes the place of the one in the package: only with a mean of at most LIMIT.

    python runs/mini_edition.py RUN [--install]

RUN/figures.json is what runs/mini_card.py measured, RUN/model the model. Each edition adds 60 MB to the
history, so a smaller gain is not worth one. --install copies the model into kogpt/mini; the adapters there
were tuned on the edition before: make them again with runs/adapters.py.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from mini_card import FIGURES, MODEL

LIMIT = 0.860  # bits per byte, mean of four sets; the second edition has 0.887
LARGEST = 64 * 2**20  # bytes of the folder without its adapters


def refusal(figures: dict[str, float], n_bytes: int) -> str | None:
    """Why the edition before stays; None if the new one replaces it."""
    mean, before = figures["mean"], figures["beside"]
    if not mean <= LIMIT:  # NaN stays out too
        return f"mean {mean:.4f} is above {LIMIT}: the edition before stays ({before:.4f} here)"
    if mean >= before:
        return f"mean {mean:.4f} is not below that of the edition before, {before:.4f}, which stays"
    if n_bytes > LARGEST:
        return f"{n_bytes / 2**20:.2f} MiB are more than {LARGEST // 2**20}: the edition before stays"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--install", action="store_true", help="copy the model into kogpt/mini")
    args = parser.parse_args()
    files = [path for path in (args.run / "model").iterdir() if path.is_file()]
    figures = json.loads((args.run / FIGURES).read_text(encoding="utf-8"))
    why = refusal(figures, sum(path.stat().st_size for path in files))
    print(
        why
        or f"mean {figures['mean']:.4f} is at most {LIMIT}: a new edition ({figures['beside']:.4f} before)"
    )
    if args.install:
        if why:
            raise SystemExit("nothing was copied")
        for path in files:
            shutil.copy(path, MODEL / path.name)


if __name__ == "__main__":
    main()
