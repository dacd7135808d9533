"""Files and standard input -> prompts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kogpt.errors import InputError
from kogpt.texts import decode, format_of, read_bytes, read_records, text_lines

RECORDS = ("jsonl", "json", "csv", "tsv")


def read_prompts(path: str, source: str, encoding: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(line number, prompt, the user's own other keys) of every prompt of a file, or of standard input (-).

    A line of text is a prompt; in JSON Lines, JSON, CSV and TSV the value under "prompt" is.
    """
    text = decode(read_bytes(path), source, encoding)
    format = format_of(path)
    if format not in RECORDS:
        yield from ((number, line, {}) for number, line in text_lines(text))
        return
    for record in read_records(text, source, format):
        prompt = record.values.get("prompt")
        if not isinstance(prompt, str):
            raise InputError(
                f'{source} line {record.line} is not an object with a text "prompt"',
                f'{source} {record.line}행: "prompt" 문자열이 있는 객체가 아닙니다',
            )
        yield record.line, prompt, {key: value for key, value in record.values.items() if key != "prompt"}
