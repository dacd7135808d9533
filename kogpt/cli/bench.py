"""`kogpt bench`: how fast a model is on this machine, beside what the machine can do at most.

Every round measures each thing once, the machine's limits among them, and medians are told: on a shared
machine only figures of the same minutes compare.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kogpt.cli.options import add_model_options, device_from
from kogpt.errors import ConfigError, KoGPTError, MissingExtra, localized

if TYPE_CHECKING:
    from kogpt.cli.speed import BenchSettings
    from kogpt.config import ModelConfig
    from kogpt.runner import Runner

SHAPES = ("mini", "1b", "6b")
# What each runner can be asked for, its default on a CPU first.
RUNNER_DTYPES = {
    "native": ("bfloat16", "float32", "float16", "int8", "int4"),
    "numpy": ("float32",),
    "torch": ("bfloat16", "float32", "float16"),
}
PROMPT_TOKENS = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `kogpt bench` takes."""
    add_model_options(parser)
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--shape", choices=SHAPES, help="measure random weights of a named shape instead of --model"
    )
    group.add_argument(
        "--runner",
        choices=("auto", *RUNNER_DTYPES),
        default="auto",
        help="what does the arithmetic (default: %(default)s)",
    )
    group.add_argument("--threads", type=count, metavar="N", help="CPU threads (default: all)")
    group.add_argument(
        "--rows",
        type=_counts,
        metavar="N,...",
        default="1,4,16",
        help="numbers of texts to decode at once (default: %(default)s)",
    )
    group.add_argument(
        "--prompt-tokens",
        type=count,
        metavar="N",
        help=f"prompt length in tokens (default: {PROMPT_TOKENS}, or the model's context)",
    )
    group.add_argument(
        "--new-tokens",
        type=count,
        metavar="N",
        default=32,
        help="tokens to decode in each row (default: %(default)s)",
    )
    group.add_argument(
        "--rounds",
        type=count,
        metavar="N",
        default=5,
        help="rounds; the median is shown (default: %(default)s)",
    )
    group.add_argument("--json", action="store_true", help="print one JSON object for each number of rows")


def run(args: argparse.Namespace) -> int:
    """Measure; print a table, or JSON."""
    if args.threads:
        limit_threads(args.threads)  # before numpy is imported
    name, dtype, device = _choose(args)
    from kogpt.cli.speed import measure
    from kogpt.native_runner import usable_cpus

    threads = args.threads or usable_cpus()
    runner, seconds = _load(args, name, dtype, threads, device)
    plan = _plan(args, runner.config, threads, device)
    facts = {
        "shape": args.shape or args.model,
        "dtype": runner.dtype,
        "runner": name,
        "threads": threads,
        "load_seconds": _rounded(seconds),
    }
    records = _records(facts, runner, plan, measure(runner, plan))
    print("\n".join(map(json.dumps, records) if args.json else _lines(records, runner.config)))
    return 0


def limit_threads(threads: int) -> None:
    """How many threads numpy's BLAS will take, here and in child processes."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)


def shape_config(name: str) -> ModelConfig:
    """The dimensions behind --shape."""
    from kogpt import config

    if name == "mini":  # of the size of kogpt-mini, with a context that holds every measurement
        return config.ModelConfig(
            n_layers=8, n_heads=4, d_model=512, d_ff=2048, n_vocab=16128, n_ctx=2048, rotary_dim=32
        )
    return config.SHAPES[f"kogpt-{name}"]


def _choose(args: argparse.Namespace) -> tuple[str, str, str]:
    """Runner, dtype of the weights and device; KoGPTError for what is not there or does not go together."""
    from importlib.util import find_spec

    from kogpt import generation, native_runner

    wanted = device_from(args)
    automatic = generation.runner_name(wanted)
    name: str = automatic if args.runner == "auto" else args.runner
    if name == "native" and not native_runner.available():
        raise KoGPTError(
            "--runner native was not built: install a C++ compiler and KoGPT again, or use --runner numpy",
            "--runner native: 빌드되지 않았습니다. C++ 컴파일러를 설치하고 KoGPT를 다시 설치하거나 "
            "--runner numpy를 쓰세요",
        )
    if name == "torch" and find_spec("torch") is None:
        raise MissingExtra("--runner torch", "torch")
    device = "cpu"
    if name == "torch" and automatic == "torch":  # what --device means where there is a GPU
        device = "cuda" if wanted == "auto" else wanted
    allowed = RUNNER_DTYPES[name]
    dtype: str = args.dtype
    if dtype == "auto":
        dtype = "float16" if device != "cpu" else allowed[0]
    if dtype not in allowed:
        raise KoGPTError(
            f"the {name} runner has no {dtype}: use --dtype {', '.join(allowed)}",
            f"{name} 러너는 {dtype} 형식을 지원하지 않습니다 (가능한 --dtype: {', '.join(allowed)})",
        )
    return name, dtype, device


def _load(args: argparse.Namespace, name: str, dtype: str, threads: int, device: str) -> tuple[Runner, float]:
    """The runner, and the seconds that checking, reading and converting took; random weights cost none."""
    if args.shape:
        from kogpt.cli.speed import random_tensors

        config = shape_config(args.shape)
        tensors = random_tensors(config, dtype)
        started = time.perf_counter()
    else:
        from kogpt import checkpoint
        from kogpt.generation import weights_for

        started = time.perf_counter()
        stored = checkpoint.load(args.model, args.revision)
        config = stored.config
        dtype, tensors = weights_for(stored, name, dtype if stored.quantization is None else args.dtype)
    runner = make_runner(name, config, tensors, (dtype, args.cache_dtype), threads, device)
    return runner, time.perf_counter() - started


def make_runner(
    name: str,
    config: ModelConfig,
    tensors: Mapping[str, Any],
    dtypes: tuple[str, str],
    threads: int,
    device: str,
) -> Runner:
    """A runner by its name; dtypes: of the weights and of the cache."""
    dtype, cache_dtype = dtypes
    if name == "native":
        from kogpt.native_runner import NativeRunner

        return NativeRunner(config, tensors, dtype, threads, cache_dtype)
    from kogpt.runner import require_own_cache

    require_own_cache(cache_dtype, name)
    if name == "numpy":
        from kogpt.numpy_runner import NumpyRunner

        return NumpyRunner(config, tensors, dtype)
    import torch

    from kogpt.torch_runner import TorchRunner

    torch.set_num_threads(threads)
    return TorchRunner(config, tensors, dtype, device)


def _plan(args: argparse.Namespace, config: ModelConfig, threads: int, device: str) -> BenchSettings:
    """ConfigError if the model's context is too short for what is asked."""
    from kogpt.cli.speed import BenchSettings

    prompt = args.prompt_tokens or min(PROMPT_TOKENS, config.n_ctx)
    for option, n_tokens in (("--prompt-tokens", prompt), ("--new-tokens", args.new_tokens + 1)):
        if n_tokens > config.n_ctx:
            raise ConfigError(
                f"{option} needs a context of {n_tokens} tokens, the model has {config.n_ctx}: ask for fewer",
                f"{option}: {n_tokens}토큰의 문맥이 필요하지만 이 모델은 {config.n_ctx}토큰까지 읽습니다. "
                "값을 줄이세요",
            )
    return BenchSettings(args.rows, prompt, args.new_tokens, args.rounds, threads, device)


def _records(
    facts: Mapping[str, Any], runner: Runner, plan: BenchSettings, medians: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """One object per number of rows; these names are stable."""
    from kogpt.cli.limits import peak_memory
    from kogpt.cli.speed import read_bytes

    read, memory = medians["read"], peak_memory()
    assert read is not None, "memory can always be read"
    step_bytes = read_bytes(runner.config, runner.dtype)
    records = []
    for rows in plan.rows:
        decode = medians[f"decode {rows}"]
        assert decode is not None, "decoding was measured"
        record = {
            "rows": rows,
            "prompt_tokens": plan.prompt_tokens,
            "first_token_seconds": _rounded(medians["first"]),
            "prefill_tokens_per_second": _rounded(medians["prefill"]),
            "decode_tokens_per_second": _rounded(decode),
            "read_bandwidth_gb_s": _rounded(read, 1e9),
            "share_of_bandwidth": _rounded(step_bytes * decode / rows / read),
            "matrix_float32_gflop_s": _rounded(medians["float32"], 1e9),
            "matrix_bfloat16_gflop_s": _rounded(medians["bfloat16"], 1e9),
            "peak_memory_bytes": memory,
        }
        records.append({**facts, **record})
    return records


def _rounded(value: float | None, unit: float = 1.0) -> float | None:
    """Four figures: more is noise."""
    return None if value is None else float(f"{value / unit:.4g}")


def _lines(records: list[dict[str, Any]], config: ModelConfig) -> list[str]:
    """What people read."""
    one, memory = records[0], records[0]["peak_memory_bytes"]
    rows = [
        ("loaded in", f"{one['load_seconds']:.2f} s"),
        ("first token", f"{1e3 * one['first_token_seconds']:.1f} ms"),
        (f"prefill {one['prompt_tokens']}", f"{one['prefill_tokens_per_second']:,.1f} tokens/s"),
    ]
    for record in records:
        speed, share = record["decode_tokens_per_second"], record["share_of_bandwidth"]
        rows.append((f"decode x {record['rows']}", f"{speed:,.1f} tokens/s{share:>9.0%} of the bandwidth"))
    rows += [
        ("peak memory", "unknown" if memory is None else f"{memory / 1e9:.2f} GB"),
        ("machine reads", f"{one['read_bandwidth_gb_s']:.1f} GB/s"),
        ("  float32", _gflops(one["matrix_float32_gflop_s"])),
        ("  bfloat16", _gflops(one["matrix_bfloat16_gflop_s"])),
    ]
    title = (
        f"{one['shape']}: {config.n_parameters:,} parameters, {one['dtype']}, {one['runner']} runner, "
        f"{one['threads']} threads"
    )
    return [title, "", *(f"{name:16}{text}" for name, text in rows)]


def _gflops(speed: float | None) -> str:
    return "unknown (torch is not installed)" if speed is None else f"{speed:,.0f} GFLOP/s, matrix product"


def count(text: str) -> int:
    """An argument that is a whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(localized("must be 1 or more", "1 이상이어야 합니다"))
    return value


def _counts(text: str) -> tuple[int, ...]:
    return tuple(count(part) for part in text.split(","))
