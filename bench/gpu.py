"""KoGPT's torch runner beside transformers on one GPU, interleaved; prints a table in Markdown.

    python -m bench.gpu --shape 6b --dtype float16

Random weights, the same on both sides, whose logits are compared before anything is timed. Timed is what
`kogpt bench` and bench/peers time: ids in, the greedily chosen id out. Needs transformers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
import transformers
from transformers import GPTJConfig, GPTJForCausalLM

from bench.peers.engines import Transformers, random_ids
from kogpt.checkpoint import Stored
from kogpt.cli import limits, speed
from kogpt.cli.bench import SHAPES, shape_config
from kogpt.config import ModelConfig
from kogpt.runner import Chunk
from kogpt.torch_runner import TorchRunner

Task = Callable[[], float]  # -> what is measured, more is better


class OnDevice(Transformers):
    """transformers' GPT-J with these weights."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Stored], dtype: str, device: str) -> None:
        torch.set_grad_enabled(False)
        self._torch = torch
        torch.set_default_dtype(getattr(torch, dtype))
        with torch.device(device):
            self._model = GPTJForCausalLM(GPTJConfig(**config.to_json())).eval()
        torch.set_default_dtype(torch.float32)
        weights = {name: torch.from_numpy(stored.array) for name, stored in tensors.items()}
        self._model.load_state_dict(weights)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64], help="(default: %(default)s)")
    args = parser.parse_args()
    config = shape_config(args.shape)
    tensors = speed.random_tensors(config, args.dtype)
    started = time.perf_counter()
    runner = TorchRunner(config, tensors, args.dtype, args.device)
    seconds = time.perf_counter() - started
    speed.decode_seconds(runner, 1, 2)
    print(f"{args.shape}, {args.dtype}, torch {torch.__version__}, transformers {transformers.__version__}")
    if args.device != "cpu":
        held = torch.cuda.max_memory_allocated() / 1e9
        print(
            f"{torch.cuda.get_device_name()}; ours loaded in {seconds:.1f} s, {held:.2f} GB with a short text"
        )
    peer = OnDevice(config, tensors, args.dtype, args.device)
    print(f"correlation of the logits: {agreement(runner, peer):.6f}\n")
    print(
        "\n".join(table(measured(runner, peer, args.rounds, args.rows), speed.read_bytes(config, args.dtype)))
    )


def agreement(runner: TorchRunner, peer: Transformers) -> float:
    """Correlation of both sides' logits after a random prompt."""
    ids = random_ids(1, 64, runner.config.n_vocab)[0]
    row = runner.open()
    (ours,) = runner.forward([Chunk(row, ids)])
    runner.close(row)
    return float(np.corrcoef(ours[-1], peer.logits(ids))[0, 1])


def measured(
    runner: TorchRunner, peer: Transformers, rounds: int, rows_at_once: list[int]
) -> dict[str, tuple[float, ...]]:
    """Medians by what is measured, of ours and theirs (the limit of the device: of it alone)."""
    on_gpu = torch.cuda.is_available()
    read = partial(limits.gpu_read_bandwidth, limits.MAX_READ, "cuda") if on_gpu else None
    tasks: dict[str, tuple[Task, ...]] = {"read": (read,)} if read else {}
    for n in (512, 1920):
        tasks[f"prefill {n}"] = (
            lambda n=n: n / speed.prefill_seconds(runner, n),
            lambda n=n: n / peer.prefill(n),
        )
    for rows in rows_at_once:
        tasks[f"decode x {rows}"] = (
            lambda rows=rows: 32 * rows / speed.decode_seconds(runner, rows, 32),
            lambda rows=rows: 32 * rows / peer.decode(rows, 32),
        )
    samples: dict[str, list[list[float]]] = defaultdict(list)
    for _ in range(rounds + 1):  # the first warms up
        for name, sides in tasks.items():
            samples[name].append([side() for side in sides])
    return {
        name: tuple(map(statistics.median, zip(*found[1:], strict=True))) for name, found in samples.items()
    }


def table(medians: Mapping[str, tuple[float, ...]], n_bytes: int) -> list[str]:
    """Of tokens per second; n_bytes: of weights that a step reads."""
    lines = [
        "| tokens/s | kogpt | transformers | ratio | share of the bandwidth |",
        "|---|---:|---:|---:|---:|",
    ]
    read: Any = medians.get("read", (None,))[0]
    for name, sides in medians.items():
        if name == "read":
            continue
        ours, theirs = sides
        rows = int(name.split()[-1])
        share = f"{n_bytes * ours / rows / read:.0%}" if read and name.startswith("decode") else ""
        lines.append(f"| {name} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.2f} | {share} |")
    return [*lines, "", f"The device reads {read / 1e9:,.0f} GB/s." if read else ""]


if __name__ == "__main__":
    main()
