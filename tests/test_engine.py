"""The one loop: a request's tokens depend on nothing but the request, and nothing is left behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import count
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pytest
from conftest import TINY, random_tensors
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from numpy.typing import NDArray
from runners import KINDS

from kogpt import native_runner
from kogpt.adapter import KeyValuePrefix, Lora, LowRank
from kogpt.checkpoint import Stored
from kogpt.engine import Engine
from kogpt.errors import NotEnoughMemory
from kogpt.native_runner import NativeRunner
from kogpt.numpy_runner import NumpyRunner
from kogpt.request import Event, Ids, Request, Writing
from kogpt.runner import Array, Chunk, Runner, choose_all
from kogpt.sampling import Chosen, Sampler, Sampling, Wanted, log_softmax, sample

GREEDY = Sampling(temperature=0)
SEEDED = Sampling(temperature=1, top_p=0.95, seed=11)
NO_EOS = TINY.n_vocab  # an id that is never drawn


AnyRunner = TypeVar("AnyRunner", bound=NumpyRunner | NativeRunner)


def make_runner(kind: type[AnyRunner], dtype: str = "float32") -> AnyRunner:
    tensors = {name: Stored("float32", array) for name, array in random_tensors(TINY).items()}
    return kind(TINY, tensors, dtype)


RUNNER = make_runner(NumpyRunner)


def prompt(length: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(0, TINY.n_vocab, length)


def request(
    length: int, sampling: Sampling = GREEDY, limit: int = 12, seed: int = 0, prefix: int | None = None
) -> Request:
    writing = Writing(sampling, limit, frozenset({NO_EOS}))
    return Request(prompt(length, seed), writing=writing, prefix=prefix)


def slow_tokens(
    ids: Ids, sampling: Sampling, limit: int, index: int = 0, start: Sequence[int] | Ids = ()
) -> list[int]:
    """The obviously right twin: read everything again for every token."""
    sampler = Sampler(sampling, ids, index)
    written: list[int] = []
    for _ in range(limit):
        row = RUNNER.open()
        text = np.concatenate([np.array(start, dtype=np.int64), ids, np.array(written, dtype=np.int64)])
        token = sample(RUNNER.forward([Chunk(row, text)])[0][-1], sampler.draw())
        assert token is not None
        sampler.accept(token.token)
        written.append(token.token)
        RUNNER.close(row)
    return written


def run(engine: Engine) -> dict[tuple[int, int], list[int]]:
    """Step until idle; tokens of each (request, sample)."""
    tokens: dict[tuple[int, int], list[int]] = {}
    while not engine.idle:
        collect(engine.step(), tokens)
    return tokens


def collect(events: list[Event], tokens: dict[tuple[int, int], list[int]]) -> None:
    for event in events:
        assert event.token is not None
        tokens.setdefault((event.request, event.sample), []).append(event.token.token)


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("chunk_tokens", [1, 3, 256])
def test_rows_of_unequal_length_write_what_each_writes_alone(sampling: Sampling, chunk_tokens: int) -> None:
    engine = Engine(RUNNER, max_rows=4, chunk_tokens=chunk_tokens)
    lengths = [1, 17, 5, 40, 2, 9]
    numbers = [engine.add(request(n, sampling, seed=n)) for n in lengths]
    tokens = run(engine)
    for number, n in zip(numbers, lengths, strict=True):
        assert tokens[number, 0] == slow_tokens(prompt(n, n), sampling, 12)


def test_samples_share_their_prompt_and_draw_alone() -> None:
    engine = Engine(RUNNER, max_rows=4)
    number = engine.add(request(9, Sampling(temperature=1, seed=11, n=3)))
    tokens = run(engine)
    expected = [slow_tokens(prompt(9), Sampling(temperature=1, seed=11), 12, sample) for sample in range(3)]
    assert [tokens[number, sample] for sample in range(3)] == expected
    assert len({tuple(row) for row in expected}) == 3


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_a_shared_prefix_gives_what_the_whole_prompt_gives(sampling: Sampling) -> None:
    engine = Engine(RUNNER, chunk_tokens=4)
    shots = prompt(30, seed=5)
    prefix = engine.prefix(shots)
    numbers = {engine.add(request(n, sampling, seed=n, prefix=prefix)): n for n in (3, 8)}
    tokens = run(engine)
    engine.release(prefix)
    for number, n in numbers.items():
        assert tokens[number, 0] == slow_tokens(prompt(n, n), sampling, 12, start=shots)
    assert not RUNNER._rows


def test_a_soft_prompt_of_the_same_embeddings_is_the_same_prefix() -> None:
    engine = Engine(RUNNER, chunk_tokens=4)
    shots = prompt(10, seed=5)
    soft = engine.prefix(random_tensors(TINY)["transformer.wte.weight"][shots])
    hard = engine.prefix(shots)
    numbers = [engine.add(request(6, prefix=handle)) for handle in (soft, hard)]
    tokens = run(engine)
    assert tokens[numbers[0], 0] == tokens[numbers[1], 0] == slow_tokens(prompt(6), GREEDY, 12, start=shots)
    engine.release(soft)
    engine.release(hard)
    assert not RUNNER._rows


def test_a_stop_id_ends_a_row_and_is_reported() -> None:
    second = slow_tokens(prompt(5), GREEDY, 12)[1]
    engine = Engine(RUNNER)
    engine.add(Request(prompt(5), writing=Writing(GREEDY, 12, frozenset({second}))))
    events = []
    while not engine.idle:
        events += engine.step()
    assert [event.finish for event in events] == [None, "stop"]
    assert events[-1].token is not None and events[-1].token.token == second


def test_ids_the_tokenizer_lacks_are_never_written() -> None:
    engine = Engine(RUNNER, n_vocab=7)
    engine.add(request(5, Sampling(temperature=2, seed=0), limit=60))
    assert max(run(engine)[1, 0]) < 7


class Poisoned(NumpyRunner):
    """Gives logits that are not finite to the row that reads token 3."""

    def forward(self, chunks: Sequence[Chunk]) -> list[Array]:
        outputs = super().forward(chunks)
        return [
            np.full_like(logits, np.nan) if chunk.inputs[-1] == 3 else logits
            for chunk, logits in zip(chunks, outputs, strict=True)
        ]


def test_a_poisoned_row_fails_alone() -> None:
    runner = make_runner(Poisoned)
    engine = Engine(runner)
    good = engine.add(request(5))
    bad = engine.add(Request(np.array([1, 2, 3]), writing=Writing(GREEDY, 12)))
    events = []
    while not engine.idle:
        events += engine.step()
    assert [event.finish for event in events if event.request == bad] == ["failed"]
    tokens = [event.token.token for event in events if event.request == good and event.token]
    assert tokens == slow_tokens(prompt(5), GREEDY, 12) and not runner._rows


def test_a_joining_prompt_delays_the_others_by_one_chunk_at_most() -> None:
    engine = Engine(RUNNER, chunk_tokens=4)
    first = engine.add(request(2, limit=20))
    engine.step()
    engine.add(request(40, seed=1, limit=2))
    for _ in range(10):
        assert [event.request for event in engine.step()][:1] == [first]
    run(engine)


def test_a_step_reads_no_more_than_its_budget_of_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, sizes = Engine(RUNNER, max_rows=4, chunk_tokens=8), []

    def counting(chunks: Sequence[Chunk]) -> list[Array]:
        sizes.append(sum(len(chunk.inputs) for chunk in chunks))
        return NumpyRunner.forward(RUNNER, chunks)

    monkeypatch.setattr(RUNNER, "forward", counting)
    for seed in range(4):
        engine.add(request(11, limit=1, seed=seed))
    run(engine)
    assert sum(sizes) == 44 and max(sizes) == 8


def test_the_runner_says_how_much_prompt_a_step_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Engine(RUNNER).chunk_tokens == 256
    monkeypatch.setattr(RUNNER, "prefill_tokens", 17)
    assert Engine(RUNNER).chunk_tokens == 17


@pytest.mark.parametrize("chunk_tokens", [3, 256])
def test_scores_are_those_of_one_pass_over_the_whole_text(chunk_tokens: int) -> None:
    engine = Engine(RUNNER, max_rows=2, chunk_tokens=chunk_tokens)
    shots = prompt(12, seed=1)
    prefix = engine.prefix(shots)
    questions = [(prompt(n, n), [prompt(m, 100 + m) for m in (1, 4, 2)]) for n in (5, 1, 9)]
    for start, handle in ((shots, prefix), (shots[:0], None)):
        for (context, choices), scores in zip(questions, engine.score(questions, handle), strict=True):
            for choice, found in zip(choices, scores, strict=True):
                text = np.concatenate([start, context, choice])
                row = RUNNER.open()
                logits = RUNNER.forward([Chunk(row, text, len(text))])[0]
                RUNNER.close(row)
                before = np.arange(len(text) - len(choice), len(text)) - 1
                assert found == pytest.approx(log_softmax(logits)[before, choice], abs=1e-4)
    engine.release(prefix)
    assert not RUNNER._rows


def test_a_failure_while_a_prefix_is_read_leaves_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(chunks: Sequence[Chunk]) -> list[Array]:
        raise KeyboardInterrupt

    monkeypatch.setattr(RUNNER, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Engine(RUNNER).prefix(prompt(3))
    assert not RUNNER._rows


class Short(NumpyRunner):
    """Has memory for `n_forks` forks and `n_opened` rows."""

    n_forks = n_opened = 1000

    def open(self, adapter: int | None = None) -> int:
        if not self.n_opened:
            raise NotEnoughMemory("no room to open", "열 수 없음")
        self.n_opened -= 1
        return super().open(adapter)

    def fork(self, row: int, length: int | None = None) -> int:
        if not self.n_forks:
            raise NotEnoughMemory("no room to fork", "나눌 수 없음")
        self.n_forks -= 1
        return super().fork(row, length)


def events_of(engine: Engine) -> list[Event]:
    events = []
    while not engine.idle:
        events += engine.step()
    return events


def ends(events: list[Event], number: int) -> list[tuple[int, str | None, str]]:
    """(sample, finish, error) of the last events of a request."""
    return [(e.sample, e.finish, str(e.error or "")) for e in events if e.request == number and e.finish]


def tokens_of(events: list[Event], number: int, sample: int = 0) -> list[int]:
    return [e.token.token for e in events if (e.request, e.sample) == (number, sample) and e.token]


def test_a_fork_without_memory_ends_its_request_alone() -> None:
    runner = make_runner(Short)
    engine = Engine(runner)
    good = engine.add(request(5))
    runner.n_forks = 1  # of three
    bad = engine.add(request(9, Sampling(temperature=1, seed=11, n=4)))
    events = events_of(engine)
    assert tokens_of(events, good) == slow_tokens(prompt(5), GREEDY, 12)
    assert ends(events, bad) == [(i, "failed", "no room to fork") for i in range(4)]
    assert not runner._rows


def test_a_row_that_cannot_be_opened_ends_its_request_alone() -> None:
    runner = make_runner(Short)
    engine = Engine(runner)
    runner.n_opened = 1
    good, bad = engine.add(request(5)), engine.add(request(9))
    events = events_of(engine)
    assert tokens_of(events, good) == slow_tokens(prompt(5), GREEDY, 12)
    assert ends(events, bad) == [(0, "failed", "no room to open")] and not runner._rows


@pytest.mark.skipif(not native_runner.available(), reason="numpy's bits depend on the size of a batch")
def test_a_poisoned_row_leaves_31_others_bit_for_bit() -> None:
    """The logits that the others choose from are compared, not only their tokens."""
    seen: dict[int, list[bytes]] = {}

    class Watched(NativeRunner):
        def draw(self, chunks: Sequence[Chunk], wanted: Sequence[Wanted]) -> list[Chosen]:
            outputs = self.forward(chunks)
            for chunk, logits in zip(chunks, outputs, strict=True):
                seen.setdefault(chunk.row, []).append(logits.tobytes())
                if chunk.inputs[-1] == 3:
                    logits[:] = np.nan
            return choose_all(outputs, wanted)

    runs = []
    for last in (4, 3):
        seen.clear()
        engine = Engine(make_runner(Watched), max_rows=32)
        bad = engine.add(Request(np.array([1, 2, last]), writing=Writing(GREEDY, 12)))
        for seed in range(31):
            engine.add(request(9, SEEDED, seed=seed))
        assert (ends(events_of(engine), bad)[0][1] == "failed") == (last == 3)
        runs.append([seen[row] for row in range(1, 32)])
    assert runs[0] == runs[1] and len(runs[0][0]) == 12


class Fails(NumpyRunner):
    """A pass in which token 3 is read, or in which too many rows are, raises."""

    most_rows = 1000

    def forward(self, chunks: Sequence[Chunk]) -> list[Array]:
        outputs = super().forward(chunks)  # it fails late: the rows have grown
        if len(chunks) > self.most_rows or any(chunk.inputs[-1] == 3 for chunk in chunks):
            raise MemoryError("too much")
        return outputs


def test_a_pass_that_fails_is_read_again_without_the_request_to_blame() -> None:
    runner = make_runner(Fails)
    engine = Engine(runner)
    bad = engine.add(Request(np.array([1, 2, 3]), writing=Writing(GREEDY, 12)))
    good = [engine.add(request(n, seed=n)) for n in (5, 8)]
    events = events_of(engine)
    assert ends(events, bad) == [(0, "failed", "too much")]
    for number, n in zip(good, (5, 8), strict=True):
        assert tokens_of(events, number) == slow_tokens(prompt(n, n), GREEDY, 12)
    assert not runner._rows


def test_passes_too_large_for_memory_are_read_one_request_at_a_time() -> None:
    runner = make_runner(Fails)
    runner.most_rows = 1
    engine = Engine(runner)
    numbers = [engine.add(request(n, seed=n)) for n in (5, 8)]
    events = events_of(engine)
    for number, n in zip(numbers, (5, 8), strict=True):
        assert tokens_of(events, number) == slow_tokens(prompt(n, n), GREEDY, 12)


INTERRUPTED = {
    "two texts": [request(4, SEEDED, 2, seed=4), request(9, SEEDED, 2, seed=9)],
    "two samples": [request(4, Sampling(temperature=1, seed=3, n=2), 2), request(9, GREEDY, 2)],
    "choices": [
        Request(prompt(6), choices=[prompt(2, 1), prompt(3, 2), prompt(1, 3)], reusable=False),
        Request(prompt(7, 4), n_scored=3, reusable=False),
    ],
    "a prefix that is kept, and a mean": [Request(prompt(6), keep=True), Request(prompt(7, 1), pooled=True)],
    "a prefix that is kept and goes on": [
        Request(prompt(6), keep=True, writing=Writing(SEEDED, 3, frozenset({NO_EOS})))
    ],
}


@pytest.mark.parametrize("requests", INTERRUPTED.values(), ids=INTERRUPTED)
def test_an_interruption_at_any_line_leaves_every_request_where_it_was(requests: list[Request]) -> None:
    """Ctrl-C at any line that a step runs: the others go on with the same tokens, and nothing leaks."""
    engine = Engine(make_runner(NumpyRunner), chunk_tokens=5)
    expected = said_to([engine.add(each) for each in requests], events_of(engine))
    n_failed = 0
    for moment in count(1):
        engine = Engine(make_runner(NumpyRunner), chunk_tokens=5)
        numbers = [engine.add(each) for each in requests]
        events, came = interrupted(engine, moment)
        events += events_of(engine)
        for said, whole in zip(said_to(numbers, events), expected, strict=True):
            failed = said.finishes == ["failed"]  # the request that was in hand
            assert failed or said.finishes == whole.finishes, moment
            assert said.tokens == (whole.tokens[: len(said.tokens)] if failed else whole.tokens), moment
            assert said.numbers == ([] if failed else pytest.approx(whole.numbers, abs=1e-5)), moment
            n_failed += failed
        for event in events:
            if event.prefix is not None:
                engine.release(event.prefix)
        assert not engine.runner._rows, moment  # type: ignore[attr-defined]
        if not came:
            break
    assert moment > 50 and 0 < n_failed < 0.7 * moment * len(expected)


class Said(NamedTuple):
    """Ends, tokens and numbers in the events of one sample."""

    finishes: list[str]
    tokens: list[int]
    numbers: list[float]


def said_to(numbers: list[int], events: list[Event]) -> list[Said]:
    """One Said for each sample of the requests. The event of a kept prefix counts as sample 0's."""
    found = []
    for number, index in sorted({(e.request, e.sample) for e in events if e.request in numbers}):
        own = [e for e in events if (e.request, e.sample) == (number, index)]
        scores = [x for e in own for x in (*e.choices, *([e.scores] if e.scores else []))]
        arrays: list[NDArray[Any]] = [x.logprobs for x in scores]
        arrays += [e.pooled for e in own if e.pooled is not None]
        found.append(
            Said(
                [e.finish for e in own if e.finish],
                tokens_of(events, number, index),
                [float(value) for array in arrays for value in array],
            )
        )
    return found


def interrupted(engine: Engine, moment: int) -> tuple[list[Event], bool]:
    """Step until line number `moment` of engine.py is run, and raise KeyboardInterrupt there, if it comes."""
    left = moment

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith("engine.py"):
            return None
        left -= event == "line"
        if left == 0:
            raise KeyboardInterrupt
        return trace

    events: list[Event] = []
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        while not engine.idle:
            events += engine.step()
    except KeyboardInterrupt:
        return events, True
    finally:
        sys.settrace(before)
    return events, False


def test_logits_of_a_pass_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long documents, 100 choices, 100 samples: no pass has more outputs than the engine allows."""
    runner, outputs = make_runner(NumpyRunner), []

    def counting(chunks: Sequence[Chunk]) -> list[Array]:
        outputs.append(sum(chunk.n_outputs for chunk in chunks))
        return NumpyRunner.forward(runner, chunks)

    monkeypatch.setattr(runner, "forward", counting)
    engine = Engine(runner, max_rows=64)
    assert engine.max_outputs == 2**24 // TINY.n_vocab
    engine.max_outputs = 40
    documents = [prompt(100, seed) for seed in range(16)]
    scores = engine.score([(ids[:1], [ids[1:]]) for ids in documents])
    for ids, [found] in zip(documents, scores, strict=True):
        row = RUNNER.open()
        logits = RUNNER.forward([Chunk(row, ids, len(ids))])[0]
        RUNNER.close(row)
        assert found == pytest.approx(log_softmax(logits)[np.arange(99), ids[1:]], abs=1e-4)
    engine.score([(prompt(20), [prompt(3, seed) for seed in range(100)])])
    engine.add(request(3, Sampling(temperature=1, seed=0, n=100), limit=2))
    run(engine)
    assert max(outputs) == 40 and not runner._rows


def test_a_request_that_can_never_fit_fails_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make_runner(NumpyRunner)
    monkeypatch.setattr(runner, "room", lambda: 60)
    engine = Engine(runner)
    numbers = [engine.add(request(30, limit=20)), engine.add(request(50, limit=20)), engine.add(request(30))]
    most, events = 0, []
    while not engine.idle:
        events += engine.step()
        most = max(most, len(runner._rows))
    assert most == 1, "the third waits for the first"
    assert [ends(events, number)[0][1] for number in numbers] == ["length", "failed", "length"]
    assert "not enough memory" in ends(events, numbers[1])[0][2] and isinstance(
        next(e.error for e in events if e.error), NotEnoughMemory
    )


def test_a_text_that_begins_like_an_earlier_one_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    runner, sizes = make_runner(NumpyRunner), []
    engine = Engine(runner, max_cached=4)

    def counting(chunks: Sequence[Chunk]) -> list[Array]:
        sizes.append(sum(len(chunk.inputs) for chunk in chunks))
        return NumpyRunner.forward(runner, chunks)

    monkeypatch.setattr(runner, "forward", counting)
    first = engine.add(request(30, limit=10))
    written = run(engine)[first, 0]
    turn = np.concatenate([prompt(30), written, prompt(6, 1)])  # a conversation goes on
    cold = slow_tokens(turn, SEEDED, 12)
    sizes.clear()
    second = engine.add(Request(turn, writing=Writing(SEEDED, 12)))
    assert run(engine)[second, 0] == cold
    assert sizes[0] == 7, "all but the last written token had been read"
    assert engine.counters.hits == 1 and engine.counters.reused == 39
    other = engine.add(Request(turn, writing=Writing(SEEDED, 12), namespace="someone else"))
    sizes.clear()
    assert run(engine)[other, 0] == cold and sizes[0] == len(turn)
    for seed in range(9):
        engine.add(request(20, seed=seed))
    run(engine)
    assert len(runner._rows) == 4
    engine.close()
    assert not runner._rows


def test_a_text_that_begins_like_a_running_one_is_not_read_again() -> None:
    runner = make_runner(NumpyRunner)
    engine = Engine(runner, max_cached=4)
    tokens: dict[tuple[int, int], list[int]] = {}
    first = engine.add(request(30, limit=12))
    for _ in range(5):
        collect(engine.step(), tokens)
    turn = np.concatenate([prompt(30), tokens[first, 0], prompt(6, 1)])
    second = engine.add(Request(turn, writing=Writing(SEEDED, 12)))
    collect(engine.step(), tokens)
    assert engine.counters.hits == 1 and engine.counters.reused == 34, "the newest token is read now"
    other = engine.add(Request(turn, writing=Writing(SEEDED, 12), namespace="someone else"))
    while not engine.idle:
        collect(engine.step(), tokens)
    assert tokens[second, 0] == tokens[other, 0] == slow_tokens(turn, SEEDED, 12)
    assert tokens[first, 0] == slow_tokens(prompt(30), GREEDY, 12) and engine.counters.hits == 1
    engine.close()
    assert not runner._rows


def test_the_prefix_cache_gives_way_where_memory_is_short() -> None:
    runner = make_runner(Short)
    engine = Engine(runner, max_cached=4)
    engine.add(request(30))
    run(engine)
    assert len(runner._rows) == 1
    runner.n_opened = 1  # the first try fails with `n_forks`
    runner.n_forks = 0
    again = engine.add(request(30))
    assert run(engine)[again, 0] == slow_tokens(prompt(30), GREEDY, 12)
    engine.close()


def test_a_prefix_that_is_released_early_serves_the_requests_that_wait_for_it() -> None:
    engine = Engine(RUNNER, max_rows=1)
    shots = prompt(30, seed=5)
    prefix = engine.prefix(shots)
    numbers = [engine.add(request(n, seed=n, prefix=prefix)) for n in (3, 8)]
    tokens: dict[tuple[int, int], list[int]] = {}
    collect(engine.step(), tokens)
    engine.release(prefix)
    while not engine.idle:
        collect(engine.step(), tokens)
    for number, n in zip(numbers, (3, 8), strict=True):
        assert tokens[number, 0] == slow_tokens(prompt(n, n), GREEDY, 12, start=shots)
    assert not RUNNER._rows


def test_given_keys_take_the_room_of_the_prefix_cache() -> None:
    class Full(NumpyRunner):
        """No room for given keys while any other row is there."""

        def load_cache(self, row: int, keys: Array, values: Array) -> None:
            if len(self._rows) > 1:
                raise NotEnoughMemory("no room to load", "읽을 수 없음")
            super().load_cache(row, keys, values)

    engine = Engine(make_runner(Full), max_cached=4)
    number = engine.add(Request(prompt(20), writing=Writing(SEEDED, 4)))
    assert run(engine)[number, 0]  # its row stays in the cache
    keys = np.zeros((TINY.n_layers, 5, TINY.n_heads, TINY.d_head), np.float32)
    assert engine.length(engine.load(KeyValuePrefix(keys, keys))) == 5


def test_an_adapter_and_its_prefixes_are_kept_apart_from_the_plain_model() -> None:
    runner = make_runner(NumpyRunner)
    engine = Engine(runner, max_cached=4)
    rng = np.random.default_rng(0)
    name = "transformer.h.1.attn.q_proj"
    update = LowRank(
        rng.standard_normal((4, 64), np.float32), rng.standard_normal((64, 4), np.float32), scale=0.5
    )
    adapter = engine.add_adapter(Lora({name: update}))
    keys, values = 9 * rng.standard_normal((2, TINY.n_layers, 5, TINY.n_heads, TINY.d_head), np.float32)
    given = engine.load(KeyValuePrefix(keys, values), adapter)
    assert engine.length(given) == 5
    requests = [
        Request(prompt(20), writing=Writing(SEEDED, 8), adapter=used, prefix=prefix)
        for used, prefix in ((None, None), (adapter, None), (adapter, given))
    ]
    texts = []
    for _ in range(2):  # cold, then from the prefix cache
        numbers = [engine.add(request) for request in requests]
        tokens = run(engine)
        texts.append([tokens[number, 0] for number in numbers])
    assert texts[0] == texts[1] and texts[0][0] == slow_tokens(prompt(20), SEEDED, 8)
    assert len({tuple(text) for text in texts[0]}) == 3 and engine.counters.hits == 2
    engine.release(given)
    engine.drop_adapter(adapter)
    engine.close()
    assert not runner._rows and not runner._adapters


EXACT: list[str] = [
    name for name in ("numpy-float64", "numpy-float32", "native-float32", "torch-float32") if name in KINDS
]
RUNNERS: dict[str, Runner] = {name: KINDS[name].make(TINY, random_tensors(TINY)) for name in EXACT}
TEXTS = [np.concatenate([prompt(12), prompt(n, n)]) for n in range(1, 12)] + [prompt(n, n) for n in (1, 3, 9)]
CHOICES = tuple(prompt(n, 50 + n) for n in (1, 4, 2))


def asked(kind: str, text: int, prefix: int | None = None, namespace: str = "") -> Request:
    """One of every kind of request over one of a few texts, many of which begin alike."""
    ids = TEXTS[text]
    common: dict[str, Any] = {"prefix": prefix, "namespace": namespace}
    if kind == "greedy":
        return Request(ids, writing=Writing(Sampling(temperature=0), 6), **common)
    if kind == "seeded":
        sampling = Sampling(temperature=1, top_p=0.95, seed=11, n=3, repetition_penalty=1.2)
        return Request(ids, writing=Writing(sampling, 6), n_scored=len(ids) - 1, n_top=2, **common)
    if kind == "choices":
        return Request(ids, choices=CHOICES, **common)
    if kind == "scored":
        return Request(ids, n_scored=len(ids) - 1, **common)
    return Request(ids, pooled=True, **common)


def gist(events: Sequence[Event]) -> dict[str, Any]:
    """What a request was answered: ids exactly, numbers for comparison."""
    numbers = [
        array
        for event in events
        for array in (
            *([event.scores.logprobs] if event.scores else []),
            *(choice.logprobs for choice in event.choices),
            *([event.pooled] if event.pooled is not None else []),
        )
    ]
    ids = {
        sample: [event.token.token for event in events if event.sample == sample and event.token]
        for sample in {event.sample for event in events}
    }
    return {"ids": ids, "numbers": np.concatenate([np.empty(0), *numbers]), "finish": events[-1].finish}


ALONE: dict[tuple[str, str, int, bool], dict[str, Any]] = {}
SHOTS = prompt(10, 77)


def alone(name: str, kind: str, text: int, shots: bool) -> dict[str, Any]:
    """The answer of a fresh engine to one request."""
    if (name, kind, text, shots) not in ALONE:
        engine = Engine(RUNNERS[name])
        prefix = engine.prefix(SHOTS) if shots else None
        engine.add(asked(kind, text, prefix))
        ALONE[name, kind, text, shots] = gist(events_of(engine))
        engine.close()
    return ALONE[name, kind, text, shots]


class Schedules(RuleBasedStateMachine):
    """Any order of add, step, cancel, keep and release, cold and warm: all get what they get alone."""

    name = EXACT[0]

    def __init__(self) -> None:
        super().__init__()
        self.free = [RUNNERS[self.name].open() for _ in range(2)]
        for row in self.free:
            RUNNERS[self.name].close(row)
        self.engine = Engine(RUNNERS[self.name], max_rows=4, chunk_tokens=7, max_cached=3)
        self.engine.max_outputs = 9
        self.requests: dict[int, tuple[str, int, bool]] = {}
        self.events: dict[int, list[Event]] = {}
        self.prefix: int | None = None

    @rule(
        kind=st.sampled_from(["greedy", "seeded", "choices", "scored", "pooled"]),
        text=st.integers(0, len(TEXTS) - 1),
        shots=st.booleans(),
        namespace=st.sampled_from(["", "b"]),
    )
    def add(self, kind: str, text: int, shots: bool, namespace: str) -> None:
        shots = shots and self.prefix is not None
        number = self.engine.add(asked(kind, text, self.prefix if shots else None, namespace))
        self.requests[number], self.events[number] = (kind, text, shots), []

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.requests)))
        self.engine.cancel(number)
        del self.requests[number]

    @rule()
    def step(self) -> None:
        for event in self.engine.step():
            if event.request in self.requests:
                self.events[event.request].append(event)

    @rule(keep=st.booleans())
    def keep_or_release(self, keep: bool) -> None:
        if keep and self.prefix is None:
            self.prefix = self.engine.prefix(SHOTS)  # reads it while the others wait
        elif not keep and self.prefix is not None:
            self.engine.release(self.prefix)
            self.prefix = None

    @rule(text=st.integers(0, len(TEXTS) - 1))
    def score(self, text: int) -> None:
        [found] = self.engine.score([(TEXTS[text], CHOICES)])
        expected = alone(self.name, "choices", text, shots=False)["numbers"]
        np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-4)

    def teardown(self) -> None:
        while not self.engine.idle:
            self.step()
        for number, (kind, text, shots) in self.requests.items():
            found, expected = gist(self.events[number]), alone(self.name, kind, text, shots)
            assert (found["ids"], found["finish"]) == (expected["ids"], expected["finish"])
            np.testing.assert_allclose(found["numbers"], expected["numbers"], atol=1e-4)
        self.engine.close()
        rows = [RUNNERS[self.name].open() for _ in range(2)]
        for row in rows:
            RUNNERS[self.name].close(row)
        assert rows == self.free, "a row is left open"


@pytest.mark.parametrize("name", EXACT)
def test_any_schedule_gives_each_request_what_it_gets_alone(name: str) -> None:
    machine = type(f"Schedules_{name}", (Schedules,), {"name": name})
    count = int(os.environ.get("ENGINE_SCHEDULES", "3" if name.startswith("torch") else "12"))
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=count, stateful_step_count=25, deadline=None, derandomize=count < 100),
    )
