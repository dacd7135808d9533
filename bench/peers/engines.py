"""One class per engine, all with the same four things to do; each is imported only where it runs.

Every engine reads token ids and chooses greedily; what is timed ends when the next token is known.
Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.peers.convert import ik_program

PROMPT = 32  # tokens that each row has read before it decodes


class Peer(Protocol):
    """A loaded model. None is the answer of an engine that cannot be asked."""

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """What follows T tokens, (V,)."""

    def prefill(self, n_tokens: int) -> float:
        """Seconds from a prompt of `n_tokens` to its first new token."""

    def decode(self, n_rows: int, n_tokens: int) -> float | None:
        """Seconds in which each row, after PROMPT tokens, writes `n_tokens`."""


class KoGPT:
    """The native runner, driven as `kogpt bench` does."""

    def __init__(self, path: Path, dtype: str, threads: int) -> None:
        from kogpt import checkpoint
        from kogpt.native_runner import NativeRunner

        stored = checkpoint.load(path)
        self._runner: Any = NativeRunner(stored.config, stored.tensors, dtype, threads)

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        from kogpt.runner import Chunk

        row = self._runner.open()
        (logits,) = self._runner.forward([Chunk(row, ids)])
        self._runner.close(row)
        last: NDArray[np.float32] = logits[-1].astype(np.float32)
        return last

    def prefill(self, n_tokens: int) -> float:
        from kogpt.cli.speed import prefill_seconds

        return prefill_seconds(self._runner, n_tokens)

    def decode(self, n_rows: int, n_tokens: int) -> float:
        from kogpt.cli.speed import decode_seconds

        return decode_seconds(self._runner, n_rows, n_tokens)


class Transformers:
    """GPTJForCausalLM with its cache, called step by step: less overhead than generate()."""

    def __init__(self, path: Path, dtype: str, threads: int) -> None:
        import torch
        from transformers import GPTJForCausalLM

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._torch = torch
        self._model = GPTJForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
        self._model.eval()

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        out = self._step(self._torch.from_numpy(ids)[None], None)
        logits: NDArray[np.float32] = out.logits[0, -1].float().cpu().numpy()
        return logits

    def prefill(self, n_tokens: int) -> float:
        ids = self._torch.from_numpy(self._random(1, n_tokens))
        started = time.perf_counter()
        self._step(ids, None).logits[:, -1].argmax(-1).tolist()
        return time.perf_counter() - started

    def decode(self, n_rows: int, n_tokens: int) -> float:
        out = self._step(self._torch.from_numpy(self._random(n_rows, PROMPT)), None)
        tokens = out.logits[:, -1].argmax(-1, keepdim=True)
        tokens.tolist()  # waits for a GPU
        started = time.perf_counter()
        for _ in range(n_tokens):
            out = self._step(tokens, out.past_key_values)
            tokens = out.logits[:, -1].argmax(-1, keepdim=True)
        tokens.tolist()
        return time.perf_counter() - started

    def _step(self, ids: Any, cache: Any) -> Any:
        ids = ids.to(self._model.device)
        return self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    def _random(self, n_rows: int, n_tokens: int) -> NDArray[np.int64]:
        return random_ids(n_rows, n_tokens, self._model.config.vocab_size)


class LlamaCpp:
    """llama.cpp's C interface through llama-cpp-python; a context for each use, emptied between uses."""

    def __init__(self, path: Path, dtype: str, threads: int) -> None:
        import llama_cpp

        self._llama = llama_cpp
        self._silent = llama_cpp.llama_log_callback(lambda *_: None)  # kept: the library holds a pointer
        llama_cpp.llama_log_set(self._silent, ctypes.c_void_p())
        settings = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), settings)
        assert self._model, f"llama.cpp cannot load {path}"
        self._threads = threads
        self._n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._contexts: dict[tuple[int, int], Any] = {}

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        context = self._context(1, 256)
        return self._decode(context, ids[None], 0)[0]

    def prefill(self, n_tokens: int) -> float:
        context, ids = self._context(1, n_tokens + 1), random_ids(1, n_tokens, self._n_vocab)
        started = time.perf_counter()
        self._decode(context, ids, 0)[0].argmax()
        return time.perf_counter() - started

    def decode(self, n_rows: int, n_tokens: int) -> float:
        context = self._context(n_rows, PROMPT + n_tokens)
        logits = self._decode(context, random_ids(n_rows, PROMPT, self._n_vocab), 0)
        tokens = np.array([[row.argmax()] for row in logits])
        started = time.perf_counter()
        for position in range(PROMPT, PROMPT + n_tokens):
            tokens = np.array([[row.argmax()] for row in self._decode(context, tokens, position)])
        return time.perf_counter() - started

    def _context(self, n_rows: int, n_tokens: int) -> Any:
        """An empty context with room for `n_rows` of `n_tokens`."""
        key = n_rows, n_tokens
        if key not in self._contexts:
            settings = self._llama.llama_context_default_params()
            settings.n_ctx = n_rows * (-(-n_tokens // 256) * 256)  # rows have equal parts, multiples of 256
            settings.n_batch = max(n_tokens, n_rows * PROMPT)
            settings.n_seq_max = n_rows
            settings.n_threads = settings.n_threads_batch = self._threads
            context = self._llama.llama_init_from_model(self._model, settings)
            assert context, "llama.cpp made no context"
            self._contexts[key] = context, self._llama.llama_batch_init(settings.n_batch, 0, 1)
        context, batch = self._contexts[key]
        self._llama.llama_memory_clear(self._llama.llama_get_memory(context), True)
        return context, batch

    def _decode(self, entry: Any, ids: NDArray[np.int64], position: int) -> list[NDArray[np.float32]]:
        """Read (rows, T) ids from `position` on; the logits (V,) after each row."""
        context, batch = entry
        n_rows, n_tokens = ids.shape
        batch.n_tokens = ids.size
        for i, token in enumerate(ids.reshape(-1).tolist()):
            row, at = divmod(i, n_tokens)
            batch.token[i], batch.pos[i] = token, position + at
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
            batch.logits[i] = at == n_tokens - 1
        failed = self._llama.llama_decode(context, batch)
        assert not failed, failed
        last = [row * n_tokens + n_tokens - 1 for row in range(n_rows)]
        pointers = [self._llama.llama_get_logits_ith(context, i) for i in last]
        return [np.ctypeslib.as_array(pointer, (self._n_vocab,)) for pointer in pointers]


class CTranslate2:
    """Generator.generate_batch; the loop is its own, so decoding is timed as the difference of two calls."""

    def __init__(self, path: Path, dtype: str, threads: int) -> None:
        import ctranslate2

        self._ctranslate2 = ctranslate2
        self._model = ctranslate2.Generator(
            str(path), device="cpu", compute_type=dtype, inter_threads=1, intra_threads=threads
        )
        self._n_vocab = len((path / "vocabulary.json").read_text(encoding="utf-8").split(","))

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        out = self._model.forward_batch([[str(i) for i in ids]])
        logits: NDArray[np.float32] = np.array(out)[0, -1].astype(np.float32)
        return logits

    def prefill(self, n_tokens: int) -> float:
        return self._generate(1, n_tokens, 1)

    def decode(self, n_rows: int, n_tokens: int) -> float:
        return self._generate(n_rows, PROMPT, n_tokens + 1) - self._generate(n_rows, PROMPT, 1)

    def _generate(self, n_rows: int, n_prompt: int, n_tokens: int) -> float:
        prompts = [[str(i) for i in row] for row in random_ids(n_rows, n_prompt, self._n_vocab).tolist()]
        started = time.perf_counter()
        results = self._model.generate_batch(
            prompts,
            max_length=n_tokens,
            min_length=n_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        seconds = time.perf_counter() - started
        assert all(len(result.sequences_ids[0]) == n_tokens for result in results)
        return seconds


class IkLlamaCpp:
    """ik_llama.cpp by its own llama-bench, which gives no logits and writes one row.

    Each measurement is a run of the program, which loads the model, repacks the weights and reads or writes
    a token before it measures. Its weights are `--pure`, as kogpt's: the head and the embedding too.
    """

    def __init__(self, path: Path, dtype: str, threads: int) -> None:
        program = str(ik_program("llama-bench"))
        self._command = [program, "-m", str(path), "-t", str(threads), "-r", "1", "-rtr", "1", "-o", "json"]

    def logits(self, ids: NDArray[np.int64]) -> None:
        return None

    def prefill(self, n_tokens: int) -> float:
        return self._seconds("-p", str(n_tokens), "-n", "0")

    def decode(self, n_rows: int, n_tokens: int) -> float | None:
        if n_rows > 1:
            return None
        return self._seconds("-p", "0", "-n", "0", "-gp", f"{PROMPT},{n_tokens}")

    def _seconds(self, *test: str) -> float:
        done = subprocess.run([*self._command, *test], capture_output=True, text=True, check=True)
        return bench_seconds(done.stdout)


def bench_seconds(report: str) -> float:
    """Seconds of the only test, with one repetition, in a JSON report of llama-bench."""
    (test,) = json.loads(report)
    (nanoseconds,) = test["samples_ns"]
    return float(nanoseconds) / 1e9


ENGINES: dict[str, type[Any]] = {
    "kogpt": KoGPT,
    "transformers": Transformers,
    "llama.cpp": LlamaCpp,
    "ctranslate2": CTranslate2,
    "ik_llama.cpp": IkLlamaCpp,
}


def random_ids(n_rows: int, n_tokens: int, n_vocab: int) -> NDArray[np.int64]:
    """(n_rows, n_tokens), the same for every engine."""
    return np.random.default_rng(n_rows * n_tokens).integers(0, n_vocab, (n_rows, n_tokens))
