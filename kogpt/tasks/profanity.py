"""Finds Korean swear words, however they are disguised, and says how likely a text is profane.

`find_profanity` gives the places of words from words.tsv: in the letters of a folded copy (folding.py), so
"시1발", "시 발", "ㅅㅣㅂㅏㄹ", NFD and keys of the other layout ("tlqkf") are found. A word begins and ends
where a character does. What stands between its letters may be symbols and digits, or white space where the
pieces are words by themselves: "다시 발표" holds none.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kogpt.classification import Classification
from kogpt.errors import InputError
from kogpt.tasks.folding import ALIKE, FINALS, INITIALS, VOWELS, Folded, fold, letters_of
from kogpt.tasks.ngrams import NgramClassifier
from kogpt.tasks.spans import Span, without_overlaps

if TYPE_CHECKING:
    from kogpt.generation import KoGPT

WORDS = Path(__file__).with_name("words.tsv")
CLASSIFIER = Path(__file__).with_name("profanity.npz")
MAX_GAP = 3  # characters between two of a word
LONGEST = 48  # characters of the longest disguised word
ADAPTER = "profanity"  # of kogpt-mini
MAX_WORDS = 3  # swear words of a text that count
MAX_ODDS = 12.0  # log-odds of an adapter
MIN_KEYS = 5  # keys of a word that is written in the other layout

# Words of the language that hold a swear word's letters. A space may stand between two of their syllables.
HARMLESS = tuple(
    word
    for group in (
        "시발점 시발역 시발지 시발택시 시발자동차 시발열차 시발기지 시발종착 시발종점 시발착",
        "병신년 병신생 병신일 병신처분 등신대 등신불 등신상 샅샅이뒤졌 을뒤졌 를뒤졌",
        "새끼손 새끼발 새끼줄 새끼고양이 새끼강아지 새끼돼지 새끼곰 새끼사자 새끼새 새끼거북 새끼거위",
        "새끼호랑이 새끼나귀 새끼를낳 새끼를치 새끼를키 새끼를돌 새끼를배 새끼낳 어미와새끼 염소새끼",
        "나귀새끼 비둘기새끼 오리새끼 미운우리새끼 개년계획 저년차개발 저년차직원",
        "북부우랄 남부우랄 동부우랄 서부우랄 갈보리 쉐키나 니미츠",
    )
    for word in group.split()
)
# Beginnings and ends of harmless words that hold a swear word over the border, as "동시" + "발매" does.
OVER_BORDERS = (
    ("가족 민족 부족 종족 귀족 왕족 수족 혈족 친족 유족 동족 금쪽 대쪽 반쪽", "같은"),
    ("도시 택시 자치시 광역시 특별시", "발전 발달 발표 발주 발행"),
    ("서울시 부산시 대구시 인천시 광주시 대전시 울산시 세종시 수원시 창원시", "발전 발표 발주 발행"),
    (
        "동시 수시 정시 임시 일시 전시 표시",
        "발매 발생 발표 발행 발간 발송 발급 발견 발화 발동 발현 발언 발차 발주",
    ),
    ("출시 즉시", "발"),
    ("다시 역시 혹시 당시", "발표 발매 발송 발행 발급 발견 발생 발전 발굴 발사"),
    ("다시 택시 접시 전시 즉시", "팔고 팔아 팔았 팔면 팔려 팔리 팔지 팔기"),
    ("무니 프린", "시팔"),
    ("미", "니미"),
    ("애", "니미즘"),
    ("나", "니미스트"),
    ("구 쿠", "니미"),
    ("언니 어머니 할머니 주머니", "미안 미소 미역 미국 미리 미인"),
    ("즈보니", "미르"),
    ("소니", "미러"),
    ("로바 하카 키비 히에타", "니에미"),
    ("합병 발병 질병 전염병 간병 사병 장병 용병 해병 보병 헌병", "신고 신설 신주 신청 신체 신분 신병"),
    ("결빙", "신고"),
    ("전등 동등 균등", "신화 신뢰 신호"),
    ("팔 칠 육 삼 구", "등신"),
    ("등", "신청 신규 신뢰 신분 신원 신고 신문 신용 신탁 신제품 신기술 신체"),
    ("일등", "신랑 신부 신문"),
    ("글씨", "바"),
    ("날씨 아저씨 아가씨 솜씨 말씨", "바탕 바꾸 바꿔 바뀌 바뀐 바람 바로 바닥 바지 벌써 부리"),
    ("아저씨 아가씨", "팔뚝 팔다리 발가락 발바닥 발냄새"),
    ("최저 초저", "년"),
    ("갈색 흰색 붉은색 노란색 회색 같은색", "끼"),
    ("색", "끼리"),
    ("어느새", "키"),
    ("날개 무지개 베개 번개", "새로"),
    ("교육 체육 사육", "갑"),
    ("생존 보존 공존 의존", "나"),
    ("퍼", "시발"),
)
# Harmless words of the raw text, told by digits, spaces and jamo, which folding drops.
COUNTED = re.compile(
    r"\d{1,4} ?여? ?개년|(?<![가-힣])(?:수|몇|여러|수십|몇십) ?개년|\d등신"
    r"|\d시발[표매차송행사]|\d개새(?![끼뀌퀴키])|(?<![가-힣])[그저니] \d{1,4}년"
    r"|(?<![가-힣])새 키|(?<![가-힣])개,? 새(?!끼)|ㅁ[ ,·]{0,2}ㅂ[ ,·]{0,2}ㅅ"
)
# Keys of a two-set keyboard (KS X 5002) for the letters.
KEYS = dict(
    zip("ㅂㅈㄷㄱㅅㅛㅕㅑㅐㅔㅁㄴㅇㄹㅎㅗㅓㅏㅣㅋㅌㅊㅍㅠㅜㅡ", "qwertyuiopasdfghjklzxcvbnm", strict=True)
)
KEYS |= dict(zip("ㅃㅉㄸㄲㅆㅒㅖ", "qwertop", strict=True))
KEYS |= {"ㅘ": "hk", "ㅙ": "ho", "ㅚ": "hl", "ㅝ": "nj", "ㅞ": "np", "ㅟ": "nl", "ㅢ": "ml"}
HEAD = 0x4000  # added to the code of a letter that begins a character


def find_profanity(text: str) -> list[Span]:
    """The swear words in a text, in its order and without overlaps."""
    folded = fold(text)
    if not folded.letters:
        return []
    harmless = _Harmless.of(text, folded)
    found = (
        span
        for finder, letters in zip(_finders(), (folded.letters, folded.alike()), strict=True)
        for span in _places(finder, letters, folded, text)
        if not harmless.holds(span)
    )
    return without_overlaps(found)


@dataclass(frozen=True, slots=True)
class _Harmless:
    """The places of harmless words in a text, in the order of their starts."""

    starts: list[int]
    reaches: list[int]  # the furthest end of any that begins there or before

    @classmethod
    def of(cls, text: str, folded: Folded) -> _Harmless:
        """Those of HARMLESS and OVER_BORDERS in the letters of a text, and of COUNTED in the text."""
        matches = _harmless().finditer(_marked(folded.letters, folded))
        places = [match.span(1) for match in matches]
        spans = [_whole(folded, *place) for place in places if _is_plain(folded, *place)]
        spans += [Span(*match.span(), "harmless") for match in COUNTED.finditer(text)]
        spans.sort(key=lambda span: span.start)
        return cls([span.start for span in spans], list(accumulate((span.end for span in spans), max)))

    def holds(self, span: Span) -> bool:
        """Whether a span lies within one of them."""
        place = bisect_right(self.starts, span.start)
        return place > 0 and self.reaches[place - 1] >= span.end


@dataclass(frozen=True, slots=True)
class Judgement:
    """How likely a text is profane by K-MHaS's label, and insulting by Curse-detection-data's."""

    profanity: float
    insult: float
    profane: bool  # whether the first passes its threshold
    insulting: bool  # whether the second does


def judge(text: str, odds: float | None = None) -> Judgement:
    """Judges a text as a whole by the n-gram classifier and the words of the list.

    odds: what the profanity adapter says of it besides, see `log_odds`. InputError where profanity.npz does
    not know how to weigh an adapter.
    """
    classifier = _classifier()
    joint = classifier.joint if odds is None else classifier.joint_with_adapter
    if joint is None:
        command = f"runs/profanity.py DATA --adapter {ADAPTER}"
        raise InputError(
            f"{CLASSIFIER.name} was trained without an adapter: run {command}",
            f"{CLASSIFIER.name}에 어댑터의 비중이 없습니다. 다음을 실행하세요: {command}",
        )
    known = [min(len(find_profanity(text)), MAX_WORDS), *([] if odds is None else [odds])]
    shares = joint.probabilities(np.append(classifier.scores(text), np.array(known, np.float32)))
    profane, insulting = map(bool, shares > joint.thresholds)
    return Judgement(float(shares[0]), float(shares[1]), profane, insulting)


def judge_all(texts: Sequence[str], model: KoGPT | None = None) -> list[Judgement]:
    """Judges texts; with a model that has the profanity adapter, by what that says as well.

    Raises PromptError for an empty text, which a model cannot read.
    """
    if model is None:
        return [judge(text) for text in texts]
    return [judge(found.text, log_odds(found)) for found in model.classify(list(texts))]


def joined(found: Classification) -> Classification:
    """What the profanity adapter says of a text, joined with words and n-grams as `judge` does.

    The label goes by the threshold that was best on training comments, which is below one half.
    """
    judged = judge(found.text, log_odds(found))
    clean, profane = found.probabilities
    shares = {clean: 1 - judged.profanity, profane: judged.profanity}
    return replace(found, label=profane if judged.profane else clean, probabilities=shares)


def has_adapter(model: KoGPT) -> bool:
    """Whether a model has the profanity adapter, whose odds `judge` weighs."""
    by_words = model.tuned is not None and model.tuned.head is None
    return by_words and model.origin.task == ADAPTER and len(model.origin.labels) == 2


def log_odds(found: Classification) -> float:
    """The odds of the second of two labels, the profane one, within the reach of float32."""
    clean, profane = found.probabilities.values()
    return float(np.clip(np.log(profane + 1e-9) - np.log(clean + 1e-9), -MAX_ODDS, MAX_ODDS))


@cache
def _classifier() -> NgramClassifier:
    return NgramClassifier.load(CLASSIFIER)


def is_beginning(folded: Folded) -> bool:
    """Whether the letters are the beginning of a swear word, or of a harmless one, and not yet all of it."""
    strict, alike = _beginnings()
    return folded.letters in strict or folded.alike() in alike


@cache
def _beginnings() -> tuple[frozenset[str], frozenset[str]]:
    strict, alike = _letters_of_words()
    harmless = map(letters_of, HARMLESS)
    return _prefixes([*strict, *harmless]), _prefixes(alike)


def _prefixes(words: Iterable[str]) -> frozenset[str]:
    return frozenset(word[:n] for word in words for n in range(1, len(word)))


@dataclass(frozen=True, slots=True)
class Word:
    """A swear word of words.tsv; alike: it is also sought with look-alikes made equal."""

    word: str
    alike: bool
    lists: str


@cache
def words() -> tuple[Word, ...]:
    """The words of words.tsv."""
    rows = [
        line.split("\t")
        for line in WORDS.read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    ]
    return tuple(Word(word, form == "alike", lists) for word, form, lists in rows)


def _letters_of_words() -> tuple[list[str], list[str]]:
    """Letters of the words: as they are, with those in the other layout; and with look-alikes made equal."""
    strict = [letters_of(entry.word) for entry in words()]
    keys = ["".join(KEYS[letter] for letter in letters) for letters in strict]
    alike = [letters_of(entry.word).translate(ALIKE) for entry in words() if entry.alike]
    return strict + [word for word in keys if len(word) >= MIN_KEYS], alike


@cache
def _finders() -> tuple[re.Pattern[str], re.Pattern[str]]:
    strict, alike = _letters_of_words()
    return _finder(strict), _finder(alike)


@cache
def _harmless() -> re.Pattern[str]:
    return _finder([*map(letters_of, HARMLESS), *_over_borders()], whole=False)


@cache
def _over_borders() -> frozenset[str]:
    """Letters of the words that are made of OVER_BORDERS."""
    return frozenset(
        letters_of(head + tail)
        for heads, tails in OVER_BORDERS
        for head in heads.split()
        for tail in tails.split()
    )


def _places(finder: re.Pattern[str], letters: str, folded: Folded, text: str) -> Iterator[Span]:
    """The places of a finder's words whose gaps are a disguise."""
    marked = _marked(letters, folded)
    for match in finder.finditer(marked):
        start, end = match.span(1)
        while end - start > 1:
            if (span := _span(folded, text, start, end)) is not None:
                yield span
                break
            shorter = finder.match(marked, start, end - 1)  # a shorter word at the same place
            if shorter is None:
                break
            end = shorter.end(1)


def _span(folded: Folded, text: str, start: int, end: int) -> Span | None:
    """Letters start to end as a place in the text; None where the gaps between them are no disguise."""
    places = folded.places[start:end]
    first, last = int(places[0]), int(places[-1]) + 1
    between = [text[a + 1 : b] for a, b in pairwise(places) if b - a > 1]
    latin = text[first].isascii()
    begins = first == 0 or not text[first - 1].isalnum()
    ends = last == len(text) or not text[last].isalnum()
    if any(len(gap) > MAX_GAP or "\n" in gap for gap in between):
        return None
    if (latin or any(map(_has_space, between))) and not (begins and ends):
        return None
    if any(between) and not begins and not all(map(_is_drawn_out, between)):
        return None
    return Span(first, last, "profanity")


def _whole(folded: Folded, start: int, end: int) -> Span:
    return Span(int(folded.places[start]), int(folded.places[end - 1]) + 1, "harmless")


def _is_plain(folded: Folded, start: int, end: int) -> bool:
    """Whether letters are written as a word, the last syllable whole.

    At most a character stands between two of them, and none over a border: "내가 족같은" is no "가족같은".
    """
    furthest = 1 if folded.letters[start:end] in _over_borders() else 2
    is_dense = int(np.diff(folded.places[start:end]).max(initial=0)) <= furthest
    return is_dense and not folded.heads[end - 1]


def _has_space(gap: str) -> bool:
    return any(character.isspace() for character in gap)


def _is_drawn_out(gap: str) -> bool:
    return all("가" <= character <= "힣" for character in gap)


def _marked(letters: str, folded: Folded) -> str:
    """The letters with those that begin a character in another range."""
    codes = np.frombuffer(letters.encode("utf-32-le"), "<u4") + HEAD * folded.heads.astype("<u4")
    marked: str = codes.astype("<u4").tobytes().decode("utf-32-le")
    return marked


def _finder(found: Iterable[str], whole: bool = True) -> re.Pattern[str]:
    """A pattern for any of these words at the beginning of a character, the longest first, in linear time.

    whole: they end where a character ends.
    """
    trie: dict[str, dict] = {}  # type: ignore[type-arg]
    for word in found:
        node = trie
        for letter in word:
            node = node.setdefault(letter, {})
        node[""] = {}
    first = "|".join(_head(letter) + _pattern(node) for letter, node in sorted(trie.items()))
    letters = {*INITIALS, *VOWELS, *"".join(FINALS), *"abcdefghijklmnopqrstuvwxyz"}
    inside = "".join(sorted(letters))
    end = f"(?![{inside}])" if whole else ""
    return re.compile(f"(?=((?:{first}){end}))")


def _pattern(trie: Mapping[str, Mapping]) -> str:  # type: ignore[type-arg]
    """A pattern for what may follow: alternatives letter by letter, so that no text is tried twice."""
    branches = [
        f"[{letter}{_head(letter)}]{_pattern(node)}" for letter, node in sorted(trie.items()) if letter
    ]
    if not branches:
        return ""
    body = branches[0] if len(branches) == 1 and "" not in trie else f"(?:{'|'.join(branches)})"
    return f"{body}?" if "" in trie else body


def _head(letter: str) -> str:
    return chr(ord(letter) + HEAD)
