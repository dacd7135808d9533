"""Where the time of one step, one prompt and one training step goes on a GPU, by torch's profiler.

    python -m bench.gpu_profile                         # all parts
    python -m bench.gpu_profile --parts step prompt     # some

For each part: the time by the clock without the profiler, the share of it in which the GPU computes nothing,
and the 25 kernels that take most of its time. Parts:

    step      one row by the three kernels, 64 rows with paged attention
    prompt    128 tokens, as they come and as a recorded pass
    products  int8 and int4 matrices at 8, 64 and 256 rows: linear_kernel, and unpacked for the library
    training  a step of runs/mini3.toml's shape, compiled as the recipe says

    python -m bench.gpu_profile --device cpu --shape tiny       # where there is no GPU
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch._C._autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from bench.gpu import interpreted, plan_of, synchronize
from bench.gpu_weights import NAMES, TINY, named_shape, random_weights
from kogpt.cli import speed
from kogpt.config import ModelConfig
from kogpt.pretraining.recipe import Recipe, read_recipe
from kogpt.quantize import FORMATS
from kogpt.runner import Chunk
from kogpt.torch_runner import TorchRunner
from kogpt.training.loop import Batch, Run
from kogpt.training.objective import Objective
from kogpt.training.processes import join
from kogpt.training.report import Report
from kogpt.training.start import initial_model

RECIPE = Path(__file__).parents[1] / "runs" / "mini3.toml"
VOCABULARY = 16384  # entries of the tokenizer that runs/mini3.toml names
SHOWN = 25  # kernels
WARM = 8  # runs before: compiled, recorded, memory taken
STEPS = 5  # that are profiled together
PROMPT = 128  # tokens


def main(words: Sequence[str] | None = None) -> None:
    """Profile the parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=NAMES, default="6b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS))
    args = parser.parse_args(words)
    for part in args.parts:
        started = time.monotonic()
        PARTS[part](named_shape(args.shape), args.device)
        print(f"({part}: {time.monotonic() - started:.0f} s)\n", flush=True)


def step(config: ModelConfig, device: str) -> None:
    """Decoding steps."""
    runner = TorchRunner(config, random_weights(config, "float16"), "float16", device)
    many = 64 if config != TINY else 2
    kinds = {1: "kernels", many: "paged"} if device != "cpu" or interpreted() else {1: "torch"}
    for rows, kind in kinds.items():
        runner.use_plan(plan_of(kind, config, device))
        with_rows = partial(speed.decode_seconds, runner, rows, WARM)
        with_rows()
        chunks = [Chunk(runner.open(), np.arange(i, i + 8)) for i in range(rows)]
        tokens = [0] * rows

        def one(chunks: Sequence[Chunk] = chunks, tokens: list[int] = tokens) -> None:
            given = [Chunk(c.row, np.array([t])) for c, t in zip(chunks, tokens, strict=True)]
            tokens[:] = speed.greedy(runner, given)

        tokens[:] = speed.greedy(runner, chunks)
        show(f"{rows} rows, {kind}, float16", one, device)
        for chunk in chunks:
            runner.close(chunk.row)


def prompt(config: ModelConfig, device: str) -> None:
    """A prompt, eager and recorded."""
    runner = TorchRunner(config, random_weights(config, "float16"), "float16", device)
    n_tokens = min(PROMPT, config.n_ctx - 1)
    show(f"prompt of {n_tokens}, recorded", lambda: speed.prefill_seconds(runner, n_tokens), device)
    ids = np.arange(n_tokens) % config.n_vocab

    def eager() -> None:  # two texts are read as they are
        rows = [runner.open(), runner.open()]
        speed.greedy(runner, [Chunk(row, ids[: n_tokens // 2]) for row in rows])
        for row in rows:
            runner.close(row)

    show(f"two prompts of {n_tokens // 2}, as they come", eager, device)


def products(config: ModelConfig, device: str) -> None:
    """Microseconds of int8 and int4 products, by the kernel and unpacked."""
    if device == "cpu" and not interpreted():
        print("products: no kernels here")
        return
    from bench.gpu_tune import OneLayer, seconds_of
    from kogpt import gpu_tiles
    from kogpt.gpu_steps import GpuSteps, unpacked

    card = torch.cuda.get_device_name(device) if device != "cpu" else "CPU"
    steps = GpuSteps(config, gpu_tiles.load(card))
    for form in FORMATS:
        layer = OneLayer(config, form, torch.device(device))
        for linear in layer.linears()[:3]:
            for rows in (8, 64, 256):
                x = torch.ones((rows, linear.in_features), dtype=layer.dtype, device=device)

                def library(x: torch.Tensor = x, linear: torch.nn.Linear = linear) -> torch.Tensor:
                    return F.linear(x, unpacked(linear, x.dtype), linear.bias)  # type: ignore[arg-type]

                times = [seconds_of(f, x.device) for f in (partial(steps.product, x, linear), library)]
                shape = f"{linear.out_features}x{linear.in_features}"
                print(f"{form} {shape}, {rows} rows: kernel {1e6 * times[0]:.1f} us, ", end="")
                print(f"unpacked {1e6 * times[1]:.1f} us", flush=True)


def training(config: ModelConfig, device: str) -> None:
    """A step of the recipe's first stage on random tokens; of a tiny shape for a dry run."""
    recipe = read_recipe(RECIPE)
    rows, length = recipe.stages[0].rows, recipe.stages[0].length
    if config == TINY:
        rows, length = 2, 16
    shape = trained_shape(recipe) if config != TINY else TINY
    tokens = np.random.default_rng(0).integers(5, shape.n_vocab, (rows, length + 1))
    with join(torch.device(device).type) as processes, tempfile.TemporaryDirectory() as folder:
        objective = Objective(initial_model(shape, seed=0), recipe.compute)
        processes.distribute(objective, objective.blocks())
        run = Run(Path(folder), objective, recipe, processes, Report(Path(folder)), {})
        batch = Batch(tokens[:, :-1], tokens[:, 1:], ())
        show(f"training step, {rows} x {length}", lambda: run.update(batch), device)


def trained_shape(recipe: Recipe) -> ModelConfig:
    """The recipe's model."""
    model = recipe.model
    assert model is not None
    return ModelConfig(
        n_layers=model.n_layers,
        n_heads=model.n_heads,
        d_model=model.d_model,
        d_ff=model.d_ff or 4 * model.d_model,
        n_vocab=VOCABULARY,
        n_ctx=model.n_ctx,
        rotary_dim=model.rotary_dim,
        tied_head=model.tied_head,
    )


PARTS: dict[str, Callable[[ModelConfig, str], None]] = {
    "step": step,
    "prompt": prompt,
    "products": products,
    "training": training,
}


def show(name: str, run: Callable[[], object], device: str) -> None:
    """Print the clock's time, the GPU's idle share and the kernels that take most."""
    for _ in range(WARM):
        run()
    synchronize(device)
    started = time.perf_counter()
    for _ in range(STEPS):
        run()
    synchronize(device)
    clock = (time.perf_counter() - started) / STEPS
    on_gpu = device != "cpu"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        for _ in range(STEPS):
            run()
        synchronize(device)
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    spans = [(e.time_range.start, e.time_range.end) for e in profiler.events() if e.device_type == kind]
    busy, whole = covered(spans)
    print(f"## {name}: {1e3 * clock:.2f} ms by the clock; {len(spans) / STEPS:.0f} kernels or operations")
    print(f"profiled: {whole / STEPS / 1e3:.2f} ms, idle {1 - busy / max(whole, 1e-9):.3f}")
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    for event in sorted(profiler.key_averages(), key=lambda e: -getattr(e, order))[:SHOWN]:
        total = getattr(event, order) / STEPS
        print(f"{total:10.1f} us {event.count / STEPS:7.1f} times  {event.key[:90]}")
    print(flush=True)


def covered(spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Length of the union of the spans, and from the first begin to the last end."""
    busy, until = 0.0, -np.inf
    for begin, end in sorted(spans):
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    return busy, (until - min(begin for begin, _ in spans)) if spans else 0.0


if __name__ == "__main__":
    main()
