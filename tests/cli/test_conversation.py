"""Commands of the interactive prompt that could lose what was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from kogpt.cli.conversation import Conversation
from kogpt.errors import InputError


@pytest.mark.parametrize(
    "name",
    [
        *("/proc/text", "~nobody-has-this-home/text", "가" * 90, f"{'나' * 90}/text"),
        *("a\0b", "a\ud800b", "~\0/text", "\0/text"),  # names that no file can have
    ],
)
def test_a_place_that_cannot_be_written_is_told_and_the_texts_stay(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    conversation = Conversation("kogpt-mini", {})
    conversation.written.append("글")
    with pytest.raises(InputError, match=r"choose another (place|name)") as told:
        conversation.obey(f"/save {name}")
    assert "다른 곳을 쓰세요" in told.value.ko or "다른 이름을 쓰세요" in told.value.ko
    assert conversation.obey("/save 글.txt").endswith("글.txt")
    assert (tmp_path / "글.txt").read_text(encoding="utf-8") == "글\n\n"
