"""KoGPT's torch runner on one GPU, and transformers on the same weights, in one command of some four minutes.

    python -m bench.gpu --out results.jsonl

Random weights of a named shape. First the ids of small models are compared with the numpy runner's. Then come
the first token after loading, one row to 64 rows, prompts, a whole run of 64 texts and the memory of 2,048
tokens, in each precision that the runner knows here; then transformers, eager and with its static cache
compiled. Every figure is written to --out as soon as it is known, a table comes last, and what no longer fits
into --seconds is left out and named. Needs transformers.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kogpt.cli import limits, speed
from kogpt.cli.bench import SHAPES, shape_config
from kogpt.config import ModelConfig
from kogpt.engine import Engine
from kogpt.numpy_runner import NumpyRunner
from kogpt.request import Request, Writing
from kogpt.runner import Chunk, Runner
from kogpt.sampling import Sampling
from kogpt.torch_pass import Steps
from kogpt.torch_runner import TorchRunner

DTYPES = ("float16", "int8", "int4")
PEER_DTYPE = torch.float16  # precision of transformers' model
PROMPTS = (128, 512, 2048)
NEW_TOKENS = 48
RUN_ROWS = 64  # texts of the whole run
RUN_TOKENS = 128  # tokens of each of its prompts, and of each answer
SMALL = ModelConfig(n_layers=3, n_heads=4, d_model=256, d_ff=1024, n_vocab=2048, n_ctx=256, rotary_dim=32)

# Target of each figure, with the card that it holds for where it names one.
TARGETS = {
    ("float16", "share of bandwidth, 1 row"): ">= 0.85",
    ("int8", "share of bandwidth, 1 row"): ">= 0.76",
    ("int4", "share of bandwidth, 1 row"): ">= 0.65",
    ("float16", "step of 8 rows / of 1"): "<= 1.15",
    ("float16", "whole run, tokens/s"): ">= 5500 (H100)",
    ("float16", "first token of 2048, ms"): "<= 57 (H100)",
    ("int8", "memory of 2048 tokens, GB"): "<= 8",
    ("int4", "memory of 2048 tokens, GB"): "<= 5",
    ("float16", "first token after load, s"): "<= 1",
}


@dataclass(slots=True)
class Report:
    """Figures as they come: to a file at once, and into the table at the end."""

    out: Path | None
    deadline: float
    figures: dict[tuple[str, str], float | str] = field(default_factory=dict)

    def add(self, column: str, name: str, value: float | str) -> None:
        """Note a figure."""
        self.figures[column, name] = value
        line = json.dumps({"column": column, "name": name, "value": value})
        print(line, flush=True)
        if self.out is not None:
            with self.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def measure(self, column: str, name: str, task: Callable[[], float]) -> None:
        """Note what a task returns, or why it returns nothing: the others still count."""
        if time.monotonic() > self.deadline:
            self.add(column, name, "left out: no time")
            return
        try:
            self.add(column, name, float(f"{task():.4g}"))
        except (
            Exception
        ) as error:  # a failure goes into the table, and the figures after it are still measured
            self.add(column, name, f"failed: {type(error).__name__}: {str(error)[:160]}")

    def table(self) -> Iterator[str]:
        """In Markdown: a line for each figure, a column for each precision and peer."""
        columns = list(dict.fromkeys(column for column, _ in self.figures))
        names = list(dict.fromkeys(name for _, name in self.figures))
        yield f"| | {' | '.join(columns)} | target |"
        yield f"|---|{'---:|' * len(columns)}---|"
        for name in names:
            cells = [str(self.figures.get((column, name), "")) for column in columns]
            targets = [f"{c} {TARGETS[c, name]}" for c in columns if (c, name) in TARGETS]
            yield f"| {name} | {' | '.join(cells)} | {', '.join(targets)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="6b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", nargs="+", default=[d for d in DTYPES if d in TorchRunner.dtypes])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=230, help="begin nothing after them")
    parser.add_argument("--out", type=Path, help="JSON Lines, one for each figure, appended at once")
    args = parser.parse_args()
    report = Report(args.out, time.monotonic() + args.seconds)
    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, shape {args.shape}, random weights", flush=True)
    for rows in (1, 3, 8):
        name = f"ids of the numpy runner, {rows} rows"
        report.measure("float32", name, partial(equal_ids, args.device, rows))
    config = shape_config(args.shape)
    for dtype in args.dtypes:
        ours(report, config, dtype, args)
        gc.collect()  # its graphs and weights
    theirs(report, config, args)
    if device.type == "cuda":
        with_kernels(report, config, args)  # last: a faulty kernel spoils the context of the rest
    print("\n" + "\n".join(report.table()))


def equal_ids(device: str, n_rows: int, dtype: str = "float32", steps: Steps | None = None) -> float:
    """The share of greedy ids that are the numpy runner's."""
    tensors = speed.random_tensors(SMALL, "float32")
    prompts = [np.random.default_rng(i).integers(0, SMALL.n_vocab, 9 + 13 * i) for i in range(n_rows)]
    runner = TorchRunner(SMALL, tensors, dtype, device)
    if steps is not None:
        runner.use_steps(steps)
    found = greedy(runner, prompts, 32)
    wanted = greedy(NumpyRunner(SMALL, tensors, "float32"), prompts, 32)
    return float(np.mean(np.array(found) == np.array(wanted)))


def greedy(runner: Runner, prompts: Sequence[Any], n_tokens: int) -> list[list[int]]:
    """The ids that each row writes."""
    rows = [runner.open() for _ in prompts]
    chunks = [Chunk(row, ids) for row, ids in zip(rows, prompts, strict=True)]
    texts: list[list[int]] = [[] for _ in prompts]
    for _ in range(n_tokens):
        tokens = speed.greedy(runner, chunks)
        for text, token in zip(texts, tokens, strict=True):
            text.append(token)
        chunks = [Chunk(row, np.array([token])) for row, token in zip(rows, tokens, strict=True)]
    for row in rows:
        runner.close(row)
    return texts


def ours(report: Report, config: ModelConfig, dtype: str, args: argparse.Namespace) -> None:
    """The figures of one precision. What makes the cache grow comes after the memory is told."""
    weights = speed.random_tensors(config, "int8")  # views: they take no memory
    loaded: list[TorchRunner] = []

    def load() -> float:
        started = time.perf_counter()
        loaded.append(TorchRunner(config, weights, dtype, args.device))
        synchronize(args.device)
        return time.perf_counter() - started

    report.measure(dtype, "loaded from memory, s", load)
    if not loaded:
        return
    runner = loaded.pop()
    report.measure(dtype, "first token after load, s", partial(speed.prefill_seconds, runner, 32))
    if args.device != "cpu":
        report.measure(dtype, "memory of 2048 tokens, GB", partial(memory_gb, runner, args.device))
    steps = {}
    for rows in args.rows:
        name = f"{rows} rows, ms a step"
        report.measure(dtype, name, partial(step_ms, runner, rows, args.rounds))
        steps[rows] = report.figures[dtype, name]
    one, eight = steps.get(1), steps.get(8)
    if isinstance(one, float):
        report.add(dtype, "1 row, tokens/s", float(f"{1e3 / one:.4g}"))
        if args.device != "cpu":
            share(report, runner, dtype, one, args.device)
        if isinstance(eight, float):
            report.add(dtype, "step of 8 rows / of 1", float(f"{eight / one:.3g}"))
    for n in [n for n in PROMPTS if n <= config.n_ctx]:
        report.measure(dtype, f"first token of {n}, ms", partial(prompt_ms, runner, n, args.rounds))
    report.measure(dtype, "whole run, tokens/s", partial(whole_run, runner))


def with_kernels(report: Report, config: ModelConfig, args: argparse.Namespace) -> None:
    """The steps of one row to many by the kernels of gpu_steps.py, beside plain torch in the same graphs."""
    from kogpt import gpu_tiles
    from kogpt.gpu_steps import GpuSteps

    def steps_of(of: ModelConfig) -> Steps:
        kernels: Any = GpuSteps(
            of, gpu_tiles.load(torch.cuda.get_device_name(args.device))
        )  # its Layer lacks `project` alone
        return Steps(kernels.prepare, kernels.qkv, kernels.attention_fc_in, kernels.out, by_length=True)

    column = "float16, kernels"
    name = "ids of the numpy runner, 3 rows"
    report.measure(column, name, lambda: equal_ids(args.device, 3, "float16", steps_of(SMALL)))
    gc.collect()
    runner = TorchRunner(config, speed.random_tensors(config, "int8"), "float16", args.device)
    runner.use_steps(steps_of(config))
    for rows in args.rows:
        report.measure(column, f"{rows} rows, ms a step", partial(step_ms, runner, rows, args.rounds))
    one = report.figures.get((column, "1 rows, ms a step"))
    if isinstance(one, float):
        share(report, runner, column, one, args.device)


def share(report: Report, runner: Runner, column: str, ms: float, device: str) -> None:
    """The bandwidth, measured now, and which part of it a step of one row reads weights at."""
    reads = [limits.gpu_read_bandwidth(limits.MAX_READ, device) for _ in range(7)]
    bandwidth = statistics.median(reads)
    report.add(column, "GPU reads, GB/s", float(f"{bandwidth / 1e9:.4g}"))
    n_bytes = speed.read_bytes(runner.config, runner.dtype)
    report.add(column, "share of bandwidth, 1 row", float(f"{n_bytes / (ms / 1e3) / bandwidth:.3g}"))


def step_ms(runner: Runner, rows: int, rounds: int) -> float:
    """Median over the rounds, once the pass is recorded."""
    speed.decode_seconds(runner, rows, 8)
    speed.decode_seconds(runner, rows, NEW_TOKENS)
    found = [speed.decode_seconds(runner, rows, NEW_TOKENS) for _ in range(rounds)]
    return 1e3 * statistics.median(found) / NEW_TOKENS


def prompt_ms(runner: Runner, n_tokens: int, rounds: int) -> float:
    """Median over the rounds, after one that does not count."""
    found = [speed.prefill_seconds(runner, n_tokens) for _ in range(rounds + 1)]
    return 1e3 * statistics.median(found[1:])


def memory_gb(runner: Runner, device: str) -> float:
    """The most that was allocated while a text of 2,048 tokens was read, weights included."""
    torch.cuda.reset_peak_memory_stats(device)
    speed.prefill_seconds(runner, min(2048, runner.config.n_ctx))
    return torch.cuda.max_memory_allocated(device) / 1e9


def whole_run(runner: Runner) -> float:
    """Tokens written per second from the first request to the last event, prompts included."""
    ids = np.random.default_rng(0).integers(0, runner.config.n_vocab, (RUN_ROWS, RUN_TOKENS))
    seconds = []
    for _ in range(2):  # the first warms up
        engine = Engine(runner, max_rows=RUN_ROWS)
        started = time.perf_counter()
        for prompt in ids:
            engine.add(
                Request(prompt, writing=Writing(Sampling(temperature=0.0), RUN_TOKENS), reusable=False)
            )
        while not engine.idle:
            engine.step()
        seconds.append(time.perf_counter() - started)
        engine.close()
    return RUN_ROWS * RUN_TOKENS / seconds[-1]


def theirs(report: Report, config: ModelConfig, args: argparse.Namespace) -> None:
    """transformers in PEER_DTYPE: eager, and with its static cache compiled. Parity is tested elsewhere."""
    import transformers
    from transformers import GPTJConfig, GPTJForCausalLM

    torch.set_grad_enabled(False)
    torch.set_default_dtype(PEER_DTYPE)
    with torch.device(args.device):
        model = GPTJForCausalLM(GPTJConfig(**config.to_json())).eval()
    torch.set_default_dtype(torch.float32)
    print(f"transformers {transformers.__version__}", flush=True)
    peer = Eager(model)
    for rows in args.rows:
        report.measure("transformers", f"{rows} rows, ms a step", partial(peer.step_ms, rows))
    for n in [n for n in PROMPTS if n <= config.n_ctx]:
        name = f"first token of {n}, ms"
        report.measure("transformers", name, partial(peer.prompt_ms, n, args.rounds))
    report.measure("transformers, compiled", "1 rows, ms a step", partial(compiled_ms, model))


class Eager:
    """GPTJForCausalLM with its cache, called step by step: less overhead than generate()."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def step_ms(self, rows: int) -> float:
        """Milliseconds of one step."""
        found = self._call(self._ids(rows, speed.FIRST_TOKENS), None)
        for n in (4, NEW_TOKENS // 2):  # the first warms up
            started = time.perf_counter()
            for _ in range(n):
                found = self._call(*found)
            found[0].tolist()
            seconds = time.perf_counter() - started
        return 1e3 * seconds / n

    def prompt_ms(self, n_tokens: int, rounds: int) -> float:
        """Milliseconds until the first new token is known."""
        found = []
        for _ in range(rounds + 1):
            ids = self._ids(1, n_tokens)
            started = time.perf_counter()
            self._call(ids, None)[0].tolist()
            found.append(time.perf_counter() - started)
        return 1e3 * statistics.median(found[1:])

    def _ids(self, rows: int, n_tokens: int) -> Any:
        ids = np.random.default_rng(0).integers(0, self._model.config.vocab_size, (rows, n_tokens))
        return torch.from_numpy(ids).to(self._model.device)

    def _call(self, ids: Any, cache: Any) -> tuple[Any, Any]:
        out = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values


def compiled_ms(model: Any) -> float:
    """A step of generate() with its static cache, compiled as it chooses; a prompt of 32 is included."""
    ids = torch.ones((1, speed.FIRST_TOKENS), dtype=torch.int64, device=model.device)
    settings = {"max_new_tokens": 2 * NEW_TOKENS, "min_new_tokens": 2 * NEW_TOKENS, "do_sample": False}
    for _ in range(3):  # the first compiles, the second may record
        started = time.perf_counter()
        model.generate(ids, cache_implementation="static", pad_token_id=0, **settings)
        synchronize(str(model.device))
        seconds = time.perf_counter() - started
    return 1e3 * seconds / (2 * NEW_TOKENS)


def synchronize(device: str) -> None:
    """Wait for the GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
