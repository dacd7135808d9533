"""Which rule trains what, and Muon beside torch's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from kogpt.config import ModelConfig
from kogpt.errors import ConfigError
from kogpt.model import GPTJ
from kogpt.training import optimizers
from kogpt.training.objective import ComputeSettings, Objective
from kogpt.training.optimizers import (
    Muon,
    OptimizerSettings,
    ParameterGroup,
    build_optimizers,
    hyperparameters,
    orthogonalize,
    set_hyperparameters,
)

SIZES = [(48, 48), (24, 96), (96, 24)]


def matrix(size: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def trained(kind: str, size: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, dict[str, object]]:
    """A matrix after five updates, and what its optimizer keeps."""
    weight = nn.Parameter(matrix(size))
    rule = OptimizerSettings(muon_rate=0.1)
    optimizer = (
        Muon([weight], rule, dtype)
        if kind == "ours"
        else torch.optim.Muon([weight], lr=rule.muon_rate, weight_decay=rule.muon_decay)
    )
    for step in range(5):
        weight.grad = matrix(size, seed=step + 1)
        optimizer.step()
    return weight.detach(), optimizer.state_dict()


@pytest.mark.parametrize("size", SIZES)
def test_muon_in_bfloat16_is_torchs_bit_for_bit(size: tuple[int, int]) -> None:
    (ours, our_state), (theirs, their_state) = (
        trained(kind, size, torch.bfloat16) for kind in ("ours", "theirs")
    )
    assert torch.equal(ours, theirs)
    assert our_state["param_groups"] == their_state["param_groups"]
    assert str(our_state["state"]) == str(their_state["state"])


@pytest.mark.parametrize("together", [2**25, 2 * 48 * 48, 1])
def test_matrices_that_learn_together_learn_as_each_alone(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizers, "TOGETHER", together)
    sizes = [(48, 48), (24, 96), (48, 48), (96, 24), (48, 48)]

    def learnt(numbers: list[int]) -> list[Tensor]:
        weights = [nn.Parameter(matrix(sizes[n], seed=n)) for n in numbers]
        for weight, n in zip(weights, numbers, strict=True):
            weight.grad = matrix(sizes[n], seed=10 + n)
        Muon(weights, OptimizerSettings(), torch.bfloat16).step()
        return [weight.detach() for weight in weights]

    alone = [learnt([n])[0] for n in range(len(sizes))]
    for expected, found in zip(alone, learnt(list(range(len(sizes)))), strict=True):
        assert torch.equal(found, expected)


class Operations(TorchDispatchMode):
    """Counts what torch is asked for; on a GPU each is one launch or more."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_one_more_matrix_is_one_more_operation() -> None:
    """A step of small matrices takes as long as its launches; only the update itself is added one by one."""

    def operations(n_matrices: int) -> int:
        weights = [nn.Parameter(matrix((8, 8), seed=n)) for n in range(n_matrices)]
        optimizer = Muon(weights, OptimizerSettings(), torch.bfloat16)
        for _ in range(2):
            for weight in weights:
                weight.grad = matrix((8, 8))
            with Operations() as seen:  # type: ignore[no-untyped-call]
                optimizer.step()
        return int(seen.count)

    assert operations(16) - operations(4) == 12


@pytest.mark.parametrize("size", SIZES)
def test_muon_in_float32_is_torchs_but_for_rounding(size: tuple[int, int]) -> None:
    start, ours = matrix(size), trained("ours", size, torch.float32)[0]
    theirs = trained("theirs", size, torch.bfloat16)[0]
    assert not torch.equal(ours, theirs)
    assert (ours - theirs).norm() < 0.02 * (theirs - start).norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", SIZES)
def test_singular_values_come_near_one_and_their_vectors_stay(
    size: tuple[int, int], dtype: torch.dtype
) -> None:
    left, _, right = np.linalg.svd(matrix(size).numpy(), full_matrices=False)
    values = np.geomspace(0.02, 1.0, min(size)) * 7
    (group,) = Muon([nn.Parameter(matrix(size))], OptimizerSettings(), dtype).param_groups
    given = torch.from_numpy(((left * values) @ right).astype(np.float32))
    (found,) = orthogonalize(given.to(dtype)[None], group)
    assert found.dtype == dtype and found.shape == given.shape
    seen = left.T @ found.float().numpy() @ right.T  # diagonal where the vectors are the same
    assert np.all((np.diag(seen) > 0.65) & (np.diag(seen) < 1.25)), np.diag(seen)
    assert np.abs(seen - np.diag(np.diag(seen))).max() < (0.05 if dtype == torch.bfloat16 else 1e-4)


def objective(config: ModelConfig) -> Objective:
    return Objective(GPTJ(config), ComputeSettings(dtype="float32", compile="nothing"))


def build(made: Objective, settings: OptimizerSettings) -> list[Optimizer]:
    return build_optimizers(made.groups(), settings, torch.float32)


def names_of(made: Objective, optimizer: Optimizer) -> set[str]:
    names = {id(parameter): name for name, parameter in made.named_parameters()}
    return {names[id(p)] for group in optimizer.param_groups for p in group["params"]}


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_all_else(tiny: ModelConfig) -> None:
    made = objective(tiny)
    adamw, muon = build(made, OptimizerSettings())
    parameters = dict(made.named_parameters())
    by_muon, by_adamw = names_of(made, muon), names_of(made, adamw)
    assert by_muon == {name for name, value in parameters.items() if ".h." in name and value.ndim == 2}
    assert by_muon | by_adamw == set(parameters) and not by_muon & by_adamw
    assert len(by_muon) == 6 * tiny.n_layers


def test_a_matrix_that_is_no_weight_of_the_model_is_not_orthogonalised(tiny: ModelConfig) -> None:
    """Factors of LoRA, say: they lie in a block, and their names too."""
    made = objective(tiny)
    made.requires_grad_(False)
    for layer in range(tiny.n_layers):
        linear = made.get_submodule(f"model.transformer.h.{layer}.attn.q_proj")
        linear.register_parameter("lora_a", nn.Parameter(torch.ones(4, tiny.d_model)))
        linear.register_parameter("lora_b", nn.Parameter(torch.zeros(tiny.d_model, 4)))
    (adamw,) = build(made, OptimizerSettings())
    assert isinstance(adamw, torch.optim.AdamW)
    assert len(names_of(made, adamw)) == 2 * tiny.n_layers
    assert all("lora" in name for name in names_of(made, adamw))


def test_frozen_parameters_are_left_out(tiny: ModelConfig) -> None:
    made = objective(tiny)
    made.requires_grad_(False)
    made.model.lm_head.bias.requires_grad_(True)
    (only,) = build(made, OptimizerSettings())
    assert [p for group in only.param_groups for p in group["params"]] == [made.model.lm_head.bias]


def test_rates_are_factors_of_each_groups_own_peak_and_decay_stays(tiny: ModelConfig) -> None:
    settings = OptimizerSettings(adamw_rate=0.5, muon_rate=0.25, adamw_decay=0.2, muon_decay=0.4)
    optimizers = build(objective(tiny), settings)
    peaks = hyperparameters(optimizers)
    set_hyperparameters(optimizers, peaks, 0.5)
    set_hyperparameters(optimizers, peaks, 0.2)  # times the peaks, not the last values
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    assert [group["lr"] for group in groups] == pytest.approx([0.1, 0.1, 0.05])
    assert [group["weight_decay"] for group in groups] == [0.2, 0.0, 0.4]


def test_adamw_alone_decays_matrices_only(tiny: ModelConfig) -> None:
    (adamw,) = build(objective(tiny), OptimizerSettings(name="adamw", adamw_decay=0.1))
    for group in adamw.param_groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.1 if parameter.ndim == 2 else 0.0)
    assert len(adamw.param_groups) == 3
    assert isinstance(adamw, torch.optim.AdamW)


def test_each_group_has_the_decay_of_its_rule_or_none() -> None:
    first, second, third = (nn.Parameter(torch.ones(3, 3)) for _ in range(3))
    groups = [
        ParameterGroup("inner", [first], "muon"),
        ParameterGroup("kept", [second], "muon", decay=False),
        ParameterGroup("none", [], "adamw"),
        ParameterGroup("head", [third], "adamw"),
    ]
    settings = OptimizerSettings(muon_decay=0.25, adamw_decay=0.5)
    adamw, muon = build_optimizers(groups, settings, torch.float32)
    assert [group["weight_decay"] for group in muon.param_groups] == [0.25, 0.0]
    assert [group["weight_decay"] for group in adamw.param_groups] == [0.5]


def test_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="sgd"):
        OptimizerSettings(name="sgd")


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"adamw_rate": -1e-3}, "adamw_rate is -0.001"),
        ({"muon_rate": math.nan}, "muon_rate is nan"),
        ({"adamw_decay": math.inf}, "adamw_decay is inf"),
        ({"muon_decay": -0.1}, "muon_decay is -0.1"),
        ({"betas": (0.9,)}, r"betas is \[0.9\]: it must be two numbers"),
        ({"betas": (0.9, 1.0)}, "below 1"),
        ({"betas": (-0.1, 0.95)}, "from 0"),
        ({"betas": (0.9, math.nan)}, "nan"),
    ],
)
def test_impossible_rates_and_betas_are_refused(change: dict[str, Any], shown: str) -> None:
    with pytest.raises(ConfigError, match=shown) as refused:
        OptimizerSettings(**change)
    assert refused.value.ko.endswith("를 쓰세요")


def test_rates_of_nothing_are_possible() -> None:
    OptimizerSettings(adamw_rate=0.0, muon_rate=0.0, adamw_decay=0.0, muon_decay=0.0, betas=(0.0, 0.0))
