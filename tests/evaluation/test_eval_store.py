"""Finished batches survive any kill; nothing is taken over that does not belong."""

from __future__ import annotations

from pathlib import Path

import pytest

from kogpt.errors import KoGPTError
from kogpt.evaluation.store import BatchStore, key_of

PARTS = {
    "model_sha256": "a",
    "tokenizer_sha256": "b",
    "dtype": "float32",
    "prompt": ["q"],
    "data": "sha256:c",
}
BATCHES = {0: [[-1.5, -2.25], [-0.1, -7.0]], 1: [[-3.0]], 2: [[-1e-17, -12345.678901234567]]}


def filled(folder: Path) -> Path:
    with BatchStore(folder, PARTS) as store:
        for number, scores in BATCHES.items():
            store[number] = scores
    return store.path


def test_what_was_written_is_read_to_the_last_bit(tmp_path: Path) -> None:
    filled(tmp_path)
    with BatchStore(tmp_path, PARTS) as store:
        assert {number: store.get(number) for number in range(4)} == {**BATCHES, 3: None}


def test_a_file_cut_anywhere_keeps_its_whole_batches_and_ends_up_equal(tmp_path: Path) -> None:
    whole = filled(tmp_path / "whole").read_bytes()
    ends = [end for end in range(len(whole)) if whole[end : end + 1] == b"\n"]
    for cut in range(len(whole) + 1):
        path = tmp_path / "cut" / filled(tmp_path / "cut").name
        path.write_bytes(whole[:cut])
        with BatchStore(tmp_path / "cut", PARTS) as store:
            kept = [number for number in BATCHES if store.get(number) is not None]
            assert kept == list(range(max(0, sum(end < cut for end in ends) - 1))), cut
            for number in BATCHES.keys() - set(kept):
                store[number] = BATCHES[number]
        assert path.read_bytes() == whole, cut
        path.unlink()


def test_a_damaged_line_is_not_believed(tmp_path: Path) -> None:
    path = filled(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"-2.25", b"-9.25"))
    with BatchStore(tmp_path, PARTS) as store:
        assert store.get(0) is None and store.get(1) is None, "nor what comes after it"


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_in_the_key(part: str, tmp_path: Path) -> None:
    filled(tmp_path)
    other = {**PARTS, part: "another"}
    assert key_of(other) != key_of(PARTS)
    with BatchStore(tmp_path, other) as store:
        assert store.get(0) is None


def test_two_processes_do_not_write_one_run(tmp_path: Path) -> None:
    with BatchStore(tmp_path, PARTS), pytest.raises(KoGPTError, match=r"in use \(kogpt eval"):
        BatchStore(tmp_path, PARTS)
    BatchStore(tmp_path, PARTS).close()


def test_a_batch_is_never_done_twice(tmp_path: Path) -> None:
    with BatchStore(tmp_path, PARTS) as store:
        store[0] = BATCHES[0]
        with pytest.raises(AssertionError):
            store[0] = BATCHES[0]
