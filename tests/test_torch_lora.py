"""LoRAs stacked for the torch runner; that rows get their own is tested in test_runners.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY
from runners import pretend_free

from kogpt.adapter import Lora, LowRank
from kogpt.errors import NotEnoughMemory
from kogpt.model import GPTJ, Linear
from kogpt.torch_lora import LoraStack

NAME = "transformer.h.1.attn.v_proj"


def lora(rank: int, scale: float = 1.0) -> Lora:
    rng = np.random.default_rng(rank)
    a, b = rng.standard_normal((rank, TINY.d_model)), rng.standard_normal((TINY.d_model, rank))
    return Lora({NAME: LowRank(a.astype(np.float32), b.astype(np.float32), scale)})


def test_growing_and_dropping_leave_the_other_adapters_as_they_are() -> None:
    model = GPTJ(TINY)
    stack = LoraStack(model)
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


def test_an_adapter_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = LoraStack(GPTJ(TINY))
    stack.add(lora(8))
    with monkeypatch.context() as short:
        pretend_free(short, lambda device: 1_000)
        with pytest.raises(NotEnoughMemory, match="an adapter on cpu"):
            stack.add(lora(16))
    assert stack.handles == {0}
    assert stack.add(lora(16)) == 1
