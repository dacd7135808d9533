"""LoRA merged into weights: the same model as LoRA beside them, one tensor at a time."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import TINY, random_tensors
from runners import stored

from kogpt import adapter
from kogpt.adapter import Lora, LowRank, merged, require_lora_fits
from kogpt.checkpoint import Stored
from kogpt.errors import KoGPTError
from kogpt.numpy_runner import NumpyRunner
from kogpt.runner import Chunk

IDS = np.array([5, 300, 17, 42, 8])
SHAPES = {name.removesuffix(".weight"): shape for name, shape in TINY.tensor_shapes().items()}
MODULES = [name for name, shape in SHAPES.items() if ".h." in name and len(shape) == 2]


def random_lora(modules: list[str], rank: int = 4, seed: int = 0) -> Lora:
    rng, shapes = np.random.default_rng(seed), TINY.tensor_shapes()
    updates = {}
    for i, module in enumerate(modules):
        n, k = shapes[f"{module}.weight"]
        r = rank + i % 3
        a, b = rng.standard_normal((r, k)) / k**0.5, rng.standard_normal((n, r)) / 4
        updates[module] = LowRank(a.astype(np.float32), b.astype(np.float32), 0.5 + i % 2)
    return Lora(updates)


@pytest.mark.parametrize("modules", [MODULES, MODULES[::4]], ids=["all", "some"])
def test_merged_is_side_by_side(modules: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "BLOCK_ROWS", 24)  # several blocks, the last one shorter
    tensors = {name: stored(array) for name, array in random_tensors(TINY).items()}
    lora = random_lora(modules)
    beside = NumpyRunner(TINY, tensors)
    plain, own = beside.open(), beside.open(beside.add_adapter(lora))
    without, expected = beside.forward([Chunk(plain, IDS, 5), Chunk(own, IDS, 5)])
    runner = NumpyRunner(TINY, merged(tensors, lora))
    (found,) = runner.forward([Chunk(runner.open(), IDS, 5)])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(without - expected).max() > 0.1, "the adapter changes something"


def test_merging_is_lazy_and_touches_only_its_matrices() -> None:
    asked = []

    class Counted(dict[str, Stored]):
        def __getitem__(self, name: str) -> Stored:
            asked.append(name)
            return super().__getitem__(name)

    tensors = Counted({name: stored(array, "float16") for name, array in random_tensors(TINY).items()})
    lora = random_lora(MODULES[:1])
    mixed = merged(tensors, lora)
    assert list(mixed) == list(tensors) and len(mixed) == len(tensors) and asked == []
    name = f"{MODULES[0]}.weight"
    update = lora.updates[MODULES[0]]
    expected = tensors[name].to("float32") + update.scale * update.b.astype(float) @ update.a
    np.testing.assert_allclose(mixed[name].to("float32"), expected, atol=1e-5)
    assert mixed["transformer.ln_f.bias"] is tensors["transformer.ln_f.bias"]
    assert tensors[name].dtype == "float16" and mixed[name].dtype == "float32"


@pytest.mark.parametrize(
    ("module", "n", "k"),
    [
        ("lm_head", 512, 64),
        ("transformer.h.3.attn.q_proj", 64, 64),
        ("transformer.h.0.ln_1", 64, 64),
        ("transformer.h.0.mlp.fc_in", 64, 256),
        ("transformer.h.0.mlp.fc_in", 256, 32),
    ],
)
def test_a_lora_that_does_not_fit_is_refused(module: str, n: int, k: int) -> None:
    update = LowRank(np.ones((2, k), np.float32), np.ones((n, 2), np.float32), 1.0)
    with pytest.raises(KoGPTError, match=module.replace(".", r"\.")) as error:
        require_lora_fits(Lora({module: update}), TINY)
    assert module in error.value.ko
