"""Reports: what a mail program reads."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from email import message_from_bytes
from email.policy import default

from kogpt.tasks.report import ADDRESS, Report

REPORT = Report(
    prompt="오늘\n아침",
    text="나쁜 글 \U0001f621",
    model="kogpt-mini\r\nBcc: x@example.com",
    settings={"temperature": 0.8},
    note="욕설",
    made=datetime(2026, 1, 2, tzinfo=UTC),
)


def test_the_message_reads_back() -> None:
    message = message_from_bytes(REPORT.to_email(), policy=default)
    assert message["To"] == ADDRESS and message["Bcc"] is None and message["From"] is None
    body = message.get_body()
    assert body is not None
    text = body.get_content().replace("\r\n", "\n")
    for part in ("오늘\n아침", "나쁜 글 \U0001f621", "temperature=0.8", "욕설"):
        assert part in text
    [attached] = message.iter_attachments()
    assert json.loads(attached.get_content()) == REPORT.record()


def test_the_record() -> None:
    record = json.loads(REPORT.to_json())
    assert record["made"] == "2026-01-02T00:00:00+00:00" and record["prompt"] == "오늘\n아침"
