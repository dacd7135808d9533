"""Learning-rate factors."""

from __future__ import annotations

import pytest

from kogpt.errors import ConfigError
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
