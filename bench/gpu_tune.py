"""The fastest tiles of the GPU kernels on this card, for gpu_tiles.py, within the given seconds.

    python -m bench.gpu_tune --seconds 95

Compiling takes most of the time: first several processes compile every candidate, side by side, into Triton's
cache on disk, then this one measures. Tiles go into the user's cache as soon as a kernel is done.

A launch takes the host longer than the GPU. So the GPU is kept waiting until all launches of a measurement
are queued, and the events around each of them tell its own time. Between two launches the second-level cache
is overwritten, into which a layer's weights would fit.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from bench.gpu_weights import NAMES, named_shape, random_weights
from kogpt import gpu_tiles
from kogpt.config import ModelConfig
from kogpt.gpu_steps import GpuSteps
from kogpt.gpu_tiles import DTYPES, Job, Tile, Tiles
from kogpt.model import Linear, rotary_table
from kogpt.quantize import FORMATS
from kogpt.torch_cache import BLOCK
from kogpt.torch_pass import Layer, unadapted
from kogpt.torch_runner import TorchRunner

LENGTH = 300  # positions that attention reads, where the context is that long
LAUNCHES = 8
HOLD = 10_000_000  # cycles that the GPU waits, some 5 ms; more where the host was not done by then
LONGEST_HOLD = 2_000_000_000  # about a second
FLUSHED = 128 << 20  # bytes; an H200 has 50 MB of second-level cache
COMPILE_SHARE = 0.6  # part of the given seconds that may go into compiling


class OneLayer:
    """A layer in one dtype, a text of one row, and the launch of each kernel."""

    def __init__(self, config: ModelConfig, dtype: str, device: torch.device) -> None:
        self._config, self._weights, self._device = replace(config, n_layers=1), dtype, device
        runner = TorchRunner(self._config, random_weights(self._config, dtype), dtype, str(device))
        self._block: Any = runner._model.transformer.h[0]
        self._head = runner._model.lm_head
        self.dtype = runner._model.transformer.ln_f.weight.dtype

    def jobs(self) -> Iterator[Job]:
        """One for each kernel that a step of few rows has in this dtype: three of a layer, and the head."""
        e, f = self._config.d_model, self._config.d_ff
        for kernel, shape in {"qkv": (3 * e, e), "attention_fc_in": (f, e), "out": (e, e + f)}.items():
            yield self._job(kernel, shape, None)
        if self._weights in FORMATS:  # plain torch multiplies others
            yield self._job("linear", (self._head.out_features, self._head.in_features), self._head)

    def linears(self) -> list[Linear]:
        """One of each shape."""
        return [self._block.attn.q_proj, self._block.mlp.fc_in, self._block.mlp.fc_out, self._head]

    def _job(self, kernel: str, shape: tuple[int, int], linear: Linear | None) -> Job:
        name = gpu_tiles.key(kernel, self._weights, shape)

        def seconds(tile: Tile) -> float | None:
            steps = GpuSteps(self._config, Tiles({name: tile}))
            try:
                return seconds_of(self._launch(kernel, linear, steps), self._device)
            except (triton.TritonError, RuntimeError) as error:  # too large, or not to be compiled
                print(f"{name} {tuple(tile)}: {str(error)[:100]}", flush=True)
                return None

        return Job(kernel, self._weights, shape, seconds, shared_memory(self._device))

    def _launch(self, kernel: str, linear: Linear | None, steps: GpuSteps) -> Callable[[], Any]:
        x, inner = self._ones(self._config.d_model), self._ones(self._config.d_ff)
        if linear is not None:
            given = self._ones(linear.in_features)
            return lambda: steps.product(given, linear)
        layer = self._layer(steps)
        q = x.view(1, self._config.n_heads, self._config.d_head)
        launches = {
            "qkv": lambda: steps.qkv(x, layer),
            "attention_fc_in": lambda: steps.attention_fc_in(x, q, layer),
            "out": lambda: steps.out(x, x, inner, layer),
        }
        return launches[kernel]

    def _layer(self, steps: GpuSteps) -> Layer:
        config, device = self._config, self._device
        length, blocks = min(LENGTH, config.n_ctx - 1), -(-config.n_ctx // BLOCK)
        table = torch.arange(1, 1 + blocks, device=device)[None]
        positions = torch.tensor([length], device=device)
        slots = table[:, length // BLOCK] * BLOCK + length % BLOCK
        shape = (2, 1 + blocks, BLOCK, config.n_heads, config.d_head)
        cache = torch.zeros(shape, dtype=self.dtype, device=device)
        rotation = rotary_table(positions, config.rotary_dim, torch.float32)
        places = steps.prepare(table, positions)
        places.sums.zero_()
        places.summed = True  # by the layer before
        return Layer(self._block, cache, rotation, slots, table, positions, places, unadapted)

    def _ones(self, width: int) -> Tensor:
        return torch.ones((1, width), dtype=self.dtype, device=self._device)


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may take; on a CPU there is no limit."""
    if device.type != "cuda":
        return sys.maxsize
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


def seconds_of(launch: Callable[[], Any], device: torch.device) -> float:
    """Median seconds of a launch on the GPU, the weights in memory and not in a cache."""
    launch()  # compiles
    if device.type != "cuda":
        started = time.perf_counter()
        launch()
        return time.perf_counter() - started
    with torch.cuda.device(device):  # events and the pause belong to the current device
        return seconds_on_gpu(launch, device)


def seconds_on_gpu(launch: Callable[[], Any], device: torch.device) -> float:
    """As `seconds_of`, of a kernel that is compiled, on the current device."""
    hold = HOLD
    while True:
        spans = queued(launch, hold, device)
        ahead = not spans[0][0].query()  # the GPU has not begun: it waited for no launch
        torch.cuda.synchronize(device)
        if ahead or hold >= LONGEST_HOLD:
            return statistics.median(float(begin.elapsed_time(end)) for begin, end in spans) / 1e3
        hold *= 4


def queued(launch: Callable[[], Any], hold: int, device: torch.device) -> list[tuple[Any, Any]]:
    """Launches behind a GPU that waits, with the events before and after each."""
    flushed = torch.empty(FLUSHED, dtype=torch.int8, device=device)
    spans = []
    torch.cuda._sleep(hold)
    for _ in range(LAUNCHES):
        flushed.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        launch()
        end.record()
        spans.append((begin, end))
    return spans


def all_jobs(config: ModelConfig, dtypes: Sequence[str], device: torch.device) -> Iterator[Job]:
    """The jobs of all dtypes; one layer at a time lies in memory."""
    for dtype in dtypes:
        yield from OneLayer(config, dtype, device).jobs()


def compile_part(jobs: Iterator[Job], part: int, n_parts: int) -> None:
    """Launch every n_parts-th candidate once, for what Triton then keeps on disk."""
    candidates = ((job, tile) for job in jobs for tile in job.candidates())
    for i, (job, tile) in enumerate(candidates):
        if i % n_parts == part:
            job.seconds(tile)


def compile_all(words: Sequence[str], n_processes: int, until: float) -> None:
    """Compile in processes of their own until the time is over; what is missing is compiled when measured."""
    command = [sys.executable, "-m", "bench.gpu_tune", *words]
    processes = [
        subprocess.Popen([*command, "--part", str(part), "--processes", str(n_processes)])
        for part in range(n_processes)
    ]
    for process in processes:
        try:
            process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(words: Sequence[str]) -> None:
    """Tune, and print the fastest tile of each job."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=NAMES, default="6b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=("int8", "int4", "float16"), help="in this order"
    )
    parser.add_argument("--seconds", type=float, default=95, help="begin nothing after them")
    parser.add_argument(
        "--processes", type=int, default=min(12, os.cpu_count() or 1), help="that compile; 0: none"
    )
    parser.add_argument("--part", type=int, help="compile this part of the candidates, and measure nothing")
    args = parser.parse_args(words)
    device, config = torch.device(args.device), named_shape(args.shape)
    jobs = all_jobs(config, args.dtypes, device)
    if args.part is not None:
        compile_part(jobs, args.part, args.processes)
        return
    started = time.monotonic()
    if args.processes:
        compile_all(words, args.processes, started + COMPILE_SHARE * args.seconds)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    best = gpu_tiles.tune(card, jobs, until=started + args.seconds)
    for name, (tile, seconds) in best.items():
        print(f"{name}: {tuple(tile)}, {1e6 * seconds:.1f} us", flush=True)
    print(f"{len(best)} kernels in {time.monotonic() - started:.0f} s, kept in {gpu_tiles.own_file()}")


if __name__ == "__main__":
    main(sys.argv[1:])
