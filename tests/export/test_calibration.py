"""Rounding with a text: how far from the outputs, what the text tells, and the text that a model writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, random_tensors
from numpy.typing import NDArray
from runners import stored

from kogpt import native_runner
from kogpt.checkpoint import Stored
from kogpt.errors import InputError
from kogpt.export import calibration
from kogpt.export import gptq as rounding
from kogpt.export.calibration import Calibrated
from kogpt.export.gptq import Inputs, gptq, inverse_factor
from kogpt.export.own_text import own_text
from kogpt.native_runner import NativeRunner
from kogpt.numpy_runner import NumpyRunner
from kogpt.quantize import CODEBOOK, Quantized
from kogpt.rounding import nearest
from kogpt.runner import Chunk
from kogpt.tokenizer import Tokenizer

pytestmark = pytest.mark.skipif(not native_runner.available(), reason="the kernels were not built")

RNG = np.random.default_rng(0)


def normal(n: int, k: int) -> NDArray[np.float32]:
    return RNG.standard_normal((n, k)).astype(np.float32)


def inputs_like_activations(k: int) -> NDArray[np.float64]:
    """2,000 inputs that hang together."""
    return RNG.standard_normal((2000, 24)) @ RNG.standard_normal((24, k)) + 0.3 * normal(2000, k)


def relative_error(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    return float(np.square(found - wanted).sum() / np.square(wanted).sum())


# ------------------------------------------------------------------------------------------ one matrix


@pytest.mark.parametrize("k", [160, 75])
def test_each_step_lowers_the_error_of_outputs(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = inputs_like_activations(k), normal(48, k)
    found = [nearest(stored(weight), "int4")]
    for sweeps in (0, 1, 3):
        monkeypatch.setattr(rounding, "SWEEPS", sweeps)
        found.append(gptq(weight, Inputs(x.T @ x)))
    errors = [np.square(x @ (matrix.unpack() - weight).T).sum() for matrix in found]
    assert errors[1] < 0.4 * errors[0] and errors[2] < 0.95 * errors[1] and errors[3] < errors[2]
    assert relative_error(found[-1].unpack(), weight) < 0.03
    assert found[-1].nbytes == found[0].nbytes


def test_outputs_are_rounded_each_for_itself() -> None:
    x, weight = inputs_like_activations(64), normal(1100, 64)  # more than one thread's share
    inputs = Inputs(x.T @ x)
    whole, part = gptq(weight, inputs), gptq(weight[500:520], inputs)
    np.testing.assert_allclose(whole.unpack()[500:520], part.unpack(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 64, 65, 200])
def test_factor_of_an_inverse(n: int) -> None:
    x = RNG.standard_normal((n, 2 * n))
    matrix = x @ x.T + np.eye(n)
    factor = inverse_factor(matrix)
    np.testing.assert_array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(factor.T @ factor, np.linalg.inv(matrix), rtol=1e-6, atol=1e-9)


def test_a_group_is_rounded_as_the_slow_twin_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """One output, one input after another: the nearest entry, and its error carried on."""
    moment = np.cov(RNG.standard_normal((32, 100))) + np.eye(32)
    inputs = Inputs(moment.copy())
    weights, scales = normal(5, 32), np.array([[80, -60, 33, -127, 90], [70, -50, 43, -100, 110]])
    rows = rounding._Rows(weights, inputs)
    group = rows._round_group(weights, inputs.triangles[0], scales)
    for n in range(5):
        twins = [slow_group(weights[n], inputs.triangles[0], int(s), rows.unit[n]) for s in scales[:, n]]
        best = int(np.argmin([np.square(errors).sum() for _, errors in twins]))
        assert group.scales[n] == scales[best, n]
        np.testing.assert_array_equal(group.codes[n], twins[best][0])
        np.testing.assert_allclose(group.errors[n], twins[best][1], rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(group.costs[n], np.square(twins[best][1]).sum(), rtol=2e-3)


def slow_group(
    wanted: NDArray[np.float32], triangle: NDArray[np.float32], scale: int, unit: float
) -> tuple[list[int], NDArray[np.float64]]:
    """Codes and errors of one group."""
    left, codes, errors = wanted.astype(np.float64), [], np.zeros(len(wanted))
    for j in range(len(wanted)):
        steps = left[j] / unit * 127 / scale
        code = int(np.abs(steps - np.array(CODEBOOK)).argmin())
        entry = int(np.rint(CODEBOOK[code] * abs(scale) / 127)) * (1 if scale > 0 else -1)
        errors[j] = (left[j] - entry * unit) / triangle[j, j]
        left[j + 1 :] -= errors[j] * triangle[j, j + 1 :]
        codes.append(code)
    return codes, errors


# --------------------------------------------------------------------------------------------- a model


class Exact:
    """What stands in for a rounded matrix that lost nothing, or the same share of each weight."""

    def __init__(self, weight: NDArray[np.float32], share: float = 1.0) -> None:
        self.unpack = lambda: share * weight


def tiny() -> dict[str, Stored]:
    return {name: stored(array) for name, array in random_tensors(TINY).items()}


def test_every_matrix_gets_the_moments_of_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rounding, those of the reference runner's own inputs: every window, every layer."""
    seen: list[NDArray[np.float64]] = []

    class Seen(Inputs):
        def __init__(self, moment: NDArray[np.float64]) -> None:
            seen.append(moment.copy())
            super().__init__(moment)

    monkeypatch.setattr(calibration, "Inputs", Seen)
    monkeypatch.setattr(calibration, "gptq", lambda weight, inputs: Exact(weight))
    ids = RNG.integers(0, TINY.n_vocab, 3 * TINY.n_ctx)
    all_of = Calibrated(TINY, tiny(), ids)
    for name in all_of:
        assert all_of[name] is not None
    runner = NumpyRunner(TINY, tiny())
    rows = ids.reshape(3, TINY.n_ctx)
    hidden = np.concatenate([runner.hidden([Chunk(runner.open(), row, len(row))])[0] for row in rows])
    np.testing.assert_allclose(seen[-1], hidden.T @ hidden, rtol=1e-3, atol=0.5)
    assert [len(moment) for moment in seen] == [TINY.d_model, TINY.d_model, TINY.d_ff] * 3 + [TINY.d_model]


def test_a_matrix_is_rounded_for_what_was_rounded_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values at half their size: the moments of what attention gives are a quarter."""
    seen: dict[float, list[NDArray[np.float64]]] = {1.0: [], 0.5: []}
    ids = RNG.integers(0, TINY.n_vocab, TINY.n_ctx)
    for share, moments in seen.items():
        shares = iter([1.0, 1.0, share])  # q, k, v; then all others

        class Seen(Inputs):
            def __init__(self, moment: NDArray[np.float64], kept: list[Any] = moments) -> None:
                kept.append(moment.copy())
                super().__init__(moment)

        monkeypatch.setattr(calibration, "Inputs", Seen)
        monkeypatch.setattr(
            calibration, "gptq", lambda weight, inputs, left=shares: Exact(weight, next(left, 1.0))
        )
        assert Calibrated(TINY, tiny(), ids)["transformer.h.0.attn.q_proj.weight"] is not None
    whole, half = seen[1.0], seen[0.5]
    np.testing.assert_allclose(half[0], whole[0])
    np.testing.assert_allclose(half[1], 0.25 * whole[1], rtol=1e-4, atol=1e-4)


def test_a_calibrated_model_is_nearer_to_the_float_one() -> None:
    tensors = tiny()
    ids = RNG.integers(0, TINY.n_vocab, 4 * TINY.n_ctx)
    lazy = Calibrated(TINY, tensors, ids)
    packed = {name: lazy[name] for name in lazy}
    wanted, better, plain = (
        runner.forward([Chunk(runner.open(), ids[: TINY.n_ctx], 100)])[0]
        for runner in (
            NumpyRunner(TINY, tensors),
            NativeRunner(TINY, packed, "int4"),
            NativeRunner(TINY, tensors, "int4"),
        )
    )
    assert all(isinstance(packed[f"transformer.h.{i}.mlp.fc_in.weight"], Quantized) for i in range(3))
    assert relative_error(better, wanted) < 0.7 * relative_error(plain, wanted)


def test_a_text_too_short_to_calibrate_on_is_refused() -> None:
    with pytest.raises(InputError, match=f"at least {TINY.n_ctx} are needed"):
        Calibrated(TINY, tiny(), RNG.integers(0, TINY.n_vocab, TINY.n_ctx - 1))


# ---------------------------------------------------------------------------------------- its own text


def test_a_model_writes_its_own_text(tiny_tokenizer: Path) -> None:
    tokenizer = Tokenizer.from_file(tiny_tokenizer)
    runner = NativeRunner(TINY, tiny(), "int8")
    ids = own_text(runner, tokenizer, 600, 40)
    assert 600 <= len(ids) < 600 + 16 * 40 and ids.max() < tokenizer.n_vocab
    starts = np.flatnonzero(ids == tokenizer.document_start[0])
    assert ids[0] == tokenizer.document_start[0] and np.diff(starts).max() <= 40
    assert len(set(ids.tolist())) > 100  # drawn, not the likeliest
    np.testing.assert_array_equal(own_text(runner, tokenizer, 600, 40), ids)
    assert runner.open() == 0  # no row is left behind
