"""Learning-rate factors."""

from __future__ import annotations

from typing import Any

import pytest

from kogpt.errors import ConfigError
from kogpt.training.schedule import Cooldown, Factors, Schedule


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


def test_each_rule_may_cool_down_in_its_own_way_and_the_decay_follows_its_points() -> None:
    schedule = Schedule(
        steps=20,
        warmup_steps=4,
        decay_steps=9,
        power=2.0,
        floor=0.1,
        adamw=Cooldown(decay_steps=4),
        weight_decay=((0.0, 2.0), (0.5, 0.0), (1.0, 1.0)),
    )
    found = [schedule.factors(step) for step in range(20)]
    assert found[0] == Factors(0.25, 0.25, 2.0)
    assert [factors.muon for factors in found[11:]] == pytest.approx(
        [0.1 + 0.9 * (left / 10) ** 2 for left in range(9, 0, -1)]
    )
    assert [factors.adamw for factors in found[4:16]] == [1.0] * 12
    assert [factors.adamw for factors in found[16:]] == pytest.approx([0.82, 0.64, 0.46, 0.28])
    assert [found[step].weight_decay for step in (5, 10, 15)] == pytest.approx([1.0, 0.0, 0.5])


def test_a_plain_schedule_is_one_for_all_and_its_decay_constant() -> None:
    schedule = Schedule(steps=20, warmup_steps=4, decay_steps=9)
    for step in range(20):
        factor = schedule.factor(step)
        assert schedule.factors(step) == Factors(factor, factor, 1.0)


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        ({"power": 0.0}, "power is 0.0: it must be a number above 0"),
        ({"adamw": Cooldown(decay_steps=11)}, r"decay \(11\) must be 0 or more and fit into 10 steps"),
        ({"adamw": Cooldown(decay_steps=1, power=float("nan"))}, "power is nan"),
        ({"shape": "cosine", "power": 2.0}, '"cosine" has no power'),
        ({"shape": "cosine", "adamw": Cooldown(decay_steps=1)}, '"cosine" has no power'),
        ({"weight_decay": ()}, r"weight_decay is \[\]: it must be points"),
        ({"weight_decay": ((0.0,),)}, r"weight_decay is \[\[0.0\]\]"),
        ({"weight_decay": ((0.5, 1.0), (0.5, 0.0))}, "rising"),
        ({"weight_decay": ((0.0, -1.0),)}, "at least 0"),
        ({"weight_decay": ((1.5, 1.0),)}, "from 0 to 1"),
    ],
)
def test_cooldowns_and_points_that_cannot_be_meant_are_refused(wrong: dict[str, Any], shown: str) -> None:
    with pytest.raises(ConfigError, match=shown) as refused:
        Schedule(**{"steps": 10, "warmup_steps": 0, **wrong})
    assert refused.value.ko != refused.value.en


@pytest.mark.parametrize(
    "wrong", [{"shape": "linear"}, {"warmup_steps": 11}, {"warmup_steps": 5, "decay_steps": 6}]
)
def test_impossible_schedules_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Schedule(**{"steps": 10, "warmup_steps": 0, **wrong})  # type: ignore[arg-type]
