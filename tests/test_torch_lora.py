"""LoRAs stacked for the torch runner; that rows get their own is tested in test_runners.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from conftest import TINY

from kogpt import torch_lora
from kogpt.adapter import Lora, LowRank
from kogpt.errors import NotEnoughMemory
from kogpt.model import GPTJ, Linear
from kogpt.torch_cache import free_bytes
from kogpt.torch_lora import LoraStack

NAME = "transformer.h.1.attn.v_proj"


PROJECTIONS = [
    f"transformer.h.{i}.attn.{name}_proj" for i in range(TINY.n_layers) for name in ("q", "k", "v", "out")
]


def lora(rank: int, scale: float = 1.0, names: Sequence[str] = (NAME,)) -> Lora:
    rng = np.random.default_rng(rank)
    a, b = rng.standard_normal((rank, TINY.d_model)), rng.standard_normal((TINY.d_model, rank))
    update = LowRank(a.astype(np.float32), b.astype(np.float32), scale)
    return Lora(dict.fromkeys(names, update))


def test_growing_and_dropping_leave_the_other_adapters_as_they_are() -> None:
    model = GPTJ(TINY)
    stack = LoraStack(model, free_bytes)
    linear = model.get_submodule(NAME)
    assert isinstance(linear, Linear)
    x = torch.randn(1, 5, TINY.d_model, generator=torch.Generator().manual_seed(0))

    def update(handle: int | None) -> torch.Tensor:
        places = stack.places([handle], torch.device("cpu"))
        assert places is not None
        found = stack.update(linear, x, places)
        assert found is not None
        return found

    loras = [lora(2, 0.5), lora(20), lora(1, -3.0)]
    assert [stack.add(one) for one in loras] == [0, 1, 2]
    for handle, one in enumerate(loras):
        a, b = (torch.from_numpy(factor) for factor in (one.updates[NAME].a, one.updates[NAME].b))
        torch.testing.assert_close(update(handle), one.updates[NAME].scale * (x @ a.T @ b.T))
    kept = update(2)
    stack.drop(1)
    assert stack.add(Lora({})) == 1
    assert not update(1).any()
    assert torch.equal(update(2), kept)
    assert stack.places([None, None], torch.device("cpu")) is None


def test_an_adapter_that_does_not_fit_is_refused() -> None:
    free = 10**9
    stack = LoraStack(GPTJ(TINY), lambda device: free)
    stack.add(lora(8))
    free = 1_000
    with pytest.raises(NotEnoughMemory, match="an adapter on cpu"):
        stack.add(lora(16))
    assert stack.handles == {0}
    free = 10**9
    assert stack.add(lora(16)) == 1


def held_bytes(stack: LoraStack) -> int:
    return sum(a.nbytes + b.nbytes for a, b in stack._factors.values())


def test_memory_is_needed_for_what_grows_only() -> None:
    """Adapters until memory is full but for one pair that is copied; a place that is free takes none."""
    one, places = lora(8, names=PROJECTIONS), 10
    total = places * len(PROJECTIONS) * 8 * 2 * TINY.d_model * 4
    stack = LoraStack(GPTJ(TINY), lambda device: total - held_bytes(stack))
    with pytest.raises(NotEnoughMemory):
        for _ in range(places):
            stack.add(one)
    assert held_bytes(stack) == 0.9 * total
    stack.drop(1)
    assert stack.add(one) == 1


def test_an_adapter_that_memory_ends_in_leaves_no_recording_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = LoraStack(GPTJ(TINY), free_bytes)
    stack.add(lora(8))
    before = stack.generation

    def refused(factors: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
        raise torch.OutOfMemoryError

    with monkeypatch.context() as short:
        short.setattr(torch_lora, "_enlarged", refused)
        with pytest.raises(torch.OutOfMemoryError):
            stack.add(lora(16))
    assert stack.generation > before and stack.handles == {0}
