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
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
import transformers
from transformers import GPTJConfig, GPTJForCausalLM

from bench.peers.engines import KoGPT, Peer, Transformers, random_ids
from kogpt.checkpoint import Stored
from kogpt.cli import limits, speed
from kogpt.cli.bench import SHAPES, shape_config
from kogpt.config import ModelConfig
from kogpt.torch_runner import TorchRunner

PROMPTS = (512, 1920)
NEW_TOKENS = 32


class Ours(KoGPT):
    """The torch runner, driven as `kogpt bench` does."""

    def __init__(self, runner: TorchRunner) -> None:
        self._runner = runner


class Theirs(Transformers):
    """transformers' GPT-J with these weights."""

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Stored], dtype: str, device: str) -> None:
        torch.set_grad_enabled(False)
        self._torch = torch
        torch.set_default_dtype(getattr(torch, dtype))
        with torch.device(device):
            self._model = GPTJForCausalLM(GPTJConfig(**config.to_json()))
            self._model.eval()
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
    print(f"{args.shape}, {args.dtype}, torch {torch.__version__}, transformers {transformers.__version__}")
    started = time.perf_counter()
    ours = Ours(TorchRunner(config, tensors, args.dtype, args.device))
    seconds = time.perf_counter() - started
    ours.decode(1, 2)
    read: Callable[[], float] | None = None
    if args.device != "cpu":
        read = partial(limits.gpu_read_bandwidth, limits.MAX_READ, args.device)
        name, held = torch.cuda.get_device_name(args.device), torch.cuda.max_memory_allocated(args.device)
        print(f"{name}; ours loaded in {seconds:.1f} s, {held / 1e9:.2f} GB with a short text")
    theirs = Theirs(config, tensors, args.dtype, args.device)
    ids = random_ids(1, 64, config.n_vocab)[0]
    alike = np.corrcoef(ours.logits(ids), theirs.logits(ids))[0, 1]
    print(f"correlation of the logits: {alike:.6f}\n")
    rates, bandwidth = measured((ours, theirs), args.rows, args.rounds, read)
    print("\n".join(table(rates, speed.read_bytes(config, args.dtype), bandwidth)))


def measured(
    peers: tuple[Peer, Peer], rows: list[int], rounds: int, read: Callable[[], float] | None
) -> tuple[dict[tuple[str, int], list[float]], float | None]:
    """Medians of tokens/s of each peer by (what, prompt tokens or rows), and of what `read` measures."""
    samples: dict[tuple[str, int], list[list[float]]] = defaultdict(list)
    bandwidths = []
    for _ in range(rounds + 1):  # the first warms up
        bandwidths.append(read() if read else 0.0)
        for n in PROMPTS:
            samples["prompt of", n].append([n / peer.prefill(n) for peer in peers])
        for n in rows:
            samples["rows", n].append([n * NEW_TOKENS / peer.decode(n, NEW_TOKENS) for peer in peers])
    medians = {
        key: [statistics.median(of_one) for of_one in zip(*found[1:], strict=True)]
        for key, found in samples.items()
    }
    return medians, statistics.median(bandwidths[1:]) if read else None


def table(
    rates: Mapping[tuple[str, int], list[float]], step_bytes: int, bandwidth: float | None
) -> Iterator[str]:
    """In Markdown; step_bytes: of weights that a step reads; bandwidth: bytes per second, if known."""
    yield "| tokens/s | kogpt | transformers | ratio | share of the bandwidth |"
    yield "|---|---:|---:|---:|---:|"
    for (what, n), (ours, theirs) in rates.items():
        share = f"{step_bytes * ours / n / bandwidth:.0%}" if bandwidth and what == "rows" else ""
        yield f"| {what} {n} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.2f} | {share} |"
    if bandwidth:
        yield f"\nThe device reads {bandwidth / 1e9:,.0f} GB/s."


if __name__ == "__main__":
    main()
