"""kogpt-mini's tokenizer: byte-level BPE on a sample in which no source drowns the others.

    python runs/mini_tokenizer.py CORPUS OUT [VOCABULARY]

The first documents of every source, up to so many megabytes; the large source from all of its files alike.
A vocabulary of 16,384 is trained and its first 8,192 entries kept, so that sizes could be compared: bytes per
token on kowiki, law, nsmc and msdocs are 3.87 to 5.06 at 6,144 entries, 4.04 to 5.38 at 8,192, 4.27 to 5.81
at 12,288, 4.46 to 6.08 at 16,384.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from kogpt.pretraining.corpus import Reading
from kogpt.pretraining.sample import read_texts
from kogpt.pretraining.tokenizer_training import save_tokenizer, smaller, train_tokenizer

MEGABYTES = {
    "kowiki": 50,
    "law": 16,
    "nsmc": 24,
    "msdocs": 14,
    "devdocs": 5,
    "pydocs": 3,
    "bible": 2.5,
    "chat": 1,
    "klue_sents": 1.8,
    "novels": 0.3,
    "pytorch": 0.6,
}
TRAINED, KEPT = 16384, 8192  # another size may be kept: VOCABULARY
CONTEXT = 2048


def sample(corpus: Path) -> Iterator[str]:
    """The texts to learn from."""
    for source, megabytes in MEGABYTES.items():
        files = sorted(corpus.glob(f"train_{source}_*.jsonl.zst"))
        if source != "kowiki":
            files = files[:1]
        for file in files:
            taken = 0
            for text in read_texts([file], Reading(), max_bad_share=0.0):
                yield text
                taken += len(text.encode())
                if taken > megabytes * 1e6 / len(files):
                    break


def write_tokenizer(corpus: Path, out: Path, vocabulary: int = KEPT) -> None:
    """Train and write into the folder `out`; a vocabulary below KEPT is for trials on little text."""
    trained = train_tokenizer(sample(corpus), TRAINED if vocabulary >= KEPT else vocabulary)
    save_tokenizer(smaller(trained, vocabulary), out, CONTEXT)


if __name__ == "__main__":
    write_tokenizer(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:4]))
