"""Servers under load on one machine: kogpt serve beside llama.cpp's server, the same weights, interleaved.

    python -m bench.load                                  # kogpt-mini
    python -m bench.load --shape 1b --type int8 --tokens 16

Every client streams one answer of --tokens tokens to a prompt of its own, all at once; 1, 4, 16 and 64
clients. Rounds take the servers in turn. Reported are medians over the rounds of the tokens per second of all
clients together, and p50 and p99 of the time to the first text and of the gaps between events over all
rounds. On Linux also the processor time for each token of KoGPT's engine (its thread and those of the
kernels) and of every other thread of the server: HTTP, JSON, tokenising, events. The client is another
process, and in neither. --engine adds the session without HTTP, which takes its turns too; `http_share` is
then the time of the server's other threads by all the time of the session. --prefix adds the time to the
first text of a prompt of 1,500 tokens that was read before, by the time of one that was not. llama.cpp's
server is that of the wheel xllamacpp; it reads a GGUF file that `kogpt export gguf` wrote.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.random_checkpoint import RandomTensors
from kogpt import checkpoint
from kogpt.cli.bench import shape_config
from kogpt.memory import usable_cpus

HOST = "127.0.0.1"
CLIENTS = (1, 4, 16, 64)
WORDS = (
    "서울",
    " 바다",
    " 법률",
    " 영화",
    " 조선",
    " 학교",
    " 시간",
    " 사람",
    "에서",
    "의",
    "는",
    "을",
    " 그리고",
    " 하지만",
)
TYPES = {
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "int8": "Q8_0",
    "int4": "Q4_0",
}  # here -> GGUF
PROMPT_WORDS = 24
LONG_WORDS = 1500
CONTEXT = 2048


@dataclass(slots=True)
class Stream:
    """The times of one client's requests."""

    tokens: int = 0
    first: float = 0.0  # seconds to the first text
    gaps: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Processor:
    """Seconds of processor time of a process."""

    engine: float = 0.0  # its thread, and those of the kernels
    others: float = 0.0

    @property
    def total(self) -> float:
        """Processor seconds of all threads."""
        return self.engine + self.others

    def __add__(self, more: Processor) -> Processor:
        return Processor(self.engine + more.engine, self.others + more.others)

    def __sub__(self, less: Processor) -> Processor:
        return Processor(self.engine - less.engine, self.others - less.others)


ENGINE_THREADS = ("kogpt-engine", "kogpt-kernels")  # as kogpt names them


def processor(pid: int) -> Processor:
    """Processor time that each thread of a process has used; empty where the system is no Linux."""
    used = Processor()
    for task in Path(f"/proc/{pid}/task").glob("*"):
        name = (task / "comm").read_text(encoding="utf-8").strip()
        seconds = int((task / "schedstat").read_text(encoding="ascii").split()[0]) / 1e9
        used += Processor(engine=seconds) if name in ENGINE_THREADS else Processor(others=seconds)
    return used


@dataclass(slots=True)
class Samples:
    """The measurements of one server under a number of clients."""

    tokens: int = 0
    used: Processor = field(default_factory=Processor)
    http_share: float | None = None  # processor time of HTTP, by that of the engine alone
    rates: list[float] = field(default_factory=list)  # tokens/s of all clients, one for each round
    firsts: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    @property
    def per_token(self) -> Processor:
        """Seconds of processor time for each token."""
        return Processor(self.used.engine / self.tokens, self.used.others / self.tokens)

    def record(self) -> dict[str, float]:
        """The figures of the table; of the engine only its rate."""
        rate = {
            "tokens_per_second": statistics.median(self.rates),
            "engine_us_per_token": 1e6 * self.per_token.engine,
            "others_us_per_token": 1e6 * self.per_token.others,
        }
        if self.http_share is not None:
            rate["http_share"] = self.http_share
        if not self.gaps:
            return rate
        return rate | {
            "first_p50_ms": 1000 * quantile(self.firsts, 0.5),
            "first_p99_ms": 1000 * quantile(self.firsts, 0.99),
            "gap_p50_ms": 1000 * quantile(self.gaps, 0.5),
            "gap_p99_ms": 1000 * quantile(self.gaps, 0.99),
        }


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of all lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


async def stream(port: int, body: dict[str, Any]) -> Stream:
    """One streamed completion."""
    seen = Stream()
    raw = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
    began = last = time.perf_counter()
    reader, writer = await asyncio.open_connection(HOST, port, limit=2**22)
    writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
    async for line in reader:
        if line.startswith(b"data: [DONE]"):
            break
        if not line.startswith(b"data: "):
            continue
        event = json.loads(line[6:])
        if usage := event.get("usage"):
            seen.tokens = usage["completion_tokens"]
        if not any(choice["text"] for choice in event["choices"]):
            continue
        now = time.perf_counter()
        if seen.first:
            seen.gaps.append(now - last)
        else:
            seen.first = now - began
        last = now
    else:
        raise SystemExit(f"the server on port {port} broke off")
    writer.close()
    return seen


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs."""

    name: str
    port: int
    pid: int

    def body(self, prompt: str, tokens: int) -> dict[str, Any]:
        """A greedy completion of exactly so many tokens."""
        return {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "logit_bias": {"1": -100}}

    def load(self, prompts: Sequence[str], tokens: int) -> tuple[float, list[Stream]]:
        """Seconds that all took together, and what each client saw."""

        async def all_at_once() -> list[Stream]:
            return list(await asyncio.gather(*(stream(self.port, self.body(p, tokens)) for p in prompts)))

        os.kill(self.pid, signal.SIGCONT)  # whoever is not measured stands still: idle threads may spin
        began = time.perf_counter()
        seen = asyncio.run(all_at_once())
        seconds = time.perf_counter() - began
        os.kill(self.pid, signal.SIGSTOP)
        return seconds, seen


def prompts(count: int, rng: random.Random, words: int = PROMPT_WORDS) -> list[str]:
    """Prompts that have nothing in common: no cache helps."""
    return ["".join(rng.choices(WORDS, k=words)) for _ in range(count)]


@contextmanager
def running(name: str, command: Sequence[str]) -> Iterator[Server]:
    """A server in a process of its own; {port} in its command line becomes a free one."""
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    child = subprocess.Popen(
        [part.format(port=port) for part in command], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        _wait(child, port, name)
        child.send_signal(signal.SIGSTOP)
        yield Server(name, port, child.pid)
    finally:
        child.kill()
        child.wait()


def _wait(child: subprocess.Popen[bytes], port: int, name: str) -> None:
    while child.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise SystemExit(f"{name} ended with {child.returncode}")


def llama_server(path: str, port: int, rows: int, context: int) -> None:
    """llama.cpp's server, until it is killed; it takes memory for `context` tokens of each row at once."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.hostnames = [HOST]
    parameters.port = port
    parameters.n_parallel = rows
    parameters.n_ctx = rows * context
    parameters.cont_batching = True
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = usable_cpus()
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(60)


def serve_lines(folder: str, dtype: str, rows: int) -> None:
    """Write what each line of the input asks for, without HTTP; the answer is the number of tokens."""
    from kogpt import KoGPT
    from kogpt.server.worker import name_thread

    model = KoGPT.from_pretrained(folder, dtype=dtype)
    model.engine.max_rows = rows
    name_thread(ENGINE_THREADS[0])
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        settings = {"temperature": 0.0, "max_tokens": asked["tokens"], "logit_bias": {1: -100.0}}
        results = model.generate(asked["prompts"], settings)
        print(sum(result.completion_tokens for result in results), flush=True)


@dataclass(frozen=True, slots=True)
class Engine:
    """A session in a process of its own: what the server would give if HTTP cost nothing."""

    name: str
    child: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        """Number of the process that serves."""
        return self.child.pid

    def load(self, prompts: Sequence[str], tokens: int) -> tuple[float, list[Stream]]:
        """Seconds that all took together, and their tokens as one stream."""
        self.child.send_signal(signal.SIGCONT)
        began = time.perf_counter()
        written = self._ask(json.dumps({"prompts": prompts, "tokens": tokens}))
        seconds = time.perf_counter() - began
        self.child.send_signal(signal.SIGSTOP)
        return seconds, [Stream(int(written))]

    def _ask(self, line: str) -> str:
        assert self.child.stdin is not None and self.child.stdout is not None
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()
        return self.child.stdout.readline()


@contextmanager
def engine(command: Sequence[str]) -> Iterator[Engine]:
    """The session, ready."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            if child.stdout.readline() != "ready\n":
                raise SystemExit("the engine did not start")
            child.send_signal(signal.SIGSTOP)
            yield Engine("engine", child)
        finally:
            child.kill()


def measure(servers: Sequence[Server | Engine], args: argparse.Namespace) -> list[dict[str, Any]]:
    """A record for each server and number of clients."""
    rng = random.Random(0)
    samples = {(server.name, n): Samples() for server in servers for n in args.clients}
    for server in servers:
        server.load(prompts(4, rng), 4)  # warms up
    for number in range(args.rounds):
        for n in args.clients:
            wanted = prompts(n, rng)
            for i in range(len(servers)):
                server = servers[(number + i) % len(servers)]
                before = processor(server.pid)
                seconds, seen = server.load(wanted, args.tokens)
                sample, tokens = samples[server.name, n], sum(s.tokens for s in seen)
                sample.used += processor(server.pid) - before
                sample.tokens += tokens
                sample.rates.append(tokens / seconds)
                sample.firsts += [s.first for s in seen if s.first]
                sample.gaps += [gap for s in seen for gap in s.gaps]
                print(f"{server.name} {n}: {sample.rates[-1]:.1f} tokens/s", file=sys.stderr, flush=True)
    for (name, n), sample in samples.items():
        if name == "kogpt" and (alone := samples.get(("engine", n))) is not None:
            sample.http_share = sample.per_token.others / alone.per_token.total
    return [{"server": name, "clients": n} | sample.record() for (name, n), sample in samples.items()]


def prefix(server: Server, rounds: int) -> dict[str, Any]:
    """The time to the first text of a long prompt, cold, and with its first 1,500 words read before."""
    rng = random.Random(1)
    cold, warm = [], []
    for _ in range(rounds):
        [long] = prompts(1, rng, LONG_WORDS)
        cold.append(server.load([long], 2)[1][0].first)
        warm.append(server.load([long + prompts(1, rng, 4)[0]], 2)[1][0].first)
    return {
        "server": server.name,
        "cold_first_ms": 1000 * statistics.median(cold),
        "warm_first_ms": 1000 * statistics.median(warm),
        "warm_by_cold": statistics.median(warm) / statistics.median(cold),
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = _arguments(argv)
    if args.llama is not None:
        return llama_server(args.llama, args.port, max(CLIENTS), args.context)
    if args.lines is not None:
        return serve_lines(args.lines, args.type, max(CLIENTS))
    with ExitStack() as stack:
        place = args.models or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kogpt-load-")))
        folder = model_folder(place, args.shape)
        gguf = None if args.alone else gguf_file(place, folder, args)
        if args.prepare:
            return
        python = [sys.executable, "-m"]
        serve = ["kogpt", "serve", "--port", "{port}", "--model", folder, "--dtype", args.type]
        kogpt = stack.enter_context(running("kogpt", [*python, *serve, "--rows", str(max(CLIENTS))]))
        llama = [
            *python,
            "bench.load",
            "--llama",
            str(gguf),
            "--port",
            "{port}",
            "--context",
            str(args.context),
        ]
        servers = [kogpt, *([] if args.alone else [stack.enter_context(running("llama.cpp", llama))])]
        alone = [*python, "bench.load", "--lines", folder, "--type", args.type]
        engines = [stack.enter_context(engine(alone))] if args.engine else []
        records = measure([*servers, *engines], args)
        records += [prefix(server, args.rounds) for server in servers if args.prefix]
    for record in records:
        rounded = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in record.items()}
        print(json.dumps({"shape": args.shape, "type": args.type} | rounded), flush=True)


def model_folder(place: Path, shape: str) -> str:
    """kogpt-mini, or a random checkpoint of a shape."""
    if shape == "mini":
        return "kogpt-mini"
    folder = place / shape
    if not folder.exists():
        place.mkdir(parents=True, exist_ok=True)
        tokenizer = checkpoint.load("kogpt-mini").folder / "tokenizer.json"  # llama.cpp wants one with merges
        checkpoint.save(
            folder, shape_config(shape), RandomTensors(shape_config(shape), 0), "bfloat16", tokenizer
        )
    return str(folder)


def gguf_file(place: Path, folder: str, args: argparse.Namespace) -> Path:
    """The same model for llama.cpp."""
    out = place / f"{args.shape}-{args.type}-gguf"
    if not out.exists():
        command = [sys.executable, "-m", "kogpt", "export", "gguf", "--model", folder, "--out", str(out)]
        subprocess.run([*command, "--type", TYPES[args.type]], check=True)
    [path] = out.glob("*.gguf")
    return path


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="mini", help="mini, or a shape of kogpt bench")
    parser.add_argument("--type", choices=TYPES, default="int8", help="of the weights (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="that each client is sent")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=_numbers, default=CLIENTS, help="1,4,16,64")
    parser.add_argument("--engine", action="store_true", help="measure the session without HTTP, too")
    parser.add_argument("--alone", action="store_true", help="leave llama.cpp out")
    parser.add_argument("--prefix", action="store_true", help="measure a prompt that was read before, too")
    parser.add_argument(
        "--context", type=int, default=CONTEXT, help="tokens that llama.cpp keeps for each client"
    )
    parser.add_argument("--models", type=Path, help="keep the converted models in this folder")
    parser.add_argument("--prepare", action="store_true", help="convert the models, measure nothing")
    parser.add_argument("--llama", metavar="FILE", help=argparse.SUPPRESS)  # be llama.cpp's server
    parser.add_argument("--lines", metavar="FOLDER", help=argparse.SUPPRESS)  # be the engine
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", os.getcwd())
    main()
