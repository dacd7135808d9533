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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kogpt.cli.defaults import is_for_all
from kogpt.cli.options import add_model_options, placement_from, read_count, read_counts
from kogpt.errors import ConfigError, localized, pad

if TYPE_CHECKING:
    from kogpt.adapter import Lora
    from kogpt.cli.speed import BenchSettings
    from kogpt.config import ModelConfig
    from kogpt.placement import Placement
    from kogpt.runner import Runner

SHAPES = ("mini", "1b", "6b")
RUNNERS = ("auto", "native", "numpy", "torch")  # as Placement takes them; see options.py
PROMPT_TOKENS = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kogpt bench`."""
    add_model_options(parser)
    group = parser.add_argument_group("measurement")
    group.add_argument(
        "--shape",
        choices=SHAPES,
        help="measure random weights of a named shape instead of --model; mini has 41,726,720 parameters,"
        " kogpt-mini 32,542,720",
    )
    group.add_argument(
        "--runner",
        choices=RUNNERS,
        default="auto",
        help="what does the arithmetic (default: %(default)s)",
    )
    lora = group.add_mutually_exclusive_group()
    lora.add_argument(
        "--adapter", metavar="NAME", help="measure a LoRA too, a copy for each row: a folder, or a name"
    )
    lora.add_argument(
        "--lora-rank", type=read_count, metavar="R", help="measure a LoRA of random weights of this rank"
    )
    group.add_argument("--threads", type=read_count, metavar="N", help="CPU threads (default: all)")
    group.add_argument(
        "--rows",
        type=read_counts,
        metavar="N,...",
        default="1,4,16",
        help="numbers of texts to decode at once (default: %(default)s)",
    )
    group.add_argument(
        "--prompt-tokens",
        type=read_count,
        metavar="N",
        help=f"prompt length in tokens (default: {PROMPT_TOKENS}, or the model's context)",
    )
    group.add_argument(
        "--new-tokens",
        type=read_count,
        metavar="N",
        default=32,
        help="tokens to decode in each row (default: %(default)s)",
    )
    group.add_argument(
        "--rounds",
        type=read_count,
        metavar="N",
        default=5,
        help="rounds; the median is shown (default: %(default)s)",
    )
    group.add_argument("--json", action="store_true", help="print one JSON object for each number of rows")


def run(args: argparse.Namespace) -> int:
    """Measure; print a table, or JSON."""
    if args.threads:
        limit_threads(args.threads)  # before numpy is imported
    from kogpt.cli.speed import measure
    from kogpt.memory import usable_cpus

    if args.shape and args.adapter:
        raise _no_lora(args.adapter)
    placement = replace(placement_from(args), threads=args.threads, runner=args.runner)
    threads = args.threads or usable_cpus()
    runner, seconds = _load(args, placement)
    device = placement.torch_device() if runner.name == "torch" else "cpu"
    plan = replace(_plan(args, runner.config, threads, device), lora=_lora(args, runner.config))
    facts = {
        "shape": args.shape or args.model,
        "dtype": runner.dtype,
        "runner": runner.name,
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


def _load(args: argparse.Namespace, placement: Placement) -> tuple[Runner, float]:
    """The runner, and the seconds that checking, reading and converting took; random weights cost none."""
    from kogpt import checkpoint
    from kogpt.placement import default_dtype, load_runner

    if args.shape:
        from kogpt.cli.speed import random_tensors

        if placement.dtype == "auto":
            placement = replace(placement, dtype=default_dtype(placement))
        config = shape_config(args.shape)
        stored = checkpoint.Checkpoint(Path(), config, random_tensors(config, placement.dtype))
        started = time.perf_counter()
    else:
        started = time.perf_counter()
        stored = checkpoint.load(args.model, args.revision)
    runner = load_runner(stored, placement)
    return runner, time.perf_counter() - started


def _lora(args: argparse.Namespace, config: ModelConfig) -> Lora | None:
    """The LoRA to measure. ConfigError for an adapter of another kind."""
    if args.lora_rank is not None:
        from kogpt.cli.speed import random_lora

        return random_lora(config, args.lora_rank)
    if args.adapter is None:
        return None
    from kogpt import checkpoint, peft
    from kogpt.adapter import Lora

    found = peft.load(args.adapter, checkpoint.load(args.model, args.revision)).adapter
    if isinstance(found, Lora):
        return found
    if is_for_all(args, "adapter"):
        return None  # an adapter for other commands that adds no time to a token
    raise _no_lora(args.adapter)


def _no_lora(adapter: str) -> ConfigError:
    return ConfigError(
        f"--adapter {adapter}: only a LoRA of --model costs time at every token; a --shape takes --lora-rank",
        f"--adapter {adapter}: 토큰마다 시간이 드는 --model의 LoRA만 잴 수 있습니다. --shape에는"
        " --lora-rank를 쓰세요",
    )


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
        through = medians.get(f"adapters {rows}")
        if through is not None:
            record |= {
                "adapters_decode_tokens_per_second": _rounded(through),
                "adapters_cost": _rounded(decode / through - 1),
            }
        records.append({**facts, **record})
    return records


def _rounded(value: float | None, unit: float = 1.0) -> float | None:
    """Four figures: more is noise."""
    return None if value is None else float(f"{value / unit:.4g}")


def _lines(records: list[dict[str, Any]], config: ModelConfig) -> list[str]:
    """The table for people: one measurement a line."""
    one = records[0]
    loaded, memory = one["load_seconds"], one["peak_memory_bytes"]
    unknown = localized("unknown", "모름")
    rows = [
        (localized("loaded in", "불러오기"), localized(f"{loaded:.2f} s", f"{loaded:.2f}초")),
        (localized("first token", "첫 토큰"), f"{1e3 * one['first_token_seconds']:.1f} ms"),
        (
            localized(f"prefill {one['prompt_tokens']}", f"프롬프트 {one['prompt_tokens']}"),
            _tokens(one["prefill_tokens_per_second"]),
        ),
    ]
    for record in records:
        n, share = record["rows"], f"{record['share_of_bandwidth']:.0%}"
        told = localized(f"{share:>9} of the bandwidth", f"   대역폭의 {share}")
        rows.append(
            (localized(f"decode x {n}", f"글 {n}개 쓰기"), _tokens(record["decode_tokens_per_second"]) + told)
        )
        if "adapters_cost" in record:
            cost = f"{record['adapters_cost']:+.1%}"
            told = localized(f"{cost:>9} of the time", f"   시간 {cost}")
            speed = _tokens(record["adapters_decode_tokens_per_second"])
            rows.append((localized(f"  {n} adapters", f"  어댑터 {n}개"), speed + told))
    rows += [
        (localized("peak memory", "최대 메모리"), unknown if memory is None else f"{memory / 1e9:.2f} GB"),
        (localized("machine reads", "읽기 한계"), f"{one['read_bandwidth_gb_s']:.1f} GB/s"),
        ("  float32", _gflops(one["matrix_float32_gflop_s"])),
        ("  bfloat16", _gflops(one["matrix_bfloat16_gflop_s"])),
    ]
    title = localized(
        f"{one['shape']}: {config.n_parameters:,} parameters, {one['dtype']}, {one['runner']} runner, "
        f"{one['threads']} threads",
        f"{one['shape']}: 매개변수 {config.n_parameters:,}개, {one['dtype']}, {one['runner']} 러너, "
        f"스레드 {one['threads']}개",
    )
    return [title, "", *(f"{pad(name, 16)}{text}" for name, text in rows)]


def _tokens(speed: float) -> str:
    return localized(f"{speed:,.1f} tokens/s", f"초당 {speed:,.1f}토큰")


def _gflops(speed: float | None) -> str:
    if speed is None:
        return localized("unknown (torch is not installed)", "모름 (torch가 설치되어 있지 않습니다)")
    return localized(f"{speed:,.0f} GFLOP/s, matrix product", f"{speed:,.0f} GFLOP/s, 행렬 곱")
