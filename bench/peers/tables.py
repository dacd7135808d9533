"""Records of the comparison as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
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
)
SPEEDS = ("decode 1", "decode 4", "decode 16", "prefill 512", "prefill 2000")


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """A table of medians (tokens per second where nothing else is said) and one of kogpt's ratios."""
    tables = []
    for shape in dict.fromkeys(record["shape"] for record in records):
        of_shape = [record for record in records if record["shape"] == shape]
        rows = [
            [f"{r['engine']} {r['dtype']}", *(_cell(r, name) for name in COLUMNS.values())] for r in of_shape
        ]
        tables.append(f"### {shape}\n\n" + _table([f"{shape}", *COLUMNS], rows))
        if ratios := _ratios(of_shape):
            tables.append(_table(["kogpt / peer", *SPEEDS], ratios))
    return "\n".join(tables)


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
