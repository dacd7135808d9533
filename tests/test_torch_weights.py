"""int8 and int4 on the torch runner, and how weights get to a device: each once, and in pieces."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, random_tensors
from runners import stored
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kogpt import checkpoint, gpu_choice, native_runner, torch_linear, torch_transfer, torch_weights
from kogpt.adapter import Lora, LowRank
from kogpt.checkpoint import Checkpoint
from kogpt.config import SHAPES, ModelConfig
from kogpt.errors import KoGPTError
from kogpt.model import Attention
from kogpt.numpy_runner import NumpyRunner
from kogpt.placement import Placement, load_runner
from kogpt.quantize import EMBEDDING, FORMATS, Floats, Lazy, Quantized
from kogpt.rounding import Rounded
from kogpt.runner import Array, Chunk, Runner
from kogpt.torch_linear import QuantizedLinear
from kogpt.torch_pass import PLAIN, StepPlan
from kogpt.torch_runner import TorchRunner
from kogpt.torch_weights import join_weights, joined_weight
from kogpt.weights import Stored

pytestmark = pytest.mark.skipif(not native_runner.available(), reason="rounding needs the native kernels")

ODD = ModelConfig(
    n_layers=2, n_heads=3, d_model=42, d_ff=77, n_vocab=101, n_ctx=64, rotary_dim=2, tied_head=True
)
CONFIGS = {"tiny": TINY, "odd widths, tied head": ODD}


def floats_of(config: ModelConfig, dtype: str = "bfloat16") -> dict[str, Stored]:
    return {name: stored(array, dtype) for name, array in random_tensors(config).items()}


@cache
def codes_of(config: ModelConfig, dtype: str) -> Mapping[str, Stored | Quantized]:
    return dict(Rounded(config, floats_of(config), dtype))


def oracle(config: ModelConfig, dtype: str) -> NumpyRunner:
    """The numpy runner with the floats that the codes stand for; the head has codes of its own."""
    untied = replace(config, tied_head=False)
    return NumpyRunner(untied, Floats(untied, codes_of(config, dtype)))


def prompts(config: ModelConfig) -> list[Any]:
    return [np.random.default_rng(i).integers(0, config.n_vocab, 3 + 9 * i) for i in range(3)]


def greedy(runner: Runner, texts: Sequence[Any], n: int = 6) -> list[list[int]]:
    """The likeliest tokens after each text, all rows at once."""
    rows = [runner.open() for _ in texts]
    chunks = [Chunk(row, ids) for row, ids in zip(rows, texts, strict=True)]
    found: list[list[int]] = [[] for _ in texts]
    for _ in range(n):
        tokens = [int(logits[-1].argmax()) for logits in runner.forward(chunks)]
        for own, token in zip(found, tokens, strict=True):
            own.append(token)
        chunks = [Chunk(row, np.array([token])) for row, token in zip(rows, tokens, strict=True)]
    for row in rows:
        runner.close(row)
    return found


# int8 and int4


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_ids_are_the_numpy_runner_s_and_do_not_depend_on_the_rows(config: ModelConfig, dtype: str) -> None:
    runner = TorchRunner(config, floats_of(config), dtype)
    texts = prompts(config)
    together = greedy(runner, texts)
    assert together == greedy(oracle(config, dtype), texts)
    assert together == [greedy(runner, [text])[0] for text in texts]
    (logits,) = runner.forward([Chunk(runner.open(), texts[2])])
    reference = oracle(config, dtype)
    np.testing.assert_allclose(logits, reference.forward([Chunk(reference.open(), texts[2])])[0], atol=3e-4)


@pytest.mark.parametrize("dtype", FORMATS)
def test_codes_of_a_folder_are_used_where_they_lie(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = codes_of(ODD, dtype)
    with monkeypatch.context() as patch:
        patch.setattr(torch_weights, "nearest", None)  # nothing is rounded again
        runner = TorchRunner(ODD, codes, dtype)
    for name, tensor in codes.items():
        if isinstance(tensor, Quantized):
            linear = runner._model.get_submodule(name.removesuffix(".weight"))
            assert isinstance(linear, QuantizedLinear)
            assert linear.weight.data_ptr() == tensor.codes.ctypes.data, name
    embedding = codes[EMBEDDING]
    assert isinstance(embedding, Stored)
    assert runner._model.transformer.wte.weight.data_ptr() == embedding.array.ctypes.data
    assert greedy(runner, prompts(ODD)) == greedy(TorchRunner(ODD, floats_of(ODD), dtype), prompts(ODD))


@pytest.mark.parametrize("dtype", FORMATS)
def test_an_exported_folder_runs_in_its_format(dtype: str, tmp_path: Path, no_fsync: None) -> None:
    checkpoint.save(tmp_path / "model", TINY, codes_of(TINY, dtype), dtype=dtype)
    found = checkpoint.load(tmp_path / "model")
    placement = Placement("cpu", runner="torch")
    runner = load_runner(found, placement)
    assert (runner.name, runner.dtype) == ("torch", dtype)
    assert greedy(runner, prompts(TINY)) == greedy(oracle(TINY, dtype), prompts(TINY))
    (other,) = set(FORMATS) - {dtype}
    with pytest.raises(KoGPTError, match="round it twice"):
        load_runner(found, replace(placement, dtype=other))


def test_a_model_of_floats_is_quantised_while_it_is_loaded() -> None:
    runner = load_runner(Checkpoint(Path(), TINY, floats_of(TINY)), Placement("cpu", "int8", runner="torch"))
    assert (runner.name, runner.dtype) == ("torch", "int8")


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("config", [TINY, replace(TINY, tied_head=True)], ids=["untied", "tied"])
def test_weight_bytes_are_those_that_are_held(config: ModelConfig, dtype: str) -> None:
    model = TorchRunner(config, codes_of(config, dtype), dtype)._model
    entries = sum(m.entries.nbytes for m in model.modules() if isinstance(m, QuantizedLinear))
    held = sum(x.nbytes for x in (*model.parameters(), *model.buffers())) - entries
    assert TorchRunner.weight_bytes(config, dtype) == held


def test_bytes_of_the_6b() -> None:
    six = SHAPES["kogpt-6b"]
    assert TorchRunner.weight_bytes(six, "float16") == 12_333_004_800
    assert TorchRunner.weight_bytes(six, "int8") / 1e9 == pytest.approx(6.44, abs=0.01)
    assert TorchRunner.weight_bytes(six, "int4") / 1e9 == pytest.approx(3.67, abs=0.01)


@pytest.mark.parametrize("dtype", FORMATS)
def test_an_adapter_has_the_dtype_of_activations(dtype: str) -> None:
    name = "transformer.h.1.mlp.fc_in"
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((3, TINY.d_model), (TINY.d_ff, 3)))
    lora = Lora({name: LowRank(a, b, 0.2)})
    runners: list[Runner] = [TorchRunner(TINY, codes_of(TINY, dtype), dtype), oracle(TINY, dtype)]
    text, found = prompts(TINY)[2], []
    for runner in runners:
        row = runner.open(runner.add_adapter(lora))
        found.append(runner.forward([Chunk(row, text, 4)])[0])
        found.append(runner.forward([Chunk(row, text[:1])])[0])
    np.testing.assert_allclose(found[0], found[2], atol=1e-3)
    np.testing.assert_allclose(found[1], found[3], atol=1e-3)
    plain = runners[0].forward([Chunk(runners[0].open(), text, 4)])[0]
    assert np.abs(plain - found[0]).max() > 0.01


@pytest.mark.parametrize("tied_head", [False, True])
def test_codes_over_several_devices(tied_head: bool) -> None:
    config = replace(TINY, tied_head=tied_head)
    one, two = (TorchRunner(config, codes_of(config, "int4"), "int4", name) for name in ("cpu", "cpu,cpu"))
    assert greedy(one, prompts(config)) == greedy(two, prompts(config))


def test_a_large_matrix_is_unpacked_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = codes_of(TINY, "int4")["transformer.h.0.mlp.fc_in.weight"]
    assert isinstance(codes, Quantized)
    linear = QuantizedLinear(codes, None, torch.device("cpu"), torch_linear.plain_product)
    x = torch.randn(3, TINY.d_model, generator=torch.Generator().manual_seed(0))
    whole = linear(x)
    monkeypatch.setitem(torch_linear.UNPACKED, "cpu", 7 * TINY.d_model)
    torch.testing.assert_close(linear(x), whole)


# Loading


class OneByOne(Lazy[Stored | Quantized]):
    """Tensors that are made when they are asked for; says which were, and how many lie in memory at once."""

    def __init__(self, names: Mapping[str, Any], make: Callable[[str], Stored | Quantized]) -> None:
        super().__init__(names)
        self._make = make
        self.asked: list[str] = []
        self.alive: set[str] = set()
        self.most = 0

    def __getitem__(self, name: str) -> Stored | Quantized:
        self.asked.append(name)
        tensor = self._make(name)
        array = tensor.array if isinstance(tensor, Stored) else tensor.codes
        self.alive.add(name)
        weakref.finalize(array, self.alive.discard, name)
        self.most = max(self.most, sum(1 for other in self.alive if not other.endswith("bias")))
        return tensor


class Made(TorchDispatchMode):
    """Address and bytes of the memory behind every tensor that was made within."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[tuple[int, int]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self.found.add(memory_of(tensor))
        return result


def memory_of(tensor: Tensor) -> tuple[int, int]:
    return tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()


@pytest.fixture
def device_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the CPU a device whose memory is not the host's, and pieces small."""
    monkeypatch.setattr(torch_transfer, "is_host", lambda device: False)
    monkeypatch.setattr(torch_transfer, "PIECE", 4096)
    yield


WIDE = ModelConfig(n_layers=6, n_heads=4, d_model=128, d_ff=512, n_vocab=512, n_ctx=64, rotary_dim=8)


@pytest.mark.parametrize("dtype", ["float32", "float16", *FORMATS])
def test_weights_are_loaded_one_by_one(dtype: str, device_memory: None) -> None:
    floats = floats_of(WIDE)
    tensors = OneByOne(WIDE.tensor_shapes(), lambda name: Stored("bfloat16", floats[name].array.copy()))
    TorchRunner(WIDE, tensors, dtype)
    gc.collect()
    assert sorted(tensors.asked) == sorted(WIDE.tensor_shapes()), "each once"
    assert tensors.most == 1 and not tensors.alive


@pytest.mark.parametrize("dtype", ["float32", "float16", *FORMATS])
def test_loading_takes_the_model_and_a_piece(dtype: str, device_memory: None) -> None:
    floats = floats_of(WIDE)
    with Made() as made:
        runner = TorchRunner(WIDE, floats, dtype)
    model = runner._model
    held = {memory_of(x) for x in (*model.parameters(), *model.buffers(), *runner._cache.layers)}
    passing = {n_bytes for _, n_bytes in made.found - held}
    assert max(n_bytes for _, n_bytes in held) > 60_000
    assert max(passing) <= 4 * 4096, "pieces, and rotary tables"


def test_nothing_is_drawn_for_a_model_that_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device that would import torch's compiler."""
    for name in ("_no_grad_normal_", "_no_grad_uniform_"):
        monkeypatch.setattr(torch.nn.init, name, None)
    with pytest.raises(TypeError):
        torch.nn.Embedding(2, 2)
    TorchRunner(TINY, floats_of(TINY), "float32")


def test_pieces_make_up_the_tensor(device_memory: None) -> None:
    for shape in ((3, 7), (1,), (500, 33), (0,)):
        array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        found = torch_transfer.placed(array, torch.device("cpu"), torch.float16)
        assert found.dtype == torch.float16
        np.testing.assert_array_equal(found.numpy(), array.astype(np.float16))
        assert torch_transfer.placed(array, torch.device("cpu")).dtype == torch.float32
    bits = stored(np.ones((4, 4), np.float32), "bfloat16").array
    assert torch_transfer.placed(bits, torch.device("cpu")).dtype == torch.bfloat16


# Which arithmetic


PLAIN_CHOICE = (torch_linear.plain_product, gpu_choice.NEVER)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[torch.device]]:
    """GPUs of these compute capabilities."""

    def made(*capabilities: tuple[int, int]) -> list[torch.device]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capabilities[device.index])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
        return [torch.device("cuda", i) for i in range(len(capabilities))]

    return made


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def broken_driver(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Triton as where it finds no C compiler: installed, and without a driver."""

    class Driver:
        @property
        def active(self) -> Any:
            raise error

    triton = ModuleType("triton")
    triton.runtime = SimpleNamespace(driver=Driver())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton", triton)
    monkeypatch.setattr(gpu_choice, "has_triton", lambda: True)


def test_a_gpu_without_triton_says_what_is_slow(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, cards: Any
) -> None:
    monkeypatch.setattr(gpu_choice, "has_triton", lambda: False)
    assert gpu_choice.choose(TINY, "int8", cards((9, 0))) == PLAIN_CHOICE
    (line,) = lines(caplog)
    assert "int8" in line and "kogpt[triton]" in line and "--dtype float16" in line
    caplog.clear()
    assert gpu_choice.choose(TINY, "float16", cards((9, 0))) == PLAIN_CHOICE
    (line,) = lines(caplog)
    assert "float16" in line and "--dtype" not in line
    caplog.clear()
    assert gpu_choice.choose(TINY, "float16", cards((8, 6))) == PLAIN_CHOICE  # that uses none of the kernels
    assert not lines(caplog)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable"),
        subprocess.CalledProcessError(1, ["gcc", "main.c"]),
        FileNotFoundError("/sbin/ldconfig"),
        AssertionError("libcuda.so cannot found!\nPlease make sure GPU is set up"),
        ImportError("libtriton.so: version `GLIBC_2.38' not found"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("dtype", ["int8", "int4", "float16"])
def test_triton_that_can_compile_nothing_is_as_none(
    dtype: str,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    cards: Any,
) -> None:
    broken_driver(monkeypatch, error)
    assert gpu_choice.choose(TINY, dtype, cards((9, 0))) == PLAIN_CHOICE
    (line,) = lines(caplog)
    assert dtype in line and str(error).partition("\n")[0] in line and "install a C compiler" in line
    found = gpu_choice.obstacle((9, 0))
    assert found is not None
    assert "python3-dev" in gpu_choice.without_kernels(dtype, found)[1]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("capabilities", [[(7, 5)], [(7, 0)], [(9, 0), (7, 5)]])
def test_codes_on_an_older_gpu_are_multiplied_by_torch(
    dtype: str, capabilities: Any, caplog: pytest.LogCaptureFixture, cards: Any
) -> None:
    assert gpu_choice.choose(TINY, dtype, cards(*capabilities)) == PLAIN_CHOICE
    (line,) = lines(caplog)
    oldest = "{}.{}".format(*min(capabilities))
    assert f"capability 8.0, this one has {oldest}): choose --dtype float16" in line
    found = gpu_choice.obstacle(min(capabilities))
    assert found is not None and oldest in gpu_choice.without_kernels(dtype, found)[1]


def test_nothing_is_said_on_a_cpu(caplog: pytest.LogCaptureFixture, cards: Any) -> None:
    cpu = torch.device("cpu")
    for devices in ([cpu], [*cards((9, 0)), cpu]):  # kernels read no tensor on a CPU
        assert gpu_choice.choose(TINY, "int8", devices) == PLAIN_CHOICE
    assert not caplog.records


def test_the_table_says_which_steps_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, plain = {1: 1.0, 2: 1.0, 8: 3.0, 64: 4.0}, {1: 2.0, 2: 1.5, 8: 2.0, 64: 5.0}
    assert gpu_choice.compare(kernels, {}, plain) == (2, False)
    assert gpu_choice.compare(kernels, {2: 0.9, 64: 3.0}, plain) == (1, True)
    assert gpu_choice.compare(kernels, {64: 6.0}, plain) == (2, False)
    assert gpu_choice.compare({1: 1.0}, {}, {1: 1.0}) == gpu_choice.compare({}, {}, {1: 2.0}) == (0, False)
    monkeypatch.setattr(gpu_choice, "MEASURED", {((9, 0), "float16"): gpu_choice.Measured(4)})
    assert [gpu_choice.measured((9, 0), d).kernels for d in ("float16", "int8", "float32")] == [4, 16, 0]
    assert gpu_choice.measured((8, 0), "float16") == gpu_choice.UNMEASURED


def test_a_pass_with_adapters_takes_steps_that_know_them() -> None:
    few, many = PLAIN._replace(by_length=True), PLAIN
    plan = StepPlan(few, 4, many)
    taken = [plan.steps(n, adapted) for n, adapted in ((4, False), (8, False), (4, True))]
    assert [steps.by_length for steps in taken] == [True, False, False]


def test_q_k_and_v_are_one_matrix_where_they_were_joined() -> None:
    attn = Attention(TINY)
    linears = (attn.q_proj, attn.k_proj, attn.v_proj)
    weights = [linear.weight.detach().clone() for linear in linears]
    assert joined_weight(linears) is None
    join_weights(attn)
    joined = joined_weight(linears)
    assert joined is not None and torch.equal(joined, torch.cat(weights))
    assert all(torch.equal(linear.weight, weight) for linear, weight in zip(linears, weights, strict=True))
    assert joined_weight(linears[::-1]) is None


def test_joined_weights_read_the_same() -> None:
    """Prompts and steps, with an adapter on one of q, k and v and without."""
    tensors = floats_of(TINY)
    joined = TorchRunner(TINY, tensors)
    blocks: Any = joined._model.transformer.h
    for block in blocks:
        join_weights(block.attn)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(size).astype(np.float32) for size in ((2, TINY.d_model), (TINY.d_model, 2)))
    lora = Lora({"transformer.h.0.attn.k_proj": LowRank(a, b, 1.0)})
    ids = rng.integers(0, TINY.n_vocab, 20)

    def read(runner: Runner) -> Array:
        rows = [runner.open(adapter) for adapter in (None, runner.add_adapter(lora))]
        pieces = [[Chunk(row, ids[some]) for row in rows] for some in (slice(0, 19), slice(19, 20))]
        return np.concatenate([logits for chunks in pieces for logits in runner.forward(chunks)])

    np.testing.assert_allclose(read(joined), read(NumpyRunner(TINY, tensors)), rtol=0, atol=2e-5)
