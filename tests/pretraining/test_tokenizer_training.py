"""Byte-level BPE: what every tokenizer of ours must do, whatever it was trained on."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import pre_tokenizers

from kogpt.errors import ConfigError, DiskError
from kogpt.pretraining import tokenizer_training
from kogpt.pretraining.tokenizer_training import (
    MAX_WORD,
    SPECIAL_TOKENS,
    cut_words,
    save_tokenizer,
    smaller,
    train_tokenizer,
)
from kogpt.tokenizer import Tokenizer

TEXTS = [
    " ".join(random.Random(seed).choices(["가나", "다라마", "바사", "1998년", "3월", "abc\n하였다."], k=80))
    for seed in range(9)
]


@pytest.fixture(scope="module")
def tokenizer() -> RawTokenizer:
    return train_tokenizer(TEXTS, 295)


def test_vocabulary_holds_special_tokens_first_and_every_byte(tokenizer: RawTokenizer) -> None:
    assert tokenizer.get_vocab_size() == 295
    assert [tokenizer.id_to_token(i) for i in range(5)] == list(SPECIAL_TOKENS)
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= tokenizer.get_vocab().keys()
    everything = "".join(map(chr, [*range(0x250), 0xAC00, 0x4E00, 0x1F600, 0x10FFFF]))
    assert tokenizer.decode(tokenizer.encode(everything).ids) == everything


@pytest.mark.parametrize(
    "text",
    ["", " ", "가 나", "  두 칸\n\n\t탭 ", "2026년 11월 22일", "漢字 \U0001f44d\U0001f3fd é", "\r\n a\r\n"],
)
def test_text_comes_back(tokenizer: RawTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_numbers_fall_into_pairs_of_digits_and_line_breaks_stand_alone(tokenizer: RawTokenizer) -> None:
    text = "서기 12345년\n가 나"
    places = [place for _, place in tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert [text[a:b] for a, b in places] == ["서기", " 12", "34", "5", "년", "\n", "가", " 나"]


def test_decomposed_hangul_is_composed(tokenizer: RawTokenizer) -> None:
    assert tokenizer.encode("\u1100\u1161").ids == tokenizer.encode("가").ids


def test_smaller_is_what_training_smaller_gives(tokenizer: RawTokenizer) -> None:
    assert smaller(tokenizer, 280).to_str() == train_tokenizer(TEXTS, 280).to_str()


def test_training_is_deterministic(tokenizer: RawTokenizer) -> None:
    assert train_tokenizer(TEXTS, 295).to_str() == tokenizer.to_str()


def test_saved_files_serve_both_libraries(tokenizer: RawTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path, n_ctx=64)
    own = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert own.n_vocab == 295 and own.encode("가나 1998년") == tokenizer.encode("가나 1998년").ids
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["eos_token"] == "[EOS]" and settings["model_max_length"] == 64


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_tokenizer_is_saved_whole_or_not_at_all(
    tokenizer: RawTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    """The n-th file cannot be finished: no part of it is seen, and tokenizer.json, the last, is missing."""
    calls = 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if len(list(tmp_path.glob("*.json"))) == fails_at - 1:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DiskError, match="No space left"):
        save_tokenizer(tokenizer, tmp_path, n_ctx=64)
    assert calls and [path.name for path in tmp_path.iterdir()] == ["tokenizer_config.json"][: fails_at - 1]
    fails_at = 0
    save_tokenizer(tokenizer, tmp_path, n_ctx=64)
    tokenizer.save(str(tmp_path / "other.json"))
    assert (tmp_path / "tokenizer.json").read_bytes() == (tmp_path / "other.json").read_bytes()


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="260 is too small"):
        train_tokenizer(TEXTS, 260)
    with pytest.raises(ConfigError, match="asked: give more text"):
        train_tokenizer(["가"], 1000)


def test_a_text_without_spaces_takes_linear_time() -> None:
    """180,000 syllables in one word took 178 s, 20,000 took 2 s."""
    rng = random.Random(0)
    letters = [chr(0xAC00 + i) for i in range(1000)]
    text = "".join(rng.choices(letters, [1 / (i + 1) for i in range(1000)], k=60_000))
    started = time.process_time()
    train_tokenizer([text], 1024)
    assert time.process_time() - started < 10


@pytest.mark.parametrize("run", ["가", " ", "=", "\u1100"])
def test_long_runs_are_cut_and_nothing_is_lost(run: str) -> None:
    text = f"가나 {run * 1000}다\n{run * MAX_WORD} 라"
    pieces = list(cut_words(text))
    assert "".join(pieces) == text
    assert max(len(word) for piece in pieces for word in re.findall(r"\S+|\s+", piece)) == MAX_WORD
    assert list(cut_words(TEXTS[0])) == [TEXTS[0]]


INTERRUPTED = """
import os, signal, sys, threading, time
from kogpt.pretraining.tokenizer_training import train_tokenizer
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
rng = __import__("random").Random(0)
texts = [" ".join("".join(rng.choices("가나다라마바사아자차카타파하", k=8)) for _ in range(200_000))] * 2
def press():
    time.sleep(float(sys.argv[1]))
    print("pressed", time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=press).start()
try:
    train_tokenizer(texts * int(sys.argv[2]), 300_000)
except KeyboardInterrupt:
    print("heard", time.monotonic())
    sys.exit(130)
"""


@pytest.mark.parametrize(("seconds", "repeats"), [(2.0, 1), (0.5, 100)])
def test_ctrl_c_is_heard_at_once(seconds: float, repeats: int) -> None:
    """While words are merged, and while texts are read; the library itself hears it at its end."""
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(seconds), str(repeats)],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 130, run.stderr[-500:]
    pressed, heard = (float(line.split()[1]) for line in run.stdout.splitlines())
    assert heard - pressed < 2


def test_training_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tokenizer_training, "TELL_SECONDS", 0.0)

    def slowly() -> Iterator[str]:
        for text in TEXTS:
            time.sleep(0.1)
            yield text

    train_tokenizer(slowly(), 295)
    said = capsys.readouterr().err
    assert "tokenizer: 0.0 MB read, 0 s so far" in said

    def at_once() -> Iterator[str]:
        yield " ".join("".join(random.Random(i).choices("가나다라마바사아", k=8)) for i in range(20_000))

    train_tokenizer(at_once(), 4000)
    assert "4,000 entries from 0.5 MB" in capsys.readouterr().err


def test_an_error_of_the_corpus_ends_training() -> None:
    def texts() -> Iterator[str]:
        yield TEXTS[0]
        raise ConfigError("a bad record", "a bad record")

    with pytest.raises(ConfigError, match="a bad record"):
        train_tokenizer(texts(), 295)
