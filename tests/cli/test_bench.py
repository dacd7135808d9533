"""kogpt bench: what is measured, what is told, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from kogpt import native_runner
from kogpt.cli import bench, limits, main, speed
from kogpt.cli.speed import BenchSettings
from kogpt.config import ModelConfig
from kogpt.numpy_runner import NumpyRunner
from kogpt.runner import Chunk, Runner
from kogpt.sampling import Chosen, Wanted, choose

SMALL = ["--runner", "numpy", "--rounds", "1", "--rows", "1,2", "--new-tokens", "2", "--prompt-tokens", "9"]
NAMES = [
    *("shape", "dtype", "runner", "threads", "load_seconds", "rows", "prompt_tokens", "first_token_seconds"),
    *("prefill_tokens_per_second", "decode_tokens_per_second", "read_bandwidth_gb_s", "share_of_bandwidth"),
    *("matrix_float32_gflop_s", "matrix_bfloat16_gflop_s", "peak_memory_bytes"),
]


class Recorder:
    """A Runner that remembers what it was asked; token 1 always follows."""

    name, dtype, prefill_tokens = "numpy", "float32", 200

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.calls: list[list[tuple[int, int, int]]] = []  # row, new positions, outputs
        self.lengths: dict[int, int] = {}
        self.seen: list[NDArray[Any]] = []

    def open(self) -> int:
        row = len(self.lengths)
        self.lengths[row] = 0
        return row

    def close(self, row: int) -> None:
        del self.lengths[row]

    def length(self, row: int) -> int:
        return self.lengths[row]

    def draw(self, chunks: Sequence[Chunk], wanted: Sequence[Wanted]) -> list[Chosen]:
        self.calls.append([(chunk.row, len(chunk.inputs), chunk.n_outputs) for chunk in chunks])
        self.seen += [chunk.inputs for chunk in chunks]
        one = np.eye(1, self.config.n_vocab, 1, np.float32)
        return [choose(one.repeat(c.n_outputs, 0), want) for c, want in zip(chunks, wanted, strict=True)]


class HereAndNow:
    """A process pool that runs its tasks in this process."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> HereAndNow:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, task: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(task())
        return future


@pytest.fixture
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 GB/s, 3 GFLOP/s in float32, no torch, measured in no time."""
    monkeypatch.setattr(speed, "ProcessPoolExecutor", HereAndNow)
    monkeypatch.setattr(limits, "read_bandwidth", lambda n_bytes, threads: 2e9)
    monkeypatch.setattr(limits, "matrix_speed", lambda dtype, threads: 3e9 if dtype == "float32" else None)


def test_json_has_one_object_per_number_of_rows(
    tiny_folder: Path, known_machine: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--model", str(tiny_folder), *SMALL, "--json"]) == 0
    captured = capsys.readouterr()
    records = [json.loads(line) for line in captured.out.splitlines()]
    assert captured.err == ""
    assert [list(record) for record in records] == [NAMES, NAMES]
    assert [record["rows"] for record in records] == [1, 2]
    for record in records:
        assert (record["dtype"], record["runner"], record["prompt_tokens"]) == ("float32", "numpy", 9)
        assert record["read_bandwidth_gb_s"] == 2 and record["matrix_float32_gflop_s"] == 3
        assert record["matrix_bfloat16_gflop_s"] is None
        assert record["prefill_tokens_per_second"] > 0 and record["first_token_seconds"] > 0
        assert record["peak_memory_bytes"] is None or record["peak_memory_bytes"] > 20e6


def test_a_lora_of_each_row_is_measured_beside_the_plain_model(
    tiny_folder: Path, known_machine: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "--model", str(tiny_folder), *SMALL, "--lora-rank", "2"]
    assert main([*words, "--json"]) == 0
    for record in map(json.loads, capsys.readouterr().out.splitlines()):
        plain, through = record["decode_tokens_per_second"], record["adapters_decode_tokens_per_second"]
        assert record["adapters_cost"] == pytest.approx(plain / through - 1, abs=0.01)
    assert main(words) == 0
    assert "2 adapters" in capsys.readouterr().out
    assert main(["bench", "--shape", "mini", "--adapter", "sentiment"]) == 2
    assert "--lora-rank" in capsys.readouterr().err


def test_text_tells_the_same(
    tiny_folder: Path, known_machine: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--model", str(tiny_folder), *SMALL]) == 0
    out = capsys.readouterr().out
    assert "float32, numpy runner" in out and "decode x 2" in out and "2.0 GB/s" in out and "unknown" in out


def test_text_is_in_the_language_of_the_user(
    tiny_folder: Path,
    known_machine: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LC_ALL", "ko_KR.UTF-8")
    assert main(["bench", "--model", str(tiny_folder), *SMALL, "--lora-rank", "2"]) == 0
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert "매개변수" in title and "스레드" in title
    assert [line for line in lines if re.search("[A-Za-z]{2,} [A-Za-z]{2,}|[a-z]/s", line)] == []
    named = [
        "불러오기",
        "첫 토큰",
        "프롬프트 9",
        "글 1개 쓰기",
        "  어댑터 1개",
        "글 2개 쓰기",
        "  어댑터 2개",
    ]
    assert [line[: len(name)] for line, name in zip(lines, named, strict=False)] == named


def test_a_named_shape_needs_no_weights(
    tiny: ModelConfig,
    known_machine: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "shape_config", lambda name: tiny)
    assert main(["bench", "--shape", "1b", *SMALL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["shape"] == "1b"


@pytest.mark.parametrize("runner", ["native", "numpy", "torch"])
def test_every_runner_has_a_default_on_the_cpu(
    runner: str,
    tiny: ModelConfig,
    known_machine: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if runner == "native" and not native_runner.available():
        pytest.skip("the kernels were not built")
    monkeypatch.setattr(bench, "shape_config", lambda name: tiny)
    words = ["--shape", "1b", *SMALL, "--json", "--runner", runner, "--device", "cpu"]
    assert main(["bench", *words]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[0])
    assert record["runner"] == runner
    assert record["dtype"] == ("float32" if runner == "numpy" else "bfloat16")


def test_shapes_are_those_of_the_issue() -> None:
    assert bench.shape_config("1b").n_parameters == 1_069_845_504
    assert bench.shape_config("6b").n_parameters == 6_166_502_400
    assert bench.shape_config("mini").n_parameters == 41_726_720


@pytest.mark.parametrize(
    "arguments",
    [
        ["--runner", "numpy", "--dtype", "int8"],
        ["--runner", "numpy", "--cache-dtype", "int8"],
        ["--runner", "numpy", "--device", "cuda"],
        ["--runner", "numpy", "--prompt-tokens", "129"],
        ["--runner", "numpy", "--new-tokens", "128"],
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--model", str(tiny_folder), *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--rows", "1,0"], ["--rounds", "0"], ["--threads", "x"]])
def test_counts_begin_at_one(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments])
    assert stop.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_the_share_is_bytes_read_per_step(tiny: ModelConfig) -> None:
    runner = Recorder(tiny)
    plan = BenchSettings((1, 4), 8, 2, 1, 1, "cpu")
    medians = {"read": 1e9, "first": 0.5, "prefill": 7.0, "float32": 1e9, "bfloat16": 2e9}
    medians |= {"decode 1": 100.0, "decode 4": 200.0}
    records = bench._records({}, cast(Runner, runner), plan, medians)
    step_bytes = 4 * (3 * 12 * 64 * 64 + 512 * 64)  # float32; 3 layers of 12 E * E, and the head
    assert speed.read_bytes(tiny, "float32") == step_bytes
    # Four rows at 200 tokens a second together take 50 steps: the weights are read once a step.
    shares = [record["share_of_bandwidth"] for record in records]
    assert shares == pytest.approx([100 * step_bytes / 1e9, 50 * step_bytes / 1e9], rel=1e-3)


def test_int4_counts_its_scales() -> None:
    config = bench.shape_config("1b")
    assert speed.read_bytes(config, "bfloat16") == 2 * (16 * 12 * 2048**2 + 64512 * 2048)
    assert speed.read_bytes(config, "int4") / speed.read_bytes(config, "bfloat16") == 4.25 / 16


def test_decode_writes_every_row_one_token_a_step(tiny: ModelConfig) -> None:
    runner = Recorder(tiny)
    assert speed.decode_seconds(cast(Runner, runner), 2, 3) > 0
    assert runner.calls == [[(0, 32, 1), (1, 32, 1)], *[[(0, 1, 1), (1, 1, 1)]] * 3]
    assert not np.array_equal(runner.seen[0], runner.seen[1]), "rows read different prompts"
    assert all(list(ids) == [1] for ids in runner.seen[2:]), "what was written is read"
    assert not runner.lengths, "every row is closed"


def test_prefill_reads_in_the_pieces_of_the_runner(tiny: ModelConfig) -> None:
    runner = Recorder(tiny)
    assert speed.prefill_seconds(cast(Runner, runner), 600) > 0
    assert runner.calls == [[(0, 200, 0)], [(0, 200, 0)], [(0, 200, 1)]]
    assert not runner.lengths


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
def test_random_weights_make_finite_varied_logits(tiny: ModelConfig, dtype: str) -> None:
    tensors = speed.random_tensors(tiny, dtype)
    assert {name: tensor.array.shape for name, tensor in tensors.items()} == tiny.tensor_shapes()
    runner = NumpyRunner(tiny, tensors)
    (logits,) = runner.forward([Chunk(runner.open(), np.array([3, 1, 4]))])
    assert np.isfinite(logits).all() and logits.std() > 0.01


def test_weights_to_be_packed_take_no_memory() -> None:
    tensors = speed.random_tensors(bench.shape_config("6b"), "int4")
    assert sum(tensor.array.nbytes for tensor in tensors.values()) > 12e9  # had they been written out


def test_limits_are_plausible_in_their_own_process(tiny: ModelConfig) -> None:
    medians = speed.measure(
        NumpyRunner(tiny, speed.random_tensors(tiny, "float32")), BenchSettings((1,), 4, 2, 1, 1, "cpu")
    )
    assert medians["read"] is not None and 0 < medians["read"] < 1e13
    assert medians["float32"] is not None and 0 < medians["float32"] < 1e14
    assert medians["bfloat16"] is None or medians["bfloat16"] > 0


def test_peak_memory_is_of_this_process_only() -> None:
    peak = limits.peak_memory()
    assert peak is None or 10e6 < peak < 1e12
