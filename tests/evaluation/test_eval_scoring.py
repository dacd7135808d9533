"""Scores against a model that reads every text whole, the number of tokens run, and the decisions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from korean import PROSE
from small import CONFIG, make_model, small_copa, small_nsmc

from kogpt import engine as engine_module
from kogpt.engine import Engine
from kogpt.evaluation import fewshot, perplexity, scoring
from kogpt.evaluation.evaluate import Settings, evaluate, read_data
from kogpt.evaluation.fewshot import EncodedTask, Item
from kogpt.evaluation.task import Task
from kogpt.generation import KoGPT
from kogpt.request import Ids
from kogpt.runner import Array, Chunk, Runner, choose_all
from kogpt.sampling import Chosen, Wanted, log_softmax
from kogpt.session import Session
from kogpt.tokenizer import Tokenizer


class Counting:
    """A runner that counts the tokens that it is given."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.config, self.name, self.dtype = runner.config, runner.name, runner.dtype
        self.n_tokens = 0

    def forward(self, chunks: Sequence[Chunk]) -> list[Array]:
        self.n_tokens += sum(len(chunk.inputs) for chunk in chunks)
        return self.runner.forward(chunks)

    def draw(self, chunks: Sequence[Chunk], wanted: Sequence[Wanted]) -> list[Chosen]:
        return choose_all(self.forward(chunks), wanted)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)


def scores_of(runner: Runner, tokenizer: Tokenizer, encoded: EncodedTask) -> scoring.Scores:
    session = Session(tokenizer, Engine(runner))
    return scoring.finish(scoring.score(session, encoded.prefix, encoded.items, {}))


def naive(runner: Runner, prefix: Sequence[int] | Ids, item: Item) -> list[float]:
    """Each choice after its whole context, read from the beginning, one at a time."""
    values = []
    for choice in item.choices:
        ids = np.array([*prefix, *item.context, *choice], dtype=np.int64)
        row = runner.open()
        logits = runner.forward([Chunk(row, ids[:-1], len(choice))])[0]
        runner.close(row)
        values.append(float(log_softmax(logits)[np.arange(len(choice)), choice].sum()))
    return values


@pytest.mark.parametrize("make", [small_nsmc, small_copa])
@pytest.mark.parametrize("shots", [0, 4])
def test_scores_and_tokens(
    tmp_path: Path, tiny_tokenizer: Path, make: Callable[[Path], Task], shots: int
) -> None:
    """Equal to the naive way; the tokens run are the fewest possible (the goal is 1.2 times that)."""
    subject = make_model(tiny_tokenizer, "float64")
    task = make(tmp_path)
    rows = read_data(task, Settings(folder=tmp_path))
    drawn = fewshot.draw(task, rows.pool, rows.scored, shots, seed=1)
    for prompt in task.prompts:
        run = fewshot.encode_task(task, prompt, rows.scored, drawn, subject.tokenizer, CONFIG.n_ctx)
        counting = Counting(subject.runner)
        scores = scores_of(cast(Runner, counting), subject.tokenizer, run)
        for item, row in zip(run.items, scores, strict=True):
            assert row == pytest.approx(naive(subject.runner, run.prefix, item), abs=1e-9)
        ideal = len(run.prefix) + sum(item.n_tokens for item in run.items)
        assert counting.n_tokens == ideal


def test_no_row_is_left_open(tmp_path: Path, tiny_tokenizer: Path) -> None:
    subject = make_model(tiny_tokenizer)
    first = subject.runner.open()
    subject.runner.close(first)
    evaluate(
        subject, small_nsmc(tmp_path), small_nsmc(tmp_path).prompts[0], Settings(folder=tmp_path, shots=2)
    )
    again = subject.runner.open()
    assert again == first, "handles are reused once they are closed"


def test_batches_hold_every_item_once_longest_first() -> None:
    rng = np.random.default_rng(0)
    items = [
        Item(np.zeros(n, dtype=np.int64), (np.zeros(m, dtype=np.int64),), (1,))
        for n, m in rng.integers(1, 350, (300, 2))
    ]
    batches = scoring.plan(items)
    assert sorted(i for batch in batches for i in batch) == list(range(300))
    sizes = [[items[i].n_tokens for i in batch] for batch in batches]
    assert all(len(batch) <= scoring.MAX_ROWS and sum(batch) <= scoring.MAX_TOKENS for batch in sizes)
    flat = [n for batch in sizes for n in batch]
    assert flat == sorted(flat, reverse=True)


def item(*lengths: int) -> Item:
    return Item(np.zeros(1, dtype=np.int64), tuple(np.zeros(1, dtype=np.int64) for _ in lengths), lengths)


def test_decisions() -> None:
    scores = [[-3.0, -4.0], [-1.0, -5.0]]
    items = [item(2, 8), item(2, 8)]
    assert list(scoring.decide(scores, items, "raw")[0]) == [0, 0]
    assert list(scoring.decide(scores, items, "normalised")[0]) == [1, 0]  # -1.5 < -0.5, -0.5 > -0.625
    # The model likes choice 0 by 2 nats whatever it is asked; only what exceeds that counts.
    assert list(scoring.decide(scores, items, "calibrated", [[-1.0, -3.0]])[0]) == [1, 0]
    chances = scoring.decide(scores, items, "raw")[1]
    assert chances[0] == pytest.approx(np.exp([-3, -4]) / np.exp([-3, -4]).sum())


def test_the_engine_reads_a_prefix_once(tmp_path: Path, tiny_tokenizer: Path) -> None:
    subject = make_model(tiny_tokenizer)
    counting = Counting(subject.runner)
    session = Session(subject.tokenizer, Engine(cast(Runner, counting)))
    with scoring.shared_prefix(session, np.arange(10)) as handle:
        assert counting.n_tokens == 0, "not before it is needed"
        assert handle() == handle() and counting.n_tokens == 10


class Measuring(Counting):
    """A runner that remembers the largest number of logits that one pass computed."""

    most = 0

    def forward(self, chunks: Sequence[Chunk]) -> list[Array]:
        outputs = super().forward(chunks)
        self.most = max(self.most, sum(array.size for array in outputs))
        return outputs


def test_the_logits_of_a_pass_are_bounded_whatever_the_texts(
    tmp_path: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a bound, `kogpt eval ppl` on long documents would compute gigabytes of logits in one pass."""
    document = " ".join(PROSE)[:400]
    lines = [json.dumps({"text": f"{number} {document}"}) + "\n" for number in range(8)]
    (tmp_path / "long.jsonl").write_text("".join(lines))
    measured = make_model(tiny_tokenizer, "float64")
    bound, found, most = 40 * CONFIG.n_vocab, [], []
    for limit in (engine_module.MAX_LOGITS, bound):
        monkeypatch.setattr(engine_module, "MAX_LOGITS", limit)
        runner = Measuring(measured.runner)
        model = KoGPT(measured.tokenizer, Engine(cast(Runner, runner)))
        found.append(perplexity.measure(replace(measured, model=model), tmp_path / "long.jsonl"))
        most.append(runner.most)
    assert most[1] <= bound < most[0]
    assert found[1].bits_per_byte == pytest.approx(found[0].bits_per_byte, rel=1e-12)
