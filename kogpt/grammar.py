"""Constrained writing: a regular expression, a choice, a JSON Schema or Hangul alone -> tokens allowed next.

llguidance follows a grammar byte by byte through the vocabulary, so that a syllable in three tokens is one
character to it as well. What is too large or can never end is refused before anything is written: a schema is
first compiled by a process that can be killed, since some grow without end.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kogpt.errors import MissingExtra, SamplingError
from kogpt.sampling import Sampling
from kogpt.tokenizer import Tokenizer

# Syllables, single letters (ㅋㅋ, ㅠㅠ), digits, the punctuation of Korean text and white space.
HANGUL = r"""[가-힣ㄱ-ㅎㅏ-ㅣㆍ0-9 \n\t!-/:-@\[-`{-~·‘’“”…–—―※、。〈-】〔〕₩]+"""
MAX_REPEATS = 5_000  # atoms of a regular expression with its counts multiplied out: 8 ms for the slowest mask
MAX_DEPTH = 100  # of a schema
FLAGS = re.compile(r"\(\?(?!:|i\)|i:|s\)|s:)")  # groups other than these: look-around, modes that hide counts
ATOM = re.compile(
    # Linear time: possessive repeats, and what nothing closes as one atom (llguidance refuses it).
    r"\\[pPxuU]\{[^}]*+\}?|\\.|\[(?:\\.|[^\]\\])*+\]?|\{\s*+(\d*+)\s*+(?:,\s*+(\d*+)\s*+)?\}|\(\?[is]?:?|.",
    re.DOTALL,
)
# Signs of a regular expression. llguidance refuses a backslash before any other character.
SIGN = re.compile(r"[\\.+*?()|\[\]{}^$#&\-~/]")
COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False}

COMPILE_SECONDS, COMPILE_BYTES = 2, 1 << 30  # of processor time and address space, to compile a schema
PATIENCE = 300.0  # seconds of the wall clock for the same, on a busy machine
COMPILER = f"""
import sys
sys.path.append(sys.argv[1])
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, ({COMPILE_SECONDS}, {COMPILE_SECONDS}))
    resource.setrlimit(resource.RLIMIT_AS, ({COMPILE_BYTES}, {COMPILE_BYTES}))
except ImportError:
    pass  # not on Windows
from llguidance import LLMatcher
sys.stdout.write(LLMatcher.validate_grammar(sys.stdin.read()))
"""


class Guide:
    """One answer that follows a grammar."""

    def __init__(self, matcher: Any, n_words: int) -> None:
        self._matcher = matcher
        self._n_words = n_words
        self.allowed = self._mask()

    def accept(self, token: int) -> None:
        """Go on by a token that was allowed. Raises SamplingError where the grammar becomes too complex."""
        self._matcher.consume_token(token)
        self.allowed = self._mask()

    def _mask(self) -> NDArray[np.uint32]:
        """(V / 32,) a bit for each token; after the end of the text those that end it."""
        mask = np.zeros(self._n_words, np.uint32)
        data = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: self._n_words]
        mask[: len(data)] = data
        if self._matcher.is_error() or not mask.any():
            why = self._matcher.stop_reason()
            raise SamplingError(
                f"no text matches the grammar, or following it takes too long ({why})",
                f"문법에 맞는 글이 없거나 계산이 너무 오래 걸립니다 ({why})",
            )
        return mask


class Grammar:
    """What answers have to match, compiled."""

    def __init__(self, matcher: Any, n_words: int) -> None:
        self._matcher = matcher
        self._n_words = n_words
        self.begin()  # fails here, not while an answer is written

    def begin(self) -> Guide:
        """A guide for one more answer."""
        return Guide(self._matcher.deep_copy(), self._n_words)


class GrammarCompiler:
    """Compiles the grammars of one tokenizer; safe to use from many threads."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Collection[int], n_vocab: int) -> None:
        """stop_ids: tokens that end an answer. n_vocab: ids below it are written. Raises MissingExtra."""
        try:
            import llguidance
        except ImportError as error:
            raise MissingExtra(
                "constrained writing (regex, choice, json_schema, hangul)", "guided"
            ) from error
        ends = [token for token in sorted(stop_ids) if token < n_vocab]
        self._library = llguidance
        vocabulary = _Vocabulary(tokenizer, ends[0])
        self._tokenizer = llguidance.LLTokenizer(vocabulary, n_vocab=n_vocab, eos_token=ends)  # type: ignore[arg-type]
        self._n_words = (n_vocab + 31) // 32
        self._source = lru_cache(maxsize=64)(self._checked_schema)

    def compile(self, sampling: Sampling) -> Grammar:
        """The grammar that the settings ask for. SamplingError says why one is refused."""
        matcher = self._library.LLMatcher
        if sampling.json_schema is not None:
            source = self._source(sampling.json_schema)
        else:
            pattern = self._library.regex_to_lark(_regex(sampling), use_ascii="d")  # \d: 0 to 9
            source = matcher.grammar_from_lark(f"start: /{pattern}/")
        limits = self._library.LLParserLimits(verbose_errors=False)
        compiled = matcher(self._tokenizer, source, log_level=0, limits=limits)
        if compiled.is_error():
            raise _refused(compiled.get_error())
        return Grammar(compiled, self._n_words)

    def _checked_schema(self, text: str) -> str:
        """A schema as a grammar that compiles within the limits."""
        schema = json.loads(text)
        _check_schema(schema)
        grammar = self._library.LLMatcher.grammar_from_json_schema(text, overrides=COMPACT)  # type: ignore[arg-type]
        packages = str(Path(self._library.__file__).parents[1])
        command = [sys.executable, "-I", "-S", "-c", COMPILER, packages]  # without what site.py reads
        try:
            done = subprocess.run(
                command, input=grammar, capture_output=True, encoding="utf-8", timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            raise _too_large() from None
        if done.returncode:
            raise _too_large()
        if done.stdout:
            raise _refused(done.stdout)
        return grammar


class _Vocabulary:
    """The tokenizer as llguidance asks for it (llguidance.TokenizerWrapper)."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, eos_token_id: int) -> None:
        self.eos_token_id = eos_token_id
        self.special_token_ids = sorted(tokenizer.special_ids)
        names = {
            index: b"\xff" + text.encode("utf-8", "replace") for text, index in tokenizer.special.items()
        }
        self.tokens = [names.get(i) or tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text)


def _regex(sampling: Sampling) -> str:
    """The regular expression of settings that have one."""
    if sampling.hangul:
        return HANGUL
    if sampling.choice:
        return "|".join(SIGN.sub(r"\\\g<0>", text) for text in sampling.choice)
    assert sampling.regex is not None
    _check_repeats(sampling.regex)
    return sampling.regex


def _check_repeats(regex: str) -> None:
    """SamplingError for counts that multiply out to too much, and for modes in which they would be hidden."""
    if FLAGS.search(regex):
        raise SamplingError(
            "regex has a group (?...) other than (?:...), (?i) and (?s): leave it out",
            "regex의 (?...) 그룹: (?:...), (?i), (?s)만 쓸 수 있습니다",
        )
    sizes, last = [0], 0
    for atom in ATOM.finditer(regex):
        text = atom[0]
        if text.startswith("("):
            sizes.append(0)
        elif text == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif atom[1] or atom[2]:
            count = max(int(count[:9]) for count in atom.groups("") if count)
            sizes[-1] += last * max(0, count - 1)
            last *= max(1, count)
        elif text not in "|*+?":
            last = 1
            sizes[-1] += 1
        if sizes[-1] > MAX_REPEATS:
            raise _too_large()


def _check_schema(schema: Any) -> None:
    """SamplingError for a schema with too large patterns, and for one whose values never end."""
    for node in _nodes(schema, 0):
        for pattern in (node.get("pattern"), *_mapping(node.get("patternProperties"))):
            if isinstance(pattern, str):
                _check_repeats(pattern)
    finite: set[str] = set()  # references whose values can end: grows until it stays as it is
    references = {node["$ref"] for node in _nodes(schema, 0) if isinstance(node.get("$ref"), str)}
    while new := {ref for ref in references - finite if _ends(_target(schema, ref), finite)}:
        finite |= new
    if not _ends(schema, finite):
        raise SamplingError(
            "json_schema asks for a value inside a value without end: let a property be optional or null",
            "json_schema에 맞는 값이 끝나지 않습니다. 안쪽 속성을 생략할 수 있게 하거나 null을 허용하세요",
        )


def _nodes(node: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    """Every object of a schema."""
    if depth > MAX_DEPTH:
        raise _too_large()
    if isinstance(node, Mapping):
        yield node
    for child in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        yield from _nodes(child, depth + 1)


def _target(schema: Any, reference: str) -> Any:
    """What a reference such as #/$defs/name means; True (anything) where llguidance will refuse it."""
    found = schema
    for name in reference.removeprefix("#").split("/")[1:]:
        found = _mapping(found).get(name.replace("~1", "/").replace("~0", "~"), True)
    return found if reference.startswith("#") else True


def _ends(node: Any, finite: Collection[str]) -> bool:
    """Whether some value of a schema ends, where the references in `finite` do."""
    if not isinstance(node, Mapping):
        return node is not False
    if isinstance(node.get("$ref"), str) and node["$ref"] not in finite:
        return False
    for name in ("anyOf", "oneOf"):
        if _list(node.get(name)) and not any(_ends(child, finite) for child in node[name]):
            return False
    if not all(_ends(child, finite) for child in _list(node.get("allOf"))):
        return False
    if "object" in _types(node):
        properties = _mapping(node.get("properties"))
        needed = [name for name in _list(node.get("required")) if isinstance(name, str)]
        return all(_ends(properties.get(name, node.get("additionalProperties")), finite) for name in needed)
    if "array" in _types(node) and isinstance(node.get("minItems"), int):
        first = _list(node.get("prefixItems"))[: node["minItems"]]
        rest = [node.get("items")] if node["minItems"] > len(first) else []
        return all(_ends(child, finite) for child in [*first, *rest])
    return True


def _types(node: Mapping[str, Any]) -> Sequence[Any]:
    """The types that a schema names, where it is only one of them."""
    stated = node.get("type")
    if isinstance(stated, list):
        return stated if len(stated) == 1 else ()
    return (stated,)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _refused(reason: str) -> SamplingError:
    """llguidance's reason; of a regular expression it says what is wrong after a drawing of where."""
    found = re.search(r"^error: (.+)", reason, re.MULTILINE)
    reason = " ".join((found[1] if found else reason).split())[:200]
    return SamplingError(f"the grammar is refused: {reason}", f"문법을 쓸 수 없습니다: {reason}")


def _too_large() -> SamplingError:
    return SamplingError(
        "the grammar is too large: use smaller counts, fewer alternatives or a simpler schema",
        "문법이 너무 큽니다. 반복 횟수나 선택지를 줄이거나 더 간단한 스키마를 쓰세요",
    )
