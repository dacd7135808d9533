"""How fast a runner prefills and decodes, beside the limits of the machine, in interleaved rounds.

Drives a Runner as the engine does, with random tokens: no text, no sampling, no tokenizer.
`random_tensors` makes weights for a shape that has none.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kogpt.adapter import Lora, LowRank
from kogpt.checkpoint import Stored
from kogpt.cli import limits
from kogpt.cli.progress import Progress
from kogpt.config import ModelConfig
from kogpt.native_runner import BYTES
from kogpt.runner import Chunk, Runner
from kogpt.sampling import Draw, Wanted

FIRST_TOKENS = 32  # prompt of the time to the first token, and what a row has read before it decodes
GREEDY = Draw(key=0, following=0)
NOISE = 1_000_003  # prime, so that no two rows of a matrix made by repeating it are equal


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What to measure."""

    rows: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    rounds: int
    threads: int
    device: str  # "cpu", or "cuda..." for the limits of a GPU
    lora: Lora | None = None  # decoding through it is measured too, each row with a copy of its own


def measure(runner: Runner, plan: BenchSettings) -> dict[str, float | None]:
    """Medians over the rounds by name; None for what cannot be measured here.

    read (bytes/s), float32 and bfloat16 (operations/s), first (s), prefill (tokens/s), and for each number of
    rows `decode N` (tokens/s of all rows together); with a LoRA also `adapters N`, each row with its own.
    """
    limit_tasks, tasks = _limit_tasks(runner, plan), _tasks(runner, plan)
    samples: dict[str, list[float | None]] = defaultdict(list)
    # The limits have a process of their own: their buffers and torch are not the model's memory.
    spawn = multiprocessing.get_context("spawn")
    total = plan.rounds * (len(limit_tasks) + len(tasks))
    with ProcessPoolExecutor(1, spawn) as process, Progress(total) as progress:
        decode_seconds(runner, 1, 2)  # first use of code, pages and threads
        for _ in range(plan.rounds):
            for name, limit in limit_tasks.items():
                samples[name].append(process.submit(limit).result())
                progress.advance()
            for name, task in tasks.items():
                samples[name].append(task())
                progress.advance()
    return {name: _median(values) for name, values in samples.items()}


def prefill_seconds(runner: Runner, n_tokens: int) -> float:
    """Until the first new token is known, after a prompt read in the runner's pieces."""
    ids, step = _random_ids(runner, n_tokens), runner.prefill_tokens
    row = runner.open()
    try:
        started = time.perf_counter()
        for begin in range(0, n_tokens, step):
            end = min(begin + step, n_tokens)
            wanted = [Wanted([GREEDY] if end == n_tokens else [])]
            runner.draw([Chunk(row, ids[begin:end], int(end == n_tokens))], wanted)
        return time.perf_counter() - started
    finally:
        runner.close(row)


def decode_seconds(runner: Runner, n_rows: int, n_tokens: int, adapters: Sequence[int] = ()) -> float:
    """In which each of `n_rows`, after a short prompt, writes `n_tokens` greedily; adapters: one a row."""
    n_prompt = min(FIRST_TOKENS, runner.config.n_ctx - n_tokens)
    prompts = _random_ids(runner, n_rows * n_prompt).reshape(n_rows, n_prompt)
    rows = [runner.open(adapter) for adapter in adapters] or [runner.open() for _ in range(n_rows)]
    try:
        tokens = greedy(runner, [Chunk(row, ids) for row, ids in zip(rows, prompts, strict=True)])
        started = time.perf_counter()
        for _ in range(n_tokens):
            chunks = [Chunk(row, np.array([token])) for row, token in zip(rows, tokens, strict=True)]
            tokens = greedy(runner, chunks)
        return time.perf_counter() - started
    finally:
        for row in rows:
            runner.close(row)


def greedy(runner: Runner, chunks: Sequence[Chunk]) -> list[int]:
    """The likeliest token after each chunk, chosen as the engine has it chosen: logits may stay on a GPU."""
    drawn = [chosen.tokens[0] for chosen in runner.draw(chunks, [Wanted([GREEDY])] * len(chunks))]
    assert all(token is not None for token in drawn), "random weights make finite logits"
    return [token.token for token in drawn if token is not None]


def read_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of weights that one step reads: every matrix but the embedding, of which it takes a few rows."""
    matrices = sum(shape[0] * shape[1] for shape in config.tensor_shapes().values() if len(shape) == 2)
    if not config.tied_head:
        matrices -= config.n_vocab * config.d_model
    return int(matrices * BYTES[dtype])


def random_lora(config: ModelConfig, rank: int) -> Lora:
    """A LoRA on all six matrices of every block that changes little."""
    rng = np.random.default_rng(0)
    shapes = {
        name.removesuffix(".weight"): shape
        for name, shape in config.tensor_shapes().items()
        if ".h." in name and len(shape) == 2
    }
    return Lora(
        {
            name: LowRank(
                0.02 * rng.standard_normal((rank, k), np.float32),
                0.02 * rng.standard_normal((n, rank), np.float32),
                scale=1.0,
            )
            for name, (n, k) in shapes.items()
        }
    )


def random_tensors(config: ModelConfig, dtype: str) -> Mapping[str, Stored]:
    """Weights that make finite logits, in an instant: one piece of noise, repeated.

    A dtype of files gives arrays that a runner uses where they lie. For int8 and int4, which a runner packs
    anew, matrices are views of a few kilobytes, row i beginning at element i of the noise: the 6B shape takes
    no memory until it is packed.
    """
    is_stored = dtype in ("float32", "float16", "bfloat16")
    file_dtype = dtype if is_stored else "bfloat16"
    noise = np.random.default_rng(0).standard_normal(NOISE, np.float32)
    weights = Stored("float32", 0.02 * noise).to(file_dtype)
    gains = Stored("float32", 1 + 0.02 * noise[: config.d_model]).to(file_dtype)
    tensors = {}
    for name, shape in config.tensor_shapes().items():
        if name.endswith(("ln_1.weight", "ln_f.weight")):
            array = gains
        elif is_stored or len(shape) == 1:
            array = np.resize(weights, shape)
        else:
            array = np.lib.stride_tricks.as_strided(weights, shape, 2 * weights.strides, writeable=False)
        tensors[name] = Stored(file_dtype, array)
    return tensors


def _limit_tasks(runner: Runner, plan: BenchSettings) -> dict[str, Callable[[], float | None]]:
    n_bytes = read_bytes(runner.config, runner.dtype)
    if plan.device == "cpu":
        return {
            "read": partial(limits.read_bandwidth, n_bytes, plan.threads),
            "float32": partial(limits.matrix_speed, "float32", plan.threads),
            "bfloat16": partial(limits.matrix_speed, "bfloat16", plan.threads),
        }
    # Of a model over several GPUs one computes at a time: the limits of one are the limits of all.
    gpu = "cuda:0" if plan.device == "cuda:all" else plan.device.split(",")[0]
    return {
        "read": partial(limits.gpu_read_bandwidth, n_bytes, gpu),
        "float32": partial(limits.gpu_matrix_speed, "float32", gpu),
        "bfloat16": partial(limits.gpu_matrix_speed, "bfloat16", gpu),
    }


def _tasks(runner: Runner, plan: BenchSettings) -> dict[str, Callable[[], float]]:
    tasks: dict[str, Callable[[], float]] = {
        "first": partial(prefill_seconds, runner, min(FIRST_TOKENS, plan.prompt_tokens)),
        "prefill": partial(_prefill_rate, runner, plan.prompt_tokens),
    }
    for rows in plan.rows:
        tasks[f"decode {rows}"] = partial(_decode_rate, runner, rows, plan.new_tokens)
        if plan.lora is not None:
            adapters = [runner.add_adapter(plan.lora) for _ in range(rows)]
            tasks[f"adapters {rows}"] = partial(_decode_rate, runner, rows, plan.new_tokens, adapters)
    return tasks


def _prefill_rate(runner: Runner, n_tokens: int) -> float:
    return n_tokens / prefill_seconds(runner, n_tokens)


def _decode_rate(runner: Runner, n_rows: int, n_tokens: int, adapters: Sequence[int] = ()) -> float:
    return n_rows * n_tokens / decode_seconds(runner, n_rows, n_tokens, adapters)


def _random_ids(runner: Runner, n: int) -> NDArray[np.int64]:
    return np.random.default_rng(n).integers(0, runner.config.n_vocab, n)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
