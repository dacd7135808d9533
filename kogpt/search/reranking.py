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
PROMPT = "{passage}\n질문: "
# Weights from 0.1 to 0.7 leave KorQuAD as it is and help on TyDi; more harms both (bench/search.py rerank).
WEIGHT = 0.4  # of the log-likelihood of the question in nats, beside the score of words


@dataclass(frozen=True, slots=True, eq=False)
class Reranker:
    """A model that says how well passages fit a question."""

    model: KoGPT
    n_hits: int = RERANKED

    def likelihoods(self, query: str, passages: Sequence[str]) -> list[float]:
        """(n,) log-likelihood of the query after each passage, in nats."""
        room = self.model.config.n_ctx // 4  # characters; one takes up to four tokens
        if not passages:
            return []
        asked = query[: room // 4]
        prompts = [PROMPT.format(passage=passage[: room - len(asked) - 8]) for passage in passages]
        return [scores[0] for scores in self.model.score(prompts, [[asked]] * len(prompts))]

    def rerank(self, query: str, hits: Sequence[Hit]) -> list[Hit]:
        """The hits, the first n_hits of them in a new order and with new scores, above all others'."""
        first = hits[: self.n_hits]
        likelihoods = np.array(self.likelihoods(query, [hit.passage for hit in first]))
        if not len(first):
            return []
        scores = np.array([hit.score for hit in first]) + WEIGHT * (likelihoods - likelihoods.max())
        lift = max((hit.score for hit in hits[self.n_hits :]), default=0.0) - min(scores.min(), 0.0)
        order = np.argsort(-scores, kind="stable")
        ranked = [replace(first[i], score=float(scores[i] + lift)) for i in order]
        return [*ranked, *hits[self.n_hits :]]
