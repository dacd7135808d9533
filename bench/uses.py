"""Measure the uses: the filter, titles and summaries, labels, and how fast labels are given.

    python bench/uses.py filter --data DATA --personal make_personal.py
    python bench/uses.py summaries --data DATA
    python bench/uses.py labels --data DATA --limit 1000
    python bench/uses.py speed --data DATA        # beside transformers, which needs torch

DATA holds the sets as .tsv.gz. Test parts are read, training parts are not. Each part prints rows of Markdown
for bench/results.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from kogpt import KoGPT
from kogpt.classification import Wording
from kogpt.tasks.named import NAMED, adapter_folder
from kogpt.tasks.personal import find_personal
from kogpt.tasks.profanity import ADAPTER, Judgement, find_profanity, judge_all
from kogpt.tasks.sentences import split_sentences
from kogpt.tasks.summaries import Writer, make_title, summarize

Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """Rows of a gzipped table without quoting."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        names, *rows = [line.rstrip("\n").split("\t") for line in file]
    return [dict(zip(names, row, strict=True)) for row in rows]


def show(name: str, *values: object) -> None:
    """One row of a table."""
    print(f"| {name} | {' | '.join(str(value) for value in values)} |", flush=True)


def f1(answers: Sequence[bool], said: Sequence[bool]) -> float:
    """F1 of True."""
    hits = sum(a and b for a, b in zip(answers, said, strict=True))
    return 2 * hits / max(1, sum(answers) + sum(said))


def measure_filter(args: argparse.Namespace) -> None:
    """F1 and false alarms of profanity, and what is found of personal data."""
    comments, posts = read(args.data / "toxic_kmhas_test.tsv.gz"), read(args.data / "toxic_curse_test.tsv.gz")
    clean = [r["text"] for r in read(args.data / "toxic_hatescore.tsv.gz") if r["macrolabel"] == "Clean"]
    films = [r for r in read(args.data / "nsmc_test.tsv.gz") if r["document"].strip()]
    praise = [r["document"] for r in films if r["label"] == "1"][:5000]
    profane = ["3" in r["labels"].split(",") for r in comments]
    insulting = [r["label"] == "1" for r in posts]
    words = [bool(find_profanity(row["text"])) for row in comments]
    model = KoGPT.from_pretrained(adapter=ADAPTER)
    said = judgements([row["text"] for row in comments], model)
    scores = [f"{f1(profane, [x.profane for x in each]):.3f}" for each in said]
    show(
        "profanity, K-MHaS test, F1: words, with n-grams, with the adapter",
        f"{f1(profane, words):.3f}",
        *scores,
    )
    judged = judgements([row["text"] for row in posts], model)
    scores = [f"{f1(insulting, [x.insulting for x in each]):.3f}" for each in judged]
    show("insult, Curse-detection-data test, F1: n-grams, with the adapter", *scores)
    for name, texts in (("clean HateScore", clean), ("positive NSMC", praise)):
        alarms = [f"{statistics.mean(x.profane for x in each):.2%}" for each in judgements(texts, model)]
        covered = statistics.mean(bool(find_profanity(text)) for text in texts)
        show(
            f"{name}: texts with a covered word; alarms by n-grams, with the adapter",
            f"{covered:.2%}",
            *alarms,
        )
    measure_personal(args.personal)


def judgements(texts: Sequence[str], model: KoGPT) -> list[list[Judgement]]:
    """Judgements of all texts: by words and n-grams alone, then joined with the adapter."""
    return [judge_all(texts), judge_all(texts, model)]


def measure_personal(maker: Path) -> None:
    """Items of the generator that are covered whole, and lines without items with an alarm."""
    command = [sys.executable, str(maker), "6000", "--seed", "2026"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found, alarms = Counter[bool](), Counter[bool]()
    for line in map(json.loads, lines):
        text = line["text"]
        covered = {place for span in find_personal(text) for place in range(span.start, span.end)}
        for item in line["spans"]:
            places = [place for place in range(item["start"], item["end"]) if text[place].isalnum()]
            found[covered.issuperset(places)] += 1
        if line["trap"]:
            alarms[bool(covered)] += 1
    show("personal data found whole", f"{found[True] / found.total():.3f}")
    show("alarms on traps", f"{alarms[True] / alarms.total():.2%}")


def rouge(text: str, reference: str, n: int) -> float:
    """F1 of character n-grams, white space and signs left out."""

    def grams(words: str) -> Counter[str]:
        plain = "".join(filter(str.isalnum, words))
        return Counter(plain[i : i + n] for i in range(len(plain) - n + 1))

    ours, theirs = grams(text), grams(reference)
    return 2 * (ours & theirs).total() / max(1, ours.total() + theirs.total())


def measure_summaries(args: argparse.Namespace) -> None:
    """ROUGE of titles on Wikinews, and of two sentences on leads of Wikipedia."""
    news = read(args.data / "headline_wikinews.tsv.gz")[: args.limit]
    articles = read(args.data / "summary_kowiki_test.tsv.gz")[: args.limit]
    ways: dict[str, Callable[[str], str]] = {
        "first sentence": lambda text: split_sentences(text)[0].text,
        "words of the first sentence": make_title,
    }
    if (folder := adapter_folder("title")) is not None:
        model = KoGPT.from_pretrained(adapter=folder)
        ways["adapter"] = Writer(model, model.origin.template or "{text}").title
    for name, title in ways.items():
        made = [(title(row["text"]), row["title"]) for row in news]
        show(f"title, {name}", *(f"{statistics.mean(rouge(a, b, n) for a, b in made):.3f}" for n in (1, 2)))
    picks: dict[str, Callable[[str], str]] = {
        "first two": lambda text: " ".join(s.text for s in split_sentences(text)[:2]),
        "chosen two": lambda text: " ".join(s.text for s in summarize(text, 2)),
    }
    for name, pick in picks.items():
        made = [(pick(row["body"]), row["lead"]) for row in articles]
        show(
            f"sentences, {name}", *(f"{statistics.mean(rouge(a, b, n) for a, b in made):.3f}" for n in (1, 2))
        )


def reviews(data: Path, n: int) -> list[Row]:
    """n reviews of NSMC's test part, the same ones every time."""
    rows = [row for row in read(data / "nsmc_test.tsv.gz") if row["document"].strip()]
    return random.Random(0).sample(rows, n)


def measure_labels(args: argparse.Namespace) -> None:
    """Accuracy of sentiment: without examples, with four, and by the adapter; and reviews a second."""
    rows = reviews(args.data, args.limit)
    texts = [row["document"] for row in rows]
    right = [("부정", "긍정")[int(row["label"])] for row in rows]
    base = KoGPT.from_pretrained(dtype=args.dtype)
    ways: dict[str, tuple[KoGPT, Wording | None]] = {
        "labels alone": (base, Wording(("부정", "긍정"))),
        "four examples": (base, NAMED["sentiment"]),
    }
    if (folder := adapter_folder("sentiment")) is not None:
        ways["adapter"] = (KoGPT.from_pretrained(dtype=args.dtype, adapter=folder), None)
    for name, (model, wording) in ways.items():
        started = time.perf_counter()
        found = model.classify(texts, wording)
        rate = len(texts) / (time.perf_counter() - started)
        share = statistics.mean(x.label == y for x, y in zip(found, right, strict=True))
        show(f"sentiment, {name}", f"{share:.1%}", f"{rate:.0f} reviews/s")


def measure_speed(args: argparse.Namespace) -> None:
    """Texts a second beside a loop of transformers that asks the same prompts for the same labels."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wording = NAMED["sentiment"]
    texts = [row["document"] for row in reviews(args.data, 64)]
    model = KoGPT.from_pretrained(device="cpu")
    folder = Path(sys.modules["kogpt"].__file__ or "").with_name("mini")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def loop(texts: Sequence[str]) -> list[str]:
        found = []
        for text in texts:
            scores = []
            for label in wording.answers:
                context = tokenizer(wording.shared() + wording.ask(text), return_tensors="pt").input_ids
                whole = tokenizer(wording.shared() + wording.ask(text) + label, return_tensors="pt").input_ids
                with torch.no_grad():
                    logits = peer(whole).logits.log_softmax(-1)
                n = context.shape[1]
                picked = logits[0, n - 1 : -1].gather(1, whole[0, n:, None])
                scores.append(float(picked.sum()))
            found.append(wording.labels[max(range(len(scores)), key=scores.__getitem__)])
        return found

    plain = Wording(
        wording.labels,
        wording.template,
        wording.words,
        wording.instruction,
        wording.examples,
        calibrated=False,
    )
    rates: dict[str, list[float]] = {"kogpt": [], "transformers": []}
    sides: dict[str, Callable[[], list[str]]] = {
        "kogpt": lambda: [x.label for x in model.classify(texts, plain)],
        "transformers": lambda: loop(texts[:16]),
    }
    for _ in range(3):
        for name, run in sides.items():
            started = time.perf_counter()
            answers = run()
            rates[name].append(len(answers) / (time.perf_counter() - started))
    ours, theirs = statistics.median(rates["kogpt"]), statistics.median(rates["transformers"])
    same = statistics.mean(
        a.label == b for a, b in zip(model.classify(texts[:16], plain), loop(texts[:16]), strict=True)
    )
    show("texts/s, kogpt", f"{ours:.1f}")
    show("texts/s, a loop of transformers", f"{theirs:.1f}")
    show("ratio; equal labels", f"{ours / theirs:.1f}; {same:.0%}")


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "filter": measure_filter,
    "summaries": measure_summaries,
    "labels": measure_labels,
    "speed": measure_speed,
}


def main() -> None:
    """Measure one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--personal", type=Path)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--dtype", default="auto", help="of `labels`: precision of the model")
    args = parser.parse_args()
    PARTS[args.part](args)


if __name__ == "__main__":
    main()
