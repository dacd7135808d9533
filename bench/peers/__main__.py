"""Compare engines on one machine: the same weights, interleaved rounds, medians.

    python -m bench.peers --shape mini
    python -m bench.peers --shape 1b --groups kogpt:int8,llama.cpp:int8/kogpt:int4 --results PATH

A group is measured together: every round takes each task in turn with every engine of the group, beginning
with another one each time. Groups are separated by / where not all of them fit into memory at once. Prints
one JSON line for each engine and dtype; --results writes them to PATH.jsonl, and as a table to PATH.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import numpy as np

from bench.peers import convert
from bench.peers.tables import markdown
from bench.random_checkpoint import RandomTensors, write_byte_tokenizer
from kogpt import __version__, checkpoint
from kogpt.cli.bench import SHAPES, limit_threads, shape_config
from kogpt.cli.speed import read_bytes
from kogpt.config import ModelConfig
from kogpt.memory import usable_cpus

GROUPS = (
    "transformers:bfloat16,kogpt:bfloat16,llama.cpp:bfloat16,kogpt:int8,llama.cpp:int8,ctranslate2:int8,"
    "kogpt:int4,llama.cpp:int4/transformers:float32,kogpt:float32,llama.cpp:float32,ctranslate2:float32"
)
TASKS = ("first", "decode 1", "prefill 512", "decode 4", "decode 16", "prefill 2000")
FIRST_TOKENS = 32
# Tokens that each row writes in one measurement: about a second's worth.
NEW_TOKENS = {"mini": 64, "1b": 16, "6b": 8}
# Bits per weight of a matrix where they are not those of kogpt's own format: 16 more for 32 weights.
PEER_BITS = {
    ("llama.cpp", "int8"): 8.5,
    ("llama.cpp", "int4"): 4.5,
    ("ik_llama.cpp", "BF16"): 16,
    ("ik_llama.cpp", "Q8_0"): 8.5,
    ("ik_llama.cpp", "Q5_0"): 5.5,
    ("ik_llama.cpp", "Q4_0"): 4.5,
    ("ik_llama.cpp", "IQ4_KS"): 4.25,
}
PROGRAMS = {"ik_llama.cpp"}  # engines that load anew for each measurement, in a process of their own
PACKAGES = {"llama.cpp": "llama-cpp-python"}  # where the engine has another name
GREEDY = 4  # tokens compared before anything is timed
READS = 5  # of the bandwidth, before and after a decoding row
HOLD = 40.0  # seconds; the longest measurement takes about ten more


class Child:
    """A process of child.py."""

    def __init__(self, engine: str) -> None:
        command = [sys.executable, "-m", "bench.peers.child", engine]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the engine died with {self._process.wait()} at {do} {arguments}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Quiet:
    """Keeps a command running while something is measured, such as one that stops other work.

    The command prints a line when all is quiet, and ends with its input. It is let go, and begun anew at the
    next measurement, once it has run for HOLD seconds.
    """

    def __init__(self, command: str | None) -> None:
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._since = 0.0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Quiet for one measurement."""
        if self._command is not None and self._process is None:
            self._begin(shlex.split(self._command))
        yield
        if time.monotonic() - self._since > HOLD:
            self.end()

    def end(self) -> None:
        """Let other work go on."""
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.close()
            self._process.stdout.close()
            self._process.wait()
            self._process = None

    def _begin(self, command: list[str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self.end()
            raise SystemExit(f"--quiet: {self._command!r} ended before it said anything")
        self._since = time.monotonic()


@dataclass(slots=True)
class Entry:
    """One engine with one dtype, and what was measured of it."""

    engine: str
    dtype: str
    child: Child
    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.engine}:{self.dtype}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how."""

    shape: str
    folder: Path  # where the models lie
    tasks: tuple[str, ...]
    rounds: int
    threads: int
    quiet: Quiet


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    limit_threads(args.threads)
    if args.ik is not None:
        os.environ[convert.IK_FOLDER] = str(args.ik)
    lines = [] if args.quality is None else args.quality.read_text(encoding="utf-8").splitlines()
    losses = {row["format"]: row["kl"] for row in map(json.loads, lines)}
    with contextlib.ExitStack() as stack:
        if args.models is not None:
            args.models.mkdir(parents=True, exist_ok=True)
        folder = args.models or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kogpt-peers-")))
        quiet = Quiet(args.quiet)
        stack.callback(quiet.end)
        plan = Plan(args.shape, folder, args.tasks, args.rounds, args.threads, quiet)
        records: list[dict[str, Any]] = []
        for group in args.groups.split("/"):
            records += measure_group([tuple(name.split(":")) for name in group.split(",")], plan)
    text = "".join(json.dumps(record) + "\n" for record in records)
    print(text, end="")
    if args.results:
        args.results.with_suffix(".jsonl").write_text(text, encoding="utf-8")
        args.results.with_suffix(".md").write_text(markdown(records, losses), encoding="utf-8")


def measure_group(names: Sequence[tuple[str, ...]], plan: Plan) -> list[dict[str, Any]]:
    """One record for each (engine, dtype)."""
    config = shape_config(plan.shape)
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(Child("machine"))
        entries = []
        for engine, dtype in names:
            path = model_file(plan.folder, plan.shape, engine, dtype)
            entry = Entry(engine, dtype, stack.enter_context(Child(engine)))
            entry.child.ask("start")
            with plan.quiet():
                loaded = entry.child.ask("load", path=str(path), dtype=dtype, threads=plan.threads)
            if engine not in PROGRAMS:
                entry.samples["load"].append(loaded["seconds"])
            entries.append(entry)
            _tell(f"{entry.name} loaded in {loaded['seconds']:.2f} s")
        with plan.quiet():
            compare(entries, config)
        for number in range(plan.rounds):
            for task in plan.tasks:
                for i in range(len(entries)):
                    measure(entries[(number + i) % len(entries)], machine, task, plan)
        return [_record(entry, plan) for entry in entries]


def measure(entry: Entry, machine: Child, task: str, plan: Plan) -> None:
    """Add one sample of one task, and beside a decoding row one of the read bandwidth."""
    kind, _, count = task.partition(" ")
    with plan.quiet():
        if task == "decode 1":
            _read(entry, machine, plan)
        if task == "prefill 512":
            for dtype in ("float32", "bfloat16"):
                rate = machine.ask("multiply", dtype=dtype, threads=plan.threads)["rate"]
                entry.samples[f"multiply {dtype}"].append(rate)
        if kind == "decode":
            rows, tokens = int(count), NEW_TOKENS[plan.shape]
            seconds = entry.child.ask("decode", rows=rows, tokens=tokens)["seconds"]
            found = None if seconds is None else rows * tokens / seconds
            if task == "decode 1":
                _read(entry, machine, plan)
        elif kind == "prefill":
            found = int(count) / entry.child.ask("prefill", tokens=int(count))["seconds"]
        else:
            found = entry.child.ask("prefill", tokens=FIRST_TOKENS)["seconds"]
    if found is None:
        return
    entry.samples[task].append(found)
    _tell(f"{entry.name} {task}: {found:.4g}")
    if "peak_memory_bytes" not in entry.facts and task == "prefill 512" and entry.engine not in PROGRAMS:
        # One row has been read and written.
        entry.facts["peak_memory_bytes"] = entry.child.ask("memory")["bytes"]


def _read(entry: Entry, machine: Child, plan: Plan) -> None:
    """Add READS samples of the bandwidth: it moves more, and sooner, than anything else."""
    n_bytes = _step_bytes(entry, plan.shape)
    for _ in range(READS):
        entry.samples["read"].append(machine.ask("read", bytes=n_bytes, threads=plan.threads)["rate"])


def compare(entries: Sequence[Entry], config: ModelConfig) -> None:
    """Whether all run the same weights: logits and greedy tokens beside those of the group's reference.

    logit_difference is the largest one in units of the reference's standard deviation. The reference is the
    first engine that gives logits.
    """
    ids = np.random.default_rng(0).integers(0, config.n_vocab, 24).tolist()
    reference: dict[str, Any] = {}
    for entry in entries:
        answer = entry.child.ask("greedy", ids=ids, n=GREEDY)
        if not answer["logits"]:
            continue
        reference = reference or {**answer, "name": entry.name}
        expected, logits = np.array(reference["logits"]), np.array(answer["logits"])
        entry.facts["compared_with"] = reference["name"]
        entry.facts["logit_difference"] = float(np.abs(logits - expected).max() / expected.std())
        same = [a == b for a, b in zip(answer["ids"], reference["ids"], strict=True)]
        entry.facts["equal_greedy_tokens"] = same.index(False) if False in same else len(same)
        _tell(f"{entry.name} logits differ by {entry.facts['logit_difference']:.2g} standard deviations")


def model_file(folder: Path, shape: str, engine: str, dtype: str) -> Path:
    """What an engine loads; made if it is not there yet. The source is bfloat16 for all of them."""
    source = folder / shape
    if not source.exists():
        config = shape_config(shape)
        tokenizer = folder / "tokenizer.json"
        write_byte_tokenizer(tokenizer)
        checkpoint.save(source, config, RandomTensors(config, 0), "bfloat16", tokenizer)
    if engine == "llama.cpp":
        path = folder / f"{shape}-{dtype}.gguf"
        if not path.exists() and dtype in ("int8", "int4"):
            convert.quantize_gguf(model_file(folder, shape, engine, "bfloat16"), path, dtype)
        elif not path.exists():
            convert.write_gguf_model(source, path, dtype)
        return path
    if engine == "ik_llama.cpp":
        gguf = model_file(folder, shape, "llama.cpp", "bfloat16")
        path = folder / f"{shape}-ik-{dtype}.gguf"
        if dtype != "BF16" and not path.exists():
            convert.quantize_ik(gguf, path, dtype)
        return gguf if dtype == "BF16" else path
    if engine == "ctranslate2":
        path = folder / f"{shape}-{dtype}.ct2"
        if not path.exists():
            convert.write_ctranslate2(source, path, dtype)
        return path
    return source


def _step_bytes(entry: Entry, shape: str) -> int:
    """Bytes of weights that one decoding step reads."""
    config = shape_config(shape)
    bits = PEER_BITS.get((entry.engine, entry.dtype))
    return int(read_bytes(config, "int8") * bits / 8) if bits else read_bytes(config, entry.dtype)


def _record(entry: Entry, plan: Plan) -> dict[str, Any]:
    """Medians; the names are those of `kogpt bench` where they mean the same."""
    median = {name: statistics.median(values) for name, values in entry.samples.items()}
    record: dict[str, Any] = {
        "shape": plan.shape,
        "engine": entry.engine,
        "version": _version(entry.engine),
        "dtype": entry.dtype,
        "threads": plan.threads,
        "rounds": plan.rounds,
        "load_seconds": median.get("load"),
        "first_token_seconds": median.get("first"),
    }
    for task in plan.tasks:
        if task != "first" and task in median:
            record[f"{task.replace(' ', '_')}_tokens_per_second"] = median[task]
    if "read" in median:
        record["read_bandwidth_gb_s"] = median["read"] / 1e9
        share = _step_bytes(entry, plan.shape) * median["decode 1"] / median["read"]
        record["share_of_bandwidth"] = share
    for name in ("multiply float32", "multiply bfloat16"):
        if name in median:
            record[f"{name.replace('multiply', 'matrix').replace(' ', '_')}_gflop_s"] = median[name] / 1e9
    rounded = {name: _rounded(value) for name, value in (record | entry.facts).items()}
    return {name: value for name, value in rounded.items() if value is not None}


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _version(engine: str) -> str:
    if engine == "kogpt":
        return __version__
    try:
        return version(PACKAGES.get(engine, engine))
    except PackageNotFoundError:  # a library built apart from its Python package
        return "unknown"


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", choices=SHAPES, default="mini")
    parser.add_argument("--groups", default=GROUPS, help="ENGINE:DTYPE,.../...")
    parser.add_argument("--tasks", type=_tasks, default=TASKS, help=f"of {', '.join(TASKS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--models", type=Path, help="keep the converted models in this folder")
    parser.add_argument("--ik", type=Path, metavar="DIR", help="folder of ik_llama.cpp's programs")
    parser.add_argument(
        "--quality", type=Path, metavar="PATH", help="JSON lines of bench/quality.py --results"
    )
    parser.add_argument("--results", type=Path, help="path without suffix of the table and the JSON lines")
    parser.add_argument("--quiet", metavar="CMD", help="run this during every measurement; see class Quiet")
    return parser.parse_args(argv)


def _tasks(text: str) -> tuple[str, ...]:
    tasks = tuple(text.split(","))
    if unknown := set(tasks) - set(TASKS):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}")
    return tasks


if __name__ == "__main__":
    main()
