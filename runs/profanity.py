"""Trains kogpt/tasks/profanity.npz: what the filter knows beside its words.

    python runs/profanity.py DATA [--adapter profanity] [--out FILE]

DATA is a folder with the training parts of K-MHaS, Curse-detection-data, BEEP! and NSMC (.tsv.gz). Nothing of
a test part is read. Every comment has three n-gram scores, each learnt from one set and its label alone, and
the number of its swear words; two small logistic models join them, one for each of the labels that are
reported: K-MHaS's "profanity" and Curse-detection-data's label. With --adapter two more join these with what
that adapter says, as `judge(text, odds)` uses it. They are fitted to the dev rows of the adapter's tuning: of
comments that it learnt from, the adapter is too certain.
"""

from __future__ import annotations

import argparse
import gzip
import random
from collections.abc import Set
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
from kogpt.tuning.data import Choice, read_task
from kogpt.tuning.tasks import TASKS

C = 1.0  # of the SVMs
# Loss of F1 that counts as none: among the few comments of dev, one costs as much. The least of equal
# thresholds is taken, for a miss is worse than an alarm.
SLACK = 0.015

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
        if name in OUTPUTS[:2]
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
    alone, with_adapter = join(parts), None
    if adapter is not None:
        judged = read_task(TASKS["profanity"], data, Choice(skip_bad=True)).dev
        unseen = {example.text for example in judged}
        with_adapter = join_adapter(parts, alone, adapter_odds(adapter, sets), unseen)
    return NgramClassifier(
        OUTPUTS,
        steps,
        step,
        np.round(weights / scales).astype(np.int8),
        scales.astype(np.float32),
        biases.astype(np.float32),
        alone,
        with_adapter,
    )


@dataclass(frozen=True, slots=True)
class Parts:
    """What the scores of the training texts are made of: by output, and of praise."""

    sets: dict[str, Labelled]
    inputs: dict[str, Any]  # (texts, BUCKETS)
    weights: Floats  # (BUCKETS, K)
    biases: Floats  # (K,)
    held: dict[str, Floats]  # an output's scores of its own texts and of praise, each by an SVM without it

    def columns(self, name: str) -> Floats:
        """(texts, K + 1) scores and the number of swear words, of an output's own texts and of praise."""
        x = sparse.vstack([self.inputs[name], self.inputs["praise"]]).tocsr()
        scores = x @ self.weights + self.biases
        scores[:, OUTPUTS.index(name)] = self.held[name]
        texts = (*self.sets[name][0], *self.sets["praise"][0])
        return np.column_stack([scores, [min(len(find_profanity(text)), MAX_WORDS) for text in texts]])


def join(parts: Parts) -> Joint:
    """The logistic models of words and n-grams; thresholds have the best F1 on train."""
    coefficients, thresholds = [], []
    for name in OUTPUTS[:2]:
        columns = parts.columns(name)
        labels = np.concatenate([parts.sets[name][1], parts.sets["praise"][1]])
        model = LogisticRegression(C=10, max_iter=1000).fit(columns, labels)
        coefficients.append([*model.coef_[0], model.intercept_[0]])
        thresholds.append(best_threshold(name, columns, labels, len(parts.sets[name][0])))
    return Joint(np.array(coefficients, np.float32), np.array(thresholds, np.float32))


def join_adapter(parts: Parts, alone: Joint, odds: dict[str, Floats], unseen: Set[str]) -> Joint:
    """`alone` and an adapter's log-odds, joined on the texts that it has not learnt from."""
    coefficients, thresholds = [], []
    for name, (*weights, bias) in zip(OUTPUTS[:2], alone.coefficients.tolist(), strict=True):
        texts, labels = parts.sets[name]
        kept = np.array([text in unseen for text in texts])
        scores = parts.columns(name)[: len(texts)] @ np.array(weights) + bias
        columns = np.column_stack([scores, odds[name]])[kept]
        model = LogisticRegression(C=10, max_iter=1000).fit(columns, labels[kept])
        share, own = model.coef_[0]
        coefficients.append([*(share * np.array(weights)), own, share * bias + model.intercept_[0]])
        thresholds.append(best_threshold(name, columns, labels[kept], len(columns), slack=SLACK))
    return Joint(np.array(coefficients, np.float32), np.array(thresholds, np.float32))


def best_threshold(name: str, columns: Floats, labels: Flags, n: int, slack: float = 0.0) -> float:
    """The least threshold whose cross-validated F1 on the first n rows is within `slack` of the best."""
    folds = StratifiedKFold(5, shuffle=True, random_state=1)
    model = LogisticRegression(C=10, max_iter=1000)
    p = cross_val_predict(model, columns, labels, cv=folds, method="predict_proba")[:n, 1]
    grid = np.linspace(0.1, 0.7, 61)
    found = np.array([f1(labels[:n], p > t) for t in grid])
    best = float(grid[np.argmax(found >= found.max() - slack)])
    print(name, "F1 of cross-validation", f1(labels[:n], p > best), "at", best, flush=True)
    return best


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
