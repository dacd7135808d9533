"""A little of what scripts/soak does a lot of."""

from __future__ import annotations

from pathlib import Path

import hardship
import pytest
from serving import Running, serving

from kogpt import KoGPT
from kogpt.server.limits import Limits
from kogpt.server.routes import POSTS


def test_answers_are_the_same_alone_and_among_others(server: Running) -> None:
    hardship.schedules(server, 60)


def test_poisoned_requests_fail_alone(server: Running) -> None:
    hardship.injections(server, 6)


def test_clients_that_leave_leave_nothing_behind(server: Running) -> None:
    hardship.cancellations(server, 100)


def test_slow_clients_are_evicted(model: KoGPT) -> None:
    limits = Limits(header_seconds=1, body_seconds=1, stall_seconds=1)
    hardship.slow_clients(model.tokenizer, 60, limits)


def test_unfinished_bodies_have_a_limit(model: KoGPT) -> None:
    with serving(model, Limits(body_bytes=100_000, buffered_bytes=1_000_000)) as server:
        hardship.bodies(server, 40)


def test_many_streams_at_once(model: KoGPT) -> None:
    hardship.crowd(model.tokenizer, 200, n_tokens=9)


def test_too_many_are_refused_at_once(model: KoGPT) -> None:
    hardship.overload(model.tokenizer, 200)


def test_no_syllable_is_broken(model: KoGPT) -> None:
    hardship.syllables(model.tokenizer, 5_000)


@pytest.mark.parametrize("seed", range(3))
def test_hostile_requests(server: Running, seed: int) -> None:
    hardship.fuzz(server, 200, tuple(POSTS), seed)


def test_a_signal_loses_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    hardship.drains(tiny_folder, tmp_path / "log", 1)


def test_nothing_that_was_said_is_kept(tiny_folder: Path, tmp_path: Path) -> None:
    hardship.secrecy(tiny_folder, tmp_path / "log")
