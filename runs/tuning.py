"""The results table of tuning: tasks by methods, seeds and spread, beside TF-IDF and published models.

    python runs/tuning.py --data shared/data/eval --work /tmp/tuning --rows 20000 --seeds 3 > table.md
    python runs/tuning.py --data shared/data/eval --work /tmp/tuning --quick > table.md
    python runs/tuning.py --data shared/data/eval --work /tmp/tuning --gpu > table.md

--quick is for two cores: one seed, 4,000 rows, 2,000 test rows, two epochs. --gpu takes all rows, three
seeds, large batches and several runs at a time. Other options change either.

Every run is a `kogpt tune` of its own and continues where it was stopped. WORK/TASK-METHOD-SEED.json has its
words and figures. Once it has ended it is not repeated with the same words; with others `kogpt tune` decides:
it measures again, or refuses what would be another run.
Tasks are measured on their test rows, or on --test-rows of them, chosen by hash. Dev alone stops a run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from kogpt.files import atomic_write
from kogpt.metrics import METRICS, Metric, Outcome
from kogpt.tuning.data import Choice, Example, lowest, read_task
from kogpt.tuning.tasks import TASKS

ROOT = Path(__file__).parents[1]
METHODS = {
    "full": ("--batch", "32"),
    "lora": ("--batch", "16"),
    "prefix": ("--batch", "16", "--virtual-tokens", "32"),
    "p-tuning": ("--batch", "16", "--encoder", "lstm"),
}
# Peak learning rates: of three that were tried, the one with the least loss on dev after two epochs of 20,000
# rows (notes/log.md). LoRA on NSMC has a third of that rate, which diverged on all rows.
RATES = {
    "nsmc": {"full": "2e-4", "lora": "3e-4", "prefix": "2e-2", "p-tuning": "5e-3"},
    "korsts": {"full": "5e-5", "lora": "5e-4", "prefix": "1e-2", "p-tuning": "1e-2"},
    "intent": {"full": "2e-4", "lora": "5e-4", "prefix": "2e-2", "p-tuning": "2e-3"},
}
# Weights of the prompt's tokens in the loss; 0 where none was measured (tuning_zen5_20261127.md).
PROMPT_LOSS_WEIGHTS = {("nsmc", "full"): "0.1", ("intent", "full"): "0.1"}
QUICK = {"rows": 4000, "test_rows": 2000, "epochs": 2.0, "seeds": 1}
GPU = {"rows": None, "device": "cuda", "jobs": 8}
EPOCHS = 3.0
# Options of --gpu; a small set is read more often, and --epochs has the last word.
LARGE = {
    "nsmc": ("--batch", "128", "--epochs", "2"),
    "intent": ("--batch", "64"),
    "korsts": ("--batch", "32", "--epochs", "5"),
}
COLUMNS: dict[str, tuple[Metric, ...]] = {
    "nsmc": ("accuracy",),
    "korsts": ("spearman",),
    "intent": ("accuracy", "macro_f1"),
}

# Published figures of others: NSMC accuracy and KorSTS Spearman, with parameters.
PUBLISHED = (
    ("DistilKoBERT", "28 M", "88.4", "72.1", "BM-K/KoMiniLM"),
    ("KoELECTRA-small v2", "14 M", "88.6", "78.3", "monologg/KoELECTRA"),
    ("KoMiniLM", "23 M", "89.7", "79.0", "BM-K/KoMiniLM"),
    ("KoGPT2", "125 M", "89.1", "77.8", "SKT's README, after its correction from 93.3"),
    ("KoBERT", "92 M", "89.3", "76.0", "BM-K/KoMiniLM; its code chose the checkpoint on test"),
    ("KLUE-BERT base", "110 M", "90.2", "82.5", "BM-K/KoMiniLM"),
    ("HyperCLOVA, P-tuning", "137 M", "87.2", "", "arXiv 2109.04650"),
    ("KoGPT 6B, finetuned", "6.2 B", "91.7", "", "dsindex/iclassifier, after its correction from 95.7"),
)


def command(task: str, method: str, seed: int, args: argparse.Namespace) -> list[str]:
    """`kogpt tune` of one run, into a folder of its own. Of two options of a name the later holds."""
    words = ["tune", method, task, "--data", str(args.data), *METHODS[method], "--rate", RATES[task][method]]
    words += ["--epochs", str(EPOCHS), "--seed", str(seed), "--skip-bad", "--device", args.device]
    weight = args.prompt_loss_weight or PROMPT_LOSS_WEIGHTS.get((task, method), "0")
    words += ["--prompt-loss-weight", weight]
    words += ["--rows", str(args.rows)] if args.rows else []
    words += ["--test-rows", str(args.test_rows)] if args.test_rows else []
    words += ["--tokens-per-pass", "16384", *LARGE[task]] if args.gpu else []
    words += [] if args.epochs is None else ["--epochs", str(args.epochs)]
    words += ["--head"] if TASKS[task].graded else []
    return [*words, "--json", "--score-test", "--out", str(args.work / f"{task}-{method}-{seed}")]


def run(words: Sequence[str]) -> dict[str, float]:
    """The test figures of a run, which is made first unless it has ended with the same words."""
    out = Path(words[words.index("--out") + 1])
    result = out.with_suffix(".json")
    known = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
    if known.get("words") != list(words):
        known = {"words": list(words), **json.loads(tune(words, out.with_suffix(".log")))}
        with atomic_write(result) as file:
            file.write(json.dumps(known, ensure_ascii=False).encode())
    found: dict[str, float] = known["test"]
    return found


def tune(words: Sequence[str], log: Path) -> bytes:
    """The last line that `kogpt tune` prints; RuntimeError with the last of its log if it fails."""
    with log.open("ab") as messages:
        whole = [sys.executable, "-m", "kogpt", *words]
        done = subprocess.run(whole, cwd=ROOT, stdout=subprocess.PIPE, stderr=messages, check=False)
    if done.returncode:
        *_, last = ["nothing", *log.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]]
        raise RuntimeError(f"status {done.returncode}, {log} ends with: {last}")
    return done.stdout.splitlines()[-1]


def results(args: argparse.Namespace) -> dict[tuple[str, str], list[dict[str, float]]]:
    """Test figures of all seeds, by task and method, first seeds first; a run that failed is named only."""
    cells = [(task, method) for task in args.tasks for method in args.methods]
    with ThreadPoolExecutor(args.jobs) as pool:
        begun = [
            (cell, pool.submit(run, command(*cell, seed, args)))
            for seed in range(args.seeds)
            for cell in cells
        ]
    found: dict[tuple[str, str], list[dict[str, float]]] = {cell: [] for cell in cells}
    for cell, result in begun:
        if error := result.exception():
            print(f"{', '.join(cell)}: {error}", file=sys.stderr)
        else:
            found[cell].append(result.result())
    return found


def tfidf(task: str, args: argparse.Namespace) -> dict[Metric, float]:
    """TF-IDF of character 1- to 4-grams and logistic regression, on the same rows."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    data = read_task(TASKS[task], args.data, Choice(skip_bad=True, rows=args.rows))
    test = lowest(list(data.test), args.test_rows or len(data.test))
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), sublinear_tf=True, min_df=2)
    features = vectorizer.fit_transform([example.text for example in data.train])
    model = LogisticRegression(C=4.0, max_iter=1000).fit(features, _labels(data.train))
    guesses = model.predict(vectorizer.transform([example.text for example in test]))
    right = np.array(_labels(test), dtype=np.int64)
    outcome = Outcome(right, guesses.astype(np.int64), np.full(len(right), np.nan), guesses.astype(float))
    return {name: METRICS[name](outcome) for name in COLUMNS[task]}


def _labels(examples: Sequence[Example]) -> list[int]:
    return [example.label for example in examples if example.label is not None]


def main() -> int:
    """Make the runs that are missing and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--tasks", nargs="+", default=list(COLUMNS), choices=COLUMNS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    preset = parser.add_mutually_exclusive_group()
    preset.add_argument("--quick", action="store_true", help="less of everything, for two cores")
    preset.add_argument("--gpu", action="store_true", help="all of everything, for a GPU")
    parser.add_argument("--rows", type=int, default=20_000, help="training rows, chosen by hash")
    parser.add_argument("--test-rows", type=int, help="test rows, chosen by hash (default: all)")
    parser.add_argument("--epochs", type=float, help=f"(default: {EPOCHS:g}, or what the preset has)")
    parser.add_argument("--prompt-loss-weight", help="one weight for all (default: PROMPT_LOSS_WEIGHTS)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default: %(default)s)")
    chosen = parser.parse_known_args()[0]
    parser.set_defaults(**(QUICK if chosen.quick else GPU if chosen.gpu else {}))
    args = parser.parse_args()
    args.data, args.work = args.data.absolute(), args.work.absolute()  # the command runs in another folder
    args.work.mkdir(parents=True, exist_ok=True)
    found = results(args)
    print("| task | method | rate | metric | test | seeds |\n|---|---|---|---|---|---|")
    for (task, method), runs in found.items():
        for name in COLUMNS[task] if runs else ():
            values = [100 * result[name] for result in runs]
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            figures = f"{name} | {np.mean(values):.2f}{spread} | {len(values)}"
            print(f"| {task} | {method} | {RATES[task][method]} | {figures} |")
    for task in args.tasks:
        if not TASKS[task].graded:
            for name, value in tfidf(task, args).items():
                print(f"| {task} | TF-IDF, logistic regression | | {name} | {100 * value:.2f} | |")
    print("\n| model | weights | NSMC | KorSTS | source |\n|---|---|---|---|---|")
    for row in PUBLISHED:
        print(f"| {' | '.join(row)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
