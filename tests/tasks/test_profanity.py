"""Words, n-grams and the odds of an adapter are joined into one judgement."""

from __future__ import annotations

import gc
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import process_time

import numpy as np
import pytest

from kogpt import KoGPT
from kogpt.classification import Classification
from kogpt.errors import InputError
from kogpt.tasks import profanity
from kogpt.tasks.folding import Folded, fold
from kogpt.tasks.named import Labeller
from kogpt.tasks.ngrams import Joint, NgramClassifier
from kogpt.tasks.profanity import (
    ADAPTER,
    CLASSIFIER,
    MAX_ODDS,
    find_profanity,
    has_adapter,
    judge,
    judge_all,
    log_odds,
)
from kogpt.tasks.spans import Span


def test_an_adapter_is_weighed_beside_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = NgramClassifier.load(CLASSIFIER)
    coefficients, texts = shipped.joint.coefficients, ("오늘 날씨가 참 좋네요", "야 이 미친놈아")
    # Before the last column, which is that of 1, stand the log-odds: here twice and not at all.
    wide = np.insert(coefficients, -1, np.array([2.0, 0.0], np.float32), axis=1)
    made = replace(shipped, joint_with_adapter=Joint(wide, shipped.joint.thresholds))
    made.save(tmp_path / "both.npz")
    monkeypatch.setattr(profanity, "_classifier", lambda: NgramClassifier.load(tmp_path / "both.npz"))
    for text in texts:
        plain, above, below = judge(text), judge(text, 1.5), judge(text, -1.5)
        assert below.profanity < plain.profanity < above.profanity
        assert above.insult == pytest.approx(plain.insult)
        p, q = plain.profanity, above.profanity
        assert np.log(q / (1 - q)) - np.log(p / (1 - p)) == pytest.approx(3.0, abs=1e-3)
    without = replace(shipped, joint_with_adapter=None)
    monkeypatch.setattr(profanity, "_classifier", lambda: without)
    with pytest.raises(InputError, match="without an adapter"):
        judge(texts[0], 0.0)


def test_odds_are_those_of_the_profane_label_and_finite() -> None:
    found = Classification("글", "욕설", {"깨끗함": 0.2, "욕설": 0.8})
    assert log_odds(found) == pytest.approx(np.log(4), abs=1e-6)
    sure = Classification("글", "욕설", {"깨끗함": 0.0, "욕설": 1.0})
    assert log_odds(sure) == MAX_ODDS


def test_the_adapter_joins_in_wherever_profanity_is_judged() -> None:
    texts = ["야 이 병신아 꺼져", "오늘 날씨가 참 좋네요"]
    with KoGPT.from_pretrained(adapter=ADAPTER, device="cpu") as model:
        assert has_adapter(model)
        found = model.classify(texts)
        expected = [judge(text, log_odds(each)) for text, each in zip(texts, found, strict=True)]
        assert judge_all(texts, model) == expected
        labels = Labeller.by_adapter(model).label(texts)
    assert judge_all(texts) == [judge(text) for text in texts]
    for label, judgement in zip(labels, expected, strict=True):
        assert label.probabilities["욕설"] == judgement.profanity
        assert label.probabilities["없음"] == 1 - judgement.profanity
        assert (label.label == "욕설") == judgement.profane
    assert [label.label for label in labels] == ["욕설", "없음"]


def test_harmless_words_are_passed_over_as_one_by_one() -> None:
    """The twin compares every word that was found with every harmless one."""
    pieces = ["시발점", "시발", "병신년생", "병신", "새끼손가락", "새끼", " ", "하늘", "시발점병신년"]
    chance = random.Random(3)
    for _ in range(300):
        text = "".join(chance.choices(pieces, k=chance.randint(1, 8)))
        folded = fold(text)
        harmless = [profanity._whole(folded, *match.span(1)) for match in every_harmless(folded)]
        found = profanity._Harmless.of(text, folded)
        for start in range(len(text)):
            for end in range(start + 1, len(text) + 1):
                slow = any(other.start <= start and end <= other.end for other in harmless)
                assert found.holds(Span(start, end, "profanity")) == slow


def every_harmless(folded: Folded) -> Iterator[re.Match[str]]:
    return profanity._harmless().finditer(profanity._marked(folded.letters, folded))


@pytest.mark.parametrize("word", ["시발점", "시발", "시 1 발", "새끼손가락 ", "ㅅㅣ", "tlqkf "])
def test_a_line_of_one_word_is_searched_in_linear_time(word: str) -> None:
    def seconds(n: int) -> float:
        gc.disable()  # a collection of all that other tests hold takes a second
        started = process_time()
        find_profanity(word * n)
        spent = process_time() - started
        gc.enable()
        return spent

    seconds(100)
    assert seconds(8000) < 40 * max(seconds(1000), 0.005)  # 8 times if linear, 64 if every pair is compared


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("등신상", True),
        ("등신 상", True),
        ("등신사이", False),
        ("등신 사이", False),
        ("등신. 010-12 상", False),
    ],
)
def test_a_harmless_word_is_written_in_one_piece_and_whole(text: str, harmless: bool) -> None:
    """Its last syllable is no beginning of the next one, and nothing but a space stands in it."""
    assert (find_profanity(text) == []) is harmless


OVER_BORDERS = (
    "경제개발 5개년 계획, 10 개년, 수 개년, 몇개년, 10여 개년, 오개년 계획",
    "가족같은 분위기, 금쪽같은 자식, 민족같은",
    "동시발생, 즉시발송, 혁신도시발전, 출시발표, 정시발차, 수시발급, 10시발표, 다시발표, 부산광역시발전",
    "미니미, 애니미즘, 니미츠, 위나니미스트, 쿠니미, 언니미안, 로바니에미, 에스타디오 무니시팔",
    "색깔보다 크기, 빛깔보다, 남을 깔보고, 갈보리 교회",
    "글씨바탕, 날씨바람, 아저씨벌써, 아저씨팔뚝",
    "최저년도, 저년차 개발자, 그 10년 동안, 그 2년",
    "합병신고서, 질병신고, 분할합병신설, 보병신분, 전등신화, 신고자등신원, 8등신, 팔등신",
    "갑질사건, 핵연료물질사용자, 샅샅이 뒤졌다, 집을 뒤졌고",
    "갈색끼, 같은색끼리, 북부우랄, 쉐키나, 새 키를 만든다, 개, 새, ㄱㄴㄷㄹㅁㅂㅅㅇ",
    "염소 새끼, 나귀 새끼, 미운 오리 새끼, 새끼 호랑이",
)


@pytest.mark.parametrize("words", OVER_BORDERS)
def test_words_over_a_border_are_harmless(words: str) -> None:
    found = find_profanity(words)
    assert [words[span.start : span.end] for span in found] == []


@pytest.mark.parametrize(
    "text",
    [
        *("이 개년아", "철수 개년아", "저 개년", "나도시발", "야동시발", "완전시발놈", "역시발놈"),
        *("내가 족같은 인생", "아 니미 씨발", "저년도 똑같아", "그1년", "저 새키 봐"),
        *("갈보년", "이등신이", "질싸", "저 새끼 뒤졌으면", "시발놈 5개년 계획", "개새끼 3마리"),
    ],
)
def test_an_insult_beside_such_a_word_is_found(text: str) -> None:
    assert find_profanity(text)


def test_every_word_over_a_border_is_needed_and_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [h + t for heads, tails in profanity.OVER_BORDERS for h in heads.split() for t in tails.split()]
    assert [word for word in made if find_profanity(word)] == []
    monkeypatch.setattr(profanity._Harmless, "holds", lambda self, span: False)
    assert [word for word in made if not find_profanity(word)] == []
