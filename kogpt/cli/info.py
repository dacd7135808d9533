"""`kogpt info`: the original's hyperparameter table for any model, and whether it fits this machine."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kogpt import checkpoint, hub, native_runner
from kogpt.cli.machine import Gpu, gpus
from kogpt.cli.options import REVISION, read_count
from kogpt.config import SHAPES, ModelConfig
from kogpt.errors import CheckpointError, localized, pad
from kogpt.memory import USABLE_SHARE, available_memory
from kogpt.native_runner import NativeRunner
from kogpt.placement import Placement, cache_bytes, native_problem
from kogpt.tuning import plan

DTYPES = ("float32", "float16", "int8", "int4")  # precisions that the table has a row for
TOKENS = 1024  # of the cache's column


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `kogpt info`."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        default="kogpt-mini",
        help=f"a folder, a hub name, kogpt-mini, or a shape: {', '.join(SHAPES)} (default: %(default)s)",
    )
    parser.add_argument("--revision", metavar="NAME", help=REVISION)
    parser.add_argument(
        "--tune", action="store_true", help="say what tuning needs too: memory of each method and precision"
    )
    parser.add_argument(
        "--batch", type=read_count, default=4, help="rows of a pass, with --tune (default: %(default)s)"
    )
    parser.add_argument(
        "--length", type=read_count, default=512, help="tokens of a row, with --tune (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    config, folder = _find(args.model, args.revision)
    facts = describe(args.model, config, available_memory(), gpus())
    found = None if folder is None else checkpoint.stored_format(folder)
    facts["stored"] = None if found is None else {"format": found[0], "bytes": found[1]}
    if args.tune:
        facts["tune"] = plan.describe(config, args.batch, args.length)
    lines = _lines(facts) + (_tuning_lines(facts["tune"], args) if args.tune else [])
    print(json.dumps(facts, ensure_ascii=False) if args.json else "\n".join(lines))
    return 0


def describe(model: str, config: ModelConfig, ram_bytes: int | None, cards: list[Gpu]) -> dict[str, Any]:
    """Everything that is told; these names are stable. `fits` are null where the size is unknown."""
    largest = max((card.free_bytes for card in cards), default=None)
    memory = {}
    for dtype in DTYPES:
        weights = NativeRunner.weight_bytes(config, dtype)
        cache_dtype = native_runner.cache_dtype_for(dtype)
        need = weights + cache_bytes(config, cache_dtype, config.n_ctx)
        memory[dtype] = {
            "weight_bytes": weights,
            "cache_bytes_per_1024_tokens": cache_bytes(config, cache_dtype, TOKENS),
            "fits_ram": None if ram_bytes is None else need <= USABLE_SHARE * ram_bytes,
            "fits_gpu": None if largest is None else need <= USABLE_SHARE * largest,
        }
    return {
        "model": model,
        "n_parameters": config.n_parameters,
        "n_layers": config.n_layers,
        "d_model": config.d_model,
        "d_ff": config.d_ff,
        "n_heads": config.n_heads,
        "d_head": config.d_head,
        "n_ctx": config.n_ctx,
        "n_vocab": config.n_vocab,
        "rotary_dim": config.rotary_dim,
        "tied_head": config.tied_head,
        "memory": memory,
        "cache_bytes_per_1024_tokens": {
            name: cache_bytes(config, name, TOKENS) for name in native_runner.CACHE_DTYPES
        },
        "ram_free_bytes": ram_bytes,
        "gpus": [
            {"name": card.name, "total_bytes": card.total_bytes, "free_bytes": card.free_bytes}
            for card in cards
        ],
        "runner": Placement().runner_name(),
    }


def _find(model: str, revision: str | None) -> tuple[ModelConfig, Path | None]:
    """The dimensions of a named shape, or of a model's config.json and its folder; no weights are read."""
    if model in SHAPES and not Path(model).exists():
        if revision is not None:
            raise CheckpointError(
                f"{model} is a shape and has no revision {revision!r}: leave the revision out",
                f"{model}: 이름만 있는 모델 구조에는 리비전({revision!r})이 없습니다. 리비전을 빼세요",
            )
        return SHAPES[model], None
    folder = hub.find_folder(model, revision, weights=False)
    return checkpoint.read_config(folder), folder


def _lines(facts: dict[str, Any]) -> list[str]:
    names = ("n_parameters", "n_layers", "d_model", "d_ff", "n_heads", "d_head", "n_ctx", "n_vocab")
    rows = [(name, f"{facts[name]:,}") for name in names]
    rows.append((localized("positional encoding", "위치 인코딩"), "rotary (RoPE)"))
    rows.append((localized("RoPE dimensions", "RoPE 차원"), str(facts["rotary_dim"])))
    lines = [facts["model"], "", *(f"{pad(name, 21)}{value:>14}" for name, value in rows), ""]
    lines.append(
        _memory_line(
            localized("memory", "메모리"),
            localized("weights", "가중치"),
            localized("1,024 tokens", "1,024토큰"),
            localized("fits RAM", "RAM에 맞음"),
            localized("fits GPU", "GPU에 맞음"),
        )
    )
    for dtype, row in facts["memory"].items():
        weights, cache = shown_size(row["weight_bytes"]), shown_size(row["cache_bytes_per_1024_tokens"])
        lines.append(_memory_line(dtype, weights, cache, _yes(row["fits_ram"]), _yes(row["fits_gpu"])))
    caches = ", ".join(f"{name} {shown_size(n)}" for name, n in facts["cache_bytes_per_1024_tokens"].items())
    lines += ["", localized(f"cache of 1,024 tokens: {caches}", f"1,024토큰의 캐시: {caches}"), ""]
    named = []
    if stored := facts.get("stored"):
        named.append(
            (localized("stored as", "저장 형식"), f"{stored['format']}, {shown_size(stored['bytes'])}")
        )
    named.append((localized("RAM free", "남은 RAM"), shown_size(facts["ram_free_bytes"])))
    for card in facts["gpus"]:
        free = shown_size(card["free_bytes"])
        named.append(("GPU", f"{card['name']}, " + localized(f"{free} free", f"{free} 남음")))
    named.append((localized("runner", "러너"), _runner(facts["runner"])))
    return [*lines, *(f"{pad(name, 11)}{value}" for name, value in named)]


def _memory_line(first: str, *cells: str) -> str:
    widths = zip(cells, (12, 15, 11, 11), strict=True)
    return pad(first, 10) + "".join(pad(cell, width, right=True) for cell, width in widths)


def _tuning_lines(needs: Mapping[str, Mapping[str, float]], args: argparse.Namespace) -> list[str]:
    """Bytes of a step by method and precision of the frozen base."""
    title = localized(
        f"tuning on a GPU, {args.batch} rows of {args.length} tokens, products in bfloat16, base in",
        f"GPU 튜닝에 필요한 메모리 ({args.length}토큰 {args.batch}행, 행렬곱은 bfloat16), 기반 모델의 형식별",
    )
    head = pad(localized("method", "방법"), 10)
    lines = ["", title, "", head + "".join(f"{base:>12}" for base in plan.BASES)]
    for method, row in needs.items():
        cells = (shown_size(round(row[base])) if base in row else "-" for base in plan.BASES)
        lines.append(f"{method:10}" + "".join(f"{cell:>12}" for cell in cells))
    return lines


def _runner(name: str) -> str:
    if name == "native":
        return f"native ({native_runner.isa()})"
    return f"numpy ({localized(*native_problem())})" if name == "numpy" else name


def shown_size(n_bytes: int | None) -> str:
    """Bytes for people, in powers of ten as memory of models is quoted."""
    if n_bytes is None:
        return localized("unknown", "모름")
    if n_bytes >= 1e9:
        return f"{n_bytes / 1e9:.2f} GB"
    return f"{n_bytes / 1e6:.1f} MB"


def _yes(fits: bool | None) -> str:
    return "-" if fits is None else localized("yes", "예") if fits else localized("no", "아니요")
