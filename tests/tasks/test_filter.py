"""The filter: disguises, harmless neighbours, and streams that show what the whole text shows."""

from __future__ import annotations

import random
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kogpt
from kogpt import KoGPT, Sampling
from kogpt.cli.options import FILTERS
from kogpt.errors import InputError, KoGPTError
from kogpt.session import NoScreen
from kogpt.tasks.filter import MODES, Mode, TextFilter, find_spans
from kogpt.tasks.folding import FINALS, INITIALS, VOWELS, letters_of
from kogpt.tasks.ngrams import NgramClassifier, features
from kogpt.tasks.profanity import CLASSIFIER, KEYS, judge, words
from kogpt.tokenizer import Tokenizer

# Mild words stand for all: each form is applied to every word of the list in the recall test.
WORD = "등신"
CLEAN = [
    "식물이 썩을 때 나는 냄새",
    "선물을 준다",
    "ㅋㅋㅋㅋ ㅎㅎ",
    "다시 발표한다",
    "10시~발표",
    "화병 신고",
    "21세기 사람들",
    "새끼손가락이 아프다",
    "고양이가 새끼를 낳았다",
    "어미와 새끼 고양이가 논다",
    "시발점에서 기다린다",
    "등신대 인형",
    "앨저넌에게 꽃을",
    "수십년동안",
    "정보지 세 권",
    "소년아, 저 별을 보아라",
]


def split_letters(word: str) -> str:
    return letters_of(word)


def half_width(word: str) -> str:
    """Letters of U+FFA1 to U+FFDC, which normalise to conjoining ones."""
    table = {unicodedata.normalize("NFKC", chr(code)): chr(code) for code in range(0xFFA1, 0xFFDD)}
    compat = {unicodedata.normalize("NFKC", letter): letter for letter in (*INITIALS, *VOWELS)}
    found = {compat[plain]: wide for plain, wide in table.items() if plain in compat}
    return "".join(found[letter] for letter in letters_of(word))


DISGUISES: dict[str, Callable[[str], str]] = {
    "plain": lambda word: word,
    "letters": split_letters,
    "NFD": lambda word: unicodedata.normalize("NFD", word),
    "zero width": lambda word: "\u200b".join(word),
    "digits": lambda word: "1".join(word),
    "signs": lambda word: ".*".join(word),
    "heart": lambda word: "♥".join(word),
    "spaces": lambda word: " ".join(word),
    "half width": half_width,
    "keys": lambda word: "".join(KEYS[letter] for letter in letters_of(word)),
}


def test_disguised_words_are_found() -> None:
    """K14: at least 95 of 100, over all words and all forms that a word can take."""
    tried = missed = 0
    for entry in words():
        for name, disguise in DISGUISES.items():
            if name == "keys" and len(disguise(entry.word)) < 5:
                continue
            if name in ("digits", "signs", "heart", "spaces", "zero width") and len(entry.word) < 2:
                continue
            text = f"그는 {disguise(entry.word)} 라고 했다"
            tried += 1
            missed += not any(span.kind == "profanity" for span in find_spans(text))
    assert tried >= 500 and missed <= 0.05 * tried


@pytest.mark.parametrize("name", sorted(DISGUISES))
def test_the_place_is_that_of_the_word(name: str) -> None:
    text = DISGUISES[name](WORD)
    [span] = find_spans(f"(앞) {text} 뒤")
    assert (span.start, span.end) == (4, 4 + len(text))


@pytest.mark.parametrize("text", CLEAN)
def test_harmless_neighbours(text: str) -> None:
    assert find_spans(text) == []


def test_what_is_covered_keeps_its_shape() -> None:
    assert TextFilter("mask").apply("전화 010-0123-4567!") == ("전화 ***-****-****!", False)
    assert TextFilter("block").apply("전화 010-0123-4567!") == ("전화 ", True)
    assert TextFilter("off").apply("전화 010-0123-4567!") == ("전화 010-0123-4567!", False)
    assert MODES == FILTERS
    with pytest.raises(InputError, match="mask"):
        TextFilter("on")  # type: ignore[arg-type]


PARTS = [
    *(
        "010-0123-4567",
        "０１０",
        " 공일공 ",
        "일이삼사",
        "hong",
        "@",
        " 골뱅이 ",
        "example.com",
        "(at)",
        "4111-1111-1111-1111",
    ),
    *(
        "계좌번호",
        ": ",
        "123456-01-234567",
        "(계좌)",
        " ",
        "\n",
        ". ",
        "서울특별시 ",
        "가상구 ",
        "보기구 ",
        "역삼동 ",
        "서울 ",
        "없는길로 ",
        "12",
        "-3, ",
        "101동 ",
    ),
    *(
        "등",
        "신",
        "1",
        "ㄷㅡㅇ",
        "등신",
        "대",
        "다시 ",
        "시 ",
        "오늘은 ",
        "사이",
        "2024년 ",
        "차량번호 12가 3456",
        "M12345678",
        "는",
    ),
    *("410315-3123458", "203.0.113.7", "가", "이다", "주소", "tlqkf", "\u200b", "♥"),
]


def streamed(text: str, pieces: list[str], mode: Mode) -> tuple[str, bool]:
    stream = TextFilter(mode).stream()
    shown = ""
    for piece in pieces:
        more, cut = stream.push(piece)
        shown += more
        if cut:
            return shown, True
    more, cut = stream.flush()
    return shown + more, cut


@settings(max_examples=80, deadline=None)
@example(["hong", " 골뱅이 ", "example.com"], random.Random(0))  # was shown once 골뱅이 was whole
@example(["등신", " ", "사이"], random.Random(0))  # was taken for the harmless 등신상
@example(["서울특별시 ", "보기구 ", "없는길로 ", "12", "-3, ", "101동 "], random.Random(0))  # was shown
@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=14), st.randoms(use_true_random=False))
def test_a_stream_shows_what_the_whole_text_shows(parts: list[str], chance: random.Random) -> None:
    text = "".join(parts)
    cuts = sorted(chance.sample(range(len(text) + 1), min(len(text), 6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    for mode in MODES[1:]:
        whole = TextFilter(mode).apply(text)
        assert streamed(text, pieces, mode) == whole
        assert streamed(text, list(text), mode) == whole


STREAMED = [f"그는 {disguise(WORD)} 라고 했다" for disguise in DISGUISES.values()]
STREAMED += [*CLEAN, "흰새끼를 낳았다", "어미새끼 고양이", "나쁜새끼를 보았다", f"이 {WORD} 010-0123-4567"]
STREAMED += ["가상구 없는로 4111 1111 1111 1111.12", "보기시 역삼동 31바 900101 1234568"]


@pytest.mark.parametrize("mode", MODES[1:])
def test_examples_stream_as_they_are_shown_whole(mode: Mode) -> None:
    """Character by character and by the tokens of kogpt-mini: a harmless word may begin in a swear word."""
    tokenizer = Tokenizer.from_file(Path(kogpt.__file__).parent / "mini" / "tokenizer.json")
    for written in STREAMED:
        text = unicodedata.normalize("NFC", written)
        whole = TextFilter(mode).apply(text)
        decoder = tokenizer.decoder()
        tokens = [decoder.push(token) for token in tokenizer.encode(text)] + [decoder.flush()]
        assert "".join(tokens) == text
        assert streamed(text, list(text), mode) == whole
        assert streamed(text, tokens, mode) == whole


def test_the_whole_text_shows_no_item() -> None:
    shown, _ = TextFilter("mask").apply("\n".join(PARTS))
    assert find_spans(shown) == [] and shown.count("*") > 50


def test_plain_text_is_held_back_by_a_word_at_most() -> None:
    stream = TextFilter("mask").stream()
    text = "나는 오늘 아침에 밥을 먹고 학교에 갔다. 날씨가 무척 맑았다."
    shown = ""
    for n, character in enumerate(text, 1):
        shown += stream.push(character)[0]
        assert n - len(shown) <= 12
    assert shown + stream.flush()[0] == text


def test_a_long_text_without_line_breaks_is_filtered_in_linear_time() -> None:
    def seconds(n: int) -> float:
        stream = TextFilter("mask").stream()
        started = time.process_time()
        for _ in range(n):
            stream.push("오늘은 날씨가 맑다. ")
        return time.process_time() - started

    seconds(20)
    assert seconds(300) < 8 * max(seconds(75), 0.02)


class Shouting:
    """A screen that holds one character back, and cuts off at the third space."""

    def __init__(self) -> None:
        self.held, self.spaces = "", 0

    def push(self, text: str) -> tuple[str, bool]:
        text, self.held = (self.held + text)[:-1], (self.held + text)[-1:]
        return f"<{text}>" if text else "", False

    def flush(self) -> tuple[str, bool]:
        return f"[{self.held}]", False


class Stern(Shouting):
    def push(self, text: str) -> tuple[str, bool]:
        self.spaces += len(text)
        return ("", True) if self.spaces > 5 else (text, False)


def test_every_answer_passes_its_own_screen(model: KoGPT) -> None:
    settings = Sampling(max_tokens=12, seed=3, n=2)
    plain = [result.text for result in model.generate(["하늘이", "바다가"], settings)]
    model.use_screen(Shouting)
    try:
        found = [result.text for result in model.generate(["하늘이", "바다가"], settings)]
        assert ["".join(c for c in text if c not in "<>[]") for text in found] == [
            "".join(c for c in text if c not in "<>[]") for text in plain
        ]
        assert all(text.endswith("]") for text in found)
        with pytest.raises(KoGPTError, match="logprobs"):
            model.generate("하늘이", max_tokens=2, logprobs=1)
        model.use_screen(Shouting, logprobs=True)
        assert model.generate("하늘이", max_tokens=2, logprobs=1).logprobs
    finally:
        model.use_screen(NoScreen, logprobs=True)


def test_an_answer_that_is_cut_off_frees_its_row(model: KoGPT) -> None:
    model.use_screen(Stern)
    try:
        result = model.generate("하늘이", max_tokens=60, seed=1)
        assert result.finish_reason == "filtered" and len(result.text) <= 5
        assert model.engine.idle and model.engine.n_rows == 0
    finally:
        model.use_screen(NoScreen, logprobs=True)


def test_letters_fold_to_what_unicode_says() -> None:
    for code in random.Random(0).sample(range(0xAC00, 0xAC00 + 11172), 300):
        parts = unicodedata.normalize("NFD", chr(code))
        assert letters_of(chr(code)) == letters_of(parts)
    assert len(INITIALS) * len(VOWELS) * len(FINALS) == 11172


def test_a_text_is_judged_as_a_whole() -> None:
    assert judge("이 등신아 꺼져라").profane
    assert not judge("배우들의 연기가 훌륭하고 감동적인 영화였습니다").profane
    assert not judge("").profane


def test_the_classifier_is_kept_as_it_was(tmp_path: Path) -> None:
    """The file gives the scores back, and a text's score is the sum over its n-grams that defines it."""
    classifier = NgramClassifier.load(CLASSIFIER)
    classifier.save(tmp_path / "a.npz")
    again = NgramClassifier.load(tmp_path / "a.npz")
    for text in CLEAN:
        np.testing.assert_array_equal(classifier.scores(text), again.scores(text))
        buckets, counts = features(text)
        values = [float(c) * float(classifier.idf[b]) for b, c in zip(buckets, counts, strict=True)]
        length = sum(value * value for value in values) ** 0.5
        for column in range(3):
            total = sum(
                v / length * float(classifier.weights[b, column])
                for v, b in zip(values, buckets, strict=True)
            )
            expected = total * float(classifier.scales[column]) + float(classifier.biases[column])
            assert classifier.scores(text)[column] == pytest.approx(expected, abs=1e-4)
