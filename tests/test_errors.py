"""The exception tree: one line, in the language of the locale."""

from __future__ import annotations

import pytest

from kogpt import errors
from kogpt.errors import CheckpointError, KoGPTError, MissingExtra, prefers_korean

LOCALES = [
    ({}, False),
    ({"LANG": "ko_KR.UTF-8"}, True),
    ({"LANG": "en_US.UTF-8"}, False),
    ({"LANG": "en_US.UTF-8", "LC_ALL": "ko_KR.eucKR"}, True),
    ({"LANG": "ko_KR.UTF-8", "LC_MESSAGES": "C"}, False),
    ({"LANG": "ko_KR.UTF-8", "LC_ALL": ""}, True),  # POSIX: an empty variable is an unset one
]


@pytest.mark.parametrize(("environment", "korean"), LOCALES)
def test_messages_follow_the_locale(
    environment: dict[str, str], korean: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert prefers_korean() is korean
    assert str(CheckpointError("broken", "손상됨")) == ("손상됨" if korean else "broken")


def test_every_error_is_a_value_error_of_ours() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(classes) == 9
    assert all(issubclass(value, KoGPTError) and issubclass(value, ValueError) for value in classes)


def test_a_missing_extra_says_how_to_get_it() -> None:
    error = MissingExtra("the server", "serve")
    assert "pip install 'kogpt[serve]'" in error.en and "pip install 'kogpt[serve]'" in error.ko
