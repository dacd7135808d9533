"""Learning-rate factors and which rule trains what."""

from __future__ import annotations

import pytest
import torch

from kogpt.config import ModelConfig
from kogpt.errors import ConfigError
from kogpt.model import GPTJ
from kogpt.training.optimisers import Rule, build, set_rate
from kogpt.training.schedule import Schedule


def test_wsd_warms_up_stays_and_decays_to_just_above_zero() -> None:
    schedule = Schedule(steps=20, warmup_steps=4, decay_steps=4)
    factors = [schedule.factor(step) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert set(factors[4:16]) == {1.0}
    assert factors[16:] == pytest.approx([0.8, 0.6, 0.4, 0.2])


def test_moving_the_end_of_wsd_changes_nothing_before_its_decay() -> None:
    short = Schedule(steps=20, warmup_steps=4, decay_steps=5)
    long = Schedule(steps=40, warmup_steps=4, decay_steps=5)
    assert [short.factor(s) for s in range(15)] == [long.factor(s) for s in range(15)]


def test_cosine_falls_from_one_to_its_floor() -> None:
    schedule = Schedule(steps=100, warmup_steps=10, shape="cosine", floor=0.1)
    factors = [schedule.factor(step) for step in range(10, 100)]
    assert factors == sorted(factors, reverse=True)
    assert factors[0] > 0.99 and factors[-1] == pytest.approx(0.1, abs=1e-2) and factors[-1] > 0.1
    assert schedule.factor(54) == pytest.approx(0.55, abs=0.01)  # halfway between 1 and the floor


@pytest.mark.parametrize(
    "wrong", [{"shape": "linear"}, {"warmup_steps": 11}, {"warmup_steps": 5, "decay_steps": 6}]
)
def test_impossible_schedules_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Schedule(**{"steps": 10, "warmup_steps": 0, **wrong})  # type: ignore[arg-type]


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_all_else(tiny: ModelConfig) -> None:
    model = GPTJ(tiny)
    adamw, muon = build(model, Rule())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    by_adamw = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert by_muon == {
        name for name in names.values() if ".h." in name and dict(model.named_parameters())[name].ndim == 2
    }
    assert by_muon | by_adamw == set(names.values()) and not by_muon & by_adamw
    assert len(by_muon) == 6 * tiny.n_layers


def test_frozen_parameters_are_left_out(tiny: ModelConfig) -> None:
    model = GPTJ(tiny)
    model.requires_grad_(False)
    model.lm_head.bias.requires_grad_(True)
    (only,) = build(model, Rule())
    assert [p for group in only.param_groups for p in group["params"]] == [model.lm_head.bias]


def test_rates_are_factors_of_each_groups_own_peak(tiny: ModelConfig) -> None:
    optimisers = build(GPTJ(tiny), Rule(adamw_rate=0.5, muon_rate=0.25))
    set_rate(optimisers, 0.5)
    set_rate(optimisers, 0.1)  # of the peak, not of the last rate
    rates = [group["lr"] for optimiser in optimisers for group in optimiser.param_groups]
    assert rates == pytest.approx([0.05, 0.05, 0.025])


def test_adamw_alone_decays_matrices_only(tiny: ModelConfig) -> None:
    (adamw,) = build(GPTJ(tiny), Rule(name="adamw", adamw_decay=0.1))
    matrices, vectors = adamw.param_groups
    assert matrices["weight_decay"] == 0.1 and vectors["weight_decay"] == 0.0
    assert all(p.ndim == 2 for p in matrices["params"]) and all(p.ndim == 1 for p in vectors["params"])
    assert isinstance(adamw, torch.optim.AdamW)


def test_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="sgd"):
        Rule(name="sgd")
