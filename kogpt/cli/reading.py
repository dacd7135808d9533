"""Files and standard input -> prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kogpt.errors import InputError
from kogpt.texts import Record, decode, format_of, read_bytes, text_lines, try_records

RECORDS = ("jsonl", "json", "csv", "tsv")


@dataclass(frozen=True, slots=True)
class Entry:
    """One prompt of a file."""

    line: int
    text: str
    others: dict[str, Any]  # the user's own keys beside "prompt"


def read_prompts(path: str, source: str, encoding: str) -> Iterator[Entry | InputError]:
    """Every prompt of a file, or of standard input (-), and the error of every JSON record that is refused.

    A line of text is a prompt; in JSON Lines, JSON, CSV and TSV the value under "prompt" is. InputError for
    a file that is not what its name says.
    """
    text = decode(read_bytes(path), source, encoding)
    format = format_of(path)
    if format not in RECORDS:
        yield from (Entry(number, line, {}) for number, line in text_lines(text))
        return
    for record in try_records(text, source, format):
        yield record if isinstance(record, InputError) else _entry(record, source)


def _entry(record: Record, source: str) -> Entry | InputError:
    prompt = record.values.get("prompt")
    if not isinstance(prompt, str):
        return InputError(
            f'{source} line {record.line} is not an object with a text "prompt"',
            f'{source} {record.line}행: "prompt" 문자열이 있는 객체가 아닙니다',
        )
    return Entry(record.line, prompt, {key: value for key, value in record.values.items() if key != "prompt"})
