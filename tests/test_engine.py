"""The one loop: a request's tokens depend on nothing but the request, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from conftest import TINY, random_tensors
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from kogpt.checkpoint import Stored
from kogpt.config import ModelConfig
from kogpt.engine import Engine, Event, Ids, Request
from kogpt.numpy_runner import NumpyRunner
from kogpt.runner import Array, Chunk
from kogpt.sampling import Sampler, Sampling, log_softmax, sample

GREEDY = Sampling(temperature=0)
SEEDED = Sampling(temperature=1, top_p=0.95, seed=11)
NO_EOS = TINY.n_vocab  # an id that is never drawn


def make_runner(
    config: ModelConfig = TINY, tensors: Mapping[str, NDArray[np.float32]] | None = None
) -> NumpyRunner:
    tensors = tensors or random_tensors(config)
    return NumpyRunner(config, {name: Stored("float32", array) for name, array in tensors.items()})


RUNNER = make_runner()


def prompt(length: int, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(0, TINY.n_vocab, length)


def request(
    length: int, sampling: Sampling = GREEDY, limit: int = 12, seed: int = 0, prefix: int | None = None
) -> Request:
    return Request(prompt(length, seed), sampling, limit, frozenset({NO_EOS}), prefix)


def slow_tokens(
    ids: Ids, sampling: Sampling, limit: int, index: int = 0, start: Sequence[int] = ()
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
        assert event.drawn is not None
        tokens.setdefault((event.request, event.sample), []).append(event.drawn.token)


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
    engine.add(Request(prompt(5), GREEDY, 12, frozenset({second})))
    events = []
    while not engine.idle:
        events += engine.step()
    assert [event.finish for event in events] == [None, "stop"]
    assert events[-1].drawn is not None and events[-1].drawn.token == second


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
    runner = Poisoned(TINY, {name: Stored("float32", array) for name, array in random_tensors(TINY).items()})
    engine = Engine(runner)
    good = engine.add(request(5))
    bad = engine.add(Request(np.array([1, 2, 3]), GREEDY, 12, frozenset({NO_EOS})))
    events = []
    while not engine.idle:
        events += engine.step()
    assert [event.finish for event in events if event.request == bad] == ["error"]
    tokens = [event.drawn.token for event in events if event.request == good and event.drawn]
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


SOLO: dict[tuple[int, bool, int], list[int]] = {}


def solo(length: int, greedy: bool, sample: int) -> list[int]:
    key = length, greedy, sample
    if key not in SOLO:
        SOLO[key] = slow_tokens(prompt(length, length), GREEDY if greedy else SEEDED, 8, sample)
    return SOLO[key]


class Schedules(RuleBasedStateMachine):
    """Any order of add, cancel and step: every token is the one its request gets alone."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine(RUNNER, max_rows=3, chunk_tokens=5)
        self.requests: dict[int, tuple[int, bool]] = {}
        self.tokens: dict[tuple[int, int], list[int]] = {}

    @rule(length=st.integers(1, 20), greedy=st.booleans(), n=st.integers(1, 2))
    def add(self, length: int, greedy: bool, n: int) -> None:
        sampling = (
            Sampling(temperature=0, n=n) if greedy else Sampling(temperature=1, top_p=0.95, seed=11, n=n)
        )
        self.requests[self.engine.add(request(length, sampling, limit=8, seed=length))] = length, greedy

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.engine.cancel(data.draw(st.sampled_from(sorted(self.requests))))

    @rule()
    def step(self) -> None:
        collect(self.engine.step(), self.tokens)

    @invariant()
    def tokens_are_those_of_the_request_alone(self) -> None:
        for (number, index), tokens in self.tokens.items():
            assert tokens == solo(*self.requests[number], index)[: len(tokens)]

    def teardown(self) -> None:
        while not self.engine.idle:
            collect(self.engine.step(), self.tokens)
        self.tokens_are_those_of_the_request_alone()
        assert not RUNNER._rows


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=25, stateful_step_count=25, deadline=None, derandomize=True)
