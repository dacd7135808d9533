"""A small model, and data sets of a few rows, for the tests of the evaluation."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from conftest import random_tensors
from korean import PROSE
from runners import stored

from kogpt import data_files as data
from kogpt.config import ModelConfig
from kogpt.data_files import Source
from kogpt.engine import Engine
from kogpt.evaluation import tasks
from kogpt.evaluation.evaluate import EvaluatedModel
from kogpt.evaluation.task import Task
from kogpt.generation import KoGPT
from kogpt.numpy_runner import NumpyRunner
from kogpt.tokenizer import BYTES, Tokenizer

CONFIG = ModelConfig(n_layers=2, n_heads=2, d_model=32, d_ff=64, n_vocab=512, n_ctx=256, rotary_dim=8)


def make_model(tokenizer: Path, dtype: str = "float32", config: ModelConfig = CONFIG) -> EvaluatedModel:
    """A random model on the numpy runner."""
    tensors = {name: stored(array) for name, array in random_tensors(config, seed=5).items()}
    runner = NumpyRunner(config, tensors, dtype)
    identity = {"model_sha256": "0", "tokenizer_sha256": "0", "runner": runner.name, "dtype": dtype}
    return EvaluatedModel("small", KoGPT(Tokenizer.from_file(tokenizer), Engine(runner)), identity)


def merging_tokenizer(folder: Path, merges: Sequence[tuple[str, str]] = ()) -> Tokenizer:
    """Ids 0 to 4 are special, bytes follow; only these pairs of ASCII texts merge."""
    alphabet = {character: 5 + i for i, character in enumerate(sorted(BYTES))}
    vocabulary = {f"[{name}]": i for i, name in enumerate(("BOS", "EOS", "UNK", "PAD", "MASK"))} | alphabet
    pairs = [[part.replace(" ", "Ġ").replace("\n", "Ċ") for part in pair] for pair in merges]
    for pair in pairs:
        vocabulary["".join(pair)] = len(vocabulary)
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True, "trim_offsets": False}
    model = {"type": "BPE", "vocab": vocabulary, "merges": pairs}
    document = {"model": model, "pre_tokenizer": level, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return Tokenizer.from_file(folder / "tokenizer.json")


def reviews(count: int, start: int = 0) -> list[list[str]]:
    """Rows of an NSMC file: id, document, label."""
    documents = [f"{PROSE[i % 6][: 12 + i % 9]} {i}" for i in range(start, start + count)]
    return [[str(1000 + start + i), text, str((i * i) % 3 % 2)] for i, text in enumerate(documents)]


def write_tsv(path: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> Source:
    """A gzip TSV file, and the Source that knows it."""
    text = "".join("\t".join(line) + "\n" for line in (names, *rows))
    content = gzip.compress(text.encode(), mtime=0)
    path.write_bytes(content)
    return Source(path.name, data.digest_of(content, "sha256"), f"test file {path.name}", data.read_gzip_tsv)


def small_nsmc(folder: Path, n_test: int = 23, n_pool: int = 12) -> Task:
    """NSMC's task over rows of our own, written to the folder."""
    names = ("id", "document", "label")
    test = write_tsv(folder / "test.tsv.gz", names, reviews(n_test))
    pool = write_tsv(folder / "pool.tsv.gz", names, reviews(n_pool, start=500))
    return replace(tasks.get("nsmc"), test=(test,), pool=(pool,))


def small_copa(folder: Path, n_test: int = 9) -> Task:
    """COPA's task over rows of our own."""
    names = ("ID", "sentence", "question", "1", "2", "Answer")
    rows = [
        [
            str(i),
            f"{PROSE[i % 5]} {i}",
            ("원인", "결과")[i % 2],
            PROSE[i % 3][:9],
            PROSE[i % 4][3:14],
            str(1 + i % 2),
        ]
        for i in range(n_test + 6)
    ]
    test = write_tsv(folder / "copa_test.tsv.gz", names, rows[:n_test])
    pool = write_tsv(folder / "copa_pool.tsv.gz", names, rows[n_test:])
    return replace(tasks.get("kobest-copa"), test=(test,), pool=(pool,))


def small_sts(folder: Path, n_test: int = 11) -> Task:
    """KLUE-STS's task over rows of our own; its shots are KorSTS's in form."""
    names = ("guid", "sentence1", "sentence2", "label")
    rows = [
        [f"g{i}", PROSE[i % 6][:15], PROSE[(i * 2) % 6][:12], f"{(i * 7) % 50 / 10}"] for i in range(n_test)
    ]
    test = write_tsv(folder / "sts_test.tsv.gz", names, rows)
    korsts = ("genre", "filename", "year", "id", "score", "sentence1", "sentence2")
    shots = [["news", "x", "2012", str(i), f"{i % 6}.0", PROSE[i % 6][4:18], f"{i}"] for i in range(8)]
    pool = write_tsv(folder / "sts_pool.tsv.gz", korsts, shots)
    return replace(tasks.get("klue-sts"), test=(test,), pool=(pool,))
