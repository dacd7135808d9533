"""Finds personal data in Korean text: resident, business and card numbers by their check digits, telephone
and account numbers, e-mail addresses, passports, driving licences, number plates, IP and street addresses.

Works on copies of the same length in which full-width digits, other dashes and digits in Hangul ("공일공")
are plain, and without invisible characters, whose places are counted back. A number that other things look
like too counts only beside a label ("계좌번호") or with a right check digit. Time is linear.

Sources: rules of the resident number (Enforcement Rule of the Resident Registration Act, article 2; the last
six digits are random since October 2020), of the business number (National Tax Service, weights 1 3 7), of
card numbers (ISO/IEC 7812-1, Luhn), of telephone numbers (the numbering plan of the Ministry of Science and
ICT), of plates (Regulations on Registration Plates of Motor Vehicles).
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import chain

from kogpt.tasks.spans import Span, without_overlaps

KINDS = (
    *("resident", "business", "card", "mobile", "landline", "account", "passport", "licence", "plate"),
    *("email", "ip", "address"),
)
NUMBERS = frozenset(("resident", "business", "card", "mobile", "landline", "account", "licence"))
# Digits that may hold numbers of eight and more. A whole line is one cluster, so that no number is cut.
CLUSTER = re.compile(r"\d(?:[ ()\-./·,]{0,3}\d){7,}")
SEEDS = re.compile(r"[0-9@]|골뱅이|\(at\)|\[at\]")
WHOLE = ((0, sys.maxsize),)
LONGEST = 144  # characters of the longest item, with what has to be seen on either side of it

DASHES = dict.fromkeys(map(ord, "‐‑‒–—―−－﹣﹘ㅡ"), "-")
# Format characters, marks on the character before and controls split a number unseen; so do blanks that
# Unicode counts among the letters, symbols and unassigned characters. Conjoining jamo are letters and stay.
UNSEEN = frozenset(("Cf", "Mn", "Me", "Cc"))
BLANK = re.compile("[\u115f\u1160\u2065\u2800\u3164\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff]")
# Digits in a frame are marks of a list or a number's digits, as ① is.
KEYCAP = re.compile("[0-9](?=\ufe0f?\u20e3)")
CIRCLED = "⓪①②③④⑤⑥⑦⑧⑨"
MARKS = frozenset(("No", "So"))  # categories of ①, ², ⓐ
HANGUL_DIGITS = dict(zip("공영일이삼사오육륙칠팔구", "001234566789", strict=True))
ALOUD = "공영일이삼사오육륙칠팔구"
READ_ALOUD = re.compile(rf"(?<!\d)[{ALOUD}](?:[ \-.]?[{ALOUD}]){{8,}}")
COPULA = frozenset("에라고며다면었야니지죠")  # what follows 이 where it is no digit
PARTLY_ALOUD = re.compile(rf"(?<![가-힣\d])[\d{ALOUD}](?:[ \-]?[\d{ALOUD}]){{8,}}(?![\d가-힣])")
SPOKEN = 3  # digits in Hangul that are meant as such; one or two are a particle or a counter beside a number
SPOKEN_REACH = 40  # characters within which SPOKEN digits stand
DIGITS = re.compile(r"\d+")

SEPARATOR = r"(?: ?[-./·,] ?| )?"  # between the groups of a number
LABEL_REACH = 16  # characters before or after a number in which its label stands
LIST_GAP = 4  # characters between two numbers of a list
LIST_REACH = 216  # characters of a list that the label of its first number covers
RANDOM_TAILS_SINCE = date(2020, 10, 1)


def find_personal(text: str) -> list[Span]:
    """The personal data in a text, in its order and without overlaps."""
    seen, places = without_invisible(text)
    found = [item for plain in plain_copies(seen) if SEEDS.search(plain) for item in _items(plain)]
    return without_overlaps(Span(places[item.start], places[item.end - 1] + 1, item.kind) for item in found)


def _items(plain: str) -> list[Span]:
    """Everything that the rules find in a plain copy, the stricter rules first."""
    found: list[Span] = []
    taken = bytearray(len(plain))
    clusters = [(max(0, match.start() - 2), match.end() + 1) for match in CLUSTER.finditer(plain)]
    for rule in RULES:
        for start, end in rule.places(plain, clusters if rule.kind in NUMBERS else WHOLE):
            if any(taken[start:end]):
                continue  # an earlier rule, which is the stricter one, has it
            taken[start:end] = b"\1" * (end - start)
            found.append(Span(start, end, rule.kind))
    return found


@dataclass(frozen=True, slots=True)
class Rule:
    """One form of one kind.

    sure: whether a match needs no label, by what it is made of; None: every match is one.
    """

    kind: str
    pattern: re.Pattern[str]
    label: re.Pattern[str] | None = None
    sure: Callable[[str], bool] | None = None
    valid: Callable[[str], bool] | None = None

    def places(self, text: str, regions: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """(start, end) of every item of this form in some regions of a text; a label stands for a list."""
        begun = ended = -LIST_REACH  # of the labelled list
        for start, end in chain.from_iterable(self._matches(text, *region) for region in regions):
            item = text[start:end]
            if self._labelled(text, start, end):
                begun, ended = start, end
            elif 0 < start - ended <= LIST_GAP and start - begun <= LIST_REACH:
                ended = end
            if ended == end or self.sure is None or self.sure(item):
                yield start, end

    def _matches(self, text: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """(start, end) of the valid matches; behind one that is none it goes on from the next digits."""
        while match := self.pattern.search(text, start, stop):
            if end := self._valid_end(match):
                yield match.start(), end
                start = end
            else:
                digits = DIGITS.search(text, match.start(), match.end())
                start = digits.end() if digits else match.end()

    def _valid_end(self, match: re.Match[str]) -> int | None:
        """Where the longest valid item at a match ends: it, or it without numbers behind a space."""
        text, (start, end) = match.string, match.span()
        if self.valid is None or self.valid(match.group()):
            return end
        while (end := text.rfind(" ", start, end)) > start:
            if self.pattern.fullmatch(text, start, end) and self.valid(text[start:end]):
                return end
        return None

    def _labelled(self, text: str, start: int, end: int) -> bool:
        if self.label is None:
            return False
        around = text[max(0, start - LABEL_REACH) : start] + "\n" + text[end : end + LABEL_REACH]
        return self.label.search(around) is not None


def without_invisible(text: str) -> tuple[str, Sequence[int]]:
    """The text as it is seen, with framed digits as circled ones, and where each character of it stands in
    the text, with the end."""
    hidden = {character for character in set(text) if _is_invisible(character)}
    if not hidden:
        return text, range(len(text) + 1)
    framed = KEYCAP.sub(lambda match: CIRCLED[int(match.group())], text)
    places = [place for place, character in enumerate(text) if character not in hidden]
    return framed.translate(dict.fromkeys(map(ord, hidden))), [*places, len(text)]


def _is_invisible(character: str) -> bool:
    if character.isspace() or "가" <= character <= "힣":
        return False
    return unicodedata.category(character) in UNSEEN or BLANK.match(character) is not None


def plain_copies(text: str) -> Iterator[str]:
    """The text with plain digits, letters and dashes in the same places; then, if it holds any of MARKS that
    are digits or letters of a sort, with those as they are: ①010-... is no number with a digit before it."""
    table = _plain_characters(text)
    yield _with_digits(text.translate(table) if table else text)
    marks = [code for code in table if unicodedata.category(chr(code)) in MARKS]
    if marks:
        yield _with_digits(text.translate({code: table[code] for code in table.keys() - marks}))


def _plain_characters(text: str) -> dict[int, str]:
    """A table for str.translate: the plain character for each odd one of a text."""
    table: dict[int, str] = {}
    for character in set(text):
        if character.isascii() or "가" <= character <= "힣":
            continue
        normal = DASHES.get(ord(character)) or unicodedata.normalize("NFKC", character)
        if len(normal) == 1 and normal != character:
            table[ord(character)] = normal
    return table


def _with_digits(plain: str) -> str:
    """A plain copy with the digits that are read aloud."""
    return PARTLY_ALOUD.sub(_in_digits, READ_ALOUD.sub(_in_digits, plain))


def _in_digits(match: re.Match[str]) -> str:
    run = match.group()
    aloud = [place for place, character in enumerate(run) if character in HANGUL_DIGITS]
    if run.endswith("이") and match.string[match.end() : match.end() + 1] in COPULA:
        aloud.pop()
    windows = (aloud[n : n + SPOKEN] for n in range(len(aloud) - SPOKEN + 1))
    meant = {place for window in windows if window[-1] - window[0] < SPOKEN_REACH for place in window}
    return "".join(HANGUL_DIGITS[c] if place in meant else c for place, c in enumerate(run))


def digits_of(item: str) -> str:
    """The digits of an item."""
    return "".join(filter(str.isdecimal, item))


def is_birth_date(digits: str) -> bool:
    """Whether a resident number begins with a date and the digit of a century."""
    century = {"1": 1900, "2": 1900, "3": 2000, "4": 2000, "5": 1900, "6": 1900, "7": 2000, "8": 2000}
    return digits[6] in century and _birth(digits, century[digits[6]]) is not None


def _birth(digits: str, century: int) -> date | None:
    try:
        return date(century + int(digits[:2]), int(digits[2:4]), int(digits[4:6]))
    except ValueError:
        return None


def resident_check(digits: str) -> bool:
    """Whether the last of 13 digits is the check digit of a resident's or a foreigner's number."""
    total = sum(int(d) * w for d, w in zip(digits[:12], (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5), strict=True))
    right = (11 - total % 11) % 10
    return int(digits[12]) in ((right, (right + 2) % 10) if digits[6] in "5678" else (right,))


def business_check(digits: str) -> bool:
    """Whether the last of 10 digits is the check digit of a business number."""
    total = sum(int(d) * w for d, w in zip(digits[:9], (1, 3, 7, 1, 3, 7, 1, 3, 5), strict=True))
    return (total + int(digits[8]) * 5 // 10 + int(digits[9])) % 10 == 0


def luhn_check(digits: str) -> bool:
    """Whether the last digit is the check digit of a card number (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _is_resident(item: str) -> bool:
    return is_birth_date(digits_of(item))


def _proves_resident(item: str) -> bool:
    """Written in its own form, or with a right check digit, or from the time of random tails."""
    digits = digits_of(item)
    if re.fullmatch(r"\d{6} ?- ?\d{7}", item) or resident_check(digits):
        return True
    birth = _birth(digits, 2000) if digits[6] in "3478" else None
    return birth is not None and birth >= RANDOM_TAILS_SINCE


def _is_card(item: str) -> bool:
    digits = digits_of(item)
    return digits[0] in "34569" and len(set(digits)) > 1 and luhn_check(digits)


def _proves_business(item: str) -> bool:
    return bool(re.fullmatch(r"\d{3} ?- ?\d{2} ?- ?\d{5}", item)) or business_check(digits_of(item))


def _proves_account(item: str) -> bool:
    """Three groups and more with dashes, which are no date, no book number and no telephone number."""
    groups = item.split("-")
    return len(groups) >= 3 and 10 <= len(digits_of(item)) <= 14 and not _is_other_number(item)


def _is_other_number(item: str) -> bool:
    return bool(re.fullmatch(r"97[89]-.*|(?:19|20)\d\d-[01]?\d-.*|1[3-9]\d\d-\d{4}", item))


def _is_account(item: str) -> bool:
    return 10 <= len(digits_of(item)) <= 14 and not _is_other_number(item)


def _is_public_ip(item: str) -> bool:
    """Whether it is an address of the net: none of a private network, of one's own machine, or a version."""
    a, b, *_ = parts = [int(part) for part in item.split(".")]
    private = a in (0, 10, 127) or (a, b) == (192, 168) or (a == 172 and 16 <= b < 32) or a < 10
    return max(parts) <= 255 and not private


def _is_plain_plate(item: str) -> bool:
    """Whether the letter is none that counts or measures: 12조 5000, 30도 2000."""
    return not re.search("[조도주부수보로구]", item)


def _groups(*sizes: int | str) -> str:
    """Digits in groups, together or apart, or each by itself ("0 1 0 1 2 ...")."""
    apart = SEPARATOR.join(size if isinstance(size, str) else rf"\d{{{size}}}" for size in sizes)
    n_digits = sum(size for size in sizes if isinstance(size, int))
    alone = (
        rf"|(?<!\d )\d(?: \d){{{n_digits - 1}}}(?! \d)"
        if all(isinstance(size, int) for size in sizes)
        else ""
    )
    return rf"(?:{apart}{alone})"


def _number(body: str) -> re.Pattern[str]:
    """A pattern with no digit before or after it, nor one behind a dash."""
    return re.compile(rf"(?<![\d])(?<!\d[-.]){body}(?![-.]?\d)")


AREA = r"0(?:2|3[1-3]|4[1-4]|5[1-5]|6[1-4]|70|50\d|80)"
AREA_SPACED = r"0 (?:2|3 [1-3]|4 [1-4]|5 [1-5]|6 [1-4]|7 0|8 0)(?: \d){7,8}"
TELEPHONE_LABEL = re.compile("전화|연락|번호|대표|팩스|문의|휴대|핸드폰|폰|tel|fax|call", re.IGNORECASE)
ACCOUNT_LABEL = re.compile("계좌|입금|송금|이체|환불|예금|통장|은행|뱅크|농협|신협|수협|우체국|금고")
ACCOUNT = r"\d{2,6}(?:(?:-| |\.)\d{1,7}){1,4}|(?<!\d )\d(?: \d){9,13}(?! \d)|\d{10,14}"
PLATE_LETTERS = "가나다라마거너더러머버서어저고노도로모보소오조구누두루무부수우주바사아자배허하호국합육해공"
UNITS = "(?:[억만천원명개년월일배점위층호건권회대도%㎞km]|번(?!호)|차(?!량))"  # 차량 and 번호판 are labels
AT = r"(?: ?@ ?| ?\(at\) ?| ?\[at\] ?| 골뱅이 )"
REGION = (
    r"(?:서울|부산|대구|인천|광주|대전|울산|세종|경기|강원|충청?[남북]|전라?[남북]|경상?[남북]|제주|충청[남북]|전라[남북]"
    r"|경상[남북])(?:특별자치도|특별자치시|특별시|광역시|도|시)?"
)
HOUSE = r"\d{1,4}(?:-\d{1,4})?(?:번지)?(?:,? ?\d{1,4}동)?(?:,? ?(?:지하 ?)?\d{1,3}층)?(?:,? ?\d{1,4}호)?"
ROAD = r"[가-힣0-9.·]{1,12}?(?:대로|로|길)(?:\d{1,4}(?:번|가|나|다)?길)? ?"
VILLAGE = r"(?:[가-힣]{1,7}\d{0,2}(?:동|리)|[가-힣]{1,6}\d가) "
CITIES = rf"(?:{REGION} )?(?:[가-힣]{{1,8}}(?:시|군|구) ){{1,2}}(?:[가-힣]{{1,8}}(?:읍|면|동|가) )?"
STREET = rf"(?:{VILLAGE}|{ROAD})"
LONE_ROAD = rf"(?<![가-힣0-9]){ROAD}{HOUSE}(?![.,]?\d)(?! ?{UNITS})"  # an address beside a label alone
ADDRESS_LABEL = re.compile("주소|사는 곳|배송지|거주지|자택|소재지")

RULES = (
    Rule(
        "email",
        re.compile(
            rf"[A-Za-z0-9][A-Za-z0-9._%+\-]{{0,63}}{AT}(?:[A-Za-z0-9\-]{{1,63}}\.){{1,4}}[A-Za-z]{{2,24}}"
        ),
    ),
    Rule("card", _number(r"(?:" + _groups(4, 4, 4, 4) + "|" + _groups(4, 6, 5) + ")"), valid=_is_card),
    Rule(
        "resident",
        _number(_groups(6, 7)),
        re.compile("주민|등록번호|외국인|생년|신분"),
        _proves_resident,
        _is_resident,
    ),
    Rule(
        "mobile",
        re.compile(
            rf"(?<!\d)(?<!\d-)(?:\+?82{SEPARATOR}\(?0?\)?1[016789]|01[016789])\)?{SEPARATOR}\d{{3,4}}{SEPARATOR}\d{{4}}(?![-.]?\d)"
            rf"|(?<!\d )(?<!\d)0 1 [016789](?: \d){{7,8}}(?! ?\d)"
        ),
    ),
    Rule("licence", re.compile(r"(?<!\d)(?<!\d-)(?:1[1-9]|2[0-8])-\d{2}-\d{6}-\d{2}(?!-?\d)")),
    Rule(
        "business",
        _number(_groups(3, 2, 5)),
        re.compile("사업자"),
        _proves_business,
    ),
    Rule(
        "landline",
        re.compile(
            rf"(?<!\d)(?<!\d-)(?:\+?82{SEPARATOR}{AREA[1:]}|\(?{AREA}\)?)(?:-| |\.|\) ?)"
            r"\d{3,4}(?:-| |\.)\d{4}(?![-.]?\d)"
        ),
    ),
    Rule(
        "landline",
        re.compile(rf"(?<!\d)(?<!\d[-.]){AREA}\d{{7,8}}(?!\d)|(?<!\d )(?<!\d){AREA_SPACED}(?! ?\d)"),
    ),
    Rule("account", _number(rf"(?:{ACCOUNT})"), ACCOUNT_LABEL, _proves_account, _is_account),
    Rule(
        "passport",
        re.compile(r"(?<![A-Za-z0-9])[MSRGDOP](?:\d{8}|\d{3}[A-Z]\d{4})(?![A-Za-z0-9])", re.IGNORECASE),
    ),
    Rule(
        "plate",
        re.compile(
            rf"(?<!\d)(?:(?:{REGION}) ?)?\d{{2,3}} ?[{PLATE_LETTERS}] ?\d{{4}}(?![-,.]?\d)(?! ?{UNITS})"
        ),
        re.compile("차|번호판|주차"),
        _is_plain_plate,
    ),
    Rule("ip", re.compile(r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d]|\.\d)"), valid=_is_public_ip),
    Rule(
        "address",
        re.compile(rf"{CITIES}{STREET}{HOUSE}(?![.,]?\d)(?! ?{UNITS})"),
    ),
    Rule(
        "address",
        re.compile(LONE_ROAD),
        ADDRESS_LABEL,
        lambda item: False,
    ),
)
