"""A byte-level BPE tokenizer from raw text, in the files that transformers' AutoTokenizer reads."""

from __future__ import annotations

import atexit
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Event, Thread
from types import TracebackType

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

from kogpt.errors import ConfigError, localized
from kogpt.files import atomic_write

# Ids 0 to 4, as in the published tokenizer.
SPECIAL_TOKENS = ("[BOS]", "[EOS]", "[UNK]", "[PAD]", "[MASK]")

# Words keep the space before them, numbers fall into pairs of digits, and line breaks stand alone:
# one "\n" between paragraphs is then always the same token.
WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}{1,2}| ?[^\s\p{L}\p{M}\p{N}]+|\r?\n|[^\S\r\n]+(?!\S)|\s+"

N_BYTES = 256
# Characters of a word that are trained on together. A merge costs time in proportion to the length of every
# word that it changes, so a text without spaces, one word to the trainer, would take quadratic time.
MAX_WORD = 64
LONG_WORD = re.compile(rf"\S{{{MAX_WORD + 1},}}|\s{{{MAX_WORD + 1},}}")
TELL_SECONDS = 10.0  # between two lines that say how far training is
INTERRUPTED = 130  # exit code after Ctrl-C


def train_tokenizer(texts: Iterable[str], n_vocab: int, min_frequency: int = 2) -> Tokenizer:
    """A tokenizer of exactly `n_vocab` entries, special tokens and all 256 bytes included.

    Lines on stderr say how far it is; Ctrl-C ends it at once. Words of more than MAX_WORD characters are
    trained on in pieces. ConfigError if `n_vocab` has no room for those, or the text is too small to fill it.
    """
    smallest = N_BYTES + len(SPECIAL_TOKENS)
    if n_vocab < smallest:
        raise ConfigError(
            f"vocabulary of {n_vocab} is too small: bytes and special tokens alone need {smallest}",
            f"어휘 크기({n_vocab})가 너무 작습니다. 바이트와 특수 토큰만으로 {smallest}개가 필요합니다",
        )
    tokenizer = Tokenizer(BPE(unk_token=None))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=n_vocab,
        min_frequency=min_frequency,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    _Training(tokenizer, trainer, texts).wait()
    if (found := tokenizer.get_vocab_size()) != n_vocab:
        raise ConfigError(
            f"the text yields a vocabulary of {found}, {n_vocab} was asked: give more text or a smaller size",
            f"이 텍스트로는 어휘 {found}개만 나옵니다(요청: {n_vocab}). 텍스트를 늘리거나 크기를 줄이세요",
        )
    return tokenizer


class _Outcome:
    """How a block ended, for another thread: `error` is what it raised."""

    def __init__(self) -> None:
        self.reached = Event()
        self.error: BaseException | None = None

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error
        self.reached.set()
        return True


class _Training(Thread):
    """Training in a thread: the library does not hear Ctrl-C before it has ended."""

    def __init__(self, tokenizer: Tokenizer, trainer: trainers.BpeTrainer, texts: Iterable[str]) -> None:
        super().__init__(daemon=True)
        self._tokenizer = tokenizer
        self._trainer = trainer
        self._texts = texts
        self._n_vocab = trainer.vocab_size  # the library lends nothing while it trains
        self._n_bytes = 0
        self._all_read = False
        self._given_up = Event()
        self._outcome = _Outcome()

    def run(self) -> None:
        """Train; `wait` raises what goes wrong in the corpus or in the library."""
        with self._outcome:
            self._tokenizer.train_from_iterator(self._read(), self._trainer)

    def wait(self) -> None:
        """Start, and return when it is done; meanwhile say how far it is."""
        self.start()
        started = told = time.monotonic()
        try:
            while not self._outcome.reached.wait(
                0.1
            ):  # join() takes an interrupted thread for one that has ended
                if (now := time.monotonic()) - told >= TELL_SECONDS:
                    told = now
                    self._tell(now - started)
        except BaseException:
            self._given_up.set()
            atexit.register(self._end_program)
            raise
        if self._outcome.error is not None:
            raise self._outcome.error

    def _end_program(self) -> None:
        """End the program without the interpreter's own end, which a thread of the library would abort."""
        if not self._outcome.reached.is_set():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(INTERRUPTED)

    def _read(self) -> Iterator[str]:
        for text in self._texts:
            if self._given_up.is_set():
                raise InterruptedError
            self._n_bytes += len(text.encode())
            yield from cut_words(text)
        self._all_read = True

    def _tell(self, seconds: float) -> None:
        read = f"{self._n_bytes / 1e6:.1f} MB"
        en, ko = f"{read} read", f"{read} 읽음"
        if self._all_read:
            en, ko = f"{self._n_vocab:,} entries from {read}", f"텍스트 {read}에서 어휘 {self._n_vocab:,}개"
        line = localized(f"tokenizer: {en}, {seconds:.0f} s so far", f"토크나이저: {ko}, {seconds:.0f}초째")
        print(f"kogpt: {line}", file=sys.stderr)


def cut_words(text: str) -> Iterator[str]:
    """The text in pieces, none with a run of more than MAX_WORD characters, or of spaces."""
    start = 0
    for run in LONG_WORD.finditer(text):
        for place in range(run.start() + MAX_WORD, run.end(), MAX_WORD):
            yield text[start:place]
            start = place
    yield text[start:]


def smaller(tokenizer: Tokenizer, n_vocab: int) -> Tokenizer:
    """The tokenizer that training with a smaller `n_vocab` would have given: BPE merges are ordered."""
    document = json.loads(tokenizer.to_str())
    model = document["model"]
    dropped = len(model["vocab"]) - n_vocab
    assert 0 <= dropped <= len(model["merges"]), (n_vocab, len(model["vocab"]))
    model["vocab"] = {token: index for token, index in model["vocab"].items() if index < n_vocab}
    model["merges"] = model["merges"][: len(model["merges"]) - dropped]
    return Tokenizer.from_str(json.dumps(document))


def save_tokenizer(tokenizer: Tokenizer, folder: Path, n_ctx: int) -> None:
    """Write tokenizer_config.json for AutoTokenizer and tokenizer.json; encode adds nothing.

    Each is written whole or not at all, tokenizer.json last: where it is, both are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = ("bos_token", "eos_token", "unk_token", "pad_token", "mask_token")
    document = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": n_ctx,
        "clean_up_tokenization_spaces": False,
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
    }
    text = json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    with atomic_write(folder / "tokenizer_config.json") as file:
        file.write(text.encode())
    with atomic_write(folder / "tokenizer.json") as file:
        file.write(tokenizer.to_str(pretty=True).encode())
