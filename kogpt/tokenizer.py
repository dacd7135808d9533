"""Text <-> token ids: byte-level BPE through the `tokenizers` library, and decoding while ids stream in.

Text is brought to NFC before it is encoded. `encode` adds nothing to it, and nothing in it is a command: the
library gets a vocabulary without special tokens, so "[EOS]" typed by a user is plain text. Words that were
added with transformers' `add_tokens` are cut out before the BPE, as transformers does.

Ids become text through their bytes, by one decoder for whole answers and for streams. Bytes that can never
become a character show as U+FFFD. An unfinished character at the end of an answer is left out, because a
length limit may cut there.

Tokenizers of other kinds are refused. This module knows no models and no chats, and reads only its own files.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, Self

import tokenizers

from kogpt.config import ModelConfig
from kogpt.errors import PromptError, TokenizerError
from kogpt.files import read_json, safe_join
from kogpt.patterns import is_linear
from kogpt.texts import nfc

MAX_FILE_BYTES = 32 << 20  # a vocabulary of 200,000 takes 15 MB
MAX_TOKENS = 1 << 20  # far above any vocabulary
MAX_SETTINGS_BYTES = 4 << 20  # of the files beside it, which may list every added token
ROLES = ("bos", "eos", "unk", "pad", "mask")
WORD_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")  # how an added word is found in text

QUESTIONS_AT_ONCE = 4096  # questions encoded together; the library keeps several kB for each text
MAX_PROMPT_START = 16  # tokens that a template puts before a prompt; published ones put one
MAX_STEPS = 16  # splitting text before the BPE; published tokenizers have at most 6


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary.

    Printable bytes stand for themselves, the others for U+0100 onwards, in order (GPT-2, encoder.py).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTES = _byte_alphabet()
# Table for str.translate: the byte alphabet becomes Latin-1. Other characters of Latin-1 leave its range, so
# that encoding them fails.
AS_LATIN = {code: "\uffff" for code in range(256)} | {ord(char): chr(byte) for char, byte in BYTES.items()}


class Tokenizer:
    """A byte-level BPE.

    n_vocab: one above the largest id.
    special_ids: ids that are not text. A special token that the BPE makes itself ("!" as padding) is text.
    special: these ids by their texts.
    roles: the texts of bos_token, eos_token and so on, of those that are special.
    eos_token_id: the end of text. bos_, unk_, pad_ and mask_token_id may be None.
    prompt_start: ids that the file's template puts before a prompt, often none.
    document_start: ids that stand before a text without context: prompt_start, or else [EOS].
    """

    def __init__(self, document: Mapping[str, Any], names: Mapping[str, str], where: str) -> None:
        """document: the object of a tokenizer.json; names: the text of each special token by its role."""
        self._where = where
        _require_byte_level(document, where)
        vocabulary, added = _vocabulary(document, where), _added_tokens(document, where)
        ids, merges = _joined(vocabulary, added, where), _merges(document, where)
        reserved = {name for name in (*added, *names.values()) if name in ids}
        reserved -= {*BYTES, *map("".join, merges)}  # tokens that the BPE makes itself
        special = {name for name in reserved if name not in added or added[name]["special"]}
        special |= reserved.intersection(names.values())
        self.special = {content: ids[content] for content in special}
        self.special_ids = frozenset(self.special.values())
        self.roles = {f"{role}_token": text for role, text in names.items() if text in special}
        if names["eos"] not in ids:
            raise _unfit(where, f"it has no {names['eos'][:40]!r}")
        self.eos_token_id = ids[names["eos"]]
        self.bos_token_id, self.unk_token_id, self.pad_token_id, self.mask_token_id = (
            ids.get(names[role]) for role in ("bos", "unk", "pad", "mask")
        )
        self.n_vocab = max(ids.values()) + 1
        self.prompt_start = _prompt_start(document, self.n_vocab, where)
        self.document_start = self.prompt_start or (self.eos_token_id,)
        self._tokens = {index: token for token, index in ids.items() if index not in self.special_ids}
        self._own_texts = frozenset(ids[token] for token in added if token in reserved)
        self._bytes: dict[int, bytes] = {}  # of the ids that were asked for
        plain = {token: index for token, index in vocabulary.items() if token not in reserved}
        self._unknown = frozenset(byte for character, byte in BYTES.items() if character not in plain)
        words = [token for content, token in added.items() if content not in special and not token["special"]]
        self.longest = max(map(len, self._tokens.values()), default=1)  # characters in one token
        self._library, self._word_ids = _build(document, plain, merges, words, where)

    @classmethod
    def from_file(cls, path: str | Path) -> Self:
        """Read a tokenizer.json; the files beside it may name the special tokens. Raises TokenizerError."""
        path = Path(path)
        try:
            file = safe_join(path.parent, path.name, TokenizerError)
            document = read_json(file, MAX_FILE_BYTES, TokenizerError)
            names = {role: f"[{role.upper()}]" for role in ROLES}
            for beside in ("tokenizer_config.json", "special_tokens_map.json"):
                if os.path.lexists(path.parent / beside):
                    file = safe_join(path.parent, beside, TokenizerError)
                    names |= _named(read_json(file, MAX_SETTINGS_BYTES, TokenizerError))
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
            return self._own_ids(self._library.encode(self._normal(text), add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        with self._no_panic():
            normal = [self._normal(text) for text in texts]
            encodings = self._library.encode_batch_fast(normal, add_special_tokens=False)
        return [self._own_ids(encoding.ids) for encoding in encodings]

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text that the model continues: `prompt_start`, then `encode(text)`; empty for no text."""
        ids = self.encode(text)
        return [*self.prompt_start, *ids] if ids else []

    def _own_ids(self, ids: list[int]) -> list[int]:
        """The library's ids with those of added words replaced by the ids in the file."""
        return [self._word_ids.get(index, index) for index in ids] if self._word_ids else ids

    def encode_choices(
        self, context: str, choices: Sequence[str], prefix: str = ""
    ) -> tuple[list[int], list[list[int]]]:
        """Token ids of a context and of each choice that may follow it: the one rule for their border.

        The texts are encoded whole: `context`, and `context + choice` for each choice. The tokens with which
        all of them begin form the context. The remaining tokens belong to the choice, and so does a token
        that spans the border. Context and choice together are always the ids of the joined text in NFC.

        An empty context becomes `document_start`, which is [EOS] unless the file has a template: documents of
        the training text follow it. The same holds where a context's first token merges with a choice.
        Compare scores within one call only: where one choice merges with the end of the context, that end is
        scored as a part of every choice.

        prefix: text before the context that the caller has encoded already, such as shots. Its ids are left
        out of the answer. The end of a long prefix is enough.

        Raises PromptError for a choice that adds no token, for a token that spans the end of the prefix, and
        for a context that has no token after a prefix.
        """
        texts = [self.encode(prefix + text) for text in _wholes(context, choices)]
        return self._split(texts, choices, self.encode(prefix))

    def encode_choices_batch(
        self, questions: Sequence[tuple[str, Sequence[str]]], prefix: str = ""
    ) -> list[tuple[list[int], list[list[int]]]]:
        """`encode_choices` of each context and its choices, on all cores."""
        before = self.encode(prefix)
        found = []
        for start in range(0, len(questions), QUESTIONS_AT_ONCE):
            part = questions[start : start + QUESTIONS_AT_ONCE]
            texts = [prefix + text for question in part for text in _wholes(*question)]
            ids = iter(self.encode_batch(texts))
            found += [
                self._split(list(islice(ids, 1 + len(choices))), choices, before) for _, choices in part
            ]
        return found

    def _split(
        self, texts: list[list[int]], choices: Sequence[str], before: list[int]
    ) -> tuple[list[int], list[list[int]]]:
        """The answer of `encode_choices`; texts: ids of the prefix, `before`, with each text of `_wholes`."""
        alone, *joined = texts
        n = _n_shared(texts)
        for number, ids in enumerate(joined, 1):
            if ids == alone or len(ids) == n:
                raise _adds_nothing(number, choices[number - 1])
        if before and (n <= len(before) or alone[: len(before)] != before):
            raise _no_border(self.decode(before))
        start = () if before else self.prompt_start
        return [*start, *alone[len(before) : n]] or [*self.document_start], [ids[n:] for ids in joined]

    @contextmanager
    def _no_panic(self) -> Iterator[None]:
        """Raise TokenizerError where the library panics, as it does when a match takes too many steps."""
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of pyo3: no Exception, and cannot be imported
                raise
            raise _unfit(self._where, f"the library gave up on a text ({_in_a_line(error)})") from error

    def _normal(self, text: str) -> str:
        """The text in NFC; PromptError for a lone surrogate, and for a byte that has no token."""
        normal = nfc(text)
        try:
            data = normal.encode()
        except UnicodeEncodeError:
            raise _lone_surrogate(text) from None
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
        """UTF-8 bytes that an id adds to its text, often a part of a character; none for special ids."""
        assert token >= 0, token
        known = self._bytes.get(token)
        if known is None and token < self.n_vocab:
            text = self._tokens.get(token, "")
            is_own = token in self._own_texts
            known = self._bytes[token] = text.encode("utf-8", "replace") if is_own else _bytes_of(text)
        return known or b""

    def check_fits(self, config: ModelConfig) -> None:
        """Raise TokenizerError if the model has fewer rows than the tokenizer ids, or another end of text."""
        if self.n_vocab > config.n_vocab:
            raise TokenizerError(
                f"the tokenizer has {self.n_vocab:,} ids, the model's vocabulary {config.n_vocab:,}: "
                "they do not belong together",
                f"토크나이저 ID는 {self.n_vocab:,}개, 모델 어휘는 {config.n_vocab:,}개로 서로 맞지 않습니다",
            )
        if self.eos_token_id not in config.eos_token_ids:
            ends = ", ".join(map(str, config.eos_token_ids))
            raise TokenizerError(
                f"the tokenizer's end of text is id {self.eos_token_id}, the model's {ends}: "
                "they do not belong together",
                f"종료 ID가 다릅니다: 토크나이저 {self.eos_token_id}, 모델 {ends}",
            )


class StreamDecoder:
    """Turns ids into whole characters, in constant time per id; the pieces add up to `Tokenizer.decode`."""

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
        """Number of bytes held back: those of an unfinished character."""
        return len(self._utf8.getstate()[0])

    def flush(self) -> str:
        """End the text; the next `push` starts a new one. Always empty: unfinished characters are dropped."""
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
    if [step.get("type") for step in steps].count("ByteLevel") != 1 or steps[-1].get("type") != "ByteLevel":
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
    """The steps of a component of a tokenizer.json: the parts of a Sequence, else the component itself."""
    if part is None:
        return []
    steps = part.get(key) if type(part) is dict and part.get("type") == "Sequence" else [part]
    return steps if type(steps) is list and all(type(step) is dict for step in steps) else [{}]


def _prompt_start(document: Mapping[str, Any], n_vocab: int, where: str) -> tuple[int, ...]:
    """Ids that the post-processor puts before a text. TokenizerError where it does anything else to it."""
    start: list[int] = []
    for step in _steps(document.get("post_processor"), "processors"):
        if step.get("type") == "ByteLevel":
            continue  # moves offsets only
        if step.get("type") != "TemplateProcessing":
            raise _unfit(where, f"it changes ids with {str(step.get('type'))[:40]}")
        template, known = step.get("single"), step.get("special_tokens")
        if type(template) is not list or type(known) is not dict or not template:
            raise _unfit(where, "its template is not a list of tokens")
        *before, text = template
        if type(text) is not dict or [*text] != ["Sequence"]:
            raise _unfit(where, "its template does not end with the text; KoGPT adds nothing after a prompt")
        start = [
            *(index for entry in before for index in _template_ids(entry, known, n_vocab, where)),
            *start,
        ]
    if len(start) > MAX_PROMPT_START:
        raise _unfit(
            where, f"its template puts {len(start):,} tokens before a text, at most {MAX_PROMPT_START}"
        )
    return tuple(start)


def _template_ids(entry: Any, known: Mapping[str, Any], n_vocab: int, where: str) -> list[int]:
    """Ids of one special token of a template."""
    token = entry.get("SpecialToken") if type(entry) is dict else None
    name = token.get("id") if type(token) is dict else None
    ids = known[name].get("ids") if type(name) is str and type(known.get(name)) is dict else None
    if type(ids) is not list or not all(_is_id(index) and index < n_vocab for index in ids):
        raise _unfit(where, f"its template has {str(entry)[:80]}, which is not a token of its vocabulary")
    return ids


def _vocabulary(document: Mapping[str, Any], where: str) -> dict[str, int]:
    vocabulary = document["model"].get("vocab")
    if type(vocabulary) is not dict or not 256 <= len(vocabulary) <= MAX_TOKENS:
        raise _unfit(where, f"its vocabulary is not an object of 256 to {MAX_TOKENS:,} tokens")
    for token, index in vocabulary.items():
        if not _is_id(index):
            raise _unfit(where, f"token {token[:40]!r} has id {str(index)[:40]}")
    return vocabulary


def _added_tokens(document: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """Each token beside the BPE's own by its text, with its id, `special` and WORD_FLAGS."""
    tokens = document.get("added_tokens") or []
    if type(tokens) is not list or len(tokens) > MAX_TOKENS:
        raise _unfit(where, "added_tokens is not a list")
    added = {}
    for token in tokens:
        if type(token) is not dict or type(token.get("content")) is not str or not _is_id(token.get("id")):
            raise _unfit(where, f"added token {str(token)[:80]} has no content or no id")
        content = token["content"]
        flags = {flag: token.get(flag, False) for flag in WORD_FLAGS}
        if not content or not all(type(value) is bool for value in flags.values()):
            raise _unfit(where, f"added token {str(token)[:80]} is empty or has a flag that is not a boolean")
        special = token.get("special") is not False
        added[content] = {"id": token["id"], "content": content, "special": special} | flags
    return added


def _joined(
    vocabulary: Mapping[str, int], added: Mapping[str, Mapping[str, Any]], where: str
) -> dict[str, int]:
    """The id of every token. TokenizerError if a token has two ids, or an id two tokens."""
    for content, token in added.items():
        if vocabulary.get(content, token["id"]) != token["id"]:
            raise _unfit(
                where, f"token {content[:40]!r} has two ids, {vocabulary[content]} and {token['id']}"
            )
    ids = {**vocabulary, **{content: token["id"] for content, token in added.items()}}
    if len(set(ids.values())) != len(ids):
        raise _unfit(where, "two of its tokens share an id")
    return ids


def _merges(document: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    """The pairs that the BPE joins, the earliest first; older files separate them by a space."""
    merges = document["model"].get("merges")
    if type(merges) is list and {*map(type, merges)} <= {str, list}:
        pairs: list[Any] = [tuple(pair.split(" ") if type(pair) is str else pair) for pair in merges]
        if {*map(len, pairs)} <= {2} and {*map(type, chain.from_iterable(pairs))} <= {str}:
            return pairs
    raise _unfit(where, "its merges are not a list of pairs")


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


def _build(
    document: Mapping[str, Any],
    vocabulary: dict[str, int],
    merges: Sequence[tuple[str, str]],
    words: Sequence[Mapping[str, Any]],
    where: str,
) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
    """The library's tokenizer without special tokens, and the file's id for each id that it gives to a word.

    It adds nothing, and neither truncates nor pads. It numbers words by itself, from the size of its
    vocabulary on. So holes in the ids are filled with tokens that no text contains.
    """
    if words:
        used = set(vocabulary.values())
        holes = set(range(max(used, default=0) + 1)) - used
        vocabulary = vocabulary | {f"\uffff{hole}": hole for hole in holes}
    contents = [nfc(word["content"]) for word in words]
    if len(set(contents)) != len(contents):
        raise _unfit(where, "two of its added tokens are the same text in NFC")
    frame = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}
    frame |= {"pre_tokenizer": document["pre_tokenizer"]}
    ignore_merges = document["model"].get("ignore_merges", False)
    try:
        library = tokenizers.Tokenizer.from_str(json.dumps(frame))
        # From a document the library takes four times as long.
        library.model = tokenizers.models.BPE(vocabulary, merges, ignore_merges=ignore_merges)
        for word, content in zip(words, contents, strict=True):
            flags = {flag: word[flag] for flag in WORD_FLAGS}
            library.add_tokens([tokenizers.AddedToken(content, **flags)])
    except Exception as error:  # the library raises nothing more specific
        raise _unfit(where, _in_a_line(error)) from error
    own_ids = {}
    for word, content in zip(words, contents, strict=True):
        given = library.token_to_id(content)
        assert given is not None, word
        if given != word["id"]:
            own_ids[given] = word["id"]
    return library, own_ids


def _wholes(context: str, choices: Sequence[str]) -> list[str]:
    """The texts whose ids tell where the choices begin."""
    return [context, *(context + choice for choice in choices)]


def _n_shared(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest beginning that all sequences have in common."""
    columns = zip(*sequences, strict=False)
    return next((n for n, ids in enumerate(columns) if len(set(ids)) > 1), min(map(len, sequences)))


def _lone_surrogate(text: str) -> PromptError:
    at = next(at for at, character in enumerate(text) if "\ud800" <= character <= "\udfff")
    code = f"U+{ord(text[at]):04X}"
    return PromptError(
        f"not Unicode text: character {at + 1} is the lone surrogate {code}, half of a character; write the"
        " whole character (in JSON both \\u escapes), or read the input as UTF-8",
        f"유니코드 텍스트가 아닙니다: {at + 1}번째 글자가 짝 없는 서로게이트 {code}입니다. "
        "글자를 온전히 적거나(JSON이라면 \\u 두 개) 입력을 UTF-8로 읽으세요",
    )


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


def _in_a_line(error: BaseException) -> str:
    """The library's message as one line of at most 200 characters."""
    return " ".join(str(error).split())[:200]


def _unfit(where: str, reason: str) -> TokenizerError:
    return TokenizerError(
        f"{where} is not a byte-level BPE tokenizer that KoGPT can use: {reason}",
        f"{where}: KoGPT가 쓸 수 있는 바이트 단위 BPE 토크나이저가 아닙니다 ({reason})",
    )
