"""KoGPT's torch runner on one GPU, the most valuable figures first; transformers on the same weights last.

    python -m bench.gpu --out results.jsonl
    python -m bench.gpu --parts kernels paged --dtypes float16      # some of it

Random weights of a named shape; the models of all precisions lie in memory together. Parts, each for every
precision:

    cold      the first token of a process that has nothing compiled (gpu_cold.py)
    load      seconds, first token, memory of 2,048 tokens
    kernels   steps of one row to 64 rows by the three kernels of a layer (gpu_steps.py)
    paged     the same with the library's products and attention by a kernel
    prompts   the first token of prompts, once they are recorded
    run       a whole run of 64 texts: with paged steps, or kernels where these were faster, if they are parts
              of the same call; else in plain torch
    torch     steps in plain torch
    ids       how near logits of small models are to the numpy runner's (gpu_agreement.py), by each of
              kernels, paged and torch that can run here
    peer      transformers: steps and prompts
    compiled  transformers with its static cache compiled, one row

Every figure is written to --out as soon as it is known, a table and the lines of gpu_choice.MEASURED come
last, and what no longer fits into --seconds is left out and named. The peer needs transformers.

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

from bench import gpu_cold
from bench.gpu_agreement import Agreement, agreement
from bench.gpu_weights import NAMES, TINY, named_shape, random_weights
from kogpt.cli import limits, speed
from kogpt.config import ModelConfig
from kogpt.engine import Engine
from kogpt.gpu_choice import compare, has_triton
from kogpt.request import Request, Writing
from kogpt.runner import Runner
from kogpt.sampling import Sampling
from kogpt.torch_decoder import CAPTURE_AFTER, ROWS
from kogpt.torch_pass import PLAIN, StepPlan
from kogpt.torch_runner import TorchRunner

DTYPES = ("float16", "int8", "int4")
COLUMNS = ("kernels", "paged", "torch")  # parts that measure steps
PARTS = ("cold", "load", "kernels", "paged", "prompts", "run", "torch", "ids", "peer", "compiled")
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
    ("float16, kernels", "share of bandwidth, 1 row"): ">= 0.85",
    ("int8, kernels", "share of bandwidth, 1 row"): ">= 0.76",
    ("int4, kernels", "share of bandwidth, 1 row"): ">= 0.65",
    ("float16, kernels", "step of 8 rows / of 1"): "<= 1.15",
    ("float16", "whole run, tokens/s"): ">= 5500 (H100)",
    ("float16", "first token of 2048, ms"): "<= 57 (H100)",
    ("int8", "memory of 2048 tokens, GB"): "<= 8",
    ("int4", "memory of 2048 tokens, GB"): "<= 5",
    ("float16", "first token after load, nothing compiled, s"): "<= 1",
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
    config = named_shape(args.shape)
    models: dict[str, TorchRunner] = {}
    parts = {"load": load, **dict.fromkeys(COLUMNS, steps), "prompts": prompts, "run": run}
    for part in args.parts:
        if part in parts:
            for dtype in args.dtypes:
                if dtype not in models and (made := loaded(report, config, dtype, args)) is not None:
                    models[dtype] = made
                if dtype in models:
                    parts[part](Stage(report, models[dtype], dtype, part, args))
        elif part == "cold":
            cold(report, args)
        elif part == "ids":
            compare_ids(report, args)
        else:
            models.clear()
            gc.collect()  # graphs and weights
            peer(report, part, config, args)
    print("\n" + "\n".join(report.table()))
    print("\n".join(measured_lines(report, device, args)))


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the measurements with the model of one precision."""

    report: Report
    runner: TorchRunner
    dtype: str
    part: str
    args: argparse.Namespace

    @property
    def column(self) -> str:
        """Name of the column in the table."""
        return column_of(self.dtype, self.part)

    def measure(self, name: str, task: Callable[[], float]) -> None:
        """Note what a task returns."""
        self.report.measure(self.column, name, task)


def column_of(dtype: str, part: str) -> str:
    return f"{dtype}, {part}" if part in COLUMNS else dtype


def read_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=NAMES, default="6b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtypes", nargs="+", choices=TorchRunner.dtypes, default=DTYPES)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=230, help="begin nothing after them")
    parser.add_argument("--out", type=Path, help="JSON Lines, one for each figure, appended at once")
    args = parser.parse_args(words)
    args.plan = DRY if args.shape == "tiny" else Plan()
    missing = set(COLUMNS).difference(columns_on(args.device))
    args.parts = [part for part in args.parts if part not in missing]
    return args


def columns_on(device: str) -> Sequence[str]:
    """The COLUMNS that can be measured on a device."""
    return COLUMNS if device.startswith("cuda") or interpreted() else ("torch",)


def interpreted() -> bool:
    """Whether kernels run on the CPU here: Triton's interpreter, for a dry run."""
    if not has_triton():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


def plan_of(part: str, config: ModelConfig, device: str) -> StepPlan:
    """The steps that a part measures, with this card's tiles."""
    if part == "torch":
        return StepPlan(PLAIN, 0, PLAIN)
    from kogpt import gpu_tiles
    from kogpt.gpu_steps import GpuSteps

    card = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    steps = GpuSteps(config, gpu_tiles.load(card))
    paged = steps.paged_steps()
    return StepPlan(steps.steps(), ROWS[-1] if part == "kernels" else 0, paged)


def loaded(report: Report, config: ModelConfig, dtype: str, args: argparse.Namespace) -> TorchRunner | None:
    """The runner, and the time that it took; None where that failed."""
    found: list[TorchRunner] = []

    def make() -> float:
        started = time.perf_counter()
        found.append(TorchRunner(config, random_weights(config, dtype), dtype, args.device))
        synchronize(args.device)
        return time.perf_counter() - started

    before = allocated(args.device)
    report.measure(dtype, "loaded from memory, s", make)
    if not found:
        return None
    if "load" in args.parts:
        report.measure(dtype, "first token after load, s", partial(speed.prefill_seconds, found[0], 32))
        report.measure(dtype, "the same again, s", partial(speed.prefill_seconds, found[0], 32))
        if args.device != "cpu":
            report.measure(
                dtype, "memory of 2048 tokens, GB", lambda: memory_gb(found[0], args.device) - before / 1e9
            )
    return found[0]


def cold(report: Report, args: argparse.Namespace) -> None:
    """The first token of each precision in a process of its own."""
    for dtype in args.dtypes:
        found: dict[str, float] = {}

        def seconds(dtype: str = dtype, found: dict[str, float] = found) -> float:
            found.update(gpu_cold.measured(args.shape, dtype, args.device))
            return found["first_token"]

        report.measure(dtype, "first token after load, nothing compiled, s", seconds)
        if found:
            report.add(dtype, "loaded before it, s", float(f"{found['load']:.4g}"))


def load(stage: Stage) -> None:
    """Its figures are those of a model just made: `loaded` notes them."""


def steps(stage: Stage) -> None:
    """A step of each number of rows, and what follows from those."""
    report, args, column = stage.report, stage.args, stage.column
    stage.runner.use_plan(plan_of(stage.part, stage.runner.config, args.device))
    for rows in [n for n in args.rows if n > 1 or stage.part != "paged"]:  # paged steps serve many rows
        stage.measure(step_name(rows), partial(step_ms, stage.runner, rows, args))
    found = step_times(report, column)
    if 1 in found:
        report.add(column, "1 row, tokens/s", float(f"{1e3 / found[1]:.4g}"))
        if args.device != "cpu":
            share(report, stage.runner, column, found[1], args.device)
        if 8 in found:
            report.add(column, "step of 8 rows / of 1", float(f"{found[8] / found[1]:.3g}"))


def prompts(stage: Stage) -> None:
    """The first token of prompts."""
    plan = stage.args.plan
    for n in [n for n in plan.prompts if n <= stage.runner.config.n_ctx]:
        stage.measure(f"first token of {n}, ms", partial(prompt_ms, stage.runner, n, stage.args.rounds))


def run(stage: Stage) -> None:
    """Whole texts, with the steps that were faster at the most rows that both were measured at."""
    kernels, paged = (step_times(stage.report, column_of(stage.dtype, part)) for part in ("kernels", "paged"))
    both = kernels.keys() & paged.keys()
    part = "kernels" if both and kernels[max(both)] < paged[max(both)] else "paged"
    if part not in stage.args.parts:
        part = "torch"
    stage.runner.use_plan(plan_of(part, stage.runner.config, stage.args.device))
    stage.report.add(stage.column, "steps of the whole run", part)
    stage.measure("whole run, tokens/s", partial(whole_run, stage.runner, stage.args.plan))


def compare_ids(report: Report, args: argparse.Namespace) -> None:
    """Logits of the small model beside the numpy runner's; only what differs shows a fault."""
    small, n_steps = args.plan.small, args.plan.ids
    for dtype in dict.fromkeys(("float32", *args.dtypes)):
        for part in columns_on(args.device):
            column = column_of(dtype, part)
            found: list[Agreement] = []

            def error(dtype: str = dtype, part: str = part, found: list[Agreement] = found) -> float:
                runner = TorchRunner(small, random_weights(small, dtype), dtype, args.device)
                runner.use_plan(plan_of(part, small, args.device))
                found.append(agreement(runner, small, 3, n_steps))
                return found[0].error

            report.measure(column, "worst logit, deviations from numpy's", error)
            if found:
                report.add(column, "numpy's ids where the margin is clear", found[0].ids)


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


def measured_lines(report: Report, device: torch.device, args: argparse.Namespace) -> Iterator[str]:
    """Entries of gpu_choice.MEASURED."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    for dtype in args.dtypes:
        times = [step_times(report, column_of(dtype, part)) for part in COLUMNS]
        if all(times):
            yield f"    ({capability}, {dtype!r}): {compare(*times)},"


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
    """Median over the rounds, once the pass is recorded."""
    found = [speed.prefill_seconds(runner, n_tokens) for _ in range(CAPTURE_AFTER + 2 + rounds)]
    return 1e3 * statistics.median(found[-rounds:])


def allocated(device: str) -> int:
    """Bytes that tensors take on the GPU."""
    return torch.cuda.memory_allocated(device) if device.startswith("cuda") else 0


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


def peer(report: Report, part: str, config: ModelConfig, args: argparse.Namespace) -> None:
    """transformers' model in PEER_DTYPE; parity is tested elsewhere."""
    measure = theirs if part == "peer" else theirs_compiled
    column = "transformers" if part == "peer" else "transformers, compiled"
    found: list[Any] = []

    def make() -> float:
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

    report.measure(column, "made, s", make)
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
