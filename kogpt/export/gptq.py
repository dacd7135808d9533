"""A matrix of floats to int4 by GPTQ (arXiv 2210.17323), then by descent over its groups of inputs.

The error of a rounded output q is (w - q) H (w - q)^T, H the second moments of the inputs. GPTQ rounds one
group of 32 inputs after another, and the inputs that are not yet rounded take up its error. Then each group
is rounded anew in turns, around what would be best for it beside all others as they are (cyclic coordinate
descent). Both choose a group's scale among a few by that error, and both take the inputs in the order of
their size: the largest first, when most others can still make up for them.

Shapes: N outputs, K inputs, P of them padded to whole groups, G = 32 inputs of a group, S scales to try.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kogpt.memory import usable_cpus
from kogpt.quantize import CODEBOOK, GROUP, Quantized, table
from kogpt.rounding import kernels

# Share of the mean second moment, added to all (GPTQ, section 3.3, has 0.01). Weights learn short texts by
# heart: on 4,096 tokens kogpt-mini loses a tenth less with 0.1 than with 0.01 (notes/log.md).
DAMPING = 0.05
SWEEPS = 2  # over all groups
# Scales that are tried, relative to the best by the weights' own errors, or to the group's last one.
FIRST_TRIES = (1.0, 0.94, 1.06, 0.88, 1.13)
NEXT_TRIES = (1.0, 0.97, 1.03, 0.92, 1.08)
ROWS = 512  # outputs that a thread takes at a time: what it works on stays in a core's caches

Floats = NDArray[np.float32]

# The code nearest to a value in units of the codebook. All borders between codes are multiples of 1/2.
LOWEST, PER_UNIT = -128, 2
NEAREST = np.searchsorted(
    (np.array(CODEBOOK[1:]) + CODEBOOK[:-1]) / 2, np.arange(256 * PER_UNIT) / PER_UNIT + LOWEST, "right"
).astype(np.uint8)
ENTRIES = table().astype(np.float32).ravel()


class Inputs:
    """The second moments of what a matrix reads, ready for `gptq`."""

    def __init__(self, moment: NDArray[np.float64]) -> None:
        """moment: (K, K), the sum of x x^T; it is used up."""
        k = len(moment)
        padding = -k % GROUP
        damped = np.pad(moment, (0, padding)) if padding else moment
        diagonal = np.einsum("ii->i", damped)
        diagonal[:k] += DAMPING * max(float(diagonal[:k].mean()), 1e-12)
        diagonal[k:] = float(diagonal[:k].min())
        self.order = _order(diagonal)  # (P,) the input at each place
        damped = damped[np.ix_(self.order, self.order)]
        self.moment: Floats = damped.astype(np.float32)
        self.factor: Floats = inverse_factor(damped).astype(np.float32)  # (P, P)
        starts = range(0, len(damped), GROUP)
        blocks = np.stack([damped[i : i + GROUP, i : i + GROUP] for i in starts])
        self.triangles: Floats = np.stack([inverse_factor(block) for block in blocks]).astype(np.float32)


def gptq(weight: Floats, inputs: Inputs) -> Quantized:
    """Quantise a matrix (N, K) to int4, with small errors where its inputs are large."""
    n, k = weight.shape
    width = len(inputs.order)
    padded = np.zeros((n, width), np.float32)
    padded[:, :k] = weight
    pieces = [_Rows(padded[i : i + ROWS, inputs.order], inputs) for i in range(0, n, ROWS)]
    with ThreadPoolExecutor(usable_cpus()) as pool:
        list(pool.map(_Rows.round, pieces))
    codes, groups = np.empty((n, width), np.uint8), np.empty((n, width // GROUP), np.uint8)
    codes[:, inputs.order] = np.concatenate([piece.codes for piece in pieces])
    groups[:, inputs.order[::GROUP] // GROUP] = np.concatenate([piece.groups for piece in pieces])
    pairs = (codes[:, 0::2] | codes[:, 1::2] << 4)[:, : -(-k // 2)]
    unit = np.concatenate([piece.unit for piece in pieces])
    return Quantized("int4", (n, k), np.ascontiguousarray(pairs), groups, unit)


def inverse_factor(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The upper triangular U of a positive definite matrix with U^T U as its inverse."""
    lower = np.linalg.cholesky(matrix[::-1, ::-1]).astype(np.float64, copy=False)
    return _inverse(lower[::-1, ::-1])


def _inverse(upper: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of an upper triangular matrix, by halves."""
    n = len(upper)
    if n <= 64:
        return np.triu(np.linalg.inv(upper))
    half = n // 2
    inverse = np.zeros_like(upper)
    inverse[:half, :half] = _inverse(upper[:half, :half])
    inverse[half:, half:] = _inverse(upper[half:, half:])
    inverse[:half, half:] = -inverse[:half, :half] @ upper[:half, half:] @ inverse[half:, half:]
    return inverse


def _order(sizes: NDArray[np.float64]) -> NDArray[np.int64]:
    """The groups by falling size, and the inputs of each by falling size."""
    groups = sizes.reshape(-1, GROUP)
    within = np.argsort(-groups, axis=1, kind="stable")
    order = np.argsort(-groups.sum(1), kind="stable")
    places: NDArray[np.int64] = (order[:, None] * GROUP + within[order]).ravel()
    return places


@dataclass(slots=True)
class _Group:
    """A group of inputs of N outputs, rounded with the best of some scales."""

    scales: NDArray[np.int64]  # (N,), below zero where the codebook is mirrored
    codes: NDArray[np.uint8]  # (N, G)
    values: Floats  # (N, G)
    errors: Floats  # (N, G), each in units of what it costs
    costs: Floats  # (N,)


class _Rows:
    """Some outputs while they are rounded; inputs in the order of `Inputs`."""

    def __init__(self, weights: Floats, inputs: Inputs) -> None:
        n, width = weights.shape
        self.weights = weights
        self.inputs = inputs
        # As quantize_row4 in native/: room for the largest group to be scaled up.
        self.unit: Floats = np.maximum(np.abs(weights).max(1), np.finfo(np.float32).tiny) / 120
        self.codes = np.zeros((n, width), np.uint8)
        self.scales = np.ones((n, width // GROUP), np.int64)
        self.values = np.zeros((n, width), np.float32)

    @property
    def groups(self) -> NDArray[np.uint8]:
        """Group scales as files hold them."""
        return np.where(self.scales > 0, self.scales, 128 - self.scales).astype(np.uint8)

    def round(self) -> None:
        """Find codes and scales."""
        self._pass()
        rest: Floats = ((self.weights - self.values) @ self.inputs.moment).astype(np.float32, copy=False)
        for _ in range(SWEEPS):
            self._sweep(rest)

    def _pass(self) -> None:
        """GPTQ."""
        left, factor = self.weights.copy(), self.inputs.factor
        for start in range(0, left.shape[1], GROUP):
            end = start + GROUP
            triangle = factor[start:end, start:end]
            found = _search(left[:, start:end] / self.unit[:, None], np.diag(triangle) ** -2)
            group = self._round_group(left[:, start:end], triangle, _near(found, FIRST_TRIES))
            left[:, end:] -= group.errors @ factor[start:end, end:]
            self.codes[:, start:end], self.values[:, start:end] = group.codes, group.values
            self.scales[:, start // GROUP] = group.scales

    def _sweep(self, rest: Floats) -> None:
        """Round each group anew; rest (N, P), kept up to date: errors of the weights times the moments."""
        for number, triangle in enumerate(self.inputs.triangles):
            places = slice(number * GROUP, (number + 1) * GROUP)
            now = self.values[:, places]
            # Distance of the group's best values from the present ones, while all other groups stay.
            away = rest[:, places] @ triangle.T @ triangle
            group = self._round_group(now + away, triangle, _near(self.scales[:, number], NEXT_TRIES))
            better = group.costs < (away * rest[:, places]).sum(1)
            change = np.where(better[:, None], group.values - now, 0)
            self.codes[better, places], self.scales[better, number] = (
                group.codes[better],
                group.scales[better],
            )
            self.values[:, places] += change
            rest -= change @ self.inputs.moment[places]

    def _round_group(self, wanted: Floats, triangle: Floats, scales: NDArray[np.int64]) -> _Group:
        """Round (N, G) one input after another; scales: (S, N), of which each output keeps the best."""
        left = np.repeat(wanted.T[:, None], len(scales), axis=1)  # (G, S, N): inputs lie in one piece
        per_unit = 127 / (self.unit * scales).astype(np.float32)
        rows = np.where(scales > 0, scales, 128 - scales) * len(CODEBOOK)
        codes, values, errors = np.empty(left.shape, np.uint8), np.empty_like(left), np.empty_like(left)
        for j, column in enumerate(left):
            place = np.clip((column * per_unit - LOWEST) * PER_UNIT, 0, len(NEAREST) - 1).astype(np.intp)
            codes[j] = NEAREST[place]
            values[j] = ENTRIES[rows + codes[j]] * self.unit
            errors[j] = (column - values[j]) / triangle[j, j]
            left[j + 1 :] -= triangle[j, j + 1 :, None, None] * errors[j]
        costs = np.square(errors).sum(0)
        best = costs.argmin(0)[None]

        def take(x: NDArray[Any]) -> NDArray[Any]:
            return np.take_along_axis(x, best[None], 1)[:, 0].T

        own_scales, own_costs = (np.take_along_axis(x, best, 0)[0] for x in (scales, costs))
        return _Group(own_scales, take(codes), take(values), take(errors), own_costs)


def _near(scales: NDArray[np.int64], factors: Sequence[float]) -> NDArray[np.int64]:
    """(S, N) scales around (N,) scales."""
    sizes = np.rint(np.abs(scales) * np.array(factors)[:, None])
    near: NDArray[np.int64] = np.where(scales > 0, 1, -1) * np.clip(sizes, 1, 127).astype(np.int64)
    return near


def _search(x: Floats, importance: Floats) -> NDArray[np.int64]:
    """Group scale of each row of (N, 32) values in units of their output's scale, with its sign."""
    values = np.ascontiguousarray(x, np.float32)
    weights = np.ascontiguousarray(importance, np.float32)
    groups = np.empty(len(x), np.uint8)
    kernels().kogpt_search(values.ctypes.data, len(x), weights.ctypes.data, groups.ctypes.data)
    found = groups.astype(np.int64)
    return np.where(found < 128, found, 128 - found)
