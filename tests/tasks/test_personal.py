"""Personal data in every form that people write, and what only looks like it. No number is a real one."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import kogpt
from kogpt.tasks.filter import MODES, Mode, TextFilter
from kogpt.tasks.personal import business_check, find_personal, luhn_check, resident_check
from kogpt.tokenizer import Tokenizer

TOKENIZER = Path(kogpt.__file__).parent / "mini" / "tokenizer.json"

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
    ("배송지는 서울특별시 가상구 없는길로 152이다", "address", "서울특별시 가상구 없는길로 152"),
    ("가상구 역삼동 123-4에 산다", "address", "가상구 역삼동 123-4"),
    ("세종특별자치시 없는대로 2130", "address", "세종특별자치시 없는대로 2130"),
    ("보기시 가상구 매산로1가 11", "address", "보기시 가상구 매산로1가 11"),
    ("없는로 152가 집 주소이다", "address", "없는로 152"),
    ("차는 서울 31바 1234이다", "plate", "서울 31바 1234"),
    ("서울 31바 1234 차량", "plate", "서울 31바 1234"),
    ("12가 3456 번호판", "plate", "12가 3456"),
    ("국민은행 123456-78-901234 50000원 입금해 주세요", "account", "123456-78-901234"),
    ("우리은행 1002-123-456789 100000 입금", "account", "1002-123-456789"),
    ("계좌 110 123 456789 50000", "account", "110 123 456789"),
    ("계좌 110-123-456789 2024", "account", "110-123-456789"),
    ("입금 2024 110-123-456789", "account", "110-123-456789"),
    ("2024 110-123-456789", "account", "110-123-456789"),
    ("2024 4111 1111 1111 1111", "card", "4111 1111 1111 1111"),
    ("카드 1234 4111 1111 1111 1111 입니다", "card", "4111 1111 1111 1111"),
    ("⑳계좌 110-123-456789", "account", "110-123-456789"),
    ("번호는 ⓪①⓪-⓪①②③-④⑤⑥⑦", "mobile", "⓪①⓪-⓪①②③-④⑤⑥⑦"),
    ("번호는 0①0-0123-4567", "mobile", "0①0-0123-4567"),
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
    "앞으로 2025년 주소를 바꾼다",
    "12가 3456번 나왔다",
    "1234 5678 9012 3456 7890",
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


@pytest.mark.parametrize("between", [" ", ", ", ". ", "-"])
@pytest.mark.parametrize(
    "number", ["공일공공일이삼사오육칠", "공일공 공일이삼 사오육칠", "0일0-0일이삼-사오육7"]
)
def test_numbers_read_aloud_side_by_side(number: str, between: str) -> None:
    """A dash joins numbers to one, which is none of these."""
    for n in (2, 3, 30):
        found = find_personal(between.join([number] * n))
        assert [span.end - span.start for span in found] == ([len(number)] * n if between != "-" else [])


@pytest.mark.parametrize("mark", ["①", "⑩", "1\ufe0f\u20e3", "1\u20e3", "²", "⑴", "❶", "ⓐ"])
def test_marks_of_a_list_hide_no_number(mark: str) -> None:
    numbers = ["010-0123-4567", "hong@example.com", "4111 1111 1111 1111", "410315-3123458", "M12345678"]
    text = mark + mark.join(numbers) + mark
    places = {place for span in find_personal(text) for place in range(span.start, span.end)}
    start = 0
    for number in numbers:
        start = text.index(number, start)
        assert places.issuperset(range(start, start + len(number)))


@pytest.mark.parametrize(
    "piece",
    [
        "1",
        "1-",
        "1 ",
        "a@",
        "가 ",
        "공",
        "가시 ",
        "0 1 ",
        "1234-",
        "(at)",
        "로 1",
        "4444 ",
        "10 ",
        "공 1",
        "①",
        "공-",
    ],
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


# The n-th number of a kind with a sign between its groups, n below 200.
NUMBERS: dict[str, Callable[[int, str], str]] = {
    "mobile": lambda n, sign: grouped(f"010{n + 2034}5678", sign, 3, 4, 4),
    "landline": lambda n, sign: grouped(f"02{n + 2034}5678", sign, 2, 4, 4),
    "card": lambda n, sign: grouped(checked(f"41111111{n:03}4567", luhn_check), sign, 4, 4, 4, 4),
    "resident": lambda n, sign: grouped(checked(f"9001{n % 28 + 1:02}1{n:05}", resident_check), sign, 6, 7),
    "business": lambda n, sign: grouped(checked(f"12345{n + 1078}", business_check), sign, 3, 2, 5),
    "account": lambda n, sign: grouped(f"{n + 100}45601234567", sign, 6, 2, 6),
    "licence": lambda n, sign: f"11-{n % 90 + 10}-333333-44",
}
LABELS = {"account": "계좌번호: ", "mobile": "연락처: ", "card": "카드번호 ", "resident": "주민번호 "}


def signed(kind: str, sign: str) -> Callable[[int], str]:
    return lambda n: NUMBERS[kind](n, sign)


ITEMS: dict[str, Callable[[int], str]] = {
    **{f"{kind} {sign}": signed(kind, sign) for kind in NUMBERS for sign in "- "},
    "account  ": lambda n: f"계좌 {NUMBERS['account'](n, ' ')}",
    "email": lambda n: f"hong{n}@example.com",
    "passport": lambda n: f"M{12345678 + n}",
    "plate": lambda n: f"서울 {n % 80 + 10}가 3456",
    "ip": lambda n: f"203.0.113.{n}",
    "address": lambda n: f"서울특별시 가상구 없는길로 {n + 1}",
    "aloud": lambda n: "공일공 공일이삼 사오육칠",
}


@pytest.mark.parametrize("between", [", ", " ", "/"])
@pytest.mark.parametrize("kind", sorted(ITEMS))
def test_two_hundred_items_of_a_line_are_covered(kind: str, between: str) -> None:
    """However long the line is, whole or in pieces: what is let go of ends where an item does."""
    text = between.join(ITEMS[kind](n) for n in range(200))
    shown = TextFilter("mask").apply(text)[0]
    assert len(shown) == len(text) and not any(map(str.isalnum, shown.replace("계좌", "")))
    assert streamed(text, [text[start : start + 199] for start in range(0, len(text), 199)], "mask") == shown


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


def streamed(text: str, pieces: Sequence[str], mode: Mode) -> str:
    stream = TextFilter(mode).stream()
    shown = ""
    for piece in pieces:
        more, cut = stream.push(piece)
        shown += more
        if cut:
            return shown
    return shown + stream.flush()[0]


@pytest.mark.parametrize("mode", MODES[1:])
def test_streams_show_what_the_whole_text_shows(mode: Mode) -> None:
    """Character by character and by the tokens of kogpt-mini, in the middle of a text and at its end."""
    tokenizer = Tokenizer.from_file(TOKENIZER)
    for text, _, item in FOUND:
        for line in (text, f"그는 {text}. 그리고 {item} 명"):
            whole = TextFilter(mode).apply(line)[0]
            decoder = tokenizer.decoder()
            tokens = [decoder.push(token) for token in tokenizer.encode(line)] + [decoder.flush()]
            assert "".join(tokens) == line
            assert streamed(line, list(line), mode) == whole
            assert streamed(line, tokens, mode) == whole


@pytest.mark.parametrize("n", [250, 1000])
@pytest.mark.parametrize("text", ["010-0123-4567", "hong@example.com", "서울 31바 1234"])
def test_many_invisible_characters_hide_nothing_from_a_stream(text: str, n: int) -> None:
    """They count as nothing where it is told how far back an item may begin."""
    for place in range(1, len(text)):
        dressed = text[:place] + "\u200b" * n + text[place:]
        whole = TextFilter("mask").apply(dressed)[0]
        pieces = [*text[:place], "\u200b" * n, *text[place:]]
        assert whole.replace("\u200b", "") == TextFilter("mask").apply(text)[0]
        assert streamed(dressed, pieces, "mask") == whole


def test_what_was_shown_too_early_is_covered_from_there_on() -> None:
    wanted: dict[Mode, str] = {"mask": "**-**** ", "block": ""}
    for mode, rest in wanted.items():
        stream = TextFilter(mode).stream()
        stream.push("010-012")
        stream._shown = 6
        more, cut = stream.push("3-4567 ")
        assert more + ("" if cut else stream.flush()[0]) == rest and cut == (mode == "block")


HIDDEN = (
    *"\u200b\u200d\u2060\ufeff\u00ad\u200e\ufe0f\u3164\u2800\u0301\u20dd\u0336\ufff9\ufffb\x00\x7f\x9f",
    *("\ufe0f\u20e3", "\U000e0100", "\U000e01ef", "\U000e0001", "\U000e0020", "\U000e007f", "\U000e0000"),
)


@pytest.mark.parametrize("hidden", HIDDEN)
def test_no_kind_of_invisible_character_hides_a_number(hidden: str) -> None:
    for item in ("010-0123-4567", "공일공 일이삼사 오육칠팔", "hong@example.com"):
        assert [span.end for span in find_personal(hidden.join(item))] == [len(hidden.join(item))]


@pytest.mark.parametrize("hidden", ["\u200b", "\u3164", "\u0301", "\ufe0f\u20e3"])
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
