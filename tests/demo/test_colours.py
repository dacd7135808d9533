"""The colours of the demo: every text that is shown has those of its own tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio")

from kogpt.demo.app import TEXTS, Colours, _holds_back, _writer, rarity
from kogpt.request import Event, FinishReason
from kogpt.sampling import SampledToken
from kogpt.session import NoScreen, Piece, Screen
from kogpt.tasks.filter import TextFilter

Token = tuple[str, float]


class FakeModel:
    """Streams made-up tokens through a screen, as a session does. finish: why it ends."""

    def __init__(self, tokens: Sequence[Token], new_screen: Any, finish: FinishReason = "length") -> None:
        self.session = SimpleNamespace(new_screen=new_screen)
        self._tokens, self._finish = tokens, finish

    def stream(self, prompt: str, settings: object, logprobs: int) -> Iterator[Piece]:
        screen: Screen = self.session.new_screen()
        for n, (text, logprob) in enumerate(self._tokens, 1):
            finish = self._finish if n == len(self._tokens) else None
            shown, _ = screen.push(text)
            shown += screen.flush()[0] if finish else ""
            yield Piece(shown, finish, Event(0, token=SampledToken(n, logprob, ()), finish=finish))


def coloured(tokens: Sequence[Token], new_screen: Any, finish: FinishReason = "length") -> list[Token]:
    model: Any = FakeModel(tokens, new_screen, finish)
    *_, (text, shown) = _writer(model)("정부", 0.8, 8, 0.9)
    assert "".join(part for part, _ in shown) == text
    return shown


def colours(*expected: Token) -> list[Token]:
    return [(text, rarity(logprob)) for text, logprob in expected]


MASK = TextFilter("mask").stream


def test_a_word_has_the_colour_of_its_own_rarest_token() -> None:
    tokens = [("정부", -1.0), ("는", -3.0), (" 오늘", -2.0), (" 밝", -0.5), ("혔다", -0.1)]
    assert coloured(tokens, MASK) == colours(("정부는 ", -3.0), ("오늘 ", -2.0), ("밝혔다", -0.5))


def test_the_end_of_a_text_colours_nothing() -> None:
    tokens = [("정부", -1.0), ("는", -0.2), ("", -5.0)]
    assert coloured(tokens, MASK, "stop") == colours(("정부는", -1.0))
    assert coloured(tokens, NoScreen, "stop") == colours(("정부", -1.0), ("는", -0.2))


def test_a_line_break_shows_its_own_token_and_a_space_none() -> None:
    tokens = [("정부", -1.0), (".\n", -4.0), (" 오늘", -2.0), (" 밝", -0.5)]
    expected = colours(("정부.\n", -4.0), (" ", -2.0), ("오늘 밝", -2.0))
    assert coloured(tokens, MASK) == expected


def test_a_character_of_several_tokens_has_the_colour_of_the_rarest() -> None:
    tokens = [("", -4.0), ("", -0.1), ("뷁", -0.2), ("은", -0.3)]
    assert coloured(tokens, NoScreen) == colours(("뷁", -4.0), ("은", -0.3))


def test_text_without_a_token_is_shown_as_certain() -> None:
    shown = Colours(holds_back=True)
    shown.add(Piece("끝", "failed", Event(0, finish="failed")))
    assert shown.shown == [("끝", 0.0)]


@pytest.mark.parametrize(("mode", "holds"), [("off", False), ("mask", True), ("block", True)])
def test_the_label_says_words_where_words_are_held_back(mode: Any, holds: bool) -> None:
    model: Any = FakeModel([], TextFilter(mode).stream)
    assert _holds_back(model) is holds
    assert "낱말" in TEXTS["ko"]["words"] and "토큰" not in TEXTS["ko"]["words"]
    assert set(TEXTS["ko"]) == set(TEXTS["en"])
