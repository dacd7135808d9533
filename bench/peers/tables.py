"""Records of the comparison as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = {
    "decode 1": "decode_1_tokens_per_second",
    "decode 4": "decode_4_tokens_per_second",
    "decode 16": "decode_16_tokens_per_second",
    "share of bandwidth": "share_of_bandwidth",
    "prefill 512": "prefill_512_tokens_per_second",
    "prefill 2000": "prefill_2000_tokens_per_second",
    "first token, ms": "first_token_seconds",
    "load, s": "load_seconds",
    "peak, GB": "peak_memory_bytes",
}
UNITS = {"first_token_seconds": 1e3, "peak_memory_bytes": 1e-9}
# What the ratios are of: kogpt's dtype, the peer and its dtype.
RATIOS = (
    ("float32", "transformers:float32"),
    ("float32", "llama.cpp:float32"),
    ("float32", "ctranslate2:float32"),
    ("bfloat16", "transformers:bfloat16"),
    ("bfloat16", "llama.cpp:bfloat16"),
    ("int8", "llama.cpp:int8"),
    ("int8", "ctranslate2:int8"),
    ("int4", "llama.cpp:int4"),
    ("bfloat16", "ik_llama.cpp:BF16"),
    ("int8", "ik_llama.cpp:Q8_0"),
    ("int4", "ik_llama.cpp:Q5_0"),
    ("int4", "ik_llama.cpp:Q4_0"),
    ("int4", "ik_llama.cpp:IQ4_KS"),
)
# Engine and dtype -> the rows of bench/quality.py that say what these weights lose.
QUALITY = {
    "kogpt bfloat16": ("bfloat16",),
    "kogpt int8": ("int8",),
    "kogpt int4": ("int4", "int4, own text", "int4, calibrated"),
    "llama.cpp bfloat16": ("bfloat16",),
    "llama.cpp int8": ("llama-quantize Q8_0",),
    "llama.cpp int4": ("llama-quantize Q4_0",),
    "ik_llama.cpp BF16": ("bfloat16",),
    "ik_llama.cpp Q8_0": ("llama-quantize Q8_0",),
    "ik_llama.cpp Q5_0": ("llama-quantize Q5_0",),
    "ik_llama.cpp Q4_0": ("llama-quantize Q4_0",),
    "ik_llama.cpp IQ4_KS": ("llama-quantize IQ4_KS",),
}
SPEEDS = ("decode 1", "decode 4", "decode 16", "prefill 512", "prefill 2000")


def markdown(records: Sequence[dict[str, Any]], losses: Mapping[str, float] | None = None) -> str:
    """A table of medians (tokens per second where nothing else is said) and one of kogpt's ratios.

    losses: KL divergence of each row of bench/quality.py; then there is a third, of speed against it.
    """
    tables = []
    for shape in dict.fromkeys(record["shape"] for record in records):
        of_shape = [record for record in records if record["shape"] == shape]
        rows = [
            [f"{r['engine']} {r['dtype']}", *(_cell(r, name) for name in COLUMNS.values())] for r in of_shape
        ]
        tables.append(f"### {shape}\n\n" + _table([f"{shape}", *COLUMNS], rows))
        if ratios := _ratios(of_shape):
            tables.append(_table(["kogpt / peer", *SPEEDS], ratios))
        if losses:
            tables.append(_table([shape, "KL, nats a token", *SPEEDS], _by_loss(of_shape, losses)))
    return "\n".join(tables)


def _by_loss(records: Sequence[dict[str, Any]], losses: Mapping[str, float]) -> list[list[str]]:
    """A row for each engine, dtype and way to round, the one that loses least first."""
    rows = []
    for record in records:
        name = f"{record['engine']} {record['dtype']}"
        for row in QUALITY.get(name, ()):
            if row in losses:
                label = f"kogpt {row}" if record["engine"] == "kogpt" else name
                cells = [_cell(record, COLUMNS[speed]) for speed in SPEEDS]
                rows.append((losses[row], [label, f"{losses[row]:.5f}", *cells]))
    return [cells for _, cells in sorted(rows)]


def _ratios(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    by_name = {f"{record['engine']}:{record['dtype']}": record for record in records}
    rows = []
    for dtype, peer in RATIOS:
        ours, theirs = by_name.get(f"kogpt:{dtype}"), by_name.get(peer)
        if ours is not None and theirs is not None:
            cells = [_ratio(ours, theirs, COLUMNS[name]) for name in SPEEDS]
            rows.append([f"{dtype} / {peer.replace(':', ' ')}", *cells])
    return rows


def _ratio(ours: dict[str, Any], theirs: dict[str, Any], name: str) -> str:
    return f"{ours[name] / theirs[name]:.2f}" if name in ours and name in theirs else ""


def _cell(record: dict[str, Any], name: str) -> str:
    if name not in record:
        return ""
    if name == "share_of_bandwidth":
        return f"{record[name]:.0%}"
    value = record[name] * UNITS.get(name, 1)
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"
