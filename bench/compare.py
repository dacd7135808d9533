"""Two versions of KoGPT side by side: loading, decoding, prompts, scores, a training step.

    python bench/compare.py OLD NEW                          folders of two checkouts, libraries built
    python bench/compare.py OLD NEW --model DIR --dtype int8 --skip train

Each round starts one process of each version, in turn; a process measures every workload once, after it has
warmed up. Prints a table of medians, and of the ratio of the least times too, which other programs disturb
less; a ratio above 1 says that NEW is faster. Only calls that both versions have are used.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
SIDES = ("old", "new")
WORKLOADS = ("load", "one row", "16 rows", "16 rows, top-p", "prompt", "score", "help", "generate", "train")
RECIPE = """
tokenizer = "tokenizer"
[model]
n_layers = 4
n_heads = 4
d_model = 192
n_ctx = 256
rotary_dim = 32
[sources.text]
shards = "shards"
[[stages]]
length = 256
rows = 8
[schedule]
steps = 12
warmup_steps = 2
decay_steps = 4
[{section}]
dtype = "float32"
compile = "nothing"
[loop]
log_every = 1
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="kogpt-mini")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokens", type=int, default=128, help="written by a row")
    parser.add_argument("--skip", nargs="+", choices=WORKLOADS, default=[])
    parser.add_argument("--shards", type=Path, help="folder with tokenizer/ and shards/, for train")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args)))
        return
    trees = dict(zip(SIDES, (args.old, args.new), strict=True))
    found: dict[str, dict[str, list[float]]] = {side: {} for side in SIDES}
    for number in range(args.rounds):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            for name, seconds in one_round(trees[side].resolve(), args).items():
                found[side].setdefault(name, []).append(seconds)
    print("| what | old | new | ratio | of least times |\n|---|---:|---:|---:|---:|")
    for name in found["new"]:
        old, new = (statistics.median(found[side][name]) for side in SIDES)
        least = min(found["old"][name]) / min(found["new"][name])
        print(f"| {name} | {1000 * old:,.1f} ms | {1000 * new:,.1f} ms | {old / new:.2f} | {least:.2f} |")


def one_round(tree: Path, args: argparse.Namespace) -> dict[str, float]:
    """Seconds of each workload, of one process of a version and of whole commands."""
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
    words = [sys.executable, str(HERE), *sys.argv[1:], "--child"]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    kogpt = [sys.executable, "-m", "kogpt"]
    commands = {
        "help": [*kogpt, "--help"],
        "generate": [*kogpt, "generate", "봄", "--max-tokens", "8", "--model", args.model],
    }
    for name, command in commands.items():
        if name not in args.skip:
            begin = time.perf_counter()
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
            found[name] = time.perf_counter() - begin
    if args.shards is not None and "train" not in args.skip:
        renamed = (tree / "kogpt" / "training" / "settings.py").exists()
        section = "compute" if renamed else "arithmetic"
        found["train"] = training_step(args.shards.resolve(), section, environment)
    return found


def training_step(data: Path, section: str, environment: dict[str, str]) -> float:
    """Median seconds of a step of the toy's shape; `section` is what a version calls its compute settings."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.toml"
        for name in ("tokenizer", "shards"):
            (Path(folder) / name).symlink_to(data / name)
        recipe.write_text(RECIPE.format(section=section), encoding="utf-8")
        out = Path(folder) / "run"
        words = [sys.executable, "-m", "kogpt", "pretrain", "run", str(recipe), "--out", str(out)]
        subprocess.run(
            words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
        )
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(
        float(line["seconds_per_step"]) for line in lines[2:] if "seconds_per_step" in line
    )


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of each workload in this process, whose path holds one version."""
    from kogpt import KoGPT, Sampling

    def load(_: int) -> Any:
        return KoGPT.from_pretrained(args.model, device="cpu", dtype=args.dtype)

    found = {"load": min(timed(load, turn) for turn in range(4))}  # the first reads the files, too
    model = load(0)
    greedy = Sampling(temperature=0, max_tokens=args.tokens)
    top_p = Sampling(top_p=0.95, seed=1, max_tokens=args.tokens)
    # 900 syllables that begin differently, so that no reading is kept from one prompt to the next.
    texts = [f"{number}번째 글. " + "이 법은 국민의 생활을 돕는다. " * 60 for number in range(6)]
    questions = [f"{number}. 이 영화는" for number in range(8)]
    endings = [" 재미있다", " 지루하다", " 훌륭한 작품이다", " 시간이 아깝다"]
    rows = [f"{number}번 문장은" for number in range(16)]
    workloads: dict[str, Callable[[int], object]] = {
        "one row": lambda turn: model.generate(f"{turn}월에는", greedy),
        "16 rows": lambda turn: model.generate([f"{turn} {row}" for row in rows], greedy),
        "16 rows, top-p": lambda turn: model.generate([f"{turn} {row}" for row in rows], top_p),
        "prompt": lambda turn: model.generate(texts[turn], Sampling(temperature=0, max_tokens=1)),
        "score": lambda turn: [model.score(f"{turn}{text}", endings) for text in questions],
    }
    for name, work in workloads.items():
        if name not in args.skip:
            found[name] = min(timed(work, turn) for turn in range(3))
    return found


def timed(work: Callable[[int], object], turn: int) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    work(turn)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
