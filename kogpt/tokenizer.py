"""Text <-> token ids, and ids -> text while they stream: byte-level BPE through the `tokenizers` library.

Text is brought to NFC before it is cut into tokens. Nothing is added to it, and nothing in it is a command:
the library is given a vocabulary without special tokens, so that "[EOS]" typed by a user is plain text.

Ids become text through their bytes, by one decoder for whole answers and for streams. Bytes that can never
become a character show as U+FFFD; an unfinished character at the end of an answer, where a length limit may
cut, is left out.

Refuses tokenizers of other kinds. Knows nothing of models and chats, and no file but its own.
"""

from __future__ import annotations

import codecs
import json
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import tokenizers

from kogpt.checkpoint import read_json
from kogpt.config import ModelConfig
from kogpt.errors import PromptError, TokenizerError
from kogpt.patterns import is_linear

MAX_FILE_BYTES = 32 << 20  # a vocabulary of 200,000 takes 15 MB
MAX_TOKENS = 1 << 20
ROLES = ("bos", "eos", "unk", "pad", "mask")

MAX_STEPS = 16  # of cutting text before the BPE; published tokenizers have at most 6


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary.

    Printable bytes stand for themselves, the others for U+0100 onwards, in order (GPT-2, encoder.py).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTES = _byte_alphabet()
# The alphabet as Latin-1, and out of its range what Latin-1 would take for a byte.
AS_LATIN = {code: "\uffff" for code in range(256)} | {ord(char): chr(byte) for char, byte in BYTES.items()}


class Tokenizer:
    """A byte-level BPE.

    `n_vocab` is one above the largest id, `special_ids` are those that are no text. `bos_token_id` and
    `eos_token_id` exist always; `unk_token_id`, `pad_token_id` and `mask_token_id` may be None.
    """

    def __init__(self, document: Mapping[str, Any], names: Mapping[str, str], where: str) -> None:
        """Take a tokenizer.json's object, and the text of each special token by its role ("bos", ...)."""
        self._where = where
        _require_byte_level(document, where)
        vocabulary, added = _vocabulary(document, where), _added_tokens(document, where)
        ids = vocabulary | {content: index for content, (index, _) in added.items()}
        special = {content for content, (_, is_special) in added.items() if is_special}
        special |= {content for content in names.values() if content in ids}
        self.special_ids = frozenset(ids[content] for content in special)
        if names["bos"] not in ids or names["eos"] not in ids:
            raise _unfit(where, f"it has no {names['bos'][:40]!r} or no {names['eos'][:40]!r}")
        self.bos_token_id, self.eos_token_id = ids[names["bos"]], ids[names["eos"]]
        self.unk_token_id, self.pad_token_id, self.mask_token_id = (
            ids.get(names[role]) for role in ("unk", "pad", "mask")
        )
        self.n_vocab = max(ids.values()) + 1
        self._bytes = [b""] * self.n_vocab
        for token, index in ids.items():
            if index not in self.special_ids:
                self._bytes[index] = token.encode("utf-8", "replace") if token in added else _bytes_of(token)
        reserved = self.special_ids | {index for index, _ in added.values()}
        plain = {token: index for token, index in vocabulary.items() if index not in reserved}
        self._unknown = frozenset(byte for character, byte in BYTES.items() if character not in plain)
        self.longest = max(map(len, self._bytes))  # bytes of UTF-8 in one token
        self._library = _build(document, plain, where)

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Read a tokenizer.json; the files beside it may name the special tokens. Raises TokenizerError."""
        try:
            document = read_json(path, MAX_FILE_BYTES, TokenizerError)
            names = {role: f"[{role.upper()}]" for role in ROLES}
            for beside in ("tokenizer_config.json", "special_tokens_map.json"):
                if (path.parent / beside).is_file():
                    names |= _named(read_json(path.parent / beside, MAX_FILE_BYTES, TokenizerError))
        except OSError as error:
            reason = error.strerror or str(error)
            raise TokenizerError(
                f"cannot read the tokenizer {path}: {reason}",
                f"토크나이저를 읽을 수 없습니다: {path} ({reason})",
            ) from error
        return cls(document, names, str(path))

    def encode(self, text: str) -> list[int]:
        """Ids of the text in NFC; nothing is added. PromptError for a lone surrogate."""
        with self._no_panic():
            return self._library.encode(self._normal(text), add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        with self._no_panic():
            normal = [self._normal(text) for text in texts]
            encodings = self._library.encode_batch_fast(normal, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_choices(
        self, context: str, choices: Sequence[str], prefix: str = ""
    ) -> tuple[list[int], list[list[int]]]:
        """Token ids of a context and of each choice that may follow it: the one rule for their border.

        The texts are encoded whole: `context`, and `context + choice` for each choice. The tokens with which
        all of them begin form the context. The remaining tokens belong to the choice, and so does a token
        that spans the border. Context and choice together are always the ids of the joined text in NFC.

        An empty context becomes [eos_token_id], because every document of the training text follows [EOS].
        The same holds where the first token of the context already merges with a choice.
        Compare scores within one call only: where one choice merges with the end of the context, that end is
        scored as a part of every choice.

        prefix: text before the context that the caller has encoded already, such as shots. Its ids are left
        out of the answer. The end of a long prefix is enough.

        Raises PromptError for a choice that adds no token, for a token that spans the end of the prefix, and
        for a context that has no token after a prefix.
        """
        before, alone = self.encode(prefix), self.encode(prefix + context)
        joined = [self.encode(prefix + context + choice) for choice in choices]
        n = _n_shared([alone, *joined])
        for number, ids in enumerate(joined, 1):
            if ids == alone or len(ids) == n:
                raise _adds_nothing(number, choices[number - 1])
        if prefix and (n <= len(before) or alone[: len(before)] != before):
            raise _no_border(prefix)
        return alone[len(before) : n] or [self.eos_token_id], [ids[n:] for ids in joined]

    @contextmanager
    def _no_panic(self) -> Iterator[None]:
        """A pattern that matches for too long makes the library panic: TokenizerError instead."""
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of pyo3: no Exception, and cannot be imported
                raise
            raise _unfit(self._where, f"the library gave up on a text ({str(error)[:100]})") from error

    def _normal(self, text: str) -> str:
        """The text in NFC; PromptError where it is not Unicode, or would lose a byte that has no token."""
        normal = unicodedata.normalize("NFC", text)
        try:
            data = normal.encode()
        except UnicodeEncodeError as error:
            at, code = error.start, f"U+{ord(normal[error.start]):04X}"
            raise PromptError(
                f"not Unicode text: character {at} is the lone surrogate {code}; was it read as UTF-8?",
                f"유니코드 텍스트가 아닙니다: {at}번째 문자가 짝 없는 서로게이트 {code}입니다. "
                "UTF-8로 읽었는지 확인하세요",
            ) from error
        if unknown := self._unknown.intersection(data):
            byte = f"0x{min(unknown):02X}"
            raise PromptError(
                f"this tokenizer has no token for byte {byte} of the text",
                f"이 토크나이저에는 텍스트의 {byte} 바이트에 해당하는 토큰이 없습니다",
            )
        return normal

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; special tokens, and an unfinished character at the end, are left out."""
        return self.decoder().push_bytes(b"".join(map(self.token_bytes, ids)))

    def decoder(self) -> StreamDecoder:
        """A decoder for one stream of ids."""
        return StreamDecoder(self)

    def token_bytes(self, token: int) -> bytes:
        """What an id contributes to the UTF-8 of its text; nothing for special and for unused ids."""
        assert token >= 0, token
        return self._bytes[token] if token < self.n_vocab else b""

    def check_fits(self, config: ModelConfig) -> None:
        """Raise TokenizerError if the model has no row for an id, or another end of text."""
        if self.n_vocab > config.n_vocab:
            raise TokenizerError(
                f"the tokenizer has {self.n_vocab:,} ids, the model's vocabulary {config.n_vocab:,}: "
                "they do not belong together",
                f"토크나이저 ID는 {self.n_vocab:,}개, 모델 어휘는 {config.n_vocab:,}개로 서로 맞지 않습니다",
            )
        if self.eos_token_id != config.eos_token_id:
            raise TokenizerError(
                f"the tokenizer's end of text is id {self.eos_token_id}, the model's {config.eos_token_id}: "
                "they do not belong together",
                f"종료 ID가 다릅니다: 토크나이저 {self.eos_token_id}, 모델 {config.eos_token_id}",
            )


class StreamDecoder:
    """Ids in, whole characters out, in constant time per id; the pieces add up to `Tokenizer.decode`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this id completes, often none."""
        return self.push_bytes(self._tokenizer.token_bytes(token))

    def push_bytes(self, data: bytes) -> str:
        """The characters that these bytes complete."""
        return self._utf8.decode(data)

    @property
    def n_pending(self) -> int:
        """How many bytes of an unfinished character are held back."""
        return len(self._utf8.getstate()[0])

    def flush(self) -> str:
        """End the text. What is unfinished is left out, so this is always empty; `push` starts a new text."""
        self._utf8.reset()
        return ""


def _require_byte_level(document: Mapping[str, Any], where: str) -> None:
    """Refuse a tokenizer that would lose or add text, or that is not a byte-level BPE."""
    model = document.get("model")
    if type(model) is not dict or model.get("type", "BPE") != "BPE":
        raise _unfit(where, "its model is not a BPE")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(key):
            raise _unfit(where, f"its model has {key}")
    for step in _steps(document.get("normalizer"), "normalizers"):
        if step.get("type") != "NFC":
            raise _unfit(
                where, f"it normalises text with {str(step.get('type'))[:40]}, only NFC is supported"
            )
    steps = _steps(document.get("pre_tokenizer"), "pretokenizers")
    if [step.get("type") for step in steps].count("ByteLevel") != 1 or steps[-1]["type"] != "ByteLevel":
        raise _unfit(where, "its text is not split by a ByteLevel pre-tokenizer")
    if steps[-1].get("add_prefix_space"):
        raise _unfit(where, "it adds a space before the text (add_prefix_space)")
    if len(steps) > MAX_STEPS:
        raise _unfit(where, f"it splits text in {len(steps):,} steps, at most {MAX_STEPS} are supported")
    if unknown := next((step for step in steps[:-1] if not _is_lossless(step)), None):
        raise _unfit(where, f"it splits text with {str(unknown)[:80]}, which may lose text or never end")


def _is_lossless(step: Mapping[str, Any]) -> bool:
    """Whether a step cuts text without dropping any of it, in linear time."""
    if step.get("type") == "Digits":
        return True
    pattern = step.get("pattern")
    if step.get("type") != "Split" or step.get("behavior") == "Removed" or type(pattern) is not dict:
        return False
    regex = pattern.get("Regex", "")
    return type(regex) is str and is_linear(regex)


def _steps(part: Any, key: str) -> list[dict[str, Any]]:
    """A component of a tokenizer.json as the list of its steps."""
    if part is None:
        return []
    steps = part.get(key) if type(part) is dict and part.get("type") == "Sequence" else [part]
    return steps if type(steps) is list and all(type(step) is dict for step in steps) else [{}]


def _vocabulary(document: Mapping[str, Any], where: str) -> dict[str, int]:
    vocabulary = document["model"].get("vocab")
    if type(vocabulary) is not dict or not 256 <= len(vocabulary) <= MAX_TOKENS:
        raise _unfit(where, f"its vocabulary is not an object of 256 to {MAX_TOKENS:,} tokens")
    for token, index in vocabulary.items():
        if not _is_id(index):
            raise _unfit(where, f"token {token[:40]!r} has id {str(index)[:40]}")
    if len(set(vocabulary.values())) != len(vocabulary):
        raise _unfit(where, "two of its tokens share an id")
    return vocabulary


def _added_tokens(document: Mapping[str, Any], where: str) -> dict[str, tuple[int, bool]]:
    """Id, and whether it is special, of every token beside the BPE's own, by its text."""
    tokens = document.get("added_tokens") or []
    if type(tokens) is not list or len(tokens) > MAX_TOKENS:
        raise _unfit(where, "added_tokens is not a list")
    added = {}
    for token in tokens:
        if type(token) is not dict or type(token.get("content")) is not str or not _is_id(token.get("id")):
            raise _unfit(where, f"added token {str(token)[:80]} has no content or no id")
        added[token["content"]] = (token["id"], token.get("special") is not False)
    return added


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_TOKENS


def _named(document: Mapping[str, Any]) -> dict[str, str]:
    """The text of each special token that a tokenizer_config.json or special_tokens_map.json names."""
    found = {}
    for role in ROLES:
        name = document.get(f"{role}_token")
        content = name.get("content") if type(name) is dict else name
        if type(content) is str:
            found[role] = content
    return found


def _bytes_of(token: str) -> bytes:
    """Undo the byte alphabet; a token with other characters stands for its own text, as in the library."""
    try:
        return token.translate(AS_LATIN).encode("latin-1")  # one character for each byte
    except UnicodeEncodeError:
        return token.encode("utf-8", "replace")


def _build(document: Mapping[str, Any], vocabulary: dict[str, int], where: str) -> tokenizers.Tokenizer:
    """The library's tokenizer over the plain vocabulary: no special tokens, nothing added, cut or padded."""
    model = dict(document["model"]) | {"vocab": vocabulary, "unk_token": None}
    plain = {"version": "1.0", "model": model, "pre_tokenizer": document["pre_tokenizer"], "added_tokens": []}
    plain |= dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(plain))
    except Exception as error:  # the library raises nothing more specific
        raise _unfit(where, str(error)[:200]) from error


def _n_shared(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest beginning that all sequences have in common."""
    columns = zip(*sequences, strict=False)
    return next((n for n, ids in enumerate(columns) if len(set(ids)) > 1), min(map(len, sequences)))


def _adds_nothing(number: int, choice: str) -> PromptError:
    return PromptError(
        f"choice {number} ({choice[:40]!r}) adds no token to the context: give it some text",
        f"{number}번째 선택지({choice[:40]!r})에는 토큰이 없습니다. 글을 적어 주세요",
    )


def _no_border(prefix: str) -> PromptError:
    end = prefix[-32:]
    return PromptError(
        f"with this tokenizer no token begins after the shared text {end!r}: end it with a line break, or"
        " encode it together with each question",
        f"이 토크나이저에서는 공통된 글 {end!r} 바로 뒤에서 시작하는 토큰이 없습니다. 줄바꿈으로 끝내거나"
        " 질문마다 함께 인코딩하세요",
    )


def _unfit(where: str, reason: str) -> TokenizerError:
    return TokenizerError(
        f"{where} is not a byte-level BPE tokenizer that KoGPT can use: {reason}",
        f"{where}: KoGPT가 쓸 수 있는 바이트 단위 BPE 토크나이저가 아닙니다 ({reason})",
    )
