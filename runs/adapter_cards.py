"""The cards of the adapters that ship: what each was tuned on, its licence, and figures on held-out rows.

    python runs/adapter_cards.py --data shared/data/eval --rows 1000 [NAME ...]

Figures are of the shipped files in the native runner, on rows that were not learnt from: of labels, --rows
test rows of the lowest hashes; of pairs, half as many drawn at random, and the first --rows of KorSTS; of
titles, the first of each set, a fifth of --rows. 95 % intervals are by bootstrap. The same rows are measured
without the adapter, or with TF-IDF where labels are asked.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import adapters
import numpy as np

from kogpt import KoGPT, metrics
from kogpt.data_files import load
from kogpt.datasets import KORSTS_TEST, read_korsts
from kogpt.metrics import METRICS, Metric, Outcome
from kogpt.tuning.data import Choice, Example, lowest, read_task
from kogpt.tuning.tasks import TASKS

Lines = list[str]
Figures = Callable[[str, Path, int], Lines]


@dataclass(frozen=True, slots=True)
class Card:
    """The parts of a card that are not measured."""

    title: str
    use: str
    data: str
    figures: Figures


def labelled(*tasks: str) -> Figures:
    """Accuracy and macro-F1 on the test rows of tasks, beside TF-IDF on the rows that were learnt."""

    def figures(name: str, data: Path, rows: int) -> Lines:
        found = [
            "| test | rows | accuracy | macro-F1 | TF-IDF: accuracy | macro-F1 |",
            "|---|---|---|---|---|---|",
        ]
        model = KoGPT.from_pretrained(dtype="float32", adapter=adapters.SHIPPED / name)
        for task in tasks:
            read = read_task(TASKS[task], data, Choice(skip_bad=True))
            test = [example for example in lowest(list(read.test), rows) if example.text.strip()]
            guesses = [int(np.argmax(row)) for row in model.label_scores([example.text for example in test])]
            outcome = outcome_of(test, guesses)
            accuracy, f1 = (with_interval(metric, outcome) for metric in ("accuracy", "macro_f1"))
            simple = outcome_of(test, tfidf(name, data, test))
            theirs = " | ".join(f"{100 * METRICS[m](simple):.1f}" for m in ("accuracy", "macro_f1"))
            found.append(f"| {task} | {len(test):,} of {len(read.test):,} | {accuracy} | {f1} | {theirs} |")
        return found

    return figures


def tfidf(name: str, data: Path, test: Sequence[Example]) -> list[int]:
    """Guesses of TF-IDF (1 to 4 characters) and logistic regression, on an adapter's training rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    recipe = adapters.RECIPES[name]
    assert recipe.task is not None
    train = read_task(TASKS[recipe.task], data, Choice(skip_bad=True)).train
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, min_df=2)
    features = vectorizer.fit_transform([example.text for example in train])
    model = LogisticRegression(C=4.0, max_iter=1000).fit(features, [example.label for example in train])
    return [int(guess) for guess in model.predict(vectorizer.transform([example.text for example in test]))]


def outcome_of(test: Sequence[Example], guesses: Sequence[int]) -> Outcome:
    """Labels as metrics take them."""
    right = np.array([example.label for example in test], dtype=np.int64)
    guessed = np.array(guesses, dtype=np.int64)
    return Outcome(right, guessed, np.full(len(right), np.nan), guessed.astype(float))


def with_interval(metric: Metric, outcome: Outcome) -> str:
    """A metric in percent and its interval."""
    bounds = metrics.interval(metric, [outcome])
    told = "" if bounds is None else f" ({100 * bounds[0]:.1f} to {100 * bounds[1]:.1f})"
    return f"{100 * METRICS[metric](outcome):.1f}{told}"


def alike(name: str, data: Path, rows: int) -> Lines:
    """Held-out pairs: whether the partner is nearest; KorSTS by cosine."""
    pairs = list(adapters.alike(data, "test"))
    chosen = np.random.default_rng(0).permutation(len(pairs))[: rows // 2]
    ones, others = ([pairs[n][side] for n in chosen] for side in ("text1", "text2"))
    examples = [read_korsts(row) for row in load(KORSTS_TEST, data).rows][:rows]
    found = ["| | nearest is the partner | KorSTS Spearman |", "|---|---|---|"]
    for told, adapter in (("kogpt-mini", None), ("with the adapter", adapters.SHIPPED / name)):
        model = KoGPT.from_pretrained(dtype="float32", adapter=adapter)
        one, other = (units(model, texts) for texts in (ones, others))
        hits = 100 * np.mean((one @ other.T).argmax(1) == np.arange(len(one)))
        first, second = (
            units(model, [example.fields[field] for example in examples])
            for field in ("sentence1", "sentence2")
        )
        none = np.zeros(len(examples), dtype=np.int64)
        grades = np.array([example.grade for example in examples], dtype=np.float64)
        outcome = Outcome(none, none, grades, (first * second).sum(1).astype(np.float64))
        found.append(f"| {told} | {hits:.1f} % of {len(one)} | {with_interval('spearman', outcome)} |")
    return found


def units(model: KoGPT, texts: Sequence[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Embeddings of length 1."""
    vectors = model.embed(list(texts))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def titled(name: str, data: Path, rows: int) -> Lines:
    """Bits for each byte of held-out titles, and titles of news as they are written."""
    news = [
        {"prompt": f"{row['text'][: adapters.TITLE_CHARACTERS]}\n제목:", "completion": f" {row['title']}"}
        for row in adapters.table(data, "headline_wikinews")
    ]
    petitions = list(adapters.titled(data, "test"))[:1000]
    sets: Mapping[str, Sequence[adapters.Row]] = {
        "petitions": petitions[: rows // 5],
        "Wikinews": news[: rows // 5],
    }
    found = ["| bits per byte of the title | petitions | Wikinews |", "|---|---|---|"]
    for told, adapter in (("kogpt-mini", None), ("with the adapter", adapters.SHIPPED / name)):
        model = KoGPT.from_pretrained(dtype="float32", adapter=adapter)
        values = []
        for texts in sets.values():
            scores = model.score([row["prompt"] for row in texts], [[row["completion"]] for row in texts])
            n_bytes = sum(len(row["completion"].encode()) for row in texts)
            values.append(-sum(score for [score] in scores) / np.log(2) / n_bytes)
        found.append(f"| {told} | {' | '.join(f'{value:.3f}' for value in values)} |")
    counts = ", ".join(f"{len(texts)} of {told}" for told, texts in sets.items())
    return [*found, "", f"Texts: {counts}; none of them was learnt from."]


CARDS = {
    "sentiment": Card(
        "sentiment: is a film review positive or negative?",
        "`kogpt classify --as sentiment`, or `KoGPT.from_pretrained(adapter='sentiment').classify(text)`",
        "NSMC (e9t/nsmc, CC0 1.0), rows of a training part that shares no text with the official test",
        labelled("nsmc"),
    ),
    "intent": Card(
        "intent: what does a spoken sentence do?",
        "`kogpt classify --as intent`, or `KoGPT.from_pretrained(adapter='intent').classify(text)`",
        "3i4K (warnikchow/3i4k, CC BY-SA 4.0), rows of the official train and validation",
        labelled("intent"),
    ),
    "profanity": Card(
        "profanity: does a comment swear?",
        "`kogpt classify --as profanity`, or `KoGPT.from_pretrained(adapter='profanity').classify(text)`",
        "K-MHaS (adlnlp/K-MHaS, CC BY-SA 4.0), official validation: its label profanity; "
        "Curse-detection-data (2runo, MIT): swearing, slurs and other insults. The two mean slightly "
        "different things by it",
        labelled("k-mhas", "curse"),
    ),
    "search": Card(
        "search: embeddings that bring a title and its text together",
        "`KoGPT.from_pretrained(adapter='search').embed(texts)`, `kogpt serve --adapter search`",
        "titles and texts of Korean Wikipedia (CC BY-SA 3.0) and of petitions (KOGL type 1), sae4k "
        "(CC BY-SA 4.0), sentences of KorSTS train with a grade of 4 or more (CC BY-SA 4.0)",
        alike,
    ),
    "title": Card(
        "title: a title for a text",
        "`kogpt generate --adapter title`: the text, a line break, `제목:`",
        "petitions to the Blue House and their titles (KOGL type 1), sae4k (CC BY-SA 4.0)",
        titled,
    ),
}


def card(name: str, data: Path, rows: int) -> str:
    """The Markdown of a card."""
    told, folder = CARDS[name], adapters.SHIPPED / name
    size = sum(path.stat().st_size for path in folder.iterdir() if path.name != "README.md")
    options = " ".join(adapters.RECIPES[name].options)
    lines = [
        f"# {told.title}",
        "",
        f"An adapter (LoRA, float16, {size / 2**20:.1f} MiB) of kogpt-mini. Use: {told.use}.",
        "",
        f"**Data.** {told.data}.",
        "",
        "**Licence.** CC BY-SA 4.0, as kogpt-mini and parts of the data; attribution as above.",
        "",
        f"**Recipe.** `python runs/adapters.py {name} --data DIR --work DIR`, which is `kogpt tune` with",
        f"`{options}`.",
        "",
        "**Figures** on rows that were not learnt from, in percent with 95 % intervals:",
        "",
        *told.figures(name, data, rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and write the cards of the named adapters, by default of all that are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--rows", type=int, default=1000, help="test rows")
    args = parser.parse_args()
    for name in args.names or [name for name in CARDS if (adapters.SHIPPED / name).is_dir()]:
        text = card(name, args.data, args.rows)
        (adapters.SHIPPED / name / "README.md").write_text(text, encoding="utf-8")
        print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
