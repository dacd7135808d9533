"""Bits per byte of UTF-8: the one definition of training, evaluation and the model card.

A document follows the tokens that documents of the training text follow: [EOS], unless the tokenizer's
template says otherwise (Tokenizer.document_start). [BOS] was never trained. Each token is predicted once.
The number compares models with different vocabularies, and models with `xz`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Window = tuple[Ids, int]  # tokens, and the index of the first one that is scored


def split_windows(ids: Ids, start: Sequence[int], length: int) -> list[Window]:
    """Cut a document of (T,) ids into windows of at most `length` tokens, which score each id once.

    start: ids before the document, at least one and fewer than `length`. Neighbouring windows share half
    their tokens or more, so each id but the first few has at least half a window before it.
    """
    assert 0 < len(start) < length
    line = np.concatenate([np.array(start, dtype=np.int64), ids])
    windows = [(line[:length], len(start))] if len(ids) else []
    end = length
    while end < len(line):
        begin, end = end, min(end + length // 2, len(line))
        windows.append((line[end - length : end], begin - (end - length)))
    return windows


def per_byte(nats: float, n_bytes: int) -> float:
    """Bits per byte of a text of `n_bytes` bytes of UTF-8 whose tokens cost `nats` together."""
    return nats / math.log(2) / n_bytes
