"""Personal data in every form that people write, and what only looks like it. No number is a real one."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from kogpt.tasks.filter import TextFilter
from kogpt.tasks.personal import business_check, find_personal, luhn_check, resident_check

FOUND = [
    ("주민번호는 410315-3123458이다", "resident", "410315-3123458"),
    ("휴대폰 010-0123-4567로 연락 주세요", "mobile", "010-0123-4567"),
    ("전화번호: 01001234567입니다", "mobile", "01001234567"),
    ("０１０－０１２３－４５６７이다", "mobile", "０１０－０１２３－４５６７"),
    ("공일공 일이삼사 오육칠팔이에요", "mobile", "공일공 일이삼사 오육칠팔"),
    ("0 1 0 0 1 2 3 4 5 6 7", "mobile", "0 1 0 0 1 2 3 4 5 6 7"),
    ("+82 10-0123-4567", "mobile", "+82 10-0123-4567"),
    ("사무실 전화 02-0123-4567", "landline", "02-0123-4567"),
    ("카드번호 4111-1111-1111-1111로", "card", "4111-1111-1111-1111"),
    ("신용카드: 4111111111111111", "card", "4111111111111111"),
    ("계좌번호는 123456-01-234567입니다", "account", "123456-01-234567"),
    ("환불 계좌 12345601234567", "account", "12345601234567"),
    ("사업자등록번호 123-45-67890", "business", "123-45-67890"),
    ("여권번호: M12345678", "passport", "M12345678"),
    ("운전면허번호 11-22-333333-44", "licence", "11-22-333333-44"),
    ("차량번호 123가 4567", "plate", "123가 4567"),
    ("hong.gildong@example.com으로", "email", "hong.gildong@example.com"),
    ("hong 골뱅이 example.com", "email", "hong 골뱅이 example.com"),
    ("접속 IP 203.0.113.7에서", "ip", "203.0.113.7"),
    (
        "사는 곳: 경기도 가상시 보기구 없는길로 12-3, 101동 1203호",
        "address",
        "경기도 가상시 보기구 없는길로 12-3, 101동 1203호",
    ),
]
CLEAN = [
    "민법 제750조 제1항",
    "2024-05-17에 만났다",
    "20240517",
    "합계 1,234,567,890원",
    "978-89-1234-567-8",
    "주문 20240517-1234567",
    "버전 3.12.4",
    "국번 없이 120",
    "1914-1918",
    "대법원 2019다12345",
    "3.14159265358979",
    "올해 예산은 12조 5000억 원이다",
    "@staticmethod",
    "세종대로 일대",
    "127.0.0.1:8000",
    "국도 12호선",
    "이 삼 사 오 등은",
    "123456789012345678901234567890",
]


@pytest.mark.parametrize(("text", "kind", "item"), FOUND)
@pytest.mark.parametrize("around", ["{}", "그는 {}.", "({})\n다음 줄"])
def test_found_whole(text: str, kind: str, item: str, around: str) -> None:
    text = around.format(text)
    [span] = find_personal(text)
    assert (text[span.start : span.end], span.kind) == (item, kind)


@pytest.mark.parametrize("text", CLEAN)
def test_no_alarm(text: str) -> None:
    assert find_personal(text) == []


def test_check_digits_are_those_that_fit_alone() -> None:
    """Of the ten last digits one is right; a published test card is."""
    assert [luhn_check(f"411111111111111{d}") for d in range(10)].index(True) == 1
    for check, n in ((luhn_check, 15), (business_check, 9), (resident_check, 12)):
        body = "".join(random.Random(n).choices("123456", k=n))
        body = f"{body[:6]}1{body[7:]}" if n == 12 else body
        assert sum(check(f"{body}{digit}") for digit in range(10)) == 1


def test_a_joined_number_counts_with_its_check_digit_only() -> None:
    right = next(f"110101101010{d}" for d in range(10) if resident_check(f"110101101010{d}"))
    wrong = f"{right[:-1]}{(int(right[-1]) + 1) % 10}"
    assert [span.kind for span in find_personal(right)] == ["resident"]
    assert find_personal(wrong) == []
    assert find_personal(f"주민번호 {wrong}")
    assert find_personal("카드 4111-1111-1111-1112") == []


def test_two_items_side_by_side() -> None:
    text = "010-0123-4567 hong@example.com 02-0123-4567"
    assert [span.kind for span in find_personal(text)] == ["mobile", "email", "landline"]


@pytest.mark.parametrize(
    "piece", ["1", "1-", "1 ", "a@", "가 ", "공", "가시 ", "0 1 ", "1234-", "(at)", "로 1"]
)
def test_time_is_linear_in_hostile_text(piece: str) -> None:
    def seconds(n: int) -> float:
        started = time.process_time()
        find_personal(piece * n)
        return time.process_time() - started

    seconds(100)
    assert seconds(20000) < 20 * max(seconds(2000), 0.005)


def grouped(digits: str, sign: str, *sizes: int) -> str:
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    return sign.join(digits[start : start + size] for start, size in zip(starts, sizes, strict=True))


def checked(body: str, check: Callable[[str], bool]) -> str:
    return next(f"{body}{digit}" for digit in range(10) if check(f"{body}{digit}"))


# The n-th number of a kind with a sign between its groups.
NUMBERS: dict[str, Callable[[int, str], str]] = {
    "mobile": lambda n, sign: grouped(f"010{n + 20}34{n + 56}78", sign, 3, 4, 4),
    "landline": lambda n, sign: grouped(f"02{n + 20}34{n + 56}78", sign, 2, 4, 4),
    "card": lambda n, sign: grouped(checked(f"41111111{n:02}34567", luhn_check), sign, 4, 4, 4, 4),
    "resident": lambda n, sign: grouped(checked(f"9001{n + 1:02}1{n:02}345", resident_check), sign, 6, 7),
    "business": lambda n, sign: grouped(checked(f"12345{n + 10}78", business_check), sign, 3, 2, 5),
    "account": lambda n, sign: grouped(f"{n + 100}45601234567", sign, 6, 2, 6),
    "licence": lambda n, sign: f"11-{n + 10}-333333-44",
}
LABELS = {"account": "계좌번호: ", "mobile": "연락처: ", "card": "카드번호 ", "resident": "주민번호 "}


@pytest.mark.parametrize("between", [", ", ",", " ", "  ", "/", " / ", "·", "; ", "\t", " - ", ",  ", "("])
@pytest.mark.parametrize("sign", ["-", ".", ""])
@pytest.mark.parametrize("kind", sorted(NUMBERS))
def test_every_number_of_a_line_is_found(kind: str, sign: str, between: str) -> None:
    """A label stands for the whole list. All digits are numbers' digits, so none may be left."""
    for n in range(2, 13):
        text = LABELS.get(kind, "") + between.join(NUMBERS[kind](i, sign) for i in range(n))
        assert len(find_personal(text)) == n
        assert not any(map(str.isdecimal, TextFilter("mask").apply(text)[0]))
        stream = TextFilter("mask").stream()
        pieces = text if (n, between) == (12, ", ") else ""
        streamed = "".join(stream.push(character)[0] for character in pieces) + stream.flush()[0]
        assert not any(map(str.isdecimal, streamed))


def test_a_label_stands_for_a_list_and_no_further() -> None:
    text = "계좌 12345601234567, 12345601234568은 닫혔고 주문 번호는 이렇습니다: 12345601234569"
    assert len(find_personal(text)) == 2
    assert find_personal("12345601234567, 12345601234568") == []


@pytest.mark.parametrize("hidden", [*"\u200b\u200d\u2060\ufeff\u00ad\u200e\ufe0f\u3164", "\ufe0f\u20e3"])
@pytest.mark.parametrize(("text", "kind", "item"), FOUND)
def test_invisible_characters_hide_nothing(text: str, kind: str, item: str, hidden: str) -> None:
    dressed = hidden.join(item)
    text = text.replace(item, dressed)
    [span] = find_personal(text)
    assert (text[span.start : span.end], span.kind) == (dressed, kind)
    stream = TextFilter("mask").stream()
    shown = "".join(stream.push(character)[0] for character in text) + stream.flush()[0]
    assert shown == TextFilter("mask").apply(text)[0]
    assert not any(map(str.isalnum, shown[span.start : span.end].replace(hidden, "")))


@pytest.mark.parametrize(
    "piece",
    ["1", "1,", "1 ", ",", " ", "1, ", "1234-", "010-1234-5678, ", "010-1234-5678 ", "12,  ", "1\u200b"],
)
def test_a_line_of_numbers_without_end_takes_no_time(piece: str) -> None:
    text = (piece * 200_000)[:200_000]
    assert thread_seconds(lambda: TextFilter("mask").apply(text)) < 1.0
    stream = TextFilter("mask").stream()
    pieces = [text[start : start + 4000] for start in range(0, len(text), 4000)]
    assert thread_seconds(lambda: [stream.push(each) for each in pieces]) < 1.0


def thread_seconds(do: Callable[[], object]) -> float:
    began = time.thread_time()
    do()
    return time.thread_time() - began
