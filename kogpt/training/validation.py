"""Bits per UTF-8 byte on named sets of documents: comparable between vocabularies, and with `xz`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kogpt.bits import Ids, Window, per_byte, split_windows
from kogpt.training.loss import IGNORED
from kogpt.training.objective import Objective
from kogpt.training.processes import Processes

TOKENS_PER_PASS = 8192


@dataclass(frozen=True, slots=True)
class Document:
    """One text."""

    ids: Ids  # (N,), without [EOS]
    n_bytes: int  # UTF-8


def bits_per_byte(
    objective: Objective,
    sets: Mapping[str, Sequence[Document]],
    length: int,
    processes: Processes | None = None,
) -> dict[str, float]:
    """Bits per byte of each set; all processes together.

    A document begins after [EOS] and is read in windows of `length` tokens. Each window but the first shares
    half of its tokens with the one before, so that every scored token sees half a window or more.
    """
    processes = processes or Processes()
    with torch.no_grad():
        nats = processes.sum([_nats(objective, documents, length, processes) for documents in sets.values()])
    n_bytes = [sum(document.n_bytes for document in documents) for documents in sets.values()]
    return {
        name: per_byte(total, max(1, size)) for name, total, size in zip(sets, nats, n_bytes, strict=True)
    }


def _nats(objective: Objective, documents: Sequence[Document], length: int, processes: Processes) -> float:
    """This process's share of the summed loss of a set."""
    eos = objective.model.config.eos_token_id
    windows = [window for document in documents for window in split_windows(document.ids, (eos,), length)]
    passes = _passes(sorted(windows, key=lambda window: len(window[0])))
    nats = 0.0
    for first in range(0, len(passes), processes.count):  # all processes gather the weights in every round
        mine = first + processes.rank
        inputs, targets = _padded(passes[mine] if mine < len(passes) else [(np.array([eos, eos]), 2)])
        nats += float(objective(inputs.to(processes.device), targets.to(processes.device)))
    return nats


def _passes(windows: Sequence[Window]) -> list[list[Window]]:
    """Groups of neighbours, each as many as fit into one pass."""
    passes: list[list[Window]] = []
    for window in windows:
        if passes and (len(passes[-1]) + 1) * len(window[0]) <= TOKENS_PER_PASS:
            passes[-1].append(window)
        else:
            passes.append([window])
    return passes


def _padded(rows: Sequence[Window]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, T), padded on the right, where causal attention never looks."""
    widest = max(len(tokens) for tokens, _ in rows) - 1
    inputs = np.zeros((len(rows), widest), dtype=np.int64)
    targets = np.full((len(rows), widest), IGNORED, dtype=np.int64)
    for row, (tokens, first) in enumerate(rows):
        inputs[row, : len(tokens) - 1] = tokens[:-1]
        targets[row, first - 1 : len(tokens) - 1] = tokens[first:]
    return torch.from_numpy(inputs), torch.from_numpy(targets)
