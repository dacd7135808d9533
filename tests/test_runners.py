"""One suite over all runners: whatever the schedule, logits are those of the naive forward pass.

A new runner joins by one line in runners.KINDS. Parity with transformers is in test_parity.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import TINY, random_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import Reference, changes
from runners import KINDS, Kind, pretend_free, stored

from kogpt import numpy_runner
from kogpt.adapter import Lora, LowRank
from kogpt.config import ModelConfig
from kogpt.errors import KoGPTError, NotEnoughMemory
from kogpt.gpu_choice import NEVER
from kogpt.numpy_runner import NumpyRunner
from kogpt.runner import Chunk, Runner
from kogpt.sampling import Draw, Sampling, Wanted, choose
from kogpt.torch_runner import TorchRunner

Ids = NDArray[np.int64]
TENSORS = random_tensors(TINY)
REFERENCE = Reference(TINY, TENSORS)
# Long enough that every cache has to grow, several times.
IDS: Ids = np.random.default_rng(1).integers(0, TINY.n_vocab, (4, 100))
WANTED = [REFERENCE.logits(ids) for ids in IDS]

SHAPES = {
    "one head, all of it turned": ModelConfig(
        n_layers=1, n_heads=1, d_model=16, d_ff=24, n_vocab=33, n_ctx=32, rotary_dim=16
    ),
    "odd widths, tied head": ModelConfig(
        n_layers=2, n_heads=3, d_model=42, d_ff=77, n_vocab=101, n_ctx=37, rotary_dim=2, tied_head=True
    ),
    "heads of 256, as the 6B": ModelConfig(
        n_layers=2,
        n_heads=2,
        d_model=512,
        d_ff=300,
        n_vocab=97,
        n_ctx=64,
        rotary_dim=64,
        layer_norm_epsilon=0.01,
    ),
}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def runner(kind: Kind) -> Runner:
    return kind.make(TINY, TENSORS)


def assert_logits(found: NDArray[Any], wanted: NDArray[np.float64], kind: Kind) -> None:
    assert found.dtype == (np.float64 if kind.dtype == "float64" else np.float32)
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=kind.tolerance)


def read(runner: Runner, ids: Ids) -> int:
    row = runner.open()
    runner.forward([Chunk(row, ids, 0)])
    return row


# Arithmetic


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_of_every_shape(kind: Kind, shape: ModelConfig) -> None:
    tensors = random_tensors(shape)
    runner = kind.make(shape, tensors)
    reference = Reference(shape, tensors)
    batch = [np.arange(n) % shape.n_vocab for n in (9, 1, 17)]
    chunks = [Chunk(runner.open(), ids, len(ids)) for ids in batch]
    for ids, logits in zip(batch, runner.forward(chunks), strict=True):
        assert_logits(logits, reference.logits(ids), kind)


def test_hidden_is_what_the_head_reads(runner: Runner, kind: Kind) -> None:
    hidden = runner.hidden([Chunk(runner.open(), IDS[0], 3), Chunk(runner.open(), IDS[1, :5], 0)])
    assert_logits(hidden[0], REFERENCE.hidden(IDS[0])[-3:], replace(kind, tolerance=4 * kind.tolerance))
    assert hidden[1].shape == (0, TINY.d_model)


def test_only_the_last_outputs_are_given(runner: Runner, kind: Kind) -> None:
    chunks = [Chunk(runner.open(), IDS[i, :20], n) for i, n in enumerate((0, 1, 20))]
    none, one, all_ = runner.forward(chunks)
    assert none.shape == (0, TINY.n_vocab)
    assert_logits(one, WANTED[1][19:20], kind)
    assert_logits(all_, WANTED[2][:20], kind)
    assert runner.forward([Chunk(chunks[0].row, IDS[0, 20:22], 0)])[0].shape == (0, TINY.n_vocab)


def test_scores_beyond_the_range_of_exp(kind: Kind) -> None:
    """exp(89) overflows float32: the softmax has to be taken relative to the largest score."""
    tensors = {name: 30 * array if "q_proj" in name else array for name, array in TENSORS.items()}
    runner = kind.make(TINY, tensors)
    (logits,) = runner.forward([Chunk(runner.open(), IDS[0, :20], 20)])
    assert np.isfinite(logits).all()
    if kind.dtype == "float64":
        assert_logits(logits, Reference(TINY, tensors).logits(IDS[0, :20]), replace(kind, tolerance=1e-10))


# The same ids on other ways


def test_one_token_at_a_time(runner: Runner, kind: Kind) -> None:
    row = runner.open()
    logits = [runner.forward([Chunk(row, IDS[0, i : i + 1])])[0] for i in range(100)]
    assert_logits(np.concatenate(logits), WANTED[0], kind)


@pytest.mark.parametrize("size", [7, 32, 33])
def test_in_chunks(runner: Runner, kind: Kind, size: int) -> None:
    row = runner.open()
    pieces = [IDS[0, i : i + size] for i in range(0, 100, size)]
    logits = [runner.forward([Chunk(row, piece, len(piece))])[0] for piece in pieces]
    assert_logits(np.concatenate(logits), WANTED[0], kind)


def test_decoding_beside_rows_of_other_lengths(runner: Runner, kind: Kind) -> None:
    starts = (90, 3, 41, 20)
    rows = [read(runner, ids[:start]) for ids, start in zip(IDS, starts, strict=True)]
    order = (0, 2, 1, 3)  # not the order in which they were opened
    for step in range(9):
        at = [starts[i] + step for i in order]
        logits = runner.forward([Chunk(rows[i], IDS[i, t : t + 1]) for i, t in zip(order, at, strict=True)])
        for i, t, found in zip(order, at, logits, strict=True):
            assert_logits(found, WANTED[i][t : t + 1], kind)


def test_decoding_beside_a_prompt_that_is_being_read(runner: Runner, kind: Kind) -> None:
    writing = [read(runner, IDS[i, :60]) for i in (0, 1)]
    reading = read(runner, IDS[2, :10])
    chunks = [
        Chunk(writing[0], IDS[0, 60:61]),
        Chunk(reading, IDS[2, 10:40], 30),
        Chunk(writing[1], IDS[1, 60:61]),
    ]
    first, prompt, second = runner.forward(chunks)
    assert_logits(first, WANTED[0][60:61], kind)
    assert_logits(prompt, WANTED[2][10:40], kind)
    assert_logits(second, WANTED[1][60:61], kind)


def test_soft_prompt(runner: Runner, kind: Kind) -> None:
    embeddings = REFERENCE.embeddings(IDS[0, :20]).astype(np.float32)
    chunks = [Chunk(runner.open(), IDS[1, :4]), Chunk(runner.open(), embeddings, 20)]
    logits = runner.forward(chunks)
    assert_logits(logits[0], WANTED[1][3:4], kind)
    assert_logits(logits[1], WANTED[0][:20], kind)
    after = runner.forward([Chunk(chunks[1].row, IDS[0, 20:50], 30)])[0]
    assert_logits(after, WANTED[0][20:50], kind)


def test_soft_prompt_that_is_no_row_of_the_embedding(runner: Runner, kind: Kind) -> None:
    embeddings = np.random.default_rng(2).standard_normal((6, TINY.d_model)).astype(np.float32)
    (logits,) = runner.forward([Chunk(runner.open(), embeddings, 6)])
    assert_logits(logits, REFERENCE.logits(embeddings), kind)


# Rows


@pytest.mark.parametrize("length", [None, 0, 1, 32, 50])
def test_fork(runner: Runner, kind: Kind, length: int | None) -> None:
    parent = read(runner, IDS[0, :50])
    child = runner.fork(parent, length)
    start = 50 if length is None else length
    assert (runner.length(parent), runner.length(child)) == (50, start)
    (logits,) = runner.forward([Chunk(child, IDS[0, start:80], 80 - start)])
    assert_logits(logits, WANTED[0][start:80], kind)


def test_siblings_never_see_each_other(runner: Runner, kind: Kind) -> None:
    prefix = read(runner, IDS[0, :40])
    family = [prefix, runner.fork(prefix), runner.fork(prefix, 25)]
    texts = [IDS[0], np.concatenate([IDS[0, :40], IDS[1, 40:]]), np.concatenate([IDS[0, :25], IDS[2, 25:]])]
    wanted = [REFERENCE.logits(text[:46]) for text in texts]
    for _ in range(6):
        at = [runner.length(row) for row in family]
        chunks = [Chunk(r, text[t : t + 1]) for r, text, t in zip(family, texts, at, strict=True)]
        for found, want, t in zip(runner.forward(chunks), wanted, at, strict=True):
            assert_logits(found, want[t : t + 1], kind)


def test_a_child_outlives_its_parent(runner: Runner, kind: Kind) -> None:
    parent = read(runner, IDS[0, :40])
    child = runner.fork(parent)
    runner.close(parent)
    other = read(runner, IDS[1, :40])  # takes the parent's place
    assert other == parent
    assert_logits(runner.forward([Chunk(child, IDS[0, 40:41])])[0], WANTED[0][40:41], kind)


def test_handles_are_reused_and_come_back_empty(runner: Runner, kind: Kind) -> None:
    rows = [read(runner, IDS[0, :n]) for n in (5, 6, 7)]
    assert rows == [0, 1, 2]
    runner.close(1)
    assert runner.open() == 1
    assert runner.length(1) == 0
    assert runner.open() == 3
    assert_logits(runner.forward([Chunk(1, IDS[1, :30], 30)])[0], WANTED[1][:30], kind)
    assert [runner.length(row) for row in range(4)] == [5, 30, 7, 0]


def test_a_diverged_row_leaves_nothing_behind(runner: Runner, kind: Kind) -> None:
    long = read(runner, IDS[0, :60])
    diverged = runner.open()
    with np.errstate(invalid="ignore"):
        runner.forward([Chunk(diverged, np.full((50, TINY.d_model), np.nan, np.float32))])
    runner.close(diverged)
    fresh = read(runner, IDS[1, :10])
    chunks = [Chunk(long, IDS[0, 60:61]), Chunk(fresh, IDS[1, 10:11])]
    for found, want in zip(runner.forward(chunks), (WANTED[0][60:61], WANTED[1][10:11]), strict=True):
        assert_logits(found, want, kind)


def test_a_fork_from_before_the_divergence_is_sound(
    runner: Runner, kind: Kind, request: pytest.FixtureRequest
) -> None:
    parent = read(runner, IDS[0, :35])
    with np.errstate(invalid="ignore"):
        runner.forward([Chunk(parent, np.full((20, TINY.d_model), np.nan, np.float32))])
    child = runner.fork(parent, 33)
    assert_logits(runner.forward([Chunk(child, IDS[0, 33:34])])[0], WANTED[0][33:34], kind)
    runner.truncate(parent, 35)
    assert_logits(runner.forward([Chunk(parent, IDS[0, 35:36])])[0], WANTED[0][35:36], kind)


def test_a_row_may_fill_the_context(runner: Runner) -> None:
    row = runner.open()
    ids = np.arange(TINY.n_ctx)
    runner.forward([Chunk(row, ids[:-1], 0)])
    runner.forward([Chunk(row, ids[-1:])])
    assert runner.length(row) == TINY.n_ctx
    with pytest.raises(AssertionError):
        runner.forward([Chunk(row, ids[:1])])
    assert runner.length(row) == TINY.n_ctx


def test_misuse_is_an_assertion(runner: Runner) -> None:
    row = read(runner, IDS[0, :5])
    misuses = [
        lambda: runner.forward([]),
        lambda: runner.forward([Chunk(row, IDS[0, :1]), Chunk(row, IDS[0, :1])]),
        lambda: runner.forward([Chunk(row, IDS[0, :0], 0)]),
        lambda: runner.forward([Chunk(row, IDS[0, :2], 3)]),
        lambda: runner.forward([Chunk(7, IDS[0, :2])]),
        lambda: runner.fork(row, 6),
        lambda: runner.fork(7),
        lambda: runner.length(7),
        lambda: runner.close(7),
    ]
    for misuse in misuses:
        with pytest.raises(AssertionError):
            misuse()  # type: ignore[no-untyped-call]  # a lambda
    assert runner.length(row) == 5


@settings(max_examples=25, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", KINDS)
def test_any_schedule(name: str, data: st.DataObject) -> None:
    """Rows opened, forked, cut, closed and extended in any order; every output is that of its ids alone."""
    runner = KINDS[name].make(TINY, TENSORS)
    texts: dict[int, Ids] = {}
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for _ in range(data.draw(st.integers(1, 6))):
        action = data.draw(st.sampled_from(["open", "fork", "truncate", "close"]))
        row = data.draw(st.sampled_from(sorted(texts))) if texts else None
        if action == "close" and row is not None:
            runner.close(row)
            del texts[row]
        elif row is not None and action in ("fork", "truncate"):
            length = data.draw(st.integers(0, len(texts[row])))
            if action == "truncate":
                runner.truncate(row, length)
            texts[runner.fork(row, length) if action == "fork" else row] = texts[row][:length]
        else:
            texts[runner.open()] = np.zeros(0, np.int64)
        rows = data.draw(st.permutations(sorted(texts)))
        sizes = [data.draw(st.sampled_from([1, 1, 2, 11, 20])) for _ in rows]
        chunks = [Chunk(r, rng.integers(0, TINY.n_vocab, n), n) for r, n in zip(rows, sizes, strict=True)]
        for chunk, logits in zip(chunks, runner.forward(chunks) if chunks else [], strict=True):
            texts[chunk.row] = np.concatenate([texts[chunk.row], chunk.inputs])
            assert runner.length(chunk.row) == len(texts[chunk.row])
            assert_logits(logits, REFERENCE.logits(texts[chunk.row])[-len(chunk.inputs) :], KINDS[name])


# Precision and memory


def test_runners_agree_in_float64() -> None:
    """Over a whole context of 2,048 positions: rotary angles must not have been rounded."""
    config = replace(TINY, n_ctx=2048, rotary_dim=16)
    tensors = random_tensors(config)
    ids = np.random.default_rng(3).integers(0, config.n_vocab, 2048)
    logits = []
    for name in ("numpy-float64", "torch-float64"):
        runner = KINDS[name].make(config, tensors)
        row = runner.open()
        pieces = [runner.forward([Chunk(row, ids[i : i + 512], 512)])[0] for i in range(0, 2048, 512)]
        logits.append(np.concatenate(pieces))
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["numpy-float32", "numpy-float64", "torch-float32", "torch-float64"])
def test_checkpoints_of_every_dtype(name: str, dtype: str) -> None:
    rounded = {key: stored(array, dtype) for key, array in TENSORS.items()}
    exact = {key: tensor.to("float64") for key, tensor in rounded.items()}
    runner = KINDS[name].runner(TINY, rounded, KINDS[name].dtype)
    (logits,) = runner.forward([Chunk(runner.open(), IDS[0, :20], 20)])
    assert_logits(logits, Reference(TINY, exact).logits(IDS[0, :20]), KINDS[name])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("tied_head", [False, True])
def test_weights_converted_at_use(monkeypatch: pytest.MonkeyPatch, dtype: str, tied_head: bool) -> None:
    """Where memory is short the numpy runner keeps the file's pages and converts a block at a time."""
    config = replace(TINY, tied_head=tied_head)
    tensors = {key: stored(array, dtype) for key, array in random_tensors(config).items()}
    roomy = NumpyRunner(config, tensors)
    weight_bytes = sum(tensor.array.nbytes for tensor in tensors.values())
    monkeypatch.setattr(numpy_runner, "available_memory", lambda: int(0.8 * weight_bytes))
    monkeypatch.setattr(numpy_runner, "BLOCK", 7 * 64)  # 7 rows or 1: no divisor of the heights
    short = NumpyRunner(config, tensors)
    assert short._tensors["transformer.h.1.mlp.fc_in.weight"] is tensors["transformer.h.1.mlp.fc_in.weight"]
    assert roomy._tensors["transformer.h.1.mlp.fc_in.weight"].dtype == "float32"
    logits = [r.forward([Chunk(r.open(), IDS[0, :20], 20)])[0] for r in (roomy, short)]
    np.testing.assert_allclose(logits[0], logits[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tied_head", [False, True])
def test_torch_uses_the_pages_of_the_file(dtype: str, tied_head: bool) -> None:
    config = replace(TINY, tied_head=tied_head)
    tensors = {key: stored(array, dtype) for key, array in random_tensors(config).items()}
    state = TorchRunner(config, tensors, dtype)._model.state_dict()
    for key, tensor in tensors.items():
        assert state[key].data_ptr() == tensor.array.ctypes.data, key
    tied = state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()
    assert tied == tied_head


def test_tensors_at_odd_addresses(kind: Kind) -> None:
    """Files from before 2023 do not align their tensors."""

    def misaligned(array: NDArray[np.float32]) -> NDArray[np.float32]:
        raw = np.frombuffer(b"\0" + array.tobytes(), np.uint8)[1:]
        return raw.view(np.float32).reshape(array.shape)

    runner = kind.make(TINY, {key: misaligned(array) for key, array in TENSORS.items()})
    (logits,) = runner.forward([Chunk(runner.open(), IDS[0, :20], 20)])
    assert_logits(logits, WANTED[0][:20], kind)
    if isinstance(runner, TorchRunner):
        assert all(weight.data_ptr() % 4 == 0 for weight in runner._model.parameters())


def test_unknown_dtype_is_refused(kind: Kind) -> None:
    with pytest.raises(KoGPTError, match=r"'int7'.*float32"):
        replace(kind, dtype="int7").make(TINY, TENSORS)


@pytest.mark.parametrize("device", ["cuda:99", "cuda:", "gpu"])
def test_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(KoGPTError, match="--device cpu"):
        TorchRunner(TINY, {}, "float32", device)


def test_model_that_does_not_fit_is_refused(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_free(monkeypatch, lambda device: 10_000)
    with pytest.raises(NotEnoughMemory) as error:
        kind.make(TINY, TENSORS)
    assert "10 kB is free" in error.value.en and "--dtype" in error.value.en and "--dtype" in error.value.ko


def test_cache_that_does_not_fit_is_refused(
    runner: Runner, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    row, other = read(runner, IDS[0, :10]), runner.open()
    with monkeypatch.context() as short:
        pretend_free(short, lambda device: 1_000)
        with pytest.raises(NotEnoughMemory) as error:  # together more than n_ctx, for which a GPU has room
            runner.forward([Chunk(row, IDS[0, 10:90]), Chunk(other, IDS[1, :90])])
    assert "tokens" in error.value.en
    assert runner.length(other) == 0
    assert runner.length(row) == 10
    assert_logits(runner.forward([Chunk(row, IDS[0, 10:90])])[0], WANTED[0][89:90], kind)


# Adapters

ATTENTION = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj")
ALL_MATRICES = (*ATTENTION, "mlp.fc_in", "mlp.fc_out")


def random_lora(seed: int, rank: int, matrices: tuple[str, ...] = ALL_MATRICES) -> Lora:
    """Updates of about a third of the size of TINY's weights."""
    rng = np.random.default_rng(seed)
    updates = {}
    for name in (f"transformer.h.{layer}.{m}" for layer in range(TINY.n_layers) for m in matrices):
        n, k = TENSORS[f"{name}.weight"].shape
        a, b = rng.standard_normal((rank, k)) * k**-0.5, rng.standard_normal((n, rank))
        updates[name] = LowRank(a.astype(np.float32), b.astype(np.float32), 0.3 / rank**0.5)
    return Lora(updates)


def merged(lora: Lora | None) -> Mapping[str, NDArray[Any]]:
    """The model's tensors with the updates added, in float64."""
    tensors: dict[str, NDArray[Any]] = dict(TENSORS)
    for name, update in lora.updates.items() if lora else ():
        product = update.b.astype(np.float64) @ update.a.astype(np.float64)
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + update.scale * product
    return tensors


LORAS = [random_lora(1, 3), random_lora(2, 16), random_lora(3, 1, ("attn.q_proj", "mlp.fc_out"))]
MERGED = [Reference(TINY, merged(lora)) for lora in LORAS]


def test_adapters_side_by_side_are_each_row_alone_with_merged_weights(runner: Runner, kind: Kind) -> None:
    handles = [None, *(runner.add_adapter(lora) for lora in LORAS)]
    assert handles == [None, 0, 1, 2]
    references = [REFERENCE, *MERGED]
    order = [2, 0, 1, 3, 1, 0]  # of one adapter two rows, of none two
    rows = [runner.open(handles[i]) for i in order]
    texts = IDS[[0, 1, 2, 3, 1, 2]]
    wanted = [references[i].logits(text[:26]) for i, text in zip(order, texts, strict=True)]
    starts = [9, 1, 20, 4, 20, 9]
    chunks = [Chunk(r, text[:n], n) for r, text, n in zip(rows, texts, starts, strict=True)]
    for found, want, n in zip(runner.forward(chunks), wanted, starts, strict=True):
        assert_logits(found, want[:n], kind)
    for step in range(6):
        at = [n + step for n in starts]
        chunks = [Chunk(r, text[t : t + 1]) for r, text, t in zip(rows, texts, at, strict=True)]
        for found, want, t in zip(runner.forward(chunks), wanted, at, strict=True):
            assert_logits(found, want[t : t + 1], kind)


def test_a_fork_keeps_the_adapter(runner: Runner, kind: Kind) -> None:
    plain, adapter = None, runner.add_adapter(LORAS[0])
    for handle, reference in ((plain, REFERENCE), (adapter, MERGED[0])):
        parent = runner.open(handle)
        runner.forward([Chunk(parent, IDS[0, :40], 0)])
        child = runner.fork(parent, 33)
        runner.close(parent)
        (logits,) = runner.forward([Chunk(child, IDS[0, 33:50], 17)])
        assert_logits(logits, reference.logits(IDS[0, :50])[33:], kind)
        runner.close(child)


def test_bits_do_not_depend_on_the_adapters_of_the_neighbours(runner: Runner) -> None:
    handles = [None, *(runner.add_adapter(lora) for lora in LORAS)]
    for own in handles:
        found = []
        for beside in ([None, None, None], [handles[2], None, handles[1]], [own, handles[3], own]):
            rows = [runner.open(adapter) for adapter in (beside[0], own, *beside[1:])]
            prompts = [Chunk(r, IDS[i, : 5 + i], 5 + i) for i, r in enumerate(rows)]
            steps = [[Chunk(r, IDS[i, t : t + 1]) for i, r in enumerate(rows)] for t in range(20, 24)]
            found.append([runner.forward(chunks)[1] for chunks in (prompts, *steps)])
            for row in rows:
                runner.close(row)
        for logits in found[1:]:
            for one, other in zip(found[0], logits, strict=True):
                np.testing.assert_array_equal(one, other)


def test_handles_of_adapters_are_reused(runner: Runner, kind: Kind) -> None:
    handles = [runner.add_adapter(lora) for lora in LORAS]
    runner.drop_adapter(handles[1])
    assert runner.add_adapter(LORAS[2]) == handles[1]
    row = runner.open(handles[1])
    (logits,) = runner.forward([Chunk(row, IDS[0, :20], 20)])
    assert_logits(logits, MERGED[2].logits(IDS[0, :20]), kind)


def test_misuse_of_adapters_is_an_assertion(runner: Runner) -> None:
    adapter = runner.add_adapter(LORAS[0])
    row = runner.open(adapter)
    fork = runner.fork(row)
    runner.close(row)
    for misuse in (
        lambda: runner.open(7),
        lambda: runner.drop_adapter(7),
        lambda: runner.drop_adapter(adapter),  # the fork uses it
    ):
        with pytest.raises(AssertionError):
            misuse()
    runner.close(fork)
    runner.drop_adapter(adapter)
    with pytest.raises(AssertionError):
        runner.open(adapter)


@pytest.mark.parametrize(
    ("name", "shapes", "message"),
    [
        ("transformer.h.3.attn.q_proj", ((2, 64), (64, 2)), r"h\.3\.attn\.q_proj.*tuned on this model"),
        ("transformer.h.0.attn.c_attn", ((2, 64), (64, 2)), r"c_attn"),
        ("transformer.h.0.ln_1", ((2, 64), (64, 2)), r"ln_1"),
        ("transformer.wte", ((2, 64), (512, 2)), r"wte"),
        ("transformer.h.0.attn.q_proj", ((2, 65), (64, 2)), r"\(2, 65\).*\(rank, 64\)"),
        ("transformer.h.0.attn.q_proj", ((2, 64), (63, 2)), r"\(63, 2\).*\(64, rank\)"),
        ("transformer.h.0.mlp.fc_in", ((2, 64), (256, 3)), r"\(256, 3\).*\(256, rank\)"),
    ],
)
def test_adapters_of_other_models_are_refused(
    runner: Runner, name: str, shapes: tuple[tuple[int, int], tuple[int, int]], message: str
) -> None:
    a, b = (np.ones(shape, np.float32) for shape in shapes)
    with pytest.raises(KoGPTError, match=message) as error:
        runner.add_adapter(Lora({**LORAS[0].updates, name: LowRank(a, b, 1.0)}))
    assert "어댑터" in error.value.ko and name in error.value.ko
    assert runner.add_adapter(LORAS[0]) == 0  # nothing is left of the refused one


# Given keys and values


@pytest.mark.parametrize("length", [1, 32, 45])
def test_given_keys_and_values_are_as_good_as_read_ones(runner: Runner, kind: Kind, length: int) -> None:
    keys, values = (x.astype(np.float32) for x in REFERENCE.keys_values(IDS[0, :length]))
    row = runner.open()
    runner.load_cache(row, keys, values)
    assert runner.length(row) == length
    fork = runner.fork(row)
    precise = replace(kind, tolerance=max(kind.tolerance, 1e-5))  # the given ones are float32
    (logits,) = runner.forward([Chunk(row, IDS[0, length:60], 60 - length)])
    assert_logits(logits, WANTED[0][length:60], precise)
    runner.truncate(fork, length - 1)
    (logits,) = runner.forward([Chunk(fork, IDS[0, length - 1 : 60], 61 - length)])
    assert_logits(logits, WANTED[0][length - 1 : 60], precise)


def test_keys_and_values_may_come_after_a_text_and_one_another(runner: Runner, kind: Kind) -> None:
    keys, values = (x.astype(np.float32) for x in MERGED[0].keys_values(IDS[0, :50]))
    row = runner.open(runner.add_adapter(LORAS[0]))
    runner.forward([Chunk(row, IDS[0, :10], 0)])
    for start, end in ((10, 37), (37, 50)):
        runner.load_cache(row, keys[:, start:end], values[:, start:end])
    (logits,) = runner.forward([Chunk(row, IDS[0, 50:70], 20)])
    precise = replace(kind, tolerance=max(kind.tolerance, 1e-5))
    assert_logits(logits, MERGED[0].logits(IDS[0, :70])[50:], precise)


def test_misuse_of_given_keys_is_an_assertion(runner: Runner) -> None:
    row = runner.open()
    shape = (TINY.n_layers, 4, TINY.n_heads, TINY.d_head)
    four = np.zeros(shape, np.float32)
    long = np.zeros((TINY.n_layers, TINY.n_ctx + 1, *shape[2:]), np.float32)
    for handle, keys, values in (
        (7, four, four),
        (row, four, four[:, :3]),
        (row, four[1:], four[1:]),
        (row, four[..., :3], four[..., :3]),
        (row, long, long),
    ):
        with pytest.raises(AssertionError):
            runner.load_cache(handle, keys, values)
    assert runner.length(row) == 0


# Truncation and room


def test_a_truncated_row_goes_on_as_if_it_had_never_read_further(runner: Runner, kind: Kind) -> None:
    row = read(runner, IDS[0, :90])
    fork = runner.fork(row)
    for length in (64, 41, 40, 3, 0):
        runner.truncate(row, length)
        assert runner.length(row) == length
        (logits,) = runner.forward([Chunk(row, IDS[1, :7], 7)])
        wanted = REFERENCE.logits(np.concatenate([IDS[0, :length], IDS[1, :7]]))[-7:]
        assert_logits(logits, wanted, kind)
    assert_logits(runner.forward([Chunk(fork, IDS[0, 90:])])[0], WANTED[0][-1:], kind)


def test_room_follows_the_free_memory(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 10**9
    pretend_free(monkeypatch, lambda device: free)
    room = runner.room()
    assert room is not None and 0 < room <= 10**9 / (2 * TINY.n_layers * TINY.d_model)
    free = 0
    assert runner.room() == 0


@pytest.mark.parametrize("name", KINDS)
def test_weight_bytes_are_near_the_weights(name: str) -> None:
    n_bytes = KINDS[name].make(TINY, TENSORS).weight_bytes(TINY, KINDS[name].dtype)
    assert 0.2 * TINY.n_parameters < n_bytes <= 8 * TINY.n_parameters


# Choosing tokens


@settings(max_examples=10, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", KINDS)
def test_draw_chooses_what_sampling_chooses_from_the_same_logits(name: str, data: st.DataObject) -> None:
    runner = KINDS[name].make(TINY, TENSORS)
    if isinstance(runner, TorchRunner):
        runner.use_plan(NEVER)  # one row alone and among others: the same steps, and so the same logits
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    rows = [runner.open() for _ in sizes]
    twins = [runner.fork(row) for row in rows]
    chunks = [Chunk(row, IDS[i, :n], n) for i, (row, n) in enumerate(zip(rows, sizes, strict=True))]
    wanted = [data.draw(wishes(n)) for n in sizes]
    answers = runner.draw(chunks, wanted)
    logits = runner.forward([chunk._replace(row=twin) for chunk, twin in zip(chunks, twins, strict=True)])
    for answer, own, want in zip(answers, logits, wanted, strict=True):
        twin = choose(own, want)
        assert [t and t.token for t in answer.tokens] == [t and t.token for t in twin.tokens]
        for found, wished in zip(answer.tokens, twin.tokens, strict=True):
            if found and wished:
                assert found.logprob == pytest.approx(wished.logprob, abs=1e-5, nan_ok=True)
                assert_same_top(found.top_logprobs, wished.top_logprobs)
        np.testing.assert_allclose(answer.logprobs, twin.logprobs, rtol=0, atol=1e-5)
        assert answer.likeliest.tolist() == twin.likeliest.tolist()
        for found_top, wished_top in zip(answer.top, twin.top, strict=True):
            assert_same_top(found_top, wished_top)


def assert_same_top(found: Sequence[tuple[int, float]], wished: Sequence[tuple[int, float]]) -> None:
    """The same tokens; equally likely ones, frequent in 16 bits, may change places."""
    np.testing.assert_allclose([p for _, p in found], [p for _, p in wished], rtol=0, atol=1e-5)
    assert len({token for token, _ in found}) == len(found)
    least = min((p for _, p in wished), default=0.0)
    above = [{token for token, p in top if p > least + 1e-5} for top in (found, wished)]
    assert above[0] == above[1]


@st.composite
def wishes(draw: st.DrawFn, n_outputs: int) -> Wanted:
    """Any Wanted of a chunk with so many outputs."""
    draws = draw(st.lists(any_draw(n_outputs), max_size=3))
    n_targets = draw(st.integers(0, 5))
    if not n_targets:
        return Wanted(draws)
    outputs = np.array([draw(st.integers(0, n_outputs - 1)) for _ in range(n_targets)])
    targets = np.array([draw(st.integers(0, TINY.n_vocab - 1)) for _ in range(n_targets)])
    return Wanted(draws, outputs, targets, draw(st.sampled_from([0, 1, 3])))


@st.composite
def any_draw(draw: st.DrawFn, n_outputs: int) -> Draw:
    n_vocab = draw(st.sampled_from([None, TINY.n_vocab, TINY.n_vocab - 3]))
    sampling = Sampling(
        repetition_penalty=draw(st.sampled_from([1.0, 1.3])),
        presence_penalty=draw(st.sampled_from([0.0, 0.4])),
        logit_bias=draw(st.dictionaries(st.integers(0, TINY.n_vocab - 1), st.floats(-3, 3), max_size=3)),
    )
    written = draw(st.dictionaries(st.integers(0, TINY.n_vocab - 4), st.integers(1, 3), max_size=4))
    words = (TINY.n_vocab + 31) // 32
    allowed = draw(st.sampled_from([None, np.full(words, 0x55555555, np.uint32)]))
    return Draw(
        key=draw(st.integers(0, 2**64 - 1)),
        temperature=draw(st.sampled_from([0.0, 0.01, 0.8, 1.0, 5.0])),
        top_k=draw(st.sampled_from([0, 1, 7, 10**6])),
        top_p=draw(st.sampled_from([0.0, 0.5, 0.95, 1.0])),
        min_p=draw(st.sampled_from([0.0, 0.1])),
        n_vocab=n_vocab,
        logprobs=draw(st.sampled_from([None, 0, 4])),
        changes=changes(sampling, np.array([2, 5]), written, n_vocab),
        allowed=allowed,
        output=draw(st.sampled_from([-1, 0, n_outputs - 1])),
    )
