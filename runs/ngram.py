"""Bits per byte of a Kneser-Ney model trained on the text that kogpt-mini learns from.

    python runs/ngram.py CORPUS --out ngram.json

Counts the bytes of all train_*.jsonl.zst of CORPUS but petitions and measures every valid_*.jsonl.zst;
runs/mini_card.py takes the result
(bench/results/ngram_20261123.json is one). Of 500 MB: 100 s of one core, 2.1 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from kogpt.cli.limits import peak_memory
from kogpt.pretraining.corpus import Reading
from kogpt.pretraining.ngram import ORDER, KneserNey
from kogpt.pretraining.sample import read_texts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--order", type=int, default=ORDER)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    files = sorted(file for file in args.corpus.glob("train_*.jsonl.zst") if "petitions" not in file.name)
    text = Counted(read_texts(files, Reading(), max_bad_share=0.0))
    model = KneserNey.train(text, args.order)
    bits: dict[str, float] = {}
    print("| set | Kneser-Ney |\n|---|---|")
    for file in sorted(args.corpus.glob("valid_*.jsonl.zst")):
        name = file.name.removeprefix("valid_").removesuffix(".jsonl.zst")
        bits[name] = round(model.bits_per_byte(read_texts([file], Reading(), max_bad_share=0.0)), 4)
        print(f"| {name} | {bits[name]:.3f} |", flush=True)
    report = {"order": args.order, "train_bytes": text.n_bytes, "grams": model.sizes, "bits_per_byte": bits}
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(
        f"{text.n_bytes:,} bytes; {time.process_time():.0f} s of a core, "
        f"{(peak_memory() or 0) / 1e9:.1f} GB of memory",
        file=sys.stderr,
    )


class Counted:
    """Texts, and how many bytes of them have been read."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.n_bytes = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.n_bytes += len(text.encode())
            yield text


if __name__ == "__main__":
    main()
