"""Trains kogpt/tasks/profanity.npz: what the filter knows beside its words.

    python runs/profanity.py DATA [--adapter profanity] [--out FILE]

DATA is a folder with the training parts of K-MHaS, Curse-detection-data, BEEP! and NSMC (.tsv.gz). Nothing of
a test part is read. Every comment has three n-gram scores, each learnt from one set and its label alone, and
the number of its swear words; two small logistic models join them, one for each of the labels that are
reported: K-MHaS's "profanity" and Curse-detection-data's label. With --adapter two more join them with what
that adapter says of the comments, as `judge(text, odds)` uses it. The adapter has learnt a part of these
comments once; its weight may be a little too high for that.
"""

from __future__ import annotations

import argparse
import gzip
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.svm import LinearSVC

from kogpt import KoGPT
from kogpt.tasks.ngrams import BUCKETS, Joint, NgramClassifier, features
from kogpt.tasks.profanity import MAX_WORDS, find_profanity, log_odds

C = 1.0  # of the SVMs
N_PRAISE = 10_000  # positive reviews, which are taken for clean
OUTPUTS = ("profanity", "insult", "hate")  # K-MHaS label 3, Curse label 1, BEEP! offensive or hate
Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]
Labelled = tuple[list[str], Flags]


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a .tsv.gz with a line of names."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        names, *lines = [line.rstrip("\n").split("\t") for line in file]
    return [dict(zip(names, line, strict=True)) for line in lines]


def load(data: Path) -> dict[str, Labelled]:
    """Texts and labels by output, and praise."""
    comments = rows(data / "toxic_kmhas_train.tsv.gz")
    posts = rows(data / "toxic_curse_train.tsv.gz")
    news = rows(data / "toxic_beep_train.tsv.gz")
    praise = [row["document"] for row in rows(data / "nsmc_train.tsv.gz") if row["label"] == "1"]
    random.Random(0).shuffle(praise)
    return {
        "profanity": (
            [row["text"] for row in comments],
            np.array(["3" in row["labels"].split(",") for row in comments]),
        ),
        "insult": ([row["text"] for row in posts], np.array([row["label"] == "1" for row in posts])),
        "hate": ([row["text"] for row in news], np.array([row["hate"] != "none" for row in news])),
        "praise": (praise[:N_PRAISE], np.zeros(N_PRAISE, np.bool_)),
    }


def matrix(texts: list[str]) -> Any:
    """(texts, BUCKETS) how often each n-gram occurs, as `features` says it."""
    found = [features(text) for text in texts]
    starts = np.cumsum([0, *(len(buckets) for buckets, _ in found)])
    columns = np.concatenate([buckets for buckets, _ in found])
    values = np.concatenate([counts for _, counts in found])
    return sparse.csr_matrix((values, columns, starts), shape=(len(texts), BUCKETS))


def unit(weighted: Any) -> Any:
    """Rows of length 1."""
    lengths = np.sqrt(weighted.multiply(weighted).sum(axis=1)).A1
    return (sparse.diags(1 / np.maximum(lengths, 1e-12)) @ weighted).tocsr()


def adapter_odds(adapter: str, sets: dict[str, Labelled]) -> dict[str, Floats]:
    """Log-odds of each text by an adapter of kogpt-mini, for each set."""
    model = KoGPT.from_pretrained(adapter=adapter)
    return {
        name: np.array([log_odds(found) for found in model.classify(texts)])
        for name, (texts, _) in sets.items()
        if name != "hate"
    }


def train(data: Path, adapter: str | None = None) -> NgramClassifier:
    """The classifier, its weights rounded to 8 bits."""
    sets = load(data)
    counts = {name: matrix(texts) for name, (texts, _) in sets.items()}
    whole = sparse.vstack(list(counts.values()))
    present = np.asarray((whole > 0).sum(axis=0)).ravel()
    idf = np.log((1 + whole.shape[0]) / (1 + present)) + 1
    idf[present < 2] = 0  # n-grams of one text say nothing about others
    step = float(idf.max()) / 255
    steps = np.round(idf / step).astype(np.uint8)
    inputs = {name: unit(c @ sparse.diags(steps * step)) for name, c in counts.items()}
    weights, biases = np.zeros((BUCKETS, len(OUTPUTS))), np.zeros(len(OUTPUTS))
    held: dict[str, Floats] = {}
    for column, name in enumerate(OUTPUTS):
        x = sparse.vstack([inputs[name], inputs["praise"]]).tocsr()
        y = np.concatenate([sets[name][1], sets["praise"][1]])
        svm = LinearSVC(C=C).fit(x, y)
        weights[:, column], biases[column] = svm.coef_[0], svm.intercept_[0]
        if name != "hate":
            folds = StratifiedKFold(3, shuffle=True, random_state=0)
            held[name] = cross_val_predict(LinearSVC(C=C), x, y, cv=folds, method="decision_function")
        print(name, "trained", flush=True)
    scales = np.abs(weights).max(axis=0) / 127
    parts = Parts(sets, inputs, weights, biases, held)
    return NgramClassifier(
        OUTPUTS,
        steps,
        step,
        np.round(weights / scales).astype(np.int8),
        scales.astype(np.float32),
        biases.astype(np.float32),
        join(parts),
        None if adapter is None else join(parts, adapter_odds(adapter, sets)),
    )


@dataclass(frozen=True, slots=True)
class Parts:
    """What the scores of the training texts are made of: by output, and of praise."""

    sets: dict[str, Labelled]
    inputs: dict[str, Any]  # (texts, BUCKETS)
    weights: Floats  # (BUCKETS, K)
    biases: Floats  # (K,)
    held: dict[str, Floats]  # an output's scores of its own texts and of praise, each by an SVM without it


def join(parts: Parts, odds: dict[str, Floats] | None = None) -> Joint:
    """The logistic models, with an adapter's log-odds where given; thresholds have the best F1 on train."""
    coefficients, thresholds = [], []
    for name in OUTPUTS[:2]:
        (own_texts, own_labels), (praise, clean) = parts.sets[name], parts.sets["praise"]
        x = sparse.vstack([parts.inputs[name], parts.inputs["praise"]]).tocsr()
        scores = x @ parts.weights + parts.biases
        scores[:, OUTPUTS.index(name)] = parts.held[name]
        n_words = [min(len(find_profanity(text)), MAX_WORDS) for text in (*own_texts, *praise)]
        columns, y = np.column_stack([scores, n_words]), np.concatenate([own_labels, clean])
        if odds is not None:
            columns = np.column_stack([columns, np.concatenate([odds[name], odds["praise"]])])
        model = LogisticRegression(C=10, max_iter=1000).fit(columns, y)
        folds = StratifiedKFold(5, shuffle=True, random_state=1)
        p = cross_val_predict(model, columns, y, cv=folds, method="predict_proba")[: len(own_texts), 1]
        grid = np.linspace(0.1, 0.7, 61)
        best = grid[np.argmax([f1(own_labels, p > t) for t in grid])]
        print(name, "F1 of cross-validation", f1(own_labels, p > best), "at", best, flush=True)
        coefficients.append([*model.coef_[0], model.intercept_[0]])
        thresholds.append(best)
    return Joint(np.array(coefficients, np.float32), np.array(thresholds, np.float32))


def f1(answers: Flags, said: Flags) -> float:
    """F1 of the positive class."""
    return float(2 * (answers & said).sum() / max(1, answers.sum() + said.sum()))


def main() -> None:
    """Train and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("kogpt/tasks/profanity.npz"))
    parser.add_argument("--adapter", help="of kogpt-mini: a folder, or a name")
    args = parser.parse_args()
    train(args.data, args.adapter).save(args.out)


if __name__ == "__main__":
    main()
