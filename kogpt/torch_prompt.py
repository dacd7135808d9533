"""Prompts as static passes: what is recorded once reads any text of a size.

A short prompt waits for some 25 launches a layer, not for arithmetic. So one text is read in the next size of
SIZES: places behind its end read token 0, write to the last place of the null block, and nobody reads what
they give. A longer text is bound by arithmetic, which filling up would add to, and several texts at once are
one long pass: both are read as they are (torch_runner.py).
Shapes: N positions of the text, T of the pass, W blocks of a table, E model width.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kogpt.model import GPTJ
from kogpt.torch_attention import CachedPass, Group
from kogpt.torch_cache import BLOCK, Paged, PagedCache, Row, blocks_for
from kogpt.torch_decoder import Recorder
from kogpt.torch_lora import LoraStack
from kogpt.torch_transfer import queue_copy

SIZES = (32, 64, 128, 256, 512, 768, 1024)  # tokens
HEADER = 2  # numbers before the tokens: position of the first, and of the last


class Prompts:
    """The static passes over prompts on one device."""

    def __init__(self, model: GPTJ, cache: PagedCache, loras: LoraStack, recorder: Recorder) -> None:
        self._model = model
        self._cache = cache
        self._loras = loras
        self._recorder = recorder
        self._width = blocks_for(model.config.n_ctx)
        self._inputs: dict[int, Tensor] = {}  # by T: header, T tokens, W blocks
        self._hidden: dict[int, Tensor] = {}  # (T, E)

    def reads(self, row: Row, ids: NDArray[np.int64]) -> bool:
        """Whether a text of one row is read here: in what is recorded, and not by an adapter."""
        return self._recorder.records and row.adapter is None and len(ids) <= SIZES[-1]

    def read(self, row: Row, ids: NDArray[np.int64]) -> Tensor:
        """Queue a pass over the next N positions of a row, which are reserved; (N, E) after the last norm.

        What is returned holds until the next text is read.
        """
        n = len(ids)
        size = next(size for size in SIZES if size >= n)
        if size not in self._inputs:
            like = self._cache.layers[0]
            self._hidden[size] = like.new_zeros((size, self._model.config.d_model))
            length = HEADER + size + self._width
            self._inputs[size] = torch.zeros(length, dtype=torch.int64, device=like.device)
        packed = np.zeros(HEADER + size + self._width, np.int64)
        packed[:HEADER] = row.length, row.length + n - 1
        packed[HEADER : HEADER + n] = ids
        packed[HEADER + size :][: len(row.blocks)] = row.blocks
        queue_copy(packed, self._inputs[size])
        continued = row.length > 0
        self._recorder.run(("prompt", size, continued), partial(self._pass, size, continued))
        return self._hidden[size][:n]

    def _pass(self, size: int, continued: bool) -> None:
        """continued: whether positions before these are attended to."""
        inputs = self._inputs[size]
        tokens, table = inputs[HEADER : HEADER + size], inputs[HEADER + size :]
        wanted = inputs[0] + torch.arange(size, device=inputs.device)
        positions = torch.minimum(wanted, inputs[1])
        slots = table[positions // BLOCK] * BLOCK + positions % BLOCK
        slots = torch.where(wanted <= inputs[1], slots, BLOCK - 1)
        paged = Paged.of(table[None], positions[None]) if continued else None
        group = Group(size, slice(0, size), paged, None)
        run = CachedPass(self._cache, self._loras, slots, [group])
        x = self._model.embed(tokens[None]).to(self._hidden[size].dtype)
        x = self._model.blocks(x, positions, run, range(self._model.config.n_layers))
        self._hidden[size].copy_(self._model.norm(x)[0])
