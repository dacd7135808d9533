"""One engine in a process of its own: JSON commands on standard input, JSON answers on standard output.

{"do": "start"}                                              -> {}, the engine's modules are imported
{"do": "load", "path": ..., "dtype": ..., "threads": ...}    -> {"seconds": ...}
{"do": "greedy", "ids": [...], "n": ...}                     -> {"ids": [...], "logits": [...]}, or empty
{"do": "prefill", "tokens": ...}                             -> {"seconds": ...}
{"do": "decode", "rows": ..., "tokens": ...}                 -> {"seconds": ...}, or null
{"do": "memory"}                                             -> {"bytes": ...}
{"do": "read", "bytes": ..., "threads": ...}                 -> {"rate": ...}, bytes per second
{"do": "multiply", "dtype": ..., "threads": ...}             -> {"rate": ...}, operations per second
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.engines import ENGINES, Peer
from kogpt.cli import limits

PACKAGES = {
    "kogpt": "kogpt.native_runner",
    "transformers": "transformers.models.gptj.modeling_gptj",
    "llama.cpp": "llama_cpp",
    "ctranslate2": "ctranslate2",
    "ik_llama.cpp": "bench.peers.engines",  # a program
}


class Child:
    """Answers commands with one engine."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._peer: Peer | None = None

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        name = command.pop("do")
        result: dict[str, Any] = getattr(self, f"do_{name}")(**command)
        return result

    def do_start(self) -> dict[str, Any]:
        importlib.import_module(PACKAGES[self._engine])
        return {}

    def do_load(self, path: str, dtype: str, threads: int) -> dict[str, Any]:
        started = time.perf_counter()
        self._peer = ENGINES[self._engine](Path(path), dtype, threads)
        return {"seconds": time.perf_counter() - started}

    def do_greedy(self, ids: list[int], n: int) -> dict[str, Any]:
        first: list[float] = []  # logits of the first step
        for _ in range(n):
            logits = self._loaded.logits(np.array(ids))
            if logits is None:
                return {"ids": [], "logits": []}
            first = first or logits.tolist()
            ids = [*ids, int(logits.argmax())]
        return {"ids": ids[-n:], "logits": first}

    def do_prefill(self, tokens: int) -> dict[str, Any]:
        return {"seconds": self._loaded.prefill(tokens)}

    def do_decode(self, rows: int, tokens: int) -> dict[str, Any]:
        return {"seconds": self._loaded.decode(rows, tokens)}

    def do_memory(self) -> dict[str, Any]:
        return {"bytes": limits.peak_memory()}

    def do_read(self, bytes: int, threads: int) -> dict[str, Any]:
        return {"rate": limits.read_bandwidth(bytes, threads)}

    def do_multiply(self, dtype: str, threads: int) -> dict[str, Any]:
        return {"rate": limits.matrix_speed(dtype, threads)}

    @property
    def _loaded(self) -> Peer:
        assert self._peer is not None, "load first"
        return self._peer


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an engine prints is not an answer
    child = Child(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(child.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
