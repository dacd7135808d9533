"""Personal data in every form that people write, and what only looks like it. No number is a real one."""

from __future__ import annotations

import random
import time

import pytest

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
