"""Bytes of a file, a pipe or an argument -> text and records: charsets, compression, JSON Lines, CSV and TSV.

    bytes     decompress, read_bytes
    text      detect_encoding, decode, read_text, text_lines, nfc, nfkc
    records   format_of, read_records

Text is read rightly or refused: nothing is ever replaced or dropped, but for a byte order mark. A line that
"\\r\\n" ends is ended by "\\n" afterwards; a lone "\\r" is no end of a line, and stays.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import re
import sys
import unicodedata
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any, BinaryIO, Literal

from kogpt.errors import InputError, MissingExtra

Encoding = Literal["utf-8", "utf-16", "cp949"]
Place = tuple[str, str]  # in a file, in English and in Korean with its particle
ENCODINGS = ("auto", "utf-8", "utf-16", "cp949")
Format = Literal["text", "jsonl", "json", "csv", "tsv", "parquet"]
SUFFIXES: dict[str, Format] = {
    ".txt": "text",
    ".text": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
COMPRESSED = (".zst", ".gz")

READ_BYTES = 1 << 20
ZSTD_READ_BYTES = 1 << 10  # 4 bytes of Zstandard may hold 128 KiB of text: this bounds a hostile file
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
UTF32_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)  # the first begins as UTF-16's does
MARK_BYTES = 4  # length of the longest mark

# Combining marks. No letter and no digit is one or decomposes into nothing else, but for the half-width sound
# marks of Katakana in NFKC.
STEP = 8  # characters between those of a text that are looked at first
RUN = 4 * STEP - 1  # characters of a run that is sorted; three of those looked at are in it
_MARK = r"[^\w\s\x00-\x7f]"
_MARKS = {"NFC": _MARK, "NFKC": rf"(?:{_MARK}|[\uff9e\uff9f])"}
_SAMPLES = {form: re.compile(mark + "{3}") for form, mark in _MARKS.items()}
_RUNS = {form: re.compile(f"{mark}{{{RUN},}}") for form, mark in _MARKS.items()}
_DECOMPOSED: dict[str, Literal["NFD", "NFKD"]] = {"NFC": "NFD", "NFKC": "NFKD"}

# Syllables of CP949 that are also valid UTF-8, for other letters: 345 of 11,172. In text with more characters
# than this and nothing else, chance is ruled out.
MAX_DOUBTFUL = 3
CLEAR_MAJORITY = 0.9  # share of lines that decide; a few damaged lines do not
# Chinese and Japanese codes also decode as CP949, into Hanja, rare syllables and single letters. Of the
# syllables of Korean texts, 28 to 43 % are among these 24 (encyclopedia, law, reviews, manuals, novels).
COMMON_SYLLABLES = frozenset("이다는에하의을지가한로고서아니어요기사그를은제도")
MIN_COMMON = 0.05  # share of the syllables, where there are enough
ENOUGH_SYLLABLES = 16
MIN_HANGUL = 0.5  # share of the characters beyond ASCII, where syllables are enough
MIN_HANGUL_SHORT = 0.8  # where there are fewer
LAUGHTER = frozenset("ㅋㅎㅠㅜ")  # single letters that Korean writes by themselves

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
HANGUL = re.compile("[가-힣ㄱ-ㆎ]")
BESIDE_LATIN = re.compile(rb"[A-Za-z][\x80-\xff]|[\x80-\xff][A-Za-z]")  # as in "café", never as in "가격"


def format_of(name: str) -> Format | None:
    """What a file holds by its name: suffixes in any case, under .zst or .gz or not; None if unknown."""
    path = Path(name.lower())
    return SUFFIXES.get((path.with_suffix("") if path.suffix in COMPRESSED else path).suffix)


def for_terminal(text: str) -> str:
    """A text for people to read: what could steer a terminal is replaced."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def printable_path(path: Path | str) -> str:
    r"""A file's name as text that can be written as UTF-8; bytes of other encodings show as "\xb0"."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def detect_encoding(sample: bytes, source: str) -> Encoding:
    """The encoding of a text by `sample`, all of it or whole lines of it.

    InputError, which names `source`, if it is none of ENCODINGS, or so short that it could be either of two.
    """
    if sample.startswith(UTF32_MARKS):
        raise _utf32(source)
    if sample.startswith(UTF16_MARKS):
        return "utf-16"
    if sample.isascii() and b"\0" not in sample:
        return "utf-8"
    if b"\0" in sample and not sample.startswith(codecs.BOM_UTF8):
        raise InputError(
            f"{source} holds NUL bytes: a binary file, or UTF-16 without a byte order mark"
            " (--encoding utf-16)",
            f"{source}: NUL 바이트가 있습니다. 텍스트가 아니거나 BOM 없는 UTF-16입니다 (--encoding utf-16)",
        )
    if sample.startswith(codecs.BOM_UTF8):
        return "utf-8"
    if decodes(sample, "utf-8"):
        _require_one_reading(sample, source)
        return "utf-8"
    readable = [
        {code for code in ("utf-8", "cp949") if decodes(line, code)}
        for line in sample.split(b"\n")
        if not line.isascii()
    ]
    utf8, cp949, neither = (readable.count(codes) for codes in ({"utf-8"}, {"cp949"}, set[str]()))
    enough = CLEAR_MAJORITY * (utf8 + cp949)
    if utf8 > neither and utf8 >= enough:
        return "utf-8"
    if cp949 > neither and cp949 >= enough and looks_korean(_lines_in_cp949(sample)):
        return "cp949"
    raise _neither(sample, source)


def _utf32(source: str) -> InputError:
    return InputError(
        f"{source} is UTF-32, which is not read: convert it to UTF-8",
        f"{source}: UTF-32는 읽지 않습니다. UTF-8로 바꾸세요",
    )


def decodes(data: bytes, encoding: str) -> bool:
    """Whether the bytes are text in that encoding, strictly."""
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def looks_korean(text: str) -> bool:
    """Whether what lies beyond ASCII is mostly Hangul, with Korean's common syllables among it."""
    beyond = [character for character in text if not character.isascii() and character not in LAUGHTER]
    syllables = [character for character in beyond if "가" <= character <= "힣"]
    common = sum(syllable in COMMON_SYLLABLES for syllable in syllables)
    if len(syllables) < ENOUGH_SYLLABLES:
        return len(syllables) >= MIN_HANGUL_SHORT * len(beyond)
    return common >= MIN_COMMON * len(syllables) and len(syllables) >= MIN_HANGUL * len(beyond)


def _lines_in_cp949(sample: bytes) -> str:
    """The lines that can be read as CP949, read so."""
    return b"\n".join(line for line in sample.split(b"\n") if decodes(line, "cp949")).decode("cp949")


def _require_one_reading(data: bytes, source: str) -> None:
    """InputError for UTF-8 so short that it may as well be Korean in CP949."""
    text = data.decode("utf-8")
    n_foreign = sum(not character.isascii() for character in text)
    if n_foreign > MAX_DOUBTFUL or HANGUL.search(text) or BESIDE_LATIN.search(data):
        return
    if not decodes(data, "cp949") or not looks_korean(korean := data.decode("cp949")):
        return
    utf8, cp949 = (repr(_extract(reading)) for reading in (text, korean))
    raise InputError(
        f"{source} may be UTF-8 ({utf8}) or CP949 ({cp949}): say which with --encoding",
        f"{source}: UTF-8({utf8})일 수도 CP949({cp949})일 수도 있습니다. --encoding으로 지정하세요",
    )


def _neither(sample: bytes, source: str) -> InputError:
    try:
        sample.decode("utf-8")
    except UnicodeDecodeError as error:
        where, where_ko = _place(error)
    shown = repr(_extract(_lines_in_cp949(sample)))
    return InputError(
        f"{source} is neither UTF-8 ({where}) nor Korean in CP949 (it would read {shown}): convert it to "
        "UTF-8, or name its --encoding",
        f"{source}: UTF-8도 아니고({where_ko}) CP949로 쓴 한국어도 아닙니다(읽은 결과: {shown}). "
        "UTF-8로 바꾸거나 --encoding을 지정하세요",
    )


def _extract(text: str) -> str:
    """Up to 30 characters around the first one beyond ASCII."""
    first = next((i for i, character in enumerate(text) if not character.isascii()), 0)
    return text[max(first - 10, 0) : first + 20].strip("\r\n")


def decode(data: bytes, source: str, encoding: str = "auto") -> str:
    """The text of `data` without a byte order mark; "\\r\\n" becomes "\\n".

    encoding: one of ENCODINGS. InputError, which names `source`, if the bytes are not text in it.
    """
    found = detect_encoding(data, source) if encoding == "auto" else encoding
    codec = "utf-8-sig" if found == "utf-8" else found
    try:
        return data.decode(codec).replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        marked = data.startswith((codecs.BOM_UTF8, *UTF16_MARKS))
        raise (
            _undecodable(error, source) if marked or encoding != "auto" else _neither(data, source)
        ) from None


def decode_argument(text: str, source: str) -> str:
    """An argument or a typed line as the user meant it, whatever the locale made of its bytes."""
    if not any("\udc80" <= character <= "\udcff" for character in text):
        return text
    # Python keeps bytes that it cannot read as lone surrogates (PEP 383).
    return decode(text.encode("utf-8", "surrogateescape"), source)


def _undecodable(error: UnicodeDecodeError, source: str) -> InputError:
    where, where_ko = _place(error)
    return InputError(
        f"{source} is not {error.encoding} at {where}: convert it to UTF-8, or name its --encoding",
        f"{source}: {where_ko}에 {error.encoding} 문자가 아닌 것이 있습니다. UTF-8로 바꾸거나 --encoding을 "
        "지정하세요",
    )


def _place(error: UnicodeDecodeError) -> tuple[str, str]:
    """Which byte could not be read, in English and Korean."""
    line = error.object.count(b"\n", 0, error.start) + 1
    shown = f"0x{error.object[error.start]:02x}"
    byte = error.start + 1
    return f"byte {byte} (line {line}), {shown}", f"{byte}번째 바이트({line}행, {shown})"


def decompress(path: Path) -> Iterator[tuple[bytes, int]]:
    """The bytes within a file, piece by piece, each with the bytes of the file read so far.

    .zst and .gz are unpacked, UTF-16 with a byte order mark becomes UTF-8. InputError for a damaged file.
    """
    pieces = _unpack(path)
    first, stored = b"", 0
    while len(first) < MARK_BYTES and (start := next(pieces, None)):
        first, stored = first + start[0], start[1]
    if first.startswith(UTF32_MARKS):
        raise _utf32(str(path))
    if not first.startswith(UTF16_MARKS):
        yield first, stored
        yield from pieces
        return
    decoder = codecs.getincrementaldecoder("utf-16")()
    try:
        yield decoder.decode(first).encode(), stored
        for piece, stored in pieces:
            yield decoder.decode(piece).encode(), stored
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _undecodable(error, str(path)) from error


def _unpack(path: Path) -> Iterator[tuple[bytes, int]]:
    try:
        with path.open("rb") as file:
            yield from _unpack_file(file, path)
    except OSError as error:
        raise _unreadable(str(path), error) from error


def unpack(content: bytes, path: Path) -> bytes:
    """The bytes within the content of a file, by the file's name. InputError if they are damaged."""
    return b"".join(piece for piece, _ in _unpack_file(io.BytesIO(content), path))


def _unpack_file(file: BinaryIO, path: Path) -> Iterator[tuple[bytes, int]]:
    suffix = path.suffix.lower()
    if suffix in COMPRESSED:
        if not file.read(1):
            # Neither format can say "nothing" in no bytes, but both libraries take it for that.
            raise _damaged(path, file, "it is empty", "비어 있습니다")
        file.seek(0)
    if suffix == ".zst":
        yield from _unpack_zstd(file, path)
    elif suffix == ".gz":
        yield from _unpack_gzip(file, path)
    else:
        while piece := file.read(READ_BYTES):
            yield piece, file.tell()


def _unpack_gzip(file: BinaryIO, path: Path) -> Iterator[tuple[bytes, int]]:
    try:
        with gzip.GzipFile(fileobj=file) as inside:
            while piece := inside.read(READ_BYTES):
                yield piece, file.tell()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, file, str(error), str(error)) from error


def _unpack_zstd(file: BinaryIO, path: Path) -> Iterator[tuple[bytes, int]]:
    """Frame after frame; the library's own stream reader takes a truncated file for a whole one."""
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtra("reading .zst", "train") from error
    frame = None
    try:
        while data := file.read(ZSTD_READ_BYTES):
            while data:
                frame = frame or zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
                yield frame.decompress(data), file.tell()
                data = frame.unused_data
                if frame.eof:
                    frame = None
    except zstandard.ZstdError as error:
        raise _damaged(path, file, str(error), str(error)) from error
    if frame is not None:
        raise _damaged(path, file, "the last frame is cut short", "마지막 프레임이 잘려 있습니다")


def _damaged(path: Path, file: BinaryIO, en: str, ko: str) -> InputError:
    return InputError(
        f"{path}: damaged near byte {file.tell()}: {en}; fetch or make it again",
        f"{path}: {file.tell()}바이트 부근에서 손상되었습니다: {ko}. 다시 받거나 만드세요",
    )


def _unreadable(source: str, error: OSError) -> InputError:
    reason = error.strerror or str(error)
    return InputError(f"cannot read {source}: {reason}", f"읽을 수 없습니다: {source} ({reason})")


def read_bytes(path: str) -> bytes:
    """All bytes within a file, unpacked, or those of standard input if the path is `-`."""
    if path != "-":
        return b"".join(piece for piece, _ in decompress(Path(path)))
    if sys.stdin is None:
        raise InputError("standard input is closed", "표준 입력이 닫혀 있습니다")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise _unreadable("standard input", error) from error


def read_text(path: Path, encoding: str = "auto") -> str:
    """The text of a file, in memory as a whole. InputError if it is damaged or not text."""
    return decode(read_bytes(str(path)), str(path), encoding)


def text_lines(text: str) -> Iterator[tuple[int, str]]:
    """(line number, text) of every line that is not blank; only "\\n" ends a line."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def nfc(text: str) -> str:
    """The text in NFC: composed characters, as Hangul is usually written; in n log n steps."""
    return _normalized(text, "NFC")


def nfkc(text: str) -> str:
    """The text in NFKC: compatibility forms made plain as well, such as full-width letters; as `nfc`."""
    return _normalized(text, "NFKC")


def _normalized(text: str, form: Literal["NFC", "NFKC"]) -> str:
    """Normal form of any text, also of a hostile one.

    The library sorts the marks behind a letter by insertion, with the interpreter's lock held: 15,000 of one
    class before 15,000 of a lower one take it a second, sorted ones nothing. Sorting leaves the form as it
    is: marks of different classes may change places, those of one class may not (UAX 15).
    """
    if _SAMPLES[form].search(text[::STEP]):
        text = _RUNS[form].sub(lambda run: _with_marks_sorted(run.group(), _DECOMPOSED[form]), text)
    return unicodedata.normalize(form, text)


def _with_marks_sorted(run: str, form: Literal["NFD", "NFKD"]) -> str:
    """A run of characters, decomposed, with its marks in the order of their classes."""
    parts = {character: unicodedata.normalize(form, character) for character in set(run)}
    groups = groupby("".join(map(parts.__getitem__, run)), _is_mark)
    return "".join(
        chain.from_iterable(
            sorted(group, key=unicodedata.combining) if is_mark else group for is_mark, group in groups
        )
    )


def _is_mark(character: str) -> bool:
    return unicodedata.combining(character) > 0


@dataclass(frozen=True, slots=True)
class Record:
    """One object of a JSON file, or one row of a table, and where it stands in the file."""

    line: int  # from 1; in a JSON list the number of the record
    values: dict[str, Any]


def read_records(text: str, source: str, format: Format) -> Iterator[Record]:
    """The records of JSON Lines, a JSON list (or one object), CSV or TSV with a line of names.

    Values of CSV and TSV are strings. InputError, which names `source` and the line, for anything else.
    """
    for record in try_records(text, source, format):
        if isinstance(record, InputError):
            raise record
        yield record


def try_records(text: str, source: str, format: Format) -> Iterator[Record | InputError]:
    """As read_records, but a JSON record that is refused is yielded as its error, and the others follow."""
    if format == "json":
        yield from _read_json(text, source)
    elif format == "jsonl":
        yield from _read_json_lines(text, source)
    elif format in ("csv", "tsv"):
        yield from read_table(text, source, "," if format == "csv" else "\t")
    else:
        raise InputError(
            f"{source}: {format} has no records: use .jsonl, .json, .csv or .tsv",
            f"{source}: {format} 형식에는 레코드가 없습니다. .jsonl, .json, .csv, .tsv 중 하나를 쓰세요",
        )


def _read_json_lines(text: str, source: str) -> Iterator[Record | InputError]:
    for number, line in text_lines(text):
        try:
            place = _line(source, number)
            yield _record(_parse(line, place), place, number)
        except InputError as error:
            yield error


def _read_json(text: str, source: str) -> Iterator[Record | InputError]:
    """A list of objects, one object, or JSON Lines under the name .json."""
    first = text.lstrip()[:1]
    lines = list(text_lines(text))
    if first == "{" and len(lines) > 1 and _is_object(lines[0][1]):
        yield from _read_json_lines(text, source)
        return
    document = _parse(text, _line(source, 1))
    is_list = isinstance(document, list)
    for number, value in enumerate(document if is_list else [document], 1):
        try:
            yield _record(value, _nth(source, number) if is_list else _line(source, number), number)
        except InputError as error:
            yield error


def _is_object(line: str) -> bool:
    """Whether a line is a whole JSON object, as in JSON Lines."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _line(source: str, number: int) -> Place:
    return f"{source} line {number}", f"{source} {number}행은"


def _nth(source: str, number: int) -> Place:
    return f"{source} record {number}", f"{source} {number}번째 레코드는"


def _parse(text: str, place: Place) -> Any:
    """A JSON value; Python reads NaN and halves of characters as well, which _record refuses."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _no_json(place, str(error)) from error


def _record(value: Any, place: Place, number: int) -> Record:
    """An object that JSON output can hold: no NaN, no infinity (1e999), no half of a character."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "half of a surrogate pair" if isinstance(error, UnicodeEncodeError) else str(error)
        raise _no_json(place, reason) from error
    if not isinstance(value, dict):
        raise InputError(f"{place[0]} is not a JSON object", f"{place[1]} JSON 객체가 아닙니다")
    return Record(number, value)


def _no_json(place: Place, reason: str) -> InputError:
    return InputError(f"{place[0]} is not JSON: {reason}", f"{place[1]} JSON이 아닙니다: {reason}")


def read_table(text: str, source: str, delimiter: str, quoted: bool = True) -> Iterator[Record]:
    """Rows under a line of names. `quoted`: values may be in double quotes, and span lines then."""
    lines = io.StringIO(text)
    if quoted:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
    else:
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    try:
        names = next(reader, [])
        if len(set(names)) != len(names) or not all(names):
            raise csv.Error("the first line does not name every column once")
        for values in reader:
            if values and len(values) != len(names):
                raise csv.Error(f"{len(values)} columns instead of {len(names)}")
            if values:
                yield Record(reader.line_num, dict(zip(names, values, strict=True)))
    except csv.Error as error:
        line = max(reader.line_num, 1)
        raise InputError(
            f"{source} line {line} is not a row of the table: {error}",
            f"{source} {line}행은 표의 행이 아닙니다: {error}",
        ) from error
