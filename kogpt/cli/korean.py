"""argparse's own texts in Korean, where the locale is.

argparse looks every text up by its English one, with the functions of `gettext` that it has imported. They
are replaced while a command line is read; compiled catalogues would say the same through the same door.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from kogpt.errors import prefers_korean

TEXTS = {
    "usage: ": "사용법: ",
    "positional arguments": "위치 인자",
    "options": "옵션",
    "show this help message and exit": "이 도움말을 보여 줍니다",
    "argument %(argument_name)s: %(message)s": "인자 %(argument_name)s: %(message)s",
    "the following arguments are required: %s": "빠진 인자가 있습니다: %s",
    "one of the arguments %s is required": "다음 인자 중 하나가 필요합니다: %s",
    "not allowed with argument %s": "인자 %s와(과) 함께 쓸 수 없습니다",
    "unrecognized arguments: %s": "알 수 없는 인자: %s",
    "ambiguous option: %(option)s could match %(matches)s": "모호한 옵션 %(option)s (가능: %(matches)s)",
    "unexpected option string: %s": "알 수 없는 옵션: %s",
    "ignored explicit argument %r": "값을 받지 않는 옵션에 준 값 %r",
    "expected one argument": "값이 하나 필요합니다",
    "expected at most one argument": "값은 하나까지만 줄 수 있습니다",
    "expected at least one argument": "값이 하나 이상 필요합니다",
    "expected %s argument": "값이 %s개 필요합니다",
    "expected %s arguments": "값이 %s개 필요합니다",
    "invalid %(type)s value: %(value)r": "%(type)s 형식이 아닌 값: %(value)r",
    "invalid choice: %(value)r (choose from %(choices)s)": "없는 선택지 %(value)r (가능: %(choices)s)",
    "unknown parser %(parser_name)r (choices: %(choices)s)": "없는 명령 %(parser_name)r (가능: %(choices)s)",
}


@contextmanager
def korean_argparse() -> Iterator[None]:
    """Within, argparse speaks the user's language."""
    if not prefers_korean():
        yield
        return
    names = vars(argparse)
    before = {name: names[name] for name in ("_", "ngettext")}
    names["_"] = lambda text: TEXTS.get(text, text)
    names["ngettext"] = lambda one, many, n: TEXTS.get(one if n == 1 else many, one if n == 1 else many)
    try:
        yield
    finally:
        names.update(before)
