"""Texts as weighted terms: those of the search, with TF-IDF over the texts themselves.

Shapes: N texts, T terms.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kogpt.search.analysis import analyse_word, words

Floats = NDArray[np.float64]


def terms_of(text: str) -> list[str]:
    """Stems and character 2-grams of a text's words."""
    return [term for word in words(text) for term in analyse_word(word)]


def weigh(texts: Sequence[str]) -> Floats:
    """(N, T) TF-IDF of the texts, rows of length 1."""
    lists = [terms_of(text) for text in texts]
    columns = {term: column for column, term in enumerate(dict.fromkeys(t for found in lists for t in found))}
    counts = np.zeros((len(texts), max(len(columns), 1)))
    for row, found in enumerate(lists):
        for term in found:
            counts[row, columns[term]] += 1
    idf = np.log((1 + len(texts)) / (1 + (counts > 0).sum(axis=0))) + 1
    weights = np.log1p(counts) * idf
    lengths = np.linalg.norm(weights, axis=1, keepdims=True)
    scaled: Floats = weights / np.maximum(lengths, 1e-12)
    return scaled
