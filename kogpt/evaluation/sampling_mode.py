"""Sample the label from the model and match the text that it writes with the choices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256

import numpy as np

from kogpt.errors import KoGPTError
from kogpt.evaluation import scoring
from kogpt.evaluation.fewshot import EncodedTask, Item
from kogpt.evaluation.scoring import Scores, Store
from kogpt.metrics import Floats, Ints
from kogpt.request import Request, Tuned, Writing
from kogpt.sampling import Sampling
from kogpt.session import Session

UNREADABLE = -1  # the prediction where the text begins with no choice


def answer(
    session: Session, encoded: EncodedTask, sampling: Sampling, store: Store, tuned: Tuned = scoring.PLAIN
) -> Iterator[tuple[int, Scores | None]]:
    """Sample an answer to each item; yields as scoring.score does. A row is 1 for the choice, 0 elsewhere.

    Raises KoGPTError where a label begins inside a token: such a label cannot be written after the question.
    """
    prompt = encoded.prompt
    if encoded.n_moved:
        raise KoGPTError(
            f"with prompt {prompt.name} {encoded.n_moved} labels begin inside a token: for sampling choose"
            " another --prompt",
            f"{prompt.name} 프롬프트에서는 답 {encoded.n_moved}개가 토큰 중간에서 시작합니다."
            " 샘플링에는 다른 --prompt를 고르세요",
        )
    labels = [choice.strip() for choice in prompt.choices]
    with scoring.shared_prefix(session, encoded.prefix, tuned) as handle:

        def compute(batch: Sequence[int]) -> Scores:
            place = Tuned(handle(), tuned.adapter)
            requests = [_request(encoded.items[i], i, sampling, place) for i in batch]
            return [_match(text, labels) for text in write_texts(session, requests)]

        yield from scoring.in_batches(encoded.items, store, compute)


def write_texts(session: Session, requests: Sequence[Request]) -> list[str]:
    """The text that each request writes, without its stop string. Raises the error of one that fails."""
    with session.mailbox() as mailbox:
        texts = {mailbox.add(request): "" for request in requests}
        while not mailbox.idle:
            number, piece = mailbox.wait()
            if piece.error is not None:
                raise piece.error
            texts[number] += piece.text
    return list(texts.values())


def decide(scores: Scores) -> tuple[Ints, list[Floats]]:
    """The choice of each item, (N,), UNREADABLE for none; and 0 or 1 for each of its choices."""
    rows = [np.array(row) for row in scores]
    choices = [int(row.argmax()) if row.any() else UNREADABLE for row in rows]
    return np.array(choices, dtype=np.int64), rows


def _request(item: Item, number: int, sampling: Sampling, place: Tuned) -> Request:
    """The request for one answer, as long as the longest choice, with a seed of its own."""
    seed = int.from_bytes(sha256(f"{sampling.seed} {number}".encode()).digest()[:4], "big")
    writing = Writing(replace(sampling, seed=seed), max(map(len, item.choices)))
    return Request(item.context, prefix=place.prefix, adapter=place.adapter, writing=writing, reusable=False)


def _match(text: str, choices: Sequence[str]) -> list[float]:
    """1 for the longest choice that the text begins with, 0 for the others."""
    fitting = [i for i, choice in enumerate(choices) if text.strip().startswith(choice)]
    best = max(fitting, key=lambda i: len(choices[i]), default=None)
    return [float(i == best) for i in range(len(choices))]
