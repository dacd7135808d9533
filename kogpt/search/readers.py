"""Files and folders -> documents of passages: text, Markdown, JSON Lines and tables, HTML, PDF.

A passage is a paragraph: what blank lines part, or the elements of HTML. A short one, such as a heading,
joins the next; a long one is cut between lines, sentences or words. What a document says is data: nothing in
it is followed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kogpt.errors import InputError, KoGPTError, MissingExtra
from kogpt.search.index import Document, Passage
from kogpt.texts import COMPRESSED, format_of, printable_path, read_records, read_text

MAX_PASSAGE = 1000  # characters
MIN_PASSAGE = 30  # a shorter one joins the next
MAX_PDF_BYTES = 256 << 20
TEXT_KEYS = ("text", "passage", "content", "body", "document", "context")
MARKDOWN = (".md", ".markdown")
HIDDEN_TAGS = "script, style, noscript, template, nav, head, svg"
BLOCKS = "p,div,section,article,main,header,footer,aside,h1,h2,h3,h4,h5,h6,ul,ol,li,dl,dt,dd,table,tr,td,th"
BLOCKS += ",caption,pre,blockquote,figure,figcaption,form,hr,br"
BORDER = "\x1e"  # between blocks, while a page is read: ASCII's record separator
_CUT = re.compile(r"(?<=[.!?。])\s+|\n")


@dataclass(frozen=True, slots=True)
class Found:
    """A file that may be indexed."""

    path: Path
    source: str  # its name in the index: the path below the folder that was given


def find_files(root: Path) -> list[Found]:
    """The readable files below a folder, without hidden ones, or the one file. InputError if none."""
    if root.is_file():
        return [Found(root, printable_path(Path(root.name)))]
    if not root.is_dir():
        raise InputError(f"there is no {root}", f"파일이나 폴더가 없습니다: {root}")
    found = []
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            path = Path(folder, name)
            if not name.startswith(".") and _suffix(path) in READERS and path.is_file():
                found.append(Found(path, printable_path(path.relative_to(root))))
    if not found:
        kinds = " ".join(READERS)
        raise InputError(
            f"{root} holds no file that can be read as text ({kinds})",
            f"{root}: 텍스트로 읽을 수 있는 파일이 없습니다 ({kinds})",
        )
    return found


def digest_file(path: Path) -> bytes:
    """SHA-256 of a file's bytes."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error


def read_document(found: Found, digest: bytes, encoding: str = "auto") -> Document:
    """A file as a document. InputError if it cannot be read, or holds no text."""
    reader = READERS.get(_suffix(found.path), read_plain)
    passages = list(reader(found.path, encoding))
    if not passages:
        raise InputError(f"{found.path} holds no text", f"{found.path}: 텍스트가 없습니다")
    return Document(found.source, digest, passages)


def split_text(text: str, position: int = 1) -> Iterator[Passage]:
    """The paragraphs of a text, each with the number of its first line; the text begins at `position`."""
    lines = text.split("\n")
    block: list[str] = []
    start = position
    for number, line in enumerate([*lines, ""], position):
        if line.strip():
            if not block:
                start = number
            block.append(line)
            continue
        joined = "\n".join(block).strip()
        if len(joined) >= MIN_PASSAGE or number == position + len(lines):
            yield from _cut(joined, start)
            block = []


def _cut(text: str, position: int) -> Iterator[Passage]:
    """A paragraph as passages of at most MAX_PASSAGE characters, cut between lines, sentences or words."""
    while len(text) > MAX_PASSAGE:
        head = text[:MAX_PASSAGE]
        borders = [match.end() for match in _CUT.finditer(head) if match.end() >= MAX_PASSAGE // 2]
        end = borders[-1] if borders else max(head.rfind(" "), 0) or MAX_PASSAGE
        yield Passage(head[:end].strip(), position)
        position += head[:end].count("\n")
        text = text[end:]
    if text.strip():
        yield Passage(text.strip(), position)


def read_plain(path: Path, encoding: str) -> Iterator[Passage]:
    """Paragraphs of text or Markdown; a text without blank lines has one paragraph a line."""
    text = read_text(path, encoding)
    if _suffix(path) not in MARKDOWN and "\n\n" not in text.strip():
        for number, line in enumerate(text.split("\n"), 1):
            yield from _cut(line.strip(), number)
    else:
        yield from split_text(text)


def read_table(path: Path, encoding: str) -> Iterator[Passage]:
    """The text of each record of JSON Lines, JSON, CSV or TSV, its title in front; position: the line."""
    source = str(path)
    for record in read_records(read_text(path, encoding), source, format_of(path.name) or "jsonl"):
        key = next((key for key in TEXT_KEYS if isinstance(record.values.get(key), str)), None)
        if key is None:
            raise InputError(
                f"{source} line {record.line} has none of {', '.join(TEXT_KEYS)}",
                f"{source} {record.line}행: 다음 키가 하나도 없습니다: {', '.join(TEXT_KEYS)}",
            )
        title = record.values.get("title")
        text = f"{title}\n{record.values[key]}" if isinstance(title, str) else record.values[key]
        for passage in _cut(text.strip(), record.line):
            yield Passage(passage.text, record.line)


def read_html(path: Path, encoding: str) -> Iterator[Passage]:
    """The paragraphs of a page as a browser sets them; position: the number of the paragraph."""
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError as error:
        raise MissingExtra("reading HTML", "search") from error
    tree = LexborHTMLParser(read_text(path, encoding).replace(BORDER, " "))
    for node in tree.css(HIDDEN_TAGS):
        node.decompose()
    for node in tree.css(BLOCKS):
        node.insert_before(BORDER)
        node.insert_after(BORDER)
    text = tree.body.text() if tree.body else ""
    paragraphs = [" ".join(part.split()) for part in text.split(BORDER)]
    for passage in split_text("\n\n".join(filter(None, paragraphs))):
        yield Passage(passage.text, passage.position // 2 + 1)


def read_pdf(path: Path, encoding: str) -> Iterator[Passage]:
    """The paragraphs of every page that has text; position: the page. InputError for a scan."""
    del encoding  # a PDF states its own
    try:
        from pypdf import PdfReader
    except ImportError as error:
        raise MissingExtra("reading PDF", "search") from error
    if (n_bytes := path.stat().st_size) > MAX_PDF_BYTES:
        raise _unreadable(path, f"{n_bytes:,} bytes, at most {MAX_PDF_BYTES:,}")
    logging.getLogger("pypdf").setLevel(logging.ERROR)
    found = False
    try:
        for number, page in enumerate(PdfReader(path).pages, 1):
            for passage in split_text(page.extract_text()):
                found = True
                yield Passage(passage.text, number)
    except KoGPTError:
        raise
    except Exception as error:  # pypdf raises what a damaged file leads it into
        raise _unreadable(path, f"{type(error).__name__}: {error}") from error
    if not found:
        raise InputError(
            f"{path} has no text, it may be scanned: recognise its text (OCR) first",
            f"{path}: 텍스트가 없습니다. 스캔한 PDF라면 먼저 문자 인식(OCR)을 하세요",
        )


Reader = Callable[[Path, str], Iterator[Passage]]
READERS: dict[str, Reader] = {
    **dict.fromkeys((".txt", *MARKDOWN), read_plain),
    **dict.fromkeys((".jsonl", ".json", ".csv", ".tsv"), read_table),
    **dict.fromkeys((".html", ".htm"), read_html),
    ".pdf": read_pdf,
}


def _suffix(path: Path) -> str:
    """The suffix in lower case, the one below .zst or .gz."""
    name = Path(path.name.lower())
    return (name.with_suffix("") if name.suffix in COMPRESSED else name).suffix


def _unreadable(path: Path, reason: str) -> InputError:
    return InputError(f"cannot read {path}: {reason}", f"읽을 수 없습니다: {path} ({reason})")
