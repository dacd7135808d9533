"""Batch work by Ray: parts go in, their answers come out in the same order.

A worker is a Ray actor in a process of its own, on any machine of the cluster; it loads its model once. Ray
starts a lost worker again and gives it its part again. An answer counts once, under the number of its part:
nothing is lost or doubled. With a folder, finished parts stay there, and the same command goes on after an
interruption.
"""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from kogpt.errors import KoGPTError, MissingExtra
from kogpt.files import atomic_write, read_json, remove_leftovers

MAX_PART_BYTES = 1 << 30
AHEAD = 2  # parts that a worker has at a time, so that it does not wait for the next

Work = Callable[[Any], Any]  # a part -> its answer, which JSON can hold


@dataclass(frozen=True, slots=True)
class Pool:
    """Where the workers run. address: of a running cluster ("auto": the one of this machine); None: here."""

    n_workers: int
    address: str | None = None
    cpus: int = 1  # of each worker

    def __post_init__(self) -> None:
        if not 1 <= self.n_workers <= 10_000:
            raise KoGPTError(
                f"--workers is {self.n_workers}, must be from 1 to 10000",
                f"--workers 값 {self.n_workers} (조건: 1 이상 10000 이하)",
            )


class Kept:
    """Finished parts in a folder, one JSON file each."""

    def __init__(self, folder: Path, run: Mapping[str, Any]) -> None:
        """run: everything that the answers depend on. KoGPTError where the folder holds another run's."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        remove_leftovers(folder)
        stated = {"run": sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()}
        path = folder / "run.json"
        if not path.exists():
            self._write(path, stated)
        elif read_json(path, 1 << 20) != stated:
            raise KoGPTError(
                f"{folder} holds the parts of another run: other texts, settings or model; name a new folder",
                f"{folder}: 글, 설정, 모델이 다른 실행의 결과가 있습니다. 새 폴더를 지정하세요",
            )

    def has(self, number: int) -> bool:
        """Whether a part is finished."""
        return self._path(number).exists()

    def __getitem__(self, number: int) -> Any:
        return read_json(self._path(number), MAX_PART_BYTES)["answer"]

    def __setitem__(self, number: int, answer: Any) -> None:
        self._write(self._path(number), {"answer": answer})

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06}.json"

    def _write(self, path: Path, document: Mapping[str, Any]) -> None:
        with atomic_write(path) as file:
            file.write(json.dumps(document, ensure_ascii=False).encode())


def spread(
    pool: Pool, make: Callable[[], Work], parts: Sequence[Any], kept: Kept | None = None
) -> Iterator[Any]:
    """The answer to each part, in order. make: called once by each worker, loads what it needs.

    Raises what `make` or the work raises, and MissingExtra without Ray.
    """
    missing = [n for n in range(len(parts)) if kept is None or not kept.has(n)]
    answers = _answers(pool, make, {n: parts[n] for n in missing}) if missing else iter(())
    early: dict[int, Any] = {}
    unfinished = set(missing)
    for number in range(len(parts)):
        while number in unfinished:
            done, answer = next(answers)
            unfinished.remove(done)
            if kept is None:
                early[done] = answer
            else:
                kept[done] = answer
        yield early.pop(number) if kept is None else kept[number]


def _answers(pool: Pool, make: Callable[[], Work], parts: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
    """(number of a part, its answer), as they come."""
    with _ray(pool) as ray:
        # Without limits on both, a part ends with its worker.
        options = {"max_restarts": -1, "max_task_retries": -1, "num_cpus": pool.cpus}
        kind = ray.remote(**options)(_Worker)
        workers = [kind.remote(make) for _ in range(min(pool.n_workers, len(parts)))]
        waiting = deque(parts)
        running: dict[Any, tuple[int, Any]] = {}
        idle = deque(workers * AHEAD)
        while waiting or running:
            while waiting and idle:
                worker, number = idle.popleft(), waiting.popleft()
                running[worker.run.remote(parts[number])] = (number, worker)
            done, _ = ray.wait(list(running))
            number, worker = running.pop(done[0])
            idle.append(worker)
            yield number, _result(ray, done[0])


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise KoGPTError(
            f"a worker of the cluster failed: {error}", f"클러스터의 작업 프로세스가 실패했습니다: {error}"
        ) from error


class _Worker:
    """The actor: one process with one model."""

    def __init__(self, make: Callable[[], Work]) -> None:
        self._make = make
        self._work: Work | None = None

    def run(self, part: Any) -> Any:
        """The answer to a part. What `make` raises is raised here, where the caller sees it."""
        if self._work is None:
            self._work = self._make()
        return self._work(part)


@contextmanager
def _ray(pool: Pool) -> Iterator[Any]:
    """Ray, connected to the cluster, or started here with a CPU for every worker."""
    try:
        import ray
    except ImportError:
        raise MissingExtra("--workers", "ray") from None
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # one error is raised; others would be logged
    here: dict[str, Any] = {"num_cpus": pool.n_workers * pool.cpus, "include_dashboard": False}
    try:
        ray.init(
            pool.address or "local",  # None would join the cluster of this machine, where one runs
            logging_level=logging.ERROR,
            log_to_driver=False,
            **({} if pool.address else here),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_ray(pool, error) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _no_ray(pool: Pool, error: Exception) -> KoGPTError:
    """Why there is no Ray: it was not found at the address, or not started here."""
    if pool.address is None:
        return KoGPTError(
            f"Ray did not start on this machine for --workers {pool.n_workers} ({error}):"
            " leave --workers out, or name a running cluster with --ray",
            f"이 컴퓨터에서 Ray를 시작하지 못했습니다 (--workers {pool.n_workers}): {error}."
            " --workers를 빼거나, 실행 중인 클러스터를 --ray로 지정하세요",
        )
    return KoGPTError(
        f"no Ray cluster at {pool.address} ({error}): start one with `ray start --head`, or leave --ray out",
        f"Ray 클러스터({pool.address})에 연결할 수 없습니다: {error}. `ray start --head`로 시작하거나 "
        "--ray를 빼세요",
    )
