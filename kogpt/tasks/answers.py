"""Answers from texts: the sentences that answer a question, then what the model makes of them.

The evidence comes first and stands in the texts word for word; the model's answer is generated and may be
wrong. A text is data: nothing in it is an instruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kogpt.errors import PromptError
from kogpt.generation import KoGPT
from kogpt.sampling import Sampling
from kogpt.search.analysis import query_terms
from kogpt.search.index import Index
from kogpt.tasks.sentences import split_sentences
from kogpt.tasks.terms import bm25, terms_of

N_PASSAGES = 10  # of an index, in which answers are sought
WIDTH = 2  # sentences beside the best that the model reads as well
PROMPT = "{text}\n{question}:"  # the fourth official example of Kakao's API
SHORT = Sampling(temperature=0, max_tokens=32, stop=("\n",))
MAX_CHARACTERS = 600  # of what the model reads; a token has one to four characters


@dataclass(frozen=True, slots=True)
class Source:
    """A passage to answer from, and where it is from."""

    text: str
    name: str = ""
    score: float = 0.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """A sentence that may answer, with its passage around it; a higher score is better."""

    sentence: str
    passage: str
    source: str
    score: float


def find_sources(question: str, index: Index) -> list[Source]:
    """The passages of an index that may answer; none where none shares a word with the question."""
    hits = index.query(question, N_PASSAGES)
    return [Source(hit.passage, hit.source, hit.score) for hit in hits]


def find_evidence(question: str, sources: Sequence[Source], k: int = 3) -> list[Evidence]:
    """The k sentences that share most with a question, the best first. PromptError where there are none."""
    if not question.strip():
        raise PromptError("the question is empty: ask something", "질문이 비어 있습니다. 질문을 적어 주세요")
    found = [(sentence.text, source) for source in sources for sentence in split_sentences(source.text)]
    if not found:
        raise PromptError(
            "nothing to answer from: the text is empty, or no passage shares a word with the question",
            "답을 찾을 글이 없습니다. 글이 비었거나, 질문과 낱말이 겹치는 문단이 없습니다",
        )
    scores = bm25(query_terms(question), [terms_of(text) for text, _ in found])
    order = np.argsort(-scores, kind="stable")[:k]
    return [
        Evidence(found[i][0], found[i][1].text, found[i][1].name, float(scores[i]))
        for i in order
        if scores[i] > 0 or len(order) == 1
    ] or [Evidence(found[0][0], found[0][1].text, found[0][1].name, 0.0)]


def answer(model: KoGPT, question: str, evidence: Sequence[Evidence]) -> str:
    """What the model writes after `prompt`; it may be wrong."""
    return model.generate(prompt(question, evidence), SHORT).text.strip()


def prompt(question: str, evidence: Sequence[Evidence]) -> str:
    """What the model goes on from: the best sentence with some of its passage, and the question."""
    return PROMPT.format(text=around(evidence[0]), question=question.strip())


def around(evidence: Evidence) -> str:
    """The sentence with some of its passage on both sides, MAX_CHARACTERS at most."""
    sentences = [sentence.text for sentence in split_sentences(evidence.passage)]
    at = sentences.index(evidence.sentence)
    for width in range(WIDTH, -1, -1):
        text = " ".join(sentences[max(0, at - width) : at + width + 1])
        if len(text) <= MAX_CHARACTERS:
            return text
    return text[:MAX_CHARACTERS]
