"""A linear classifier over character n-grams: a score in a tenth of a millisecond, without a model.

Features are n-grams of syllables and of letters, hashed into buckets, weighted by TF-IDF and scaled to length
1. Linear SVMs weigh them (runs/profanity.py trains them); the weights are kept in 8 bits in a small file.
Shapes: B buckets, K outputs, N distinct features of a text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from kogpt.tasks.folding import plain_letters
from kogpt.texts import nfkc

BUCKETS = 1 << 17
SYLLABLES, LETTERS = range(1, 5), range(2, 8)  # lengths of the n-grams
REPEATED = re.compile(r"(.)\1{2,}", re.DOTALL)
MULTIPLIER, MIXER = np.uint64(1_000_003), np.uint64(0x9E3779B97F4A7C15)
SHIFT = np.uint64(64 - 17)

Floats = NDArray[np.float32]


def features(text: str) -> tuple[NDArray[np.int64], Floats]:
    """(N,) buckets of a text's n-grams, and (N,) 1 + ln of how often each occurs."""
    normal = " ".join(nfkc(text).lower().split())
    normal = " " + REPEATED.sub(r"\1\1", normal) + " "
    hashes = [*_hashes(normal, SYLLABLES, 0), *_hashes(plain_letters(normal), LETTERS, 100)]
    buckets = (np.concatenate(hashes) * MIXER) >> SHIFT
    found, counts = np.unique(buckets.astype(np.int64), return_counts=True)
    return found, (1 + np.log(counts)).astype(np.float32)


def _hashes(text: str, lengths: range, salt: int) -> list[NDArray[np.uint64]]:
    """The hashes of all n-grams of each length."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    running = np.full(len(codes), 0, np.uint64)
    found = []
    for n in range(1, lengths.stop):
        ends = len(codes) - n + 1
        if ends <= 0:
            break
        running = running[:ends] * MULTIPLIER + codes[n - 1 :] + np.uint64(1)
        if n in lengths:
            found.append(running ^ np.uint64((salt + n) * int(MIXER) % 2**64))
    return found


@dataclass(frozen=True, slots=True)
class Joint:
    """Logistic models of what is known of a text: of K-MHaS's label (profane) and of Curse's (insulting).

    Inputs: the K scores, the number of swear words, the log-odds of an adapter where there is one, and 1.
    """

    coefficients: Floats  # (2, K + 2), with an adapter (2, K + 3)
    thresholds: Floats  # (2,) probabilities from which on a text counts

    def probabilities(self, inputs: Floats) -> Floats:
        """(2,) how likely each label is."""
        total = self.coefficients @ np.append(inputs, np.float32(1))
        return (1 / (1 + np.exp(-total))).astype(np.float32)


@dataclass(frozen=True, slots=True)
class NgramClassifier:
    """K scores of a text: above 0 where its classifier says yes."""

    names: tuple[str, ...]  # (K,)
    idf: NDArray[np.uint8]  # (B,) inverse document frequency in steps of idf_step
    idf_step: float
    weights: NDArray[np.int8]  # (B, K)
    scales: Floats  # (K,) of the weights
    biases: Floats  # (K,)
    joint: Joint
    joint_with_adapter: Joint | None = None  # None: the file was trained without one

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote."""
        with np.load(path) as file:
            return cls(
                tuple(map(str, file["names"])),
                file["idf"],
                float(file["idf_step"]),
                file["weights"],
                file["scales"],
                file["biases"],
                Joint(file["joined"], file["thresholds"]),
                Joint(file["adapter_joined"], file["adapter_thresholds"])
                if "adapter_joined" in file
                else None,
            )

    def save(self, path: Path) -> None:
        """Write a compressed .npz."""
        more: dict[str, Any] = {}
        if (other := self.joint_with_adapter) is not None:
            more = {"adapter_joined": other.coefficients, "adapter_thresholds": other.thresholds}
        np.savez_compressed(
            path,
            names=np.array(self.names),
            idf=self.idf,
            idf_step=np.float32(self.idf_step),
            weights=self.weights,
            scales=self.scales,
            biases=self.biases,
            joined=self.joint.coefficients,
            thresholds=self.joint.thresholds,
            **more,
        )

    def scores(self, text: str) -> Floats:
        """(K,) distances from the border of each output."""
        buckets, counts = features(text)
        values = counts * (self.idf[buckets].astype(np.float32) * np.float32(self.idf_step))
        values /= max(float(np.linalg.norm(values)), 1e-12)
        found: Floats = (values @ self.weights[buckets].astype(np.float32)) * self.scales + self.biases
        return found
