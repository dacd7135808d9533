"""A report of harmful text for the makers of the model: a file, or an e-mail that the user may send.

The original asks for prompt and text at the address below (its README, "Limitations"). KoGPT sends nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any

import kogpt

ADDRESS = "opensource+kogpt@kakaobrain.com"


@dataclass(frozen=True, slots=True)
class Report:
    """What was written, and how it came about."""

    prompt: str
    text: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    made: datetime = field(default_factory=lambda: datetime.now(UTC))

    def record(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        return {
            "model": self.model,
            "kogpt": kogpt.__version__,
            "made": self.made.isoformat(timespec="seconds"),
            "prompt": self.prompt,
            "text": self.text,
            "settings": dict(self.settings),
            "note": self.note,
        }

    def to_json(self) -> str:
        """The report as one JSON object over several lines."""
        return json.dumps(self.record(), ensure_ascii=False, indent=2) + "\n"

    def to_email(self) -> bytes:
        """A message (RFC 5322) that mail programs open as a draft, the record attached."""
        message = EmailMessage(policy=SMTP)
        message["To"] = ADDRESS
        message["Subject"] = f"[KoGPT] 유해한 글 신고: {' '.join(self.model.split())[:80]}"
        message["X-Unsent"] = "1"
        settings = ", ".join(f"{name}={value}" for name, value in self.settings.items()) or "-"
        lines = [
            f"모델: {self.model} (kogpt {kogpt.__version__})",
            f"설정: {settings}",
            f"의견: {self.note or '-'}",
            *("", "[프롬프트]", self.prompt, "", "[모델이 쓴 글]", self.text, ""),
        ]
        message.set_content("\n".join(lines), charset="utf-8")
        message.add_attachment(
            self.to_json().encode(), maintype="application", subtype="json", filename="report.json"
        )
        return message.as_bytes()
