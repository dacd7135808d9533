"""The comparison with other engines: the same weights, the right arithmetic on times, readable tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import plain

sys.path.insert(0, str(Path(__file__).parents[2]))  # `bench` is no package that is installed

from bench.peers import __main__ as peers
from bench.peers import convert, engines
from bench.peers.tables import markdown
from kogpt import checkpoint, native_runner, phi
from kogpt.cli.bench import shape_config
from kogpt.config import ModelConfig
from kogpt.numpy_runner import NumpyRunner, rotary_table, rotate
from kogpt.runner import Chunk


def test_phi_layout_keeps_every_product_of_q_and_k(tiny: ModelConfig) -> None:
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((2, 5, tiny.n_heads, tiny.d_head))
    rotation = rotary_table(np.arange(5.0), tiny.rotary_dim, "float64")
    order = phi.row_order(tiny)
    assert sorted(order) == list(range(tiny.d_model))

    def half_split(x: Any) -> Any:
        """As Phi turns it: pairs (j, j + r/2)."""
        x = x.reshape(5, -1)[:, order].reshape(5, tiny.n_heads, tiny.d_head)
        cos, sin = rotation
        half = tiny.rotary_dim // 2
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)

    expected = np.einsum("thd,shd->hts", rotate(q, rotation), rotate(k, rotation))
    np.testing.assert_allclose(np.einsum("thd,shd->hts", half_split(q), half_split(k)), expected, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gguf_holds_every_weight(tiny_folder: Path, tiny: ModelConfig, tmp_path: Path, dtype: str) -> None:
    gguf = pytest.importorskip("gguf")
    convert.write_gguf_model(tiny_folder, tmp_path / "tiny.gguf", dtype)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "tiny.gguf").tensors}
    assert len(tensors) == 5 + 14 * tiny.n_layers
    stored = checkpoint.load(tiny_folder).tensors
    q = gguf.quants.dequantize(
        tensors["blk.1.attn_q.weight"].data, tensors["blk.1.attn_q.weight"].tensor_type
    )
    source = stored["transformer.h.1.attn.q_proj.weight"].to("float32")[phi.row_order(tiny)]
    np.testing.assert_allclose(q, source, rtol=0 if dtype == "float32" else 2**-8)
    np.testing.assert_array_equal(tensors["output.bias"].data, stored["lm_head.bias"].to("float32"))


@pytest.mark.skipif(not native_runner.available(), reason="the kernels are not built")
def test_our_engine_gives_the_logits_of_the_numpy_runner(tiny_folder: Path) -> None:
    stored = checkpoint.load(tiny_folder)
    numpy = NumpyRunner(stored.config, plain(stored.tensors))
    ids = np.array([5, 4, 3, 2])
    (expected,) = numpy.forward([Chunk(numpy.open(), ids)])
    engine = engines.KoGPT(tiny_folder, "float32", 1)
    np.testing.assert_allclose(engine.logits(ids), expected[-1], atol=1e-4)
    assert engine.prefill(40) > 0 and engine.decode(2, 3) > 0


class Stub:
    """A child whose every measurement takes half a second."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self.asked.append((do, arguments))
        return {"seconds": 0.5, "rate": 4e9, "bytes": 10**9}


def test_samples_are_rates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    child, machine = Stub(), Stub()
    entry = peers.Entry("llama.cpp", "int8", child)  # type: ignore[arg-type]
    entry.samples["load"].append(1.0)
    plan = peers.Plan("mini", tmp_path, peers.TASKS, 1, 2, peers.Quiet(None))
    for task in peers.TASKS:
        peers.measure(entry, machine, task, plan)  # type: ignore[arg-type]
    record = peers._record(entry, plan)
    new = peers.NEW_TOKENS["mini"]
    assert record["first_token_seconds"] == 0.5
    assert record["decode_1_tokens_per_second"] == 2 * new
    assert record["decode_16_tokens_per_second"] == 2 * 16 * new
    assert record["prefill_2000_tokens_per_second"] == 4000
    assert record["read_bandwidth_gb_s"] == record["matrix_bfloat16_gflop_s"] == 4
    matrices = shape_config("mini").n_layers * 12 * 512**2 + 16128 * 512
    assert len([do for do, _ in machine.asked if do == "read"]) == 2 * peers.READS
    assert (
        machine.asked[0]
        == machine.asked[2 * peers.READS - 1]
        == ("read", {"bytes": matrices * 8.5 / 8, "threads": 2})
    )
    assert record["share_of_bandwidth"] == pytest.approx(2 * new * matrices * 8.5 / 8 / 4e9, rel=1e-3)
    assert record["peak_memory_bytes"] == 10**9


def test_weights_are_compared_with_the_first_engine(tiny: ModelConfig) -> None:
    class Speaker(Stub):
        def __init__(self, ids: list[int], logits: list[float]) -> None:
            self._answer = {"ids": ids, "logits": logits}

        def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
            return self._answer

    first = peers.Entry("transformers", "float32", Speaker([1, 2, 3], [0.0, 2.0]))  # type: ignore[arg-type]
    other = peers.Entry("kogpt", "float32", Speaker([1, 2, 9], [0.5, 2.0]))  # type: ignore[arg-type]
    peers.compare([first, other], tiny)
    assert first.facts["logit_difference"] == 0 and first.facts["equal_greedy_tokens"] == 3
    assert other.facts == {
        "compared_with": "transformers:float32",
        "logit_difference": 0.5,
        "equal_greedy_tokens": 2,
    }


def test_a_child_answers_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with peers.Child("machine") as child:
        assert child.ask("read", bytes=1 << 20, threads=1)["rate"] > 0
        assert child.ask("memory")["bytes"] is None or child.ask("memory")["bytes"] > 1e6


def test_quiet_waits_for_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    quiet = peers.Quiet(f"sh -c 'echo begun >> {log}; echo ready; cat; echo over >> {log}'")
    for _ in range(2):
        with quiet():
            assert log.read_text() == "begun\n"
    monkeypatch.setattr(peers, "HOLD", 0.0)
    with quiet():
        assert log.read_text() == "begun\n"
    assert log.read_text() == "begun\nover\n"
    with quiet():
        assert log.read_text() == "begun\nover\nbegun\n"
    quiet.end()


def test_nothing_is_measured_where_quiet_fails() -> None:
    with pytest.raises(SystemExit), peers.Quiet("true")():
        pytest.fail("measured")


REPORT = """[
  {
    "build_commit": "8337e4cd3", "model_filename": "m.gguf", "n_prompt": %d, "n_gen": %d,
    "avg_ns": 250000000, "avg_ts": 64.0,
    "samples_ns": [ 250000000 ],
    "samples_ts": [ 64.0 ]
  }
]"""


def test_ik_llama_cpp_is_asked_through_its_own_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(convert.IK_FOLDER, str(tmp_path))
    with pytest.raises(SystemExit, match=r"no llama-bench in .*--ik"):
        engines.IkLlamaCpp(tmp_path / "m.gguf", "IQ4_KS", 2)
    for name in ("llama-bench", "llama-quantize"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\necho $0 \"$@\" >> {tmp_path}/asked\necho '{REPORT % (0, 16)}'\n")
        program.chmod(0o755)
    engine = engines.IkLlamaCpp(tmp_path / "m.gguf", "IQ4_KS", 2)
    assert engine.prefill(512) == engine.decode(1, 16) == 0.25
    assert engine.decode(4, 16) is None
    convert.quantize_ik(tmp_path / "from.gguf", tmp_path / "to.gguf", "IQ4_KS")
    bench = f"{tmp_path}/llama-bench -m {tmp_path}/m.gguf -t 2 -r 1 -rtr 1 -o json"
    assert (tmp_path / "asked").read_text().splitlines() == [
        f"{bench} -p 512 -n 0",
        f"{bench} -p 0 -n 0 -gp 32,16",
        f"{tmp_path}/llama-quantize --pure {tmp_path}/from.gguf {tmp_path}/to.gguf IQ4_KS",
    ]


def test_what_an_engine_cannot_do_has_no_sample(tmp_path: Path, tiny: ModelConfig) -> None:
    class Unable(Stub):
        def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
            answers: dict[str, dict[str, Any]] = {
                "decode": {"seconds": None},
                "greedy": {"ids": [], "logits": []},
            }
            return answers.get(do) or super().ask(do, **arguments)

    entry = peers.Entry("ik_llama.cpp", "Q8_0", Unable())  # type: ignore[arg-type]
    plan = peers.Plan("mini", tmp_path, ("decode 4", "prefill 512"), 1, 2, peers.Quiet(None))
    for task in plan.tasks:
        peers.measure(entry, Stub(), task, plan)  # type: ignore[arg-type]
    peers.compare([entry], tiny)
    record = peers._record(entry, plan)
    assert "decode_4_tokens_per_second" not in record and record["prefill_512_tokens_per_second"] == 1024
    assert "load_seconds" not in record and entry.facts == {}


def test_speed_beside_what_a_format_loses() -> None:
    ours = {"shape": "1b", "engine": "kogpt", "dtype": "int4", "decode_1_tokens_per_second": 75.0}
    theirs = {"shape": "1b", "engine": "ik_llama.cpp", "dtype": "IQ4_KS", "decode_1_tokens_per_second": 64.0}
    losses = {"int4": 0.0414, "int4, calibrated": 0.017, "llama-quantize IQ4_KS": 0.02}
    lines = markdown([ours, theirs], losses).splitlines()
    found = [line.split(" | ")[:3] for line in lines if "0.0" in line]
    assert found == [
        ["| kogpt int4, calibrated", "0.01700", "75"],
        ["| ik_llama.cpp IQ4_KS", "0.02000", "64"],
        ["| kogpt int4", "0.04140", "75"],
    ]


def test_tables() -> None:
    ours = {"shape": "1b", "engine": "kogpt", "dtype": "int8", "decode_1_tokens_per_second": 30.0}
    theirs = {**ours, "engine": "llama.cpp", "decode_1_tokens_per_second": 20.0, "share_of_bandwidth": 0.714}
    text = markdown([ours, theirs])
    assert "| kogpt int8 | 30 |" in text and "| 71% |" in text
    assert "| int8 / llama.cpp int8 | 1.50 |" in text
