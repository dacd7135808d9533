"""A byte-level BPE tokenizer from raw text, in the files that transformers' AutoTokenizer reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE

from kogpt.errors import ConfigError
from kogpt.files import atomic_write

# Ids 0 to 4, as in the published tokenizer.
SPECIAL_TOKENS = ("[BOS]", "[EOS]", "[UNK]", "[PAD]", "[MASK]")

# Words keep the space before them, numbers fall into pairs of digits, and line breaks stand alone:
# one "\n" between paragraphs is then always the same token.
WORDS = r" ?[\p{L}\p{M}]+| ?\p{N}{1,2}| ?[^\s\p{L}\p{M}\p{N}]+|\r?\n|[^\S\r\n]+(?!\S)|\s+"

N_BYTES = 256


def train_tokenizer(texts: Iterable[str], n_vocab: int, min_frequency: int = 2) -> Tokenizer:
    """A tokenizer of exactly `n_vocab` entries, special tokens and all 256 bytes included.

    ConfigError if `n_vocab` has no room for those, or the text is too small to fill it.
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
    tokenizer.train_from_iterator(texts, trainer)
    if (found := tokenizer.get_vocab_size()) != n_vocab:
        raise ConfigError(
            f"the text yields a vocabulary of {found}, {n_vocab} was asked: give more text or a smaller size",
            f"이 텍스트로는 어휘 {found}개만 나옵니다(요청: {n_vocab}). 텍스트를 늘리거나 크기를 줄이세요",
        )
    return tokenizer


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
