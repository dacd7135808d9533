"""The fused head and loss against torch's own, and the objective around it."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from kogpt.config import ModelConfig
from kogpt.errors import ConfigError
from kogpt.model import GPTJ
from kogpt.training import loss as loss_module
from kogpt.training.loss import IGNORED, head_loss, loss_and_gradient
from kogpt.training.objective import ComputeSettings, Objective, WithinDocuments, _multiplies_bfloat16


def inputs(n: int = 50, e: int = 16, v: int = 37) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator).requires_grad_() for shape in ((n, e), (v, e), (v,))
    )
    targets = torch.randint(0, v, (n,), generator=generator)
    targets[::7] = IGNORED
    return hidden, weight, bias, targets


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, z_loss: float) -> Tensor:
    """The obvious twin: all logits at once, gradients by autograd."""
    logits = hidden @ weight.T + bias
    z = logits.logsumexp(-1).square()[targets != IGNORED].sum()
    return F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED) + z_loss * z


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_loss_and_gradients_are_torchs_own(z_loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK", 8)  # several chunks, the last one short
    hidden, weight, bias, targets = inputs()
    leaves = hidden, weight, bias
    expected = plain(hidden, weight, bias, targets, z_loss)
    wanted = torch.autograd.grad(expected * 0.5, leaves)
    found = head_loss(hidden, (weight, bias), targets, z_loss)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found * 0.5, leaves), wanted)


@pytest.mark.parametrize("trained", ["hidden", "weight", "bias"])
def test_what_is_frozen_costs_no_product_and_no_memory(trained: str) -> None:
    n, e, v = 50, 16, 37
    hidden, weight, bias, targets = inputs(n, e, v)
    leaves = {"hidden": hidden, "weight": weight, "bias": bias}
    expected = torch.autograd.grad(plain(hidden, weight, bias, targets, 0.0), leaves[trained])
    for name, leaf in leaves.items():
        leaf.requires_grad_(name == trained)
    with FlopCounterMode(display=False) as counter:
        total = head_loss(hidden, (weight, bias), targets)
    assert counter.get_total_flops() == 2 * n * e * v * (1 if trained == "bias" else 2)
    kept = total.grad_fn.saved_tensors  # type: ignore[union-attr]
    assert [None if tensor is None else tensor.shape for tensor in kept] == [
        leaf.shape if name == trained else None for name, leaf in leaves.items()
    ]
    total.backward()
    torch.testing.assert_close((leaves[trained].grad,), expected)
    assert all(leaf.grad is None for name, leaf in leaves.items() if name != trained)


def test_without_gradient_only_the_cross_entropy_is_summed() -> None:
    hidden, weight, bias, targets = inputs()
    with torch.no_grad():
        found = head_loss(hidden, (weight, bias), targets, z_loss=1.0)
    torch.testing.assert_close(found.float(), plain(hidden, weight, bias, targets, 0.0).detach())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own, while it imports
def test_compiled_kernel_agrees() -> None:
    hidden, weight, bias, targets = inputs()
    arguments = (hidden @ weight.T).detach(), bias.detach(), targets, 0.1
    torch.testing.assert_close(torch.compile(loss_and_gradient)(*arguments), loss_and_gradient(*arguments))


def objective(config: ModelConfig, **compute: object) -> Objective:
    torch.manual_seed(0)
    chosen = {"dtype": "float32", "compile": "nothing", **compute}
    return Objective(GPTJ(config), ComputeSettings(**chosen))  # type: ignore[arg-type]


def gradients(module: Objective, tokens: Tensor) -> list[Tensor]:
    total = module(tokens[:, :-1], tokens[:, 1:])
    return list(torch.autograd.grad(total, list(module.parameters())))


@pytest.mark.parametrize(
    ("machine", "avx512", "mkldnn", "expected"),
    [
        ("x86_64", True, True, torch.bfloat16),
        ("x86_64", False, True, torch.float32),  # AVX-512 without products of bfloat16
        ("aarch64", False, True, torch.bfloat16),
        ("arm64", False, False, torch.float32),
        ("arm64", False, None, torch.float32),
    ],
)
def test_auto_is_bfloat16_where_the_processor_multiplies_it(
    machine: str,
    avx512: bool,
    mkldnn: bool | None,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ops = SimpleNamespace() if mkldnn is None else SimpleNamespace(_is_mkldnn_bf16_supported=lambda: mkldnn)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.ops, "mkldnn", ops)
    _multiplies_bfloat16.cache_clear()
    device = torch.device("cpu")
    try:
        assert ComputeSettings().dtype_on(device) == expected
        assert ComputeSettings(dtype="bfloat16").dtype_on(device) == torch.bfloat16
        assert ComputeSettings(dtype="float32").dtype_on(device) == torch.float32
    finally:
        _multiplies_bfloat16.cache_clear()


def test_objective_is_the_models_cross_entropy(tiny: ModelConfig) -> None:
    module = objective(tiny)
    tokens = torch.randint(5, tiny.n_vocab, (2, 9))
    logits = module.model(tokens[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(module(tokens[:, :-1], tokens[:, 1:]), expected)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # dynamo looks at it
@pytest.mark.parametrize(
    "choice", [{"checkpoint_blocks": True}, pytest.param({"compile": "blocks"}, marks=pytest.mark.slow)]
)
def test_memory_and_compilation_change_no_gradient(tiny: ModelConfig, choice: dict[str, object]) -> None:
    tokens = torch.randint(5, tiny.n_vocab, (2, 9))
    plain_one, other = objective(tiny), objective(tiny, **choice)
    assert [name for name, _ in other.named_parameters()] == [
        name for name, _ in plain_one.named_parameters()
    ]
    torch.testing.assert_close(gradients(other, tokens), gradients(plain_one, tokens))


def test_within_documents_each_is_as_if_alone(tiny: ModelConfig) -> None:
    module = objective(tiny, within_documents=True)
    eos = tiny.eos_token_id
    first, second = torch.tensor([10, 11, 12, eos]), torch.tensor([20, 21, 22, 23])
    joined = torch.cat((first, second))[None]
    positions = torch.arange(8)
    apart = WithinDocuments(joined, eos)
    together = module.model.trunk(module.model.embed(joined), positions, apart)
    alone = module.model.trunk(module.model.embed(second[None]), positions[:4])
    torch.testing.assert_close(together[:, 4:], alone)  # rotary positions are relative
    plain_trunk = module.model.trunk(module.model.embed(joined), positions)
    assert not torch.allclose(plain_trunk[:, 4:], alone)
    assert module(joined[:, :-1], joined[:, 1:]) != objective(tiny)(joined[:, :-1], joined[:, 1:])


def test_unknown_arithmetic_is_refused() -> None:
    with pytest.raises(ConfigError, match="float16"):
        ComputeSettings(dtype="float16")


def test_blocks_are_compiled_once_for_all_layers_and_not_to_validate(
    tiny: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer's number, and each width of a validation pass, would be a compilation of its own."""
    seen: list[int] = []

    def compiled(function: Callable[..., Tensor], **_: object) -> Callable[..., Tensor]:
        def noted(*arguments: object) -> Tensor:
            seen.append(cast(int, arguments[2]))
            return function(*arguments)

        return function if cast(object, function) is loss_and_gradient else noted

    monkeypatch.setattr(torch, "compile", compiled)
    module, plain_one = objective(tiny, compile="blocks"), objective(tiny)
    tokens = torch.randint(5, tiny.n_vocab, (2, 9))
    torch.testing.assert_close(gradients(module, tokens), gradients(plain_one, tokens))
    assert seen == [0] * tiny.n_layers
    with torch.no_grad():
        found = module(tokens[:, :-1], tokens[:, 1:])
        assert found == plain_one(tokens[:, :-1], tokens[:, 1:])
    assert len(seen) == tiny.n_layers


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize(
    ("choice", "tolerance"),
    [
        ({}, 1e-4),
        ({"compile": "blocks"}, 1e-4),
        ({"compile": "blocks", "dtype": "bfloat16"}, 0.05),
        ({"compile": "blocks", "checkpoint_blocks": True}, 1e-4),
        ({"within_documents": True}, 1e-4),
    ],
)
def test_a_gpu_finds_the_loss_and_the_gradients_of_the_cpu(
    tiny: ModelConfig, choice: dict[str, object], tolerance: float
) -> None:
    tokens = torch.randint(5, tiny.n_vocab, (4, 65))
    here = objective(tiny, **{k: v for k, v in choice.items() if k == "within_documents"})
    there = objective(tiny, **choice).cuda()
    for expected, found in zip(gradients(here, tokens), gradients(there, tokens.cuda()), strict=True):
        apart = (found.cpu() - expected).norm() / expected.norm()
        assert apart < tolerance
    with torch.no_grad():
        expected = here(tokens[:, :-1], tokens[:, 1:])
        found = there(tokens[:, :-1].cuda(), tokens[:, 1:].cuda())
    assert float(found) == pytest.approx(float(expected), rel=tolerance)
