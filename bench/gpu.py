"""KoGPT's torch runner on one GPU, and transformers on the same weights, in one command of some four minutes.

    python -m bench.gpu --out results.jsonl

Random weights of a named shape. First the ids of small models are compared with the numpy runner's. Then come
the first token after loading, one row to 64 rows, prompts, a whole run of 64 texts and the memory of 2,048
tokens in float16; then transformers, eager; then int8 and int4; beside each precision its steps by the
kernels of gpu_steps.py; then transformers with its static cache compiled. Every figure is written to --out as
soon as it is known, a table and the lines of gpu_choice.MEASURED come last, and what no longer fits into
--seconds is left out and named. The peer needs transformers.

    python -m bench.gpu --device cpu --shape tiny       # the same program where there is no GPU
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

from bench.gpu_weights import NAMES, TINY, named_shape, random_weights
from kogpt.cli import limits, speed
from kogpt.config import ModelConfig
from kogpt.engine import Engine
from kogpt.gpu_choice import faster_rows, has_triton
from kogpt.numpy_runner import NumpyRunner
from kogpt.quantize import FORMATS, Floats
from kogpt.request import Request, Writing
from kogpt.runner import Chunk, Runner
from kogpt.sampling import Sampling
from kogpt.torch_pass import Steps
from kogpt.torch_runner import TorchRunner

DTYPES = ("float16", "int8", "int4")
PEER_DTYPE = torch.float16  # precision of transformers' model
SMALL = ModelConfig(n_layers=3, n_heads=4, d_model=256, d_ff=1024, n_vocab=2048, n_ctx=256, rotary_dim=32)


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of the measurements, in tokens."""

    small: ModelConfig = SMALL  # the model whose ids are compared
    ids: int = 32
    prompts: tuple[int, ...] = (128, 512, 2048)
    new: int = 48  # steps that are timed at once
    run_rows: int = 64  # texts of the whole run
    run: int = 128  # tokens of each of its prompts, and of each answer


DRY = Plan(small=TINY, ids=3, prompts=(8, 16), new=2, run_rows=3, run=4)  # shape tiny

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


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and print the table."""
    args = read_arguments(words)
    report = Report(args.out, time.monotonic() + args.seconds)
    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, shape {args.shape}, random weights", flush=True)
    for rows in (1, 3, 8):
        figure = f"ids of the numpy runner, {rows} rows"
        report.measure("float32", figure, partial(equal_ids, args, "float32", rows))
    config = named_shape(args.shape)
    floats = [dtype for dtype in args.dtypes if dtype not in FORMATS]
    for dtype in floats:
        ours(report, config, dtype, args)
        gc.collect()  # its graphs and weights
    if not args.no_peer:
        peer(report, "transformers", config, args, theirs)
    # Last what kernels compute: a faulty one spoils the context of the rest.
    for dtype in [dtype for dtype in args.dtypes if dtype in FORMATS]:
        figure = "ids of the numpy runner, 3 rows"
        report.measure(dtype, figure, partial(equal_ids, args, dtype, 3))
        ours(report, config, dtype, args)
        gc.collect()
    if device.type == "cuda" or interpreted():
        for dtype in args.dtypes:
            with_kernels(report, config, dtype, args)
            gc.collect()
    if not args.no_peer:
        peer(report, "transformers, compiled", config, args, theirs_compiled)
    print("\n" + "\n".join(report.table()))
    print("\n".join(measured_lines(report, device, args)))


def read_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=NAMES, default="6b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", nargs="+", choices=TorchRunner.dtypes, default=DTYPES)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=230, help="begin nothing after them")
    parser.add_argument("--no-peer", action="store_true", help="leave transformers out")
    parser.add_argument("--out", type=Path, help="JSON Lines, one for each figure, appended at once")
    args = parser.parse_args(words)
    args.plan = DRY if args.shape == "tiny" else Plan()
    return args


def interpreted() -> bool:
    """Whether kernels run on the CPU here: Triton's interpreter, for a dry run."""
    if not has_triton():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


def equal_ids(args: argparse.Namespace, dtype: str, n_rows: int, kernels: bool = False) -> float:
    """The share of greedy ids that are the numpy runner's; kernels: the steps are theirs."""
    small = args.plan.small
    tensors = random_weights(small, dtype)
    longest = small.n_ctx - args.plan.ids
    sizes = [min(9 + 13 * i, longest) for i in range(n_rows)]
    prompts = [np.random.default_rng(i).integers(0, small.n_vocab, size) for i, size in enumerate(sizes)]
    runner = TorchRunner(small, tensors, dtype, args.device)
    if kernels:
        runner.use_steps(kernel_steps(small, args.device))
    found = greedy(runner, prompts, args.plan.ids)
    floats = Floats(small, tensors) if dtype in FORMATS else speed.random_tensors(small, "int8")
    wanted = greedy(NumpyRunner(small, floats, "float32"), prompts, args.plan.ids)
    return float(np.mean(np.array(found) == np.array(wanted)))


def kernel_steps(config: ModelConfig, device: str) -> Steps:
    """The steps by the kernels, with this card's tiles."""
    from kogpt import gpu_tiles
    from kogpt.gpu_steps import GpuSteps

    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    return GpuSteps(config, gpu_tiles.load(card)).steps()


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


def loaded(
    report: Report, config: ModelConfig, dtype: str, column: str, args: argparse.Namespace
) -> TorchRunner | None:
    """The runner, and the time that it took; None where that failed."""
    found: list[TorchRunner] = []

    def load() -> float:
        started = time.perf_counter()
        found.append(TorchRunner(config, random_weights(config, dtype), dtype, args.device))
        synchronize(args.device)
        return time.perf_counter() - started

    report.measure(column, "loaded from memory, s", load)
    return found[0] if found else None


def ours(report: Report, config: ModelConfig, dtype: str, args: argparse.Namespace) -> None:
    """The figures of one precision. What makes the cache grow comes after the memory is told."""
    runner = loaded(report, config, dtype, dtype, args)
    if runner is None:
        return
    report.measure(dtype, "first token after load, s", partial(speed.prefill_seconds, runner, 32))
    if args.device != "cpu":
        report.measure(dtype, "memory of 2048 tokens, GB", partial(memory_gb, runner, args.device))
    steps_of(report, runner, dtype, args)
    for n in [n for n in args.plan.prompts if n <= config.n_ctx]:
        report.measure(dtype, f"first token of {n}, ms", partial(prompt_ms, runner, n, args.rounds))
    report.measure(dtype, "whole run, tokens/s", partial(whole_run, runner, args.plan))


def steps_of(report: Report, runner: TorchRunner, column: str, args: argparse.Namespace) -> None:
    """A step of each number of rows, and what follows from those."""
    for rows in args.rows:
        report.measure(column, step_name(rows), partial(step_ms, runner, rows, args))
    steps = step_times(report, column)
    if 1 in steps:
        report.add(column, "1 row, tokens/s", float(f"{1e3 / steps[1]:.4g}"))
        if args.device != "cpu":
            share(report, runner, column, steps[1], args.device)
        if 8 in steps:
            report.add(column, "step of 8 rows / of 1", float(f"{steps[8] / steps[1]:.3g}"))


def step_name(rows: int) -> str:
    return f"{rows} rows, ms a step"


def step_times(report: Report, column: str) -> dict[int, float]:
    """Milliseconds of a step by its number of rows, where they were measured."""
    found = {}
    for (other, name), value in report.figures.items():
        rows, _, rest = name.partition(" ")
        if other == column and rest == "rows, ms a step" and isinstance(value, float):
            found[int(rows)] = value
    return found


def with_kernels(report: Report, config: ModelConfig, dtype: str, args: argparse.Namespace) -> None:
    """The steps of one row to many by the kernels of gpu_steps.py, in the same graphs."""
    column = kernel_column(dtype)
    figure = "ids of the numpy runner, 3 rows"
    report.measure(column, figure, lambda: equal_ids(args, dtype, 3, kernels=True))
    runner = loaded(report, config, dtype, column, args)
    if runner is not None:
        runner.use_steps(kernel_steps(config, args.device))
        steps_of(report, runner, column, args)


def kernel_column(dtype: str) -> str:
    return f"{dtype}, kernels"


def measured_lines(report: Report, device: torch.device, args: argparse.Namespace) -> Iterator[str]:
    """Entries of gpu_choice.MEASURED."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    for dtype in args.dtypes:
        kernels, plain = step_times(report, kernel_column(dtype)), step_times(report, dtype)
        if kernels and plain:
            yield f"    ({capability}, {dtype!r}): {faster_rows(kernels, plain)},"


def share(report: Report, runner: Runner, column: str, ms: float, device: str) -> None:
    """The bandwidth, measured now, and which part of it a step of one row reads weights at."""
    reads = [limits.gpu_read_bandwidth(limits.MAX_READ, device) for _ in range(7)]
    bandwidth = statistics.median(reads)
    report.add(column, "GPU reads, GB/s", float(f"{bandwidth / 1e9:.4g}"))
    n_bytes = speed.read_bytes(runner.config, runner.dtype)
    report.add(column, "share of bandwidth, 1 row", float(f"{n_bytes / (ms / 1e3) / bandwidth:.3g}"))


def step_ms(runner: Runner, rows: int, args: argparse.Namespace) -> float:
    """Median over the rounds, once the pass is recorded."""
    n_tokens: int = args.plan.new
    speed.decode_seconds(runner, rows, min(8, n_tokens))
    speed.decode_seconds(runner, rows, n_tokens)
    found = [speed.decode_seconds(runner, rows, n_tokens) for _ in range(args.rounds)]
    return 1e3 * statistics.median(found) / n_tokens


def prompt_ms(runner: Runner, n_tokens: int, rounds: int) -> float:
    """Median over the rounds, after one that does not count."""
    found = [speed.prefill_seconds(runner, n_tokens) for _ in range(rounds + 1)]
    return 1e3 * statistics.median(found[1:])


def memory_gb(runner: Runner, device: str) -> float:
    """The most that was allocated while a text of 2,048 tokens was read, weights included."""
    torch.cuda.reset_peak_memory_stats(device)
    speed.prefill_seconds(runner, min(2048, runner.config.n_ctx))
    return torch.cuda.max_memory_allocated(device) / 1e9


def whole_run(runner: Runner, plan: Plan) -> float:
    """Tokens written per second from the first request to the last event, prompts included."""
    ids = np.random.default_rng(0).integers(0, runner.config.n_vocab, (plan.run_rows, plan.run))
    seconds = []
    for _ in range(2):  # the first warms up
        engine = Engine(runner, max_rows=plan.run_rows)
        started = time.perf_counter()
        for prompt in ids:
            engine.add(Request(prompt, writing=Writing(Sampling(temperature=0.0), plan.run), reusable=False))
        while not engine.idle:
            engine.step()
        seconds.append(time.perf_counter() - started)
        engine.close()
    return plan.run_rows * plan.run / seconds[-1]


Peer = Callable[[Report, str, Any, argparse.Namespace], None]


def peer(report: Report, column: str, config: ModelConfig, args: argparse.Namespace, measure: Peer) -> None:
    """transformers' model in PEER_DTYPE, and what `measure` does with it. Parity is tested elsewhere."""
    found: list[Any] = []

    def load() -> float:
        import transformers
        from transformers import GPTJConfig, GPTJForCausalLM

        print(f"transformers {transformers.__version__}", flush=True)
        started = time.perf_counter()
        torch.set_default_dtype(PEER_DTYPE)
        try:
            with torch.device(args.device):
                found.append(GPTJForCausalLM(GPTJConfig(**config.to_json())).eval())
        finally:
            torch.set_default_dtype(torch.float32)
        return time.perf_counter() - started

    report.measure(column, "made, s", load)
    if found:
        with torch.no_grad():
            measure(report, column, found.pop(), args)
    gc.collect()


def theirs(report: Report, column: str, model: Any, args: argparse.Namespace) -> None:
    """Steps of the numbers of rows, and prompts."""
    eager = Eager(model, args.plan.new)
    for rows in args.rows:
        report.measure(column, step_name(rows), partial(eager.step_ms, rows))
    for n in [n for n in args.plan.prompts if n <= model.config.n_positions]:
        report.measure(column, f"first token of {n}, ms", partial(eager.prompt_ms, n, args.rounds))


def theirs_compiled(report: Report, column: str, model: Any, args: argparse.Namespace) -> None:
    """A step of one row."""
    report.measure(column, step_name(1), partial(compiled_ms, model, 2 * args.plan.new))


class Eager:
    """GPTJForCausalLM with its cache, called step by step: less overhead than generate()."""

    def __init__(self, model: Any, n_tokens: int) -> None:
        self._model, self._n_tokens = model, n_tokens

    def step_ms(self, rows: int) -> float:
        """Milliseconds of one step."""
        found = self._call(self._ids(rows, speed.FIRST_TOKENS), None)
        for n in (4, self._n_tokens // 2):  # the first warms up
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


def compiled_ms(model: Any, n_tokens: int) -> float:
    """A step of generate() with its static cache, compiled as it chooses; a prompt of 32 is included."""
    ids = torch.ones((1, speed.FIRST_TOKENS), dtype=torch.int64, device=model.device)
    settings = {"max_new_tokens": n_tokens, "min_new_tokens": n_tokens, "do_sample": False}
    for _ in range(3):  # the first compiles, the second may record
        started = time.perf_counter()
        model.generate(ids, cache_implementation="static", pad_token_id=0, **settings)
        synchronize(str(model.device))
        seconds = time.perf_counter() - started
    return 1e3 * seconds / n_tokens


def synchronize(device: str) -> None:
    """Wait for the GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
