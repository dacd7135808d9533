"""Ablations on a CPU: short runs of runs/mini_cpu.toml, each with something changed, one after the other.

    python runs/mini_ablations.py WORK [NAME ...] [--tokens N]

WORK is that of runs/mini.sh, with its shards. Every run goes to WORK/ablations/NAME, is resumed if it was
stopped, and ends as a line of JSON in WORK/ablations.jsonl: bits per byte of a sample of each validation set,
and the seconds of processor time, which compare where other programs want the cores too. WORK/pids names the
process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from kogpt.training.report import read_metrics

RECIPE = Path(__file__).parent / "mini_cpu.toml"
# Validated at the end only, on half of the usual sample: it costs what a sixth of the training does.
LOOP = {"loop.validate_every": "1000000", "loop.validation_bytes": "50000", "loop.save_seconds": "120.0"}
Changes = dict[str, str]


def steps(tokens: int, at_once: int, decay: float = 1.0, length: int = 256) -> Changes:
    """So many tokens, `at_once` in each step: a short warm-up, then decay over a share of the rest."""
    n_steps = tokens // at_once
    warmup = max(4, n_steps // 25)
    return {
        "stages": f"[{{ length = {length}, rows = {at_once // length} }}]",
        "schedule.steps": str(n_steps),
        "schedule.warmup_steps": str(warmup),
        "schedule.decay_steps": str(int(decay * (n_steps - warmup))),
    }


def rates(factor: float) -> Changes:
    """Both learning rates times a factor."""
    return {"optimiser.muon_rate": str(0.02 * factor), "optimiser.adamw_rate": str(0.003 * factor)}


def shape(layers: int, width: int, heads: int) -> Changes:
    return {"model.n_layers": str(layers), "model.d_model": str(width), "model.n_heads": str(heads)}


def vocabulary(name: str) -> Changes:
    """Another tokenizer and its shards: WORK/tokenizerNAME and WORK/shardsNAME."""
    sources = RECIPE.read_text(encoding="utf-8").split("[sources]\n")[1].split("\n\n")[0]
    table = ", ".join(line.replace('"shards/', f'"shards{name}/') for line in sources.splitlines())
    return {"tokenizer": f'"tokenizer{name}"', "sources": f"{{ {table} }}"}


def runs(tokens: int) -> dict[str, Changes]:
    """All of them, the most telling first."""
    small = steps(tokens, 2048)
    return {
        "2,048 tokens a step": small,
        "seed 2": small | {"seed": "2"},  # how far apart chance alone puts two runs
        "seed 3": small | {"seed": "3"},
        "8,192 tokens a step": steps(tokens, 8192),
        "4,096 tokens a step": steps(tokens, 4096),
        "wsd, decay over 40 %": steps(tokens, 2048, decay=0.4),
        "rates x 0.5": small | rates(0.5),
        "vocabulary 16,384": small | vocabulary("16k"),
        "rates x 2": small | rates(2.0),
        "cosine": small | {"schedule.shape": '"cosine"', "schedule.decay_steps": "0"},
        "tied head": small | {"model.tied_head": "true"},
        "384 wide, 4 layers": small | shape(4, 384, 6),
        "320 wide, 8 layers": small | shape(8, 320, 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of each run (default: %(default)s)")
    args = parser.parse_args()
    planned = runs(args.tokens)
    shutil.copy(RECIPE, args.work)  # its paths are from there
    results = args.work / "ablations.jsonl"
    done = {line["name"] for line in read_metrics(results)} if results.exists() else set()
    for name in args.names or planned:
        if name not in done:
            found = {"name": name, **measured(args.work, name, planned[name])}
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found, ensure_ascii=False) + "\n")


def measured(work: Path, name: str, changes: Changes) -> dict[str, object]:
    """Train to the end, and what came of it."""
    out = work / "ablations" / name.replace(" ", "_")
    command = [sys.executable, "-m", "kogpt", "pretrain", "run", str(work / RECIPE.name), "--out", str(out)]
    for key, value in (changes | LOOP).items():
        command += ["--set", f"{key} = {value}"]
    pid = os.spawnv(os.P_NOWAIT, command[0], command)
    (work / "pids").write_text(f"{pid}\n", encoding="utf-8")
    _, status, usage = os.wait4(pid, 0)
    if status:
        raise SystemExit(f"{name}: status {status}")
    lines = read_metrics(out / "metrics.jsonl")
    bits = next(line["bits_per_byte"] for line in reversed(lines) if "bits_per_byte" in line)
    return {
        "bits_per_byte": bits,
        "mean": sum(bits.values()) / len(bits),
        "tokens": lines[-1]["tokens"],
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
    }


if __name__ == "__main__":
    main()
