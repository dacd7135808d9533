"""Averages of weights beside means written out, and what a run does with them."""

from __future__ import annotations

import math
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kogpt.errors import ConfigError
from kogpt.training import checkpoints
from kogpt.training.averaging import Average, AverageSettings
from kogpt.training.loop import Batch, End
from kogpt.training.verdict import Best, Verdict

sys.path.insert(0, str(Path(__file__).parent))
import toy


def by_hand(history: list[Tensor], settings: AverageSettings) -> Tensor:
    """history: the weights after each step; the average of those that are due, as a sum with its shares."""
    due = [value for step, value in enumerate(history, start=1) if settings.is_due(step)]
    shares: list[float] = []
    for count in range(len(due)):
        newest = max(1 / (count + 1), 1 - settings.decay)
        shares = [(1 - newest) * share for share in shares] + [newest]
    assert sum(shares) == pytest.approx(1)
    return sum((share * value for share, value in zip(shares, due, strict=True)), torch.zeros(()))


@pytest.mark.parametrize(
    ("settings", "n_due"),
    [
        (AverageSettings(every=1), 12),
        (AverageSettings(every=5), 2),
        (AverageSettings(first_step=8, every=1), 5),
        (AverageSettings(first_step=3, every=4), 3),
        (AverageSettings(every=1, decay=0.7), 12),
    ],
)
def test_an_average_is_the_mean_of_the_weights_that_are_due(settings: AverageSettings, n_due: int) -> None:
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    average = Average(module, settings)
    assert average.weights.keys() == {"weight"}
    history = []
    for step in range(1, 13):
        with torch.no_grad():
            module.weight.copy_(torch.randn(2, 3, generator=torch.Generator().manual_seed(step)))
        history.append(module.weight.detach().clone())
        if settings.is_due(step):
            average.add(module)
    assert average.count == n_due and settings.is_due(settings.first_due)
    assert not any(settings.is_due(step) for step in range(1, settings.first_due))
    expected = by_hand(history, settings)
    torch.testing.assert_close(average.weights["weight"], expected)
    if settings.decay == 1:
        torch.testing.assert_close(
            expected, torch.stack([v for s, v in enumerate(history, 1) if settings.is_due(s)]).mean(0)
        )
    average.exchange(module)
    assert torch.equal(average.weights["weight"], history[-1])
    torch.testing.assert_close(module.weight.detach(), expected)
    average.exchange(module)
    assert torch.equal(module.weight.detach(), history[-1])


@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        ({"first_step": -1}, "first_step is -1: it must be 0 or more"),
        ({"every": 0}, "every is 0: it must be 1 or more"),
        ({"decay": 0.0}, "decay is 0.0: it must be above 0"),
        ({"decay": 1.5}, "decay is 1.5"),
        ({"decay": math.nan}, "decay is nan"),
    ],
)
def test_impossible_averages_are_refused(wrong: dict[str, Any], shown: str) -> None:
    with pytest.raises(ConfigError, match=f"average.{shown}") as refused:
        AverageSettings(**wrong)
    assert refused.value.ko.endswith("를 쓰세요")


def test_a_run_validates_and_saves_the_average_and_learns_as_without(tmp_path: Path) -> None:
    plain = toy.make_run(tmp_path / "plain", log_every=1)
    plain.resume()
    history, seen = [], []
    for step in range(toy.STEPS):
        plain.update(toy.batch(step))
        history.append({name: value.clone() for name, value in plain.objective.state_dict().items()})
    settings = AverageSettings(first_step=3, every=2)

    def validate(step: int, best: Best | None) -> Verdict:
        seen.append({name: value.clone() for name, value in run.objective.state_dict().items()})
        return Verdict({})

    run = toy.make_run(tmp_path / "averaged", validate_every=2, average=settings)
    run.resume()
    assert run.train(toy.batch, validate) is End.DONE
    for name, newest in history[-1].items():
        assert torch.equal(run.objective.state_dict()[name], newest)
        assert torch.equal(seen[0][name], history[1][name])  # nothing was averaged yet
        expected = by_hand([weights[name] for weights in history], settings)
        torch.testing.assert_close(seen[-1][name], expected)
        assert not torch.equal(seen[-1][name], newest)
        assert torch.equal(toy.weights(tmp_path / "averaged", "average")[name], seen[-1][name])
        assert torch.equal(toy.weights(tmp_path / "averaged")[name], newest)


def stopped(folder: Path, step: int, **settings: Any) -> None:
    def interrupted(number: int) -> Batch:
        if number == step:
            signal.raise_signal(signal.SIGTERM)
        return toy.batch(number)

    run = toy.make_run(folder, save_every=99, **settings)
    run.resume()
    assert run.train(interrupted) is End.STOPPED


def test_a_resumed_run_may_begin_or_end_its_average(tmp_path: Path) -> None:
    settings = AverageSettings(every=1)
    stopped(tmp_path, 1)
    stopped(tmp_path, 3, average=settings)  # the weights of steps 3 and 4
    newest = checkpoints.latest(tmp_path)
    assert newest is not None and checkpoints.verify(newest).averaged == 2
    run = toy.make_run(tmp_path)
    assert run.resume() and run.train(toy.batch) is End.DONE
    newest = checkpoints.latest(tmp_path)
    assert newest is not None and checkpoints.verify(newest).averaged == 0
