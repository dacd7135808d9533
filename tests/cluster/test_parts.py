"""--parts: what another run left is never taken for this run's answers. A loop stands in for the workers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, random_tensors

from kogpt import checkpoint, peft
from kogpt.cli import main
from kogpt.cluster import pool
from kogpt.hub import find_adapter

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Work without Ray; the numbers of the parts that were worked on."""
    worked: list[int] = []

    def answers(
        _: object, make: Callable[[], Callable[[Any], Any]], parts: Mapping[int, Any]
    ) -> Iterator[Any]:
        work = make()
        for number, part in parts.items():
            worked.append(number)
            yield number, work(part)

    monkeypatch.setattr(pool, "_answers", answers)
    return worked


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_folder, tmp_path / "model")
    return tmp_path / "model"


def command(name: str, folder: Path, tmp_path: Path, *more: str) -> list[str]:
    (tmp_path / "texts.txt").write_text("하나\n둘\n")
    words = [name, "--file", str(tmp_path / "texts.txt"), "--model", str(folder), "--device", "cpu", *more]
    return [*words, "--workers", "1", "--parts", str(tmp_path / f"parts of {name}")]


def new_weights(folder: Path) -> None:
    tensors = {name: array + np.float32(0.01) for name, array in random_tensors(TINY).items()}
    checkpoint.save(folder, TINY, tensors, "float32", folder)


@pytest.mark.parametrize(
    ("name", "more"),
    [("generate", ("--json", "--max-tokens", "2", "--seed", "1")), ("classify", ("--labels", "긍정,부정"))],
)
def test_new_weights_in_the_old_folder_are_another_run(
    name: str,
    more: tuple[str, ...],
    folder: Path,
    tmp_path: Path,
    in_this_process: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = command(name, folder, tmp_path, *more)
    assert main(asked) == 0 and in_this_process == [0]
    before = capsys.readouterr().out
    assert main(asked) == 0 and in_this_process == [0] and capsys.readouterr().out == before
    new_weights(folder)
    assert main(asked) == 2
    assert "parts of another run: other texts, settings or model" in capsys.readouterr().err


def test_digests_follow_every_file_that_decides(folder: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(find_adapter("sentiment"), adapter)
    found = [peft.digests(folder, adapter, with_labels=True)]
    assert found[0].keys() == {"model_sha256", "tokenizer_sha256", "adapter_sha256"}
    files = [adapter / name for name in (peft.WEIGHTS, peft.CONFIG, peft.OWN)]
    for path in (*files, folder / "model.safetensors", folder / "config.json", folder / "tokenizer.json"):
        path.write_bytes(path.read_bytes() + b" ")
        found.append(peft.digests(folder, adapter, with_labels=True))
    assert len({tuple(digests.values()) for digests in found}) == len(found)
    assert peft.digests(folder) == {key: found[-1][key] for key in ("model_sha256", "tokenizer_sha256")}
    (adapter / peft.OWN).unlink()
    assert peft.digests(folder, adapter) == peft.digests(folder, adapter, with_labels=True)
