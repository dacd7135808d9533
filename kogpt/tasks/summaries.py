"""Summaries: the sentences that carry a text, a title, or a line that the model writes.

Extractive: a sentence counts by how near it is to the whole text (the centroid of TF-IDF, Radev et al. 2004)
and how early it stands. Both weights were chosen on leads of Wikipedia; a penalty for what is said already
(MMR, Carbonell and Goldstein 1998) gained nothing there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kogpt.errors import KoGPTError, PromptError
from kogpt.generation import KoGPT
from kogpt.sampling import Sampling
from kogpt.tasks.sentences import Sentence, split_sentences
from kogpt.tasks.terms import centrality, terms_of

POSITION = 0.3  # weight of standing early, beside the nearness to the text
MIN_FIRST = 10  # characters of a first sentence that is more than a place and a date
TITLE_CHARACTERS = 28  # of a title that is made of words of the text
SHORT_PROMPT = "{text}\n\n한줄 요약:"  # the third official example of Kakao's API
ONE_LINE = Sampling(temperature=0, top_p=0.7, max_tokens=64, repetition_penalty=1.2, stop=("\n",))
PARENTHESES = re.compile(r"(?<!\s)\s*+[(\[（][^)\]）]{0,60}[)\]）]")


def summarize(text: str, n_sentences: int = 3) -> list[Sentence]:
    """The n sentences that carry a text, in its order. PromptError for a text without any."""
    return choose(_require(split_sentences(text)), n_sentences)


def choose(sentences: Sequence[Sentence], n: int) -> list[Sentence]:
    """The n best of some sentences, in their order."""
    nearness = centrality([sentence.text for sentence in sentences])
    scores = nearness + POSITION / (1 + np.arange(len(sentences)))
    best = np.argsort(-scores, kind="stable")[:n]
    return [sentences[index] for index in sorted(best)]


def make_title(text: str) -> str:
    """A title of words of the text: those of its first sentence that weigh most, in their order.

    A word weighs by how many of the text's sentences share its terms.
    """
    sentences = _require(split_sentences(text))
    first = next((s for s in sentences if len(s.text) >= MIN_FIRST), sentences[0])
    words = PARENTHESES.sub("", first.text).strip(" .!?\"'“”").split() or [first.text]
    spread = Counter(term for sentence in sentences for term in set(terms_of(sentence.text)))
    weights = [_weight(word, spread) for word in words]
    kept: set[int] = set()
    length = -1
    for index in sorted(range(len(words)), key=lambda index: (-weights[index], index)):
        length += len(words[index]) + 1
        if kept and length > TITLE_CHARACTERS:
            break
        kept.add(index)
    return " ".join(words[index] for index in sorted(kept))


def _weight(word: str, spread: Counter[str]) -> float:
    """The mean number of sentences that share a term of a word; 0 for a word without Hangul."""
    terms = terms_of(word)
    return sum(spread[term] for term in terms) / max(len(terms), 1)


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes titles and one-line summaries with a model.

    template: with "{text}"; that of an adapter for titles, or SHORT_PROMPT. KoGPTError for an adapter that
    was tuned to answer by labels or to embed.
    """

    model: KoGPT
    template: str = SHORT_PROMPT

    def __post_init__(self) -> None:
        tuned = self.model.tuned
        if tuned is not None and not tuned.writes:
            task = tuned.origin.task or "embeddings"
            raise KoGPTError(
                f"the adapter was tuned for {task} and writes no text: leave --adapter out, or use title",
                f"{task}용 어댑터라 글을 쓰지 못합니다. --adapter를 빼거나 title을 쓰세요",
            )

    def title(self, text: str) -> str:
        """One line about the beginning of a text, as far as the context reaches."""
        [prompt, *_] = self._prompts(self._parts(text))
        return self.model.generate(prompt, ONE_LINE).text.strip()

    def write(self, text: str) -> str:
        """One line; a text longer than the context is written about part by part, then as those lines."""
        parts = self._parts(text)
        while len(parts) > 1:
            lines = [result.text.strip() for result in self.model.generate(self._prompts(parts), ONE_LINE)]
            shorter = self._parts("\n".join(line for line in lines if line))
            parts = shorter if len(shorter) < len(parts) else shorter[:1]
        [prompt] = self._prompts(parts)
        return self.model.generate(prompt, ONE_LINE).text.strip()

    def _prompts(self, parts: Sequence[str]) -> list[str]:
        return [self.template.replace("{text}", part) for part in parts]

    def _parts(self, text: str) -> list[str]:
        """The text in pieces of whole sentences that leave room for the answer."""
        encode, limit = self.model.tokenizer.encode, self.model.config.n_ctx
        room = limit - 80 - len(encode(self.template))
        parts: list[list[str]] = [[]]
        used = 0
        for sentence in _require(split_sentences(text)):
            piece, n_tokens = sentence.text, len(encode(sentence.text)) + 1
            while n_tokens > room:
                piece = piece[: len(piece) * room // n_tokens]
                n_tokens = len(encode(piece)) + 1
            if parts[-1] and used + n_tokens > room:
                parts.append([])
                used = 0
            parts[-1].append(piece)
            used += n_tokens
        return [" ".join(part) for part in parts]


def _require(sentences: list[Sentence]) -> list[Sentence]:
    if not sentences:
        raise PromptError(
            "the text is empty: there is nothing to summarise", "글이 비어 있어 요약할 것이 없습니다"
        )
    return sentences
