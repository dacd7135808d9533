"""Files of text -> documents, in bounded memory whatever their size.

JSON lines, plain text and Parquet; .zst and .gz around the first two; UTF-8 or CP949. One process cuts the
files into blocks of whole records; `documents` parses a block, in whatever process. Blocks depend on the
files and the options only. Text leaves in NFC, its lines ended by "\n".

Knows nothing of quality, duplicates or tokens: see filters.py, dedup.py, pack.py.
"""

from __future__ import annotations

import codecs
import fnmatch
import glob
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from kogpt.errors import InputError, MissingExtra, localized
from kogpt.texts import SUFFIXES, Encoding, decompress, detect_encoding, nfc
from kogpt.texts import format_of as format_by_name

Format = Literal["jsonl", "text", "parquet"]
FORMATS: tuple[Format, ...] = ("jsonl", "text", "parquet")
Split = Literal["file", "blank-line", "line"]

BLOCK_BYTES = 16 << 20  # decompressed text of one job: some seconds of one worker, lost by a kill
MAX_RECORD_BYTES = 2 * BLOCK_BYTES
MAX_TEXT_DOCUMENT = 1 << 20  # bytes; a longer stretch of plain text counts as several documents
SAMPLE_BYTES = 64 << 10  # text that decides the encoding of a file
PARQUET_ROWS = 1024
BAD_NAMED = 3  # bad records that an error names

# What may be wrong with one record, by the short name that reports keep.
REASONS = {
    "not-utf-8": ("not UTF-8", "UTF-8이 아닙니다"),
    "not-cp949": ("not CP949", "CP949가 아닙니다"),
    "not-json": ("not a JSON object", "JSON 객체가 아닙니다"),
    "no-text": ("no string under the text field", "텍스트 필드에 문자열이 없습니다"),
    "surrogate": ("half of a surrogate pair", "짝이 없는 서로게이트가 있습니다"),
    "too-long": (f"longer than {MAX_RECORD_BYTES >> 20} MiB", f"{MAX_RECORD_BYTES >> 20} MiB보다 깁니다"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How to read files. `format` None: by the name; `encoding` None: by the content."""

    text_field: str = "text"  # key of a JSON object, or column of a Parquet file
    format: Format | None = None
    encoding: Encoding | None = None
    split: Split = "file"  # unit that is one document of plain text
    block_bytes: int = BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Position:
    """How far the files have been read."""

    file: int = 0  # its number
    offset: int = 0  # bytes of its text, or rows of Parquet
    line: int = 1  # number of the next line or row
    encoding: Encoding | None = None  # encoding of that file, once it is known
    stored: int = 0  # bytes of the file as it lies on disk; only for showing progress


@dataclass(frozen=True, slots=True)
class Segment:
    """Whole records of one file."""

    path: Path
    format: Format
    encoding: Encoding
    line: int  # number of the first line or row
    payload: bytes | list[str | None]  # lines, or the rows of a Parquet column
    too_long: bool = False  # stands for one record that was skipped


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of the corpus for one worker, and where the next one starts."""

    number: int
    segments: tuple[Segment, ...]
    end: Position


@dataclass(frozen=True, slots=True)
class Document:
    """One text, NFC, from one record of a file."""

    path: Path
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be read, and why (a key of REASONS)."""

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {localized(*REASONS[self.reason])}"


def require_few_bad(records: int, n_bad: int, first: Sequence[BadRecord], share: float) -> None:
    """InputError if more than `share` of all records is bad; the message names some of the `first` bad ones.

    Call it for a whole corpus: for a part, the answer would depend on where blocks end.
    """
    if not n_bad or n_bad / records <= share:
        return
    named = "; ".join(map(str, first[:BAD_NAMED]))
    limit = f"{share:.2%} (--max-bad-share)" if share else "0 %"
    raise InputError(
        f"{n_bad} of {records} records are bad, over {limit}: {named}",
        f"기록 {records}개 중 {n_bad}개가 잘못됨, 허용 {limit}: {named}",
    )


def find_files(names: Sequence[str], exclude: Sequence[str] = (), format: Format | None = None) -> list[Path]:
    """Files by names, glob patterns and folders (searched for known suffixes), sorted within each name.

    `exclude` are patterns of file names. InputError if a name yields nothing or a file comes twice.
    """
    files: list[Path] = []
    for name in names:
        found = [path for path in _expand(name, format) if not _matches(path, exclude)]
        if not found:
            raise InputError(f"{name}: no such file, or none to read", f"{name}: 읽을 파일이 없습니다")
        files += found
    seen: set[Path] = set()
    for path in files:
        if path.resolve() in seen:
            raise InputError(f"{path} is named twice", f"{path}: 같은 파일이 두 번 지정되었습니다")
        seen.add(path.resolve())
    return files


def _expand(name: str, format: Format | None) -> list[Path]:
    if Path(name).is_dir():
        inside = sorted(path for path in Path(name).rglob("*") if path.is_file())
        return [path for path in inside if format or _format_by_name(path)]
    if glob.has_magic(name) and not Path(name).exists():
        return sorted(path for path in map(Path, glob.glob(name, recursive=True)) if path.is_file())
    return [Path(name)] if Path(name).is_file() else []


def _matches(path: Path, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns)


def _format_by_name(path: Path) -> Format | None:
    found = format_by_name(path.name)
    return next((format for format in FORMATS if format == found), None)


def format_of(path: Path, reading: Reading) -> Format:
    """The format that `reading` sets, else the one that the name says; InputError if neither."""
    if found := reading.format or _format_by_name(path):
        return found
    known = " ".join(suffix for suffix, format in SUFFIXES.items() if format in FORMATS)
    raise InputError(
        f"{path}: the format is unknown, the name ends in none of {known} (.zst or .gz may follow): give "
        "--format",
        f"{path}: 형식을 알 수 없습니다. 이름이 {known} 중 하나로 끝나지 않습니다(.zst, .gz 가능). "
        "--format을 지정하세요",
    )


def blocks(
    files: Sequence[Path], reading: Reading, start: Position | None = None, number: int = 0
) -> Iterator[Block]:
    """The corpus from `start` on, in blocks of about `block_bytes`, the first one with that number."""
    start = start or Position()
    segments: list[Segment] = []
    size = 0
    for index in range(start.file, len(files)):
        origin = start if index == start.file else Position(index)
        for segment, end in _segments(files[index], reading, origin):
            segments.append(segment)
            size += _size(segment.payload)
            if 2 * size >= reading.block_bytes:  # a stretch of a long file is a little less than one block
                yield Block(number, tuple(segments), end)
                number, segments, size = number + 1, [], 0
    if segments:
        yield Block(number, tuple(segments), Position(len(files)))


def _size(payload: bytes | list[str | None]) -> int:
    if isinstance(payload, bytes):
        return len(payload)
    return sum(3 * len(text or "") for text in payload)  # a syllable is three bytes of UTF-8


def _segments(path: Path, reading: Reading, origin: Position) -> Iterator[tuple[Segment, Position]]:
    """Whole records of a file, each stretch with the position after it."""
    if format_of(path, reading) == "parquet":
        return _row_segments(path, reading, origin)
    return _line_segments(path, reading, origin)


def _line_segments(path: Path, reading: Reading, origin: Position) -> Iterator[tuple[Segment, Position]]:
    format = format_of(path, reading)
    offset, line, encoding = origin.offset, origin.line, reading.encoding or origin.encoding
    for stretch, n_bytes, stored in _stretches(path, reading, origin.offset):
        payload = stretch or b""
        if encoding is None and not payload.isascii():
            encoding = detect_encoding(_sample(payload), str(path))
        segment = Segment(path, format, encoding or "utf-8", line, payload, too_long=stretch is None)
        offset += n_bytes
        line += 1 if stretch is None else payload.count(b"\n")
        yield segment, Position(origin.file, offset, line, encoding, stored)


def _sample(payload: bytes) -> bytes:
    """Whole lines from the first byte beyond ASCII on, about SAMPLE_BYTES of them."""
    beyond = re.search(rb"[^\x00-\x7f]", payload)
    assert beyond is not None
    start = payload.rfind(b"\n", 0, beyond.start()) + 1
    end = payload.find(b"\n", start + SAMPLE_BYTES)
    return payload[start:end] if end >= 0 else payload[start:]


def _stretches(path: Path, reading: Reading, skip: int) -> Iterator[tuple[bytes | None, int, int]]:
    """Cut the text of a file, from byte `skip` on, at record ends into pieces of about `block_bytes`.

    Each stretch with the bytes it covers and the bytes of the file read so far; None stands for a record
    that is too long to hold.
    """
    pending, overlong, stored = bytearray(), 0, 0
    for text, stored in decompress(path):
        dropped = min(skip, len(text))
        skip -= dropped
        piece = text[dropped:]
        if overlong:
            rest, newline, piece = piece.partition(b"\n")
            overlong += len(rest) + len(newline)
            if not newline:
                continue
            yield None, overlong, stored
            overlong = 0
        searched = len(pending)
        pending += piece
        while len(pending) >= reading.block_bytes and (cut := _record_end(pending, reading, searched)):
            yield bytes(pending[:cut]), cut, stored
            del pending[:cut]
            searched = 0
        if len(pending) > MAX_RECORD_BYTES:
            overlong = len(pending)
            pending.clear()
    if overlong:
        yield None, overlong, stored
    if pending:
        yield bytes(pending), len(pending), stored


def _record_end(text: bytearray, reading: Reading, searched: int) -> int:
    """Where to cut: after the last record within `block_bytes`, else after the first one; 0 if none ends.

    The first `searched` bytes are known to hold no line break if they are `block_bytes` or more.
    """
    limit = reading.block_bytes
    if searched < limit:
        blanks = (b"\n\n", b"\n\r\n") if reading.split == "blank-line" else ()
        for end in (*blanks, b"\n"):
            if (found := text.rfind(end, 0, limit)) >= 0:
                return found + len(end)
    return text.find(b"\n", max(searched, limit)) + 1


def _row_segments(path: Path, reading: Reading, origin: Position) -> Iterator[tuple[Segment, Position]]:
    """Rows of the text column of a Parquet file, batch by batch."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("reading Parquet", "parquet") from error
    try:
        with parquet.ParquetFile(path) as file:
            column = _text_column(file.schema_arrow, reading.text_field, path)
            row, n_rows, size = 0, file.metadata.num_rows, path.stat().st_size
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=[column]):
                start, row = row, row + batch.num_rows
                if row <= origin.offset:
                    continue
                texts = batch.column(0).to_pylist()
                end = Position(origin.file, row, row + 1, None, size * row // max(n_rows, 1))
                yield Segment(path, "parquet", "utf-8", start + 1, texts), end
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: not readable as Parquet: {reason}", f"{path}: Parquet로 읽을 수 없습니다: {reason}"
        ) from error


def _text_column(schema: Any, name: str, path: Path) -> str:
    """The column's name; InputError if it is missing or holds no strings."""
    types = {field.name: str(field.type) for field in schema}
    if types.get(name) in ("string", "large_string", "string_view"):
        return name
    found = ", ".join(f"{column} ({kind})" for column, kind in types.items())
    raise InputError(
        f"{path}: no column of strings named {name!r}; there are {found}; give --text-field",
        f"{path}: 문자열 열 {name!r} 없음. 있는 열: {found}. --text-field를 지정하세요",
    )


def documents(block: Block, reading: Reading) -> Iterator[Document | BadRecord]:
    """The records of a block in order, each as a text in NFC or as what is wrong with it."""
    for segment in block.segments:
        if segment.too_long:
            yield BadRecord(segment.path, segment.line, "too-long")
        elif isinstance(segment.payload, list):
            yield from _rows(segment, segment.payload)
        elif segment.format == "text" and reading.split != "line":
            yield from _stretches_of_text(segment, segment.payload, reading.split)
        else:
            yield from _lines(segment, segment.payload, reading.text_field)


def _rows(segment: Segment, texts: list[str | None]) -> Iterator[Document | BadRecord]:
    for row, text in enumerate(texts, segment.line):
        yield BadRecord(segment.path, row, "no-text") if text is None else _document(segment, row, text)


def _lines(segment: Segment, payload: bytes, field: str) -> Iterator[Document | BadRecord]:
    """JSON lines, or plain text of one document a line; blank lines are skipped."""
    for number, line in enumerate(_without_bom(payload, segment).split(b"\n"), segment.line):
        if not line.strip():
            continue
        try:
            text = line.decode(segment.encoding)
        except UnicodeDecodeError:
            yield BadRecord(segment.path, number, f"not-{segment.encoding}")
            continue
        if segment.format == "text":
            yield _document(segment, number, text.removesuffix("\r"))
            continue
        found, reason = _json_text(text, field)
        yield BadRecord(segment.path, number, reason) if reason else _document(segment, number, found)


def _json_text(line: str, field: str) -> tuple[str, str]:
    """The text of a JSON line, and what is wrong with it if anything is."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return "", "not-json"
    if not isinstance(record, dict):
        return "", "not-json"
    text = record.get(field)
    return (text, "") if isinstance(text, str) else ("", "no-text")


def _stretches_of_text(segment: Segment, payload: bytes, split: Split) -> Iterator[Document | BadRecord]:
    """Plain text: all of the segment, or what lies between blank lines, cut where it is too long."""
    line = segment.line
    separator = rb"((?:\r?\n){2,})" if split == "blank-line" else rb"(\Z)"
    for stretch in re.split(separator, _without_bom(payload, segment)):
        for piece in _pieces(stretch):
            if piece.strip():
                yield _decoded(segment, line, piece)
            line += piece.count(b"\n")


def _pieces(text: bytes) -> Iterator[bytes]:
    """Cut a text at line ends into pieces of at most MAX_TEXT_DOCUMENT, where its lines allow."""
    while len(text) > MAX_TEXT_DOCUMENT:
        cut = text.rfind(b"\n", 0, MAX_TEXT_DOCUMENT) + 1 or text.find(b"\n") + 1 or len(text)
        yield text[:cut]
        text = text[cut:]
    yield text


def _decoded(segment: Segment, line: int, payload: bytes) -> Document | BadRecord:
    """A document of several lines; one that cannot be decoded is reported at the line where it breaks."""
    try:
        return _document(segment, line, payload.decode(segment.encoding))
    except UnicodeDecodeError as error:
        return BadRecord(segment.path, line + payload.count(b"\n", 0, error.start), f"not-{segment.encoding}")


def _without_bom(payload: bytes, segment: Segment) -> bytes:
    return payload.removeprefix(codecs.BOM_UTF8) if segment.line == 1 else payload


def _document(segment: Segment, line: int, text: str) -> Document | BadRecord:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair
        return BadRecord(segment.path, line, "surrogate")
    return Document(segment.path, line, nfc(text.replace("\r\n", "\n")))
