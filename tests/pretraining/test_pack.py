"""Packing: the same bytes with any number of workers and after any kill; nothing half-written is used."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import zstandard
from tokenizers import models, pre_tokenizers, trainers

from kogpt.errors import DiskError, InputError, KoGPTError
from kogpt.files import lock_folder
from kogpt.pretraining import pack as packing
from kogpt.pretraining import parts
from kogpt.pretraining.corpus import Reading
from kogpt.pretraining.pack import pack
from kogpt.pretraining.parts import Options
from kogpt.pretraining.shards import Shards
from kogpt.tokenizer import Tokenizer

SENTENCE = "나라 말이 서로 달라 어린 백성이 말하고자 하는 바가 있어도 마침내 제 뜻을 펴지 못하는 사람이 많다"
WORDS = SENTENCE.split(" ")
BLOCK = 20_000  # bytes: about 10 parts of the corpus below
N_DOCUMENTS = 800


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(20, 60)))


@pytest.fixture(scope="module")
def corpus_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """800 documents in three files, of which 100 are exact, 100 near-duplicates, and 50 too short."""
    rng = random.Random(0)
    texts = [f"{i}번째 글. {sentence(rng)}" for i in range(N_DOCUMENTS - 250)]
    texts += [texts[i] for i in range(100)] + [f"{texts[i]} 끝" for i in range(100, 200)] + ["짧은 글"] * 50
    folder = tmp_path_factory.mktemp("corpus")
    lines = [json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts]
    files = []
    for number, start in enumerate(range(0, len(lines), 300)):
        path = folder / f"{number}.jsonl.zst"
        path.write_bytes(zstandard.compress(b"".join(lines[start : start + 300])))
        files.append(path)
    return files


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["[BOS]", "[EOS]", "[UNK]", "[PAD]", "[MASK]"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def options(**changes: object) -> Options:
    settings = {"reading": Reading(block_bytes=BLOCK), "tokens_per_shard": 10_000} | changes
    return Options(**settings)  # type: ignore[arg-type]


def run(
    files: list[Path], tokenizer: Path, out: Path, workers: int = 1, **changes: object
) -> dict[str, object]:
    return pack(files, tokenizer, out, options(**changes), workers, lambda n_bytes: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def packed(
    corpus_files: list[Path], tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("packed") / "out"
    run(corpus_files, tokenizer_file, out)
    assert not out.with_name("out.partial").exists()
    return contents(out)


def test_report_counts_every_record(packed: dict[str, bytes]) -> None:
    report = json.loads(packed["report.json"])
    assert report["records"] == N_DOCUMENTS
    assert report["filtered"] == {"too-short": 50}
    assert report["duplicates"] == {"exact": 100, "near": 100}
    assert report["documents"] == N_DOCUMENTS - 250
    assert report["bad"] == 0


def test_shards_hold_every_text_ended_by_eos(
    corpus_files: list[Path], tokenizer_file: Path, tmp_path: Path
) -> None:
    run(corpus_files, tokenizer_file, tmp_path / "out")
    shards = Shards(tmp_path / "out")
    shards.verify()
    assert len(shards.index.shards) > 3 and shards.index.n_vocab == 300
    ids = shards.window(0, len(shards))
    tokenizer = Tokenizer.from_file(tokenizer_file)
    ends = np.flatnonzero(ids == tokenizer.eos_token_id)
    texts = [tokenizer.decode(part.tolist()) for part in np.split(ids, ends + 1)[:-1]]
    assert ends[-1] == len(ids) - 1
    assert [text.split("번")[0] for text in texts] == [str(i) for i in range(N_DOCUMENTS - 250)]


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_gives_the_same_bytes(
    packed: dict[str, bytes], corpus_files: list[Path], tokenizer_file: Path, tmp_path: Path, workers: int
) -> None:
    run(corpus_files, tokenizer_file, tmp_path / "out", workers)
    assert contents(tmp_path / "out") == packed


SCRIPT = """
from pathlib import Path
from kogpt.pretraining.corpus import Reading
from kogpt.pretraining.pack import pack
from kogpt.pretraining.parts import Options
options = Options(reading=Reading(block_bytes={block}), tokens_per_shard=10_000)
pack([Path(file) for file in {files!r}], Path({tokenizer!r}), Path({out!r}), options, {workers}, id)
"""


def start(files: list[Path], tokenizer: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    names = [str(file) for file in files]
    script = SCRIPT.format(files=names, tokenizer=str(tokenizer), out=str(out), workers=workers, block=BLOCK)
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", script], cwd=root, start_new_session=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_any_moment_it_goes_on(
    packed: dict[str, bytes], corpus_files: list[Path], tokenizer_file: Path, tmp_path: Path, workers: int
) -> None:
    """SIGKILL after ever more parts, until it gets through; workers die with their parent."""
    out = tmp_path / "out"
    kept, kills = 1, 0
    while not out.exists():
        process = start(corpus_files, tokenizer_file, out, workers)
        while process.poll() is None and len(list(tmp_path.glob("out.partial/parts/*.npz"))) < kept:
            time.sleep(0.001)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        assert process.wait() in (0, -signal.SIGKILL)
        _wait_until_gone(process.pid)
        kept += 3
    run(corpus_files, tokenizer_file, out)
    assert kills >= 3
    assert contents(out) == packed
    assert not out.with_name("out.partial").exists()


def _wait_until_gone(group: int) -> None:
    """No process of the group is left after a while."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise AssertionError("workers outlived the process that started them")


def test_a_second_process_is_refused(corpus_files: list[Path], tokenizer_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    work = tmp_path / "out.partial"
    work.mkdir()
    with lock_folder(work, "x"), pytest.raises(InputError, match=r"in use \(x, process"):
        run(corpus_files, tokenizer_file, out)
    run(corpus_files, tokenizer_file, out)


@contextlib.contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Writing beyond `n_bytes` of a file fails, as on a full disk (Python ignores the signal)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Limits that stop the plan, a part, the comparison (signatures of all parts in one file) and a shard.
@pytest.mark.parametrize("limit", [100, 20_000, 100_000, 85_000])
def test_a_full_disk_leaves_nothing_half_written(
    packed: dict[str, bytes], corpus_files: list[Path], tokenizer_file: Path, tmp_path: Path, limit: int
) -> None:
    out = tmp_path / "out"
    with largest_file(limit), pytest.raises(DiskError, match="make room, then repeat"):
        run(corpus_files, tokenizer_file, out)
    assert not out.exists()
    assert not list(tmp_path.glob("out.partial/parts/.*"))
    run(corpus_files, tokenizer_file, out)
    assert contents(out) == packed


def test_every_write_may_fail(
    packed: dict[str, bytes],
    corpus_files: list[Path],
    tokenizer_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The n-th sync of a file or folder fails, for many n; afterwards the same command gets through."""
    real, calls = os.fsync, 0
    fail_at = 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == fail_at:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    run(corpus_files[:1], tokenizer_file, tmp_path / "whole")
    expected, n_calls = contents(tmp_path / "whole"), calls
    assert n_calls > 20
    for fail_at in range(1, n_calls + 1, 3):
        calls, out = 0, tmp_path / f"out{fail_at}"
        with pytest.raises(DiskError, match="make room, then repeat"):
            run(corpus_files[:1], tokenizer_file, out)
        calls = n_calls
        run(corpus_files[:1], tokenizer_file, out)
        assert contents(out) == expected


def test_a_finished_pack_is_recognised(
    corpus_files: list[Path], tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    report = run(corpus_files, tokenizer_file, out)
    monkeypatch.setattr(parts, "blocks", None)  # nothing is read again
    assert json.dumps(run(corpus_files, tokenizer_file, out)) == json.dumps(report)
    with pytest.raises(InputError, match="not what this command makes"):
        run(corpus_files, tokenizer_file, out, near=0.9)
    with pytest.raises(InputError, match="not what this command makes"):
        run(corpus_files[:1], tokenizer_file, out)


def test_a_file_name_that_is_not_utf8(tokenizer_file: Path, tmp_path: Path) -> None:
    """As archives made by Korean Windows leave it."""
    path = tmp_path / os.fsdecode("가.jsonl".encode("cp949"))
    path.write_text(json.dumps({"text": SENTENCE}) + "\n{oops\n")
    report = run([path], tokenizer_file, tmp_path / "out", left_out=("all",), max_bad_share=0.5)
    assert report["bad_shown"] == [[f"{tmp_path}/\\xb0\\xa1.jsonl", 2, "not-json"]]
    assert run([path], tokenizer_file, tmp_path / "out", left_out=("all",), max_bad_share=0.5) == report


def test_a_finished_pack_of_files_that_changed_since_is_refused(tokenizer_file: Path, tmp_path: Path) -> None:
    """At equal size: only the time tells."""
    path, out = tmp_path / "a.txt", tmp_path / "out"
    path.write_text(SENTENCE, encoding="utf-8")
    run([path], tokenizer_file, out, left_out=("all",))
    path.write_text(SENTENCE[::-1], encoding="utf-8")
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))  # whatever the clock's grain
    with pytest.raises(InputError, match="not what this command makes of the files as they are now"):
        run([path], tokenizer_file, out, left_out=("all",))


def test_a_kill_before_the_work_is_removed_leaves_nothing_for_good(
    corpus_files: list[Path], tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = tmp_path / "out", tmp_path / "out.partial"
    with monkeypatch.context() as patch:
        patch.setattr(packing, "_remove", lambda work: None)  # the process is gone
        report = run(corpus_files[:1], tokenizer_file, out)
    assert out.exists() and work.exists()
    assert run(corpus_files[:1], tokenizer_file, out)["tokens"] == report["tokens"]
    assert not work.exists()


def test_parts_without_their_plan_are_not_used(
    corpus_files: list[Path], tokenizer_file: Path, tmp_path: Path
) -> None:
    """As a removal that was killed may leave them; they may come from other options."""
    with largest_file(100_000), pytest.raises(DiskError):
        run(corpus_files, tokenizer_file, tmp_path / "out")
    (tmp_path / "out.partial/plan.json").unlink()
    report = run(corpus_files, tokenizer_file, tmp_path / "out", left_out=("too-short",))
    assert report["filtered"] == {}


def test_another_plan_does_not_go_on_from_these_parts(
    corpus_files: list[Path], tokenizer_file: Path, tmp_path: Path
) -> None:
    with largest_file(100_000), pytest.raises(DiskError):
        run(corpus_files, tokenizer_file, tmp_path / "out")
    with pytest.raises(InputError, match="was begun with other files"):
        run(corpus_files, tokenizer_file, tmp_path / "out", left_out=("too-short",))


def test_a_damaged_part_is_refused(
    packed: dict[str, bytes], corpus_files: list[Path], tokenizer_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with largest_file(100_000), pytest.raises(DiskError):
        run(corpus_files, tokenizer_file, out)
    part = tmp_path / "out.partial/parts/0000003.npz"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    with pytest.raises(InputError, match=r"0000003\.npz is damaged"):
        run(corpus_files, tokenizer_file, out)
    part.unlink()
    run(corpus_files, tokenizer_file, out)
    assert contents(out) == packed


def test_bad_records_over_the_limit_stop_it(
    corpus_files: list[Path], tokenizer_file: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"text": 1}\n{oops\n')
    with pytest.raises(
        InputError, match=r"2 of 802 .* over 0.20% .*bad.jsonl:1: .*; .*bad.jsonl:2: not a JSON"
    ):
        run([*corpus_files, bad], tokenizer_file, tmp_path / "out", max_bad_share=0.002)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "documents", None)  # nothing is parsed again
        report = run([*corpus_files, bad], tokenizer_file, tmp_path / "out", max_bad_share=0.003)
    assert report["bad"] == 2
    assert report["bad_shown"] == [[str(bad), 1, "no-text"], [str(bad), 2, "not-json"]]


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_records_are_counted_on_the_whole(tokenizer_file: Path, tmp_path: Path, workers: int) -> None:
    """Two of 2,000 are 0.1 %, though they are most of the first block; three are refused, every time."""
    path = tmp_path / "a.jsonl"
    good = b"".join(json.dumps({"text": f"{SENTENCE} {i}"}).encode() + b"\n" for i in range(1997))
    path.write_bytes(b"{oops\n" * 2 + good + b'{"text": "a"}\n')
    report = run([path], tokenizer_file, tmp_path / "out", workers, keep_duplicates=True)
    assert (report["records"], report["bad"]) == (2000, 2)
    path.write_bytes(b"{oops\n" * 3 + good)
    for _ in range(3):
        with pytest.raises(InputError, match=r"3 of 2000 records are bad, over 0.10% .*a.jsonl:1: .*:3: "):
            run([path], tokenizer_file, tmp_path / "other", workers, keep_duplicates=True)


def test_nothing_left_to_pack(tokenizer_file: Path, tmp_path: Path) -> None:
    short = tmp_path / "a.txt"
    short.write_text("짧은 글\n", encoding="utf-8")
    with pytest.raises(InputError, match="nothing to pack: 1 records, 0 of them bad"):
        run([short], tokenizer_file, tmp_path / "out")
    report = run([short], tokenizer_file, tmp_path / "other", left_out=("all",))
    assert report["documents"] == 1


def test_duplicates_can_be_kept(corpus_files: list[Path], tokenizer_file: Path, tmp_path: Path) -> None:
    exact = run(corpus_files, tokenizer_file, tmp_path / "exact", near=0)
    assert exact["duplicates"] == {"exact": 100, "near": 0}
    kept = run(corpus_files, tokenizer_file, tmp_path / "kept", keep_duplicates=True)
    assert (kept["duplicates"], kept["documents"]) == ({"exact": 0, "near": 0}, N_DOCUMENTS - 50)


def test_bad_options_are_refused() -> None:
    for bad in (
        {"near": 1.5},
        {"near": 0.05},
        {"near": -1},
        {"max_bad_share": 2},
        {"left_out": ("nonsense",)},
    ):
        with pytest.raises(KoGPTError):
            options(**bad)


def test_a_killed_worker_is_one_clear_line(
    corpus_files: list[Path], tokenizer_file: Path, tmp_path: Path
) -> None:
    def kill_a_worker(n_bytes: int) -> None:
        import multiprocessing

        for child in multiprocessing.active_children():
            child.kill()

    with pytest.raises(InputError, match="one of 2 workers was killed"):
        pack(corpus_files, tokenizer_file, tmp_path / "out", options(), 2, kill_a_worker)


def test_progress_reaches_the_size_of_the_files(
    corpus_files: list[Path], tokenizer_file: Path, tmp_path: Path
) -> None:
    seen: list[int] = []
    pack(corpus_files, tokenizer_file, tmp_path / "out", options(), 1, seen.append)
    assert seen[0] == 0 and seen == sorted(seen)
    assert seen[-1] == sum(path.stat().st_size for path in corpus_files)


def test_progress_begins_with_what_was_read_before(
    corpus_files: list[Path], tokenizer_file: Path, tmp_path: Path
) -> None:
    """A kill is an exception here, once some parts are there."""
    seen: list[int] = []

    def stop(n_bytes: int) -> None:
        seen.append(n_bytes)
        if len(seen) > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(corpus_files, tokenizer_file, tmp_path / "out", options(), 1, stop)
    again: list[int] = []
    pack(corpus_files, tokenizer_file, tmp_path / "out", options(), 1, again.append)
    assert again[0] == seen[-1] > 0 and again == sorted(again)
