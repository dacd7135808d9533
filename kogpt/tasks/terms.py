"""Texts as weighted terms: those of the search, with TF-IDF over the texts themselves.

Shapes: N texts, T terms, K pairs of a text and one of its terms. Only these pairs are kept: a table of (N, T)
takes gigabytes for a long text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kogpt.search.analysis import analyse_word, words

K1, B = 1.2, 0.75  # of BM25 (Robertson and Zaragoza 2009, section 3.3)

Floats = NDArray[np.float64]


def terms_of(text: str) -> list[str]:
    """Stems and character 2-grams of a text's words."""
    return [term for word in words(text) for term in analyse_word(word)]


def centrality(texts: Sequence[str]) -> Floats:
    """(N,) how near each text is to all of them: the cosine of its TF-IDF and the mean, the centroid."""
    numbers: dict[str, int] = {}
    counted = [Counter(terms_of(text)) for text in texts]
    columns = np.array([numbers.setdefault(term, len(numbers)) for found in counted for term in found], int)
    rows = np.repeat(np.arange(len(texts)), [len(found) for found in counted])  # (K,)
    counts = np.array([count for found in counted for count in found.values()], np.float64)
    idf = np.log((1 + len(texts)) / (1 + np.bincount(columns))) + 1
    values = np.log1p(counts) * idf[columns]
    lengths = np.sqrt(np.bincount(rows, values**2, len(texts)))
    values /= lengths[rows]
    centroid = np.bincount(columns, values) / len(texts)
    products = np.bincount(rows, values * centroid[columns], len(texts)).astype(
        np.float64
    )  # of no term: integers
    return products / max(float(np.linalg.norm(centroid)), 1e-12)


def bm25(asked: Sequence[str], documents: Sequence[Sequence[str]]) -> Floats:
    """(N,) BM25 of documents, each the list of its terms."""
    wanted = set(asked)
    holders: dict[str, list[tuple[int, int]]] = {}  # (document, how often) by term
    for number, document in enumerate(documents):
        for term, count in Counter(document).items():
            if term in wanted:
                holders.setdefault(term, []).append((number, count))
    lengths = np.array([max(len(document), 1) for document in documents], np.float64)
    slack = K1 * (1 - B + B * lengths / lengths.mean())
    scores = np.zeros(len(documents))
    for found in holders.values():
        numbers, often = np.array(found).T
        idf = np.log(1 + (len(documents) - len(numbers) + 0.5) / (len(numbers) + 0.5))
        scores[numbers] += idf * often * (K1 + 1) / (often + slack[numbers])
    return scores
