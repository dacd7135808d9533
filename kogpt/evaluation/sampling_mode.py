"""The label drawn from the model, as some have measured it: what it writes is matched with the choices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256

import numpy as np

from kogpt.engine import Engine
from kogpt.errors import KoGPTError
from kogpt.evaluation import scoring
from kogpt.evaluation.fewshot import Item, Run
from kogpt.evaluation.metrics import Floats, Ints
from kogpt.evaluation.scoring import Scores, Store
from kogpt.evaluation.task import Prompt
from kogpt.request import Request, Writing
from kogpt.runner import Runner
from kogpt.sampling import Sampling
from kogpt.tokenizer import Tokenizer

UNREADABLE = -1  # the prediction of an answer that begins with no choice


def answer(
    runner: Runner,
    tokenizer: Tokenizer,
    run: Run,
    temperature: float,
    how: tuple[int, Prompt],
    store: Store,
) -> Iterator[tuple[int, Scores | None]]:
    """As scoring.score; an item's row is 1 for the choice that was written, all 0 for none.

    how: (seed of the draws, the prompt whose labels are matched).
    """
    seed, prompt = how
    if run.n_moved:
        raise KoGPTError(
            f"with prompt {prompt.name} {run.n_moved} labels begin inside a token: take another for sampling",
            f"{prompt.name} 프롬프트: 항목 {run.n_moved}개의 답이 토큰 안에서 시작하여 쓸 수 없습니다",
        )
    texts = [choice.strip() for choice in prompt.choices]
    with scoring.shared_prefix(runner, run.prefix) as (engine, handle):

        def compute(batch: Sequence[int]) -> Scores:
            requests = [_request(run.items[i], i, temperature, seed, handle()) for i in batch]
            return [_match(tokenizer.decode(ids), texts) for ids in _written(engine, requests)]

        yield from scoring.in_batches(run.items, store, compute)


def decide(scores: Scores) -> tuple[Ints, list[Floats]]:
    """The choice that was written, UNREADABLE for none, and 0 or 1 for each choice."""
    rows = [np.array(row) for row in scores]
    choices = [int(row.argmax()) if row.any() else UNREADABLE for row in rows]
    return np.array(choices, dtype=np.int64), rows


def _request(item: Item, index: int, temperature: float, seed: int, handle: int | None) -> Request:
    own = int.from_bytes(sha256(f"{seed} {index}".encode()).digest()[:4], "big")
    limit = max(map(len, item.choices))
    writing = Writing(Sampling(temperature=temperature, seed=own), limit)
    return Request(item.context, prefix=handle, writing=writing, reusable=False)


def _written(engine: Engine, requests: Sequence[Request]) -> list[list[int]]:
    """The ids that the engine writes for each request."""
    numbers = [engine.add(request) for request in requests]
    ids: dict[int, list[int]] = {number: [] for number in numbers}
    while not engine.idle:
        for event in engine.step():
            if event.error is not None:
                raise event.error
            if event.token is not None:
                ids[event.request].append(event.token.token)
    return [ids[number] for number in numbers]


def _match(text: str, choices: Sequence[str]) -> list[float]:
    """1 for the longest choice that the text begins with."""
    fitting = [i for i, choice in enumerate(choices) if text.strip().startswith(choice)]
    best = max(fitting, key=lambda i: len(choices[i]), default=None)
    return [float(i == best) for i in range(len(choices))]
