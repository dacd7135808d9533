"""Where Ray is asked to run, by a stand-in that works in this process: Ray itself need not be installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from kogpt.cluster.pool import Pool, spread
from kogpt.errors import KoGPTError


class Reference:
    """An answer that is there at once."""

    def __init__(self, value: Any) -> None:
        self.value = value


class StandIn:
    """A machine with or without a running cluster. `init` refuses what Ray 2.56 refuses."""

    exceptions = SimpleNamespace(RayTaskError=LookupError, RayError=LookupError)

    def __init__(self, runs: bool) -> None:
        self.runs = runs
        self.joined: bool | None = None

    def init(self, address: str | None = None, **options: Any) -> None:
        if address not in (None, "auto", "local") or (address == "auto" and not self.runs):
            raise ConnectionError("nobody answers")
        self.joined = self.runs and address != "local"
        if self.joined and "num_cpus" in options:
            raise ValueError("When connecting to an existing cluster, num_cpus must not be provided.")

    def shutdown(self) -> None:
        pass

    def remote(self, **_: Any) -> Callable[[Any], Any]:
        def actor(kind: Any, make: Any) -> Any:
            worker = kind(make)
            return SimpleNamespace(run=SimpleNamespace(remote=lambda part: Reference(worker.run(part))))

        return lambda kind: SimpleNamespace(remote=lambda make: actor(kind, make))

    def wait(self, references: Sequence[Reference]) -> tuple[list[Reference], list[Reference]]:
        return list(references[:1]), list(references[1:])

    def get(self, reference: Reference) -> Any:
        return reference.value


def doubling() -> Callable[[int], int]:
    return lambda part: 2 * part


@pytest.mark.parametrize("runs", [False, True])
@pytest.mark.parametrize("address", [None, "auto"])
def test_workers_run_where_they_are_asked_to(
    runs: bool, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an address on this machine, also where a cluster runs."""
    ray = StandIn(runs)
    monkeypatch.setitem(sys.modules, "ray", ray)
    answers = spread(Pool(2, address), doubling, [1, 2, 3])
    if address is not None and not runs:
        with pytest.raises(KoGPTError, match=r"no Ray cluster at auto \(nobody answers\): start one"):
            list(answers)
        return
    assert list(answers) == [2, 4, 6] and ray.joined is (address is not None)


def test_what_does_not_start_here_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(StandIn):
        def init(self, address: str | None = None, **options: Any) -> None:
            raise RuntimeError("no room in /dev/shm")

    monkeypatch.setitem(sys.modules, "ray", Full(False))
    with pytest.raises(
        KoGPTError, match=r"on this machine for --workers 2 \(no room in /dev/shm\): leave --workers out"
    ) as told:
        list(spread(Pool(2), doubling, [1]))
    assert "None" not in told.value.en + told.value.ko and "no room" in told.value.ko
