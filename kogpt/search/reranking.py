"""The first passages in a new order: how likely the model finds the question after each of them.

A passage that answers a question makes its words likely (query likelihood: Ponte and Croft, 1998, with a
language model in place of counts: Sachan et al., arXiv 2204.07496).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from kogpt.search.index import Hit

if TYPE_CHECKING:
    from kogpt.generation import KoGPT

RERANKED = 10  # hits, the first ones
PROMPT = "{passage}\n질문:"
MAX_CHARACTERS = 700  # of a passage that are read
BETWEEN = 24  # tokens of PROMPT around a passage, and at the border of the question
# Weight of the mean log-likelihood of the question's characters, in nats, beside the score of words. By
# character, for a long question has a higher score of words too (bench/search.py rerank).
WEIGHT = 30.0


@dataclass(frozen=True, slots=True, eq=False)
class Reranker:
    """A model that says how well passages fit a question.

    Give it a model without the adapter `search`: after tuning on cosines, likelihoods of text are ruined
    (bench/results/search_zen5_20261127.md).
    """

    model: KoGPT
    n_hits: int = RERANKED

    def questions(self, query: str, hits: Sequence[Hit]) -> list[tuple[str, str]]:
        """What the model is asked about each of the first hits: a prompt, and what may follow it."""
        n_ctx = self.model.config.n_ctx
        asked = self._beginning(query, n_ctx // 4)
        room = n_ctx - len(self.model.tokenizer.encode(asked)) - BETWEEN
        passages = [self._beginning(hit.passage, room) for hit in hits[: self.n_hits]]
        return [(PROMPT.format(passage=passage), f" {asked}") for passage in passages]

    def rerank(self, query: str, hits: Sequence[Hit]) -> list[Hit]:
        """The hits, the first n_hits of them in a new order."""
        if not hits:
            return []
        prompts, asked = zip(*self.questions(query, hits), strict=True)
        return ordered(hits, self.model.score(prompts, asked), query)

    def _beginning(self, text: str, n_tokens: int) -> str:
        """A text as far as it has so few characters and tokens."""
        text = text[:MAX_CHARACTERS]
        while (n := len(self.model.tokenizer.encode(text))) > n_tokens:
            text = text[: len(text) * n_tokens // n]
        return text


def ordered(hits: Sequence[Hit], likelihoods: Sequence[float], query: str) -> list[Hit]:
    """The hits, the first n of them by their words and by (n,) log-likelihoods, in nats, of the query.

    Their new scores are above all others'.
    """
    first, others = hits[: len(likelihoods)], hits[len(likelihoods) :]
    nats = np.array(likelihoods)
    weight = WEIGHT / len(query[:MAX_CHARACTERS])
    scores = np.array([hit.score for hit in first]) + weight * (nats - nats.max())
    lift = max((hit.score for hit in others), default=0.0) - min(scores.min(), 0.0)
    order = np.argsort(-scores, kind="stable")
    return [*(replace(first[i], score=float(scores[i] + lift)) for i in order), *others]
