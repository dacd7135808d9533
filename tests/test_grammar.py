"""Constrained writing: texts match, runners agree, neighbours do not notice, bad grammars are refused."""

from __future__ import annotations

import json
import re
import string
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY
from numpy.typing import NDArray
from runners import KINDS

from kogpt import KoGPT, Sampling, grammar
from kogpt.engine import Engine
from kogpt.errors import SamplingError
from kogpt.generation import Result
from kogpt.grammar import HANGUL, Grammar, GrammarCompiler, Guide
from kogpt.runner import Runner
from kogpt.tokenizer import Tokenizer

PERSON = {
    "type": "object",
    "properties": {"이름": {"type": "string", "maxLength": 4}, "나이": {"enum": [1, 20]}},
    "required": ["이름", "나이"],
    "additionalProperties": False,
}


def fits_person(text: str) -> bool:
    found = json.loads(text)
    return set(found) == {"이름", "나이"} and len(found["이름"]) <= 4 and found["나이"] in (1, 20)


# Settings, and whether a whole answer to them is right.
GRAMMARS: dict[str, tuple[dict[str, Any], Callable[[str], bool]]] = {
    "regex": (
        {"regex": r"0\d{1,2}-\d{3,4}-\d{4}"},
        lambda t: bool(re.fullmatch(r"0\d{1,2}-\d{3,4}-\d{4}", t)),
    ),
    "choice": (
        {"choice": ["긍정", "부정", 'a.b|"c"\n']},
        lambda t: t in ("긍정", "부정", 'a.b|"c"\n'),
    ),
    "json_schema": ({"json_schema": PERSON}, fits_person),
}


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return Tokenizer.from_file(tiny_tokenizer)


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, {tokenizer.eos_token_id}, tokenizer.n_vocab)


def allowed(grammar: Grammar, tokenizer: Tokenizer, written: list[int]) -> set[int]:
    guide = grammar.begin()
    for token in written:
        guide.accept(token)
    bits = np.unpackbits(guide.allowed.view(np.uint8), bitorder="little")[: tokenizer.n_vocab]
    return set(np.flatnonzero(bits).tolist())


@pytest.mark.parametrize("name", GRAMMARS)
@pytest.mark.parametrize("seed", [None, 3])
def test_every_finished_answer_matches(model: KoGPT, name: str, seed: int | None) -> None:
    settings, matches = GRAMMARS[name]
    for result in model.generate(["하나", "두 번째"], {"n": 4, "temperature": 2.0, "seed": seed} | settings):
        assert result.finish_reason == "stop" or len(result.tokens) == 125, result
        assert result.finish_reason != "stop" or matches(result.text), result.text


def test_hangul_alone_is_written_and_whole_syllables(model: KoGPT) -> None:
    free = model.generate(["가"] * 6, temperature=3.0, seed=5, max_tokens=40)
    bound = model.generate(["가"] * 6, temperature=3.0, seed=5, max_tokens=40, hangul=True)
    assert not all(re.fullmatch(HANGUL, result.text) for result in free)
    assert all(re.fullmatch(HANGUL, result.text) and "\ufffd" not in result.text for result in bound)
    pieces = model.tokenizer.token_bytes
    assert any(len(pieces(token)) < 3 and pieces(token)[0] > 0xE0 for r in bound for token in r.tokens)


def test_the_tokens_allowed_are_those_that_a_match_begins_with(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    signs = f"<·…“🌸\u2028\x85\0{string.punctuation}\t\n"
    texts = ["가나", "가다라", "가", "값 12", signs]
    grammar = compiler.compile(Sampling(choice=texts))
    raw = [text.encode() for text in texts]
    plain = [token for token in range(tokenizer.n_vocab) if tokenizer.token_bytes(token)]
    single = {
        tokenizer.token_bytes(token): token for token in plain if len(tokenizer.token_bytes(token)) == 1
    }
    for before in {text[:n] for text in raw for n in range(len(text) + 1)}:
        written = [single[bytes([byte])] for byte in before]
        slow = {t for t in plain if any(text.startswith(before + tokenizer.token_bytes(t)) for text in raw)}
        slow |= {tokenizer.eos_token_id} if before in raw else set()
        assert allowed(grammar, tokenizer, written) == slow, before


def written(runner: Runner, tokenizer: Tokenizer, asked: list[tuple[str, Sampling]]) -> list[list[int]]:
    model = KoGPT(tokenizer, Engine(runner))
    results: dict[int, list[int]] = {}
    for number, answer in model.answers(asked):
        assert isinstance(answer, Result), answer
        results[number] = list(answer.tokens)
    return [results[number] for number in range(len(asked))]


def test_runners_agree_and_neighbours_do_not_notice(
    tokenizer: Tokenizer, tiny_tensors: Mapping[str, NDArray[np.float32]]
) -> None:
    grammars = [*(settings for settings, _ in GRAMMARS.values()), {"hangul": True}]
    bound = [("가", Sampling(seed=i, temperature=1.5, max_tokens=20, **s)) for i, s in enumerate(grammars)]
    free = [("나", Sampling(seed=9, temperature=1.5, max_tokens=20))]
    kinds = [KINDS[f"{name}-float32"] for name in ("numpy", "native", "torch")]
    runners = [kind.make(TINY, tiny_tensors) for kind in kinds]
    answers = [written(runner, tokenizer, bound + free) for runner in runners]
    assert answers[0] == answers[1] == answers[2]
    assert answers[1] == [written(runners[1], tokenizer, [one])[0] for one in bound + free]


BAD: dict[str, dict[str, Any]] = {
    "no regular expression": {"regex": "("},
    "look-ahead": {"regex": "(?=가)나"},
    "back-reference": {"regex": r"(가)\1"},
    "nothing matches": {"regex": r"가[^\s\S]"},
    "counts": {"regex": "a{60000}"},
    "counts of counts": {"regex": "((a{1000}){1000}){1000}"},
    "counts from nothing": {"regex": "a{,60000}"},
    "hidden counts": {"regex": "(?x)a{6 0000}"},
    "counts behind a class": {"regex": r"[\]}]a{60000}"},
    "an endless value": {"json_schema": {"$ref": "#"}},
    "an endless object": {
        "json_schema": {
            "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}},
            "$ref": "#/$defs/n",
        }
    },
    "an endless list": {"json_schema": {"type": "array", "minItems": 1, "items": {"$ref": "#"}}},
    "unsatisfiable": {"json_schema": {"type": "string", "minLength": 9, "maxLength": 3}},
    "an unknown type": {"json_schema": {"type": "word"}},
    "an unknown keyword": {"json_schema": {"type": "object", "unevaluatedProperties": False}},
    "counts in a pattern": {"json_schema": {"type": "string", "pattern": "a{60000}"}},
    "too many combinations": {
        "json_schema": {
            "allOf": [
                {"anyOf": [{"type": "string", "maxLength": i * j + 1} for i in range(10)]} for j in range(8)
            ]
        }
    },
    "another host": {"json_schema": {"$ref": "http://localhost/schema"}},
    "deep": {"json_schema": json.loads('{"anyOf":[' * 60 + '{"type":"string"}' + "]}" * 60)},
}


@pytest.mark.parametrize(
    "begin", ["[", "{", "{1,", "{" + " " * 65_000, "{1" + " " * 65_000, "[\\]", "(?", "\\p{"]
)
def test_a_hostile_expression_is_measured_in_linear_time(begin: str) -> None:
    hostile = (begin * (65_536 // len(begin) + 1))[:65_536]
    longer = hostile * 8  # a growth that is not linear shows, and the check ends before the last atom
    started = time.process_time()
    with suppress(SamplingError):
        grammar._check_repeats(hostile)
    assert sum(len(atom[0]) for atom in grammar.ATOM.finditer(longer)) == len(longer)
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_end_or_is_too_large_is_refused(compiler: GrammarCompiler, name: str) -> None:
    with pytest.raises(SamplingError) as caught:
        compiler.compile(Sampling(**BAD[name]))
    assert caught.value.en and re.search("[가-힣]", caught.value.ko)


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"},
        {"type": "array", "items": {"$ref": "#"}},
        {"anyOf": [{"type": "null"}, {"type": "array", "minItems": 1, "items": {"$ref": "#"}}]},
        {"type": ["object", "null"], "properties": {"n": {"$ref": "#"}}, "required": ["n"]},
        {"allOf": [{"type": "string"}, {"maxLength": 3}]},
        {},
    ],
)
def test_what_can_end_is_taken(compiler: GrammarCompiler, schema: dict[str, Any]) -> None:
    compiler.compile(Sampling(json_schema=schema))


def test_a_compilation_that_takes_too_long_is_killed(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kogpt.grammar.COMPILER", "while True: pass")
    monkeypatch.setattr("kogpt.grammar.PATIENCE", 0.2)
    with pytest.raises(SamplingError, match="too large"):
        compiler.compile(Sampling(json_schema={"type": "string", "maxLength": 77}))
    monkeypatch.setattr("kogpt.grammar.COMPILER", "import os; os.kill(os.getpid(), 24)")  # SIGXCPU
    with pytest.raises(SamplingError, match="too large"):
        compiler.compile(Sampling(json_schema={"type": "string", "maxLength": 78}))


def test_a_schema_is_compiled_apart_once(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    run = subprocess.run

    def counted(*args: Any, **named: Any) -> Any:
        calls.append(args)
        return run(*args, **named)

    monkeypatch.setattr(subprocess, "run", counted)
    for _ in range(3):
        compiler.compile(Sampling(json_schema={"type": "string", "maxLength": 99}))
    assert len(calls) == 1


def test_a_grammar_that_becomes_too_complex_fails_its_own_answer(
    model: KoGPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = Guide.accept

    def broken(self: Guide, token: int) -> None:
        accept(self, token)
        raise SamplingError("too complex", "너무 복잡합니다")

    alone = model.generate("가", seed=1, max_tokens=12)
    monkeypatch.setattr(Guide, "accept", broken)
    asked = [("가", Sampling(seed=1, max_tokens=12)), ("나", Sampling(seed=1, max_tokens=12, hangul=True))]
    answers = dict(model.answers(asked))
    first, second = answers[0], answers[1]
    assert isinstance(first, Result) and isinstance(second, Result)
    assert first.text == alone.text and first.error is None
    assert isinstance(second.error, SamplingError)


@pytest.mark.parametrize(
    "settings",
    [
        {"regex": 3},
        {"regex": "a" * 70_000},
        {"choice": "가"},
        {"choice": [""]},
        {"choice": []},
        {"choice": ()},
        {"choice": ["가" * 40_000] * 2},
        {"json_schema": "no JSON"},
        {"json_schema": "[]"},
        {"json_schema": {"a": float("nan")}},
        {"json_schema": '{"a":' * 100_000},
        {"hangul": 1},
        {"hangul": True, "regex": "a"},
        {"choice": ["가"], "json_schema": {}},
    ],
)
def test_values_of_the_wrong_kind_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SamplingError):
        Sampling(**settings)
