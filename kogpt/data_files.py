"""Data files of the tasks: where they are published, what they must hash to, how their rows are read.

A file is used only if its hash is one that is written down here: the official file, or a stand-in whose note
is printed with every result. Files are looked for in a folder (--data, KOGPT_DATA); without one, official
files are fetched once into the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kogpt.errors import InputError
from kogpt.files import atomic_write
from kogpt.texts import decode, nfc, read_table, unpack

Row = dict[str, str]

MAX_BYTES = 256 * 2**20  # the largest file named here has 15 MB
TIMEOUT = 60.0  # seconds without an answer from the address


@dataclass(frozen=True, slots=True)
class Source:
    """One file that holds a data set or a part of it."""

    file: str  # its name in a data folder
    digest: str  # "sha256:HEX", or "git:HEX", the SHA-1 that git gives to the file's content
    note: str  # what it is, printed with the result
    read: Callable[[bytes], list[Row]]
    url: str | None = None  # where it is published, at a fixed commit


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of one file that was what it claimed to be."""

    rows: list[Row]
    file: str
    digest: str
    note: str


def load(sources: Iterable[Source], folder: Path | None = None) -> Table:
    """The first of the sources that is at hand; InputError if none is, or if one is not what it claims.

    folder None: KOGPT_DATA, else the cache, into which the first source that has an address is fetched.
    """
    sources = tuple(sources)
    place = folder or data_folder()
    for source in sources:
        path = (place or cache_folder()) / source.file
        if path.is_file():
            return _checked(source, path.read_bytes(), str(path))
    if place is not None:
        names = " / ".join(source.file for source in sources)
        raise InputError(
            f"{place} has no {names}: see docs/evaluation.md, or leave --data out to fetch the file",
            f"{place} 폴더에 {names} 파일이 없습니다: docs/evaluation.md를 보거나 --data 없이 내려받으세요",
        )
    published = next((source for source in sources if source.url), None)
    if published is None:
        names = " / ".join(source.file for source in sources)
        raise InputError(
            f"{names} is not published as one file: name a folder that holds it with --data or KOGPT_DATA",
            f"내려받을 수 없는 파일입니다: {names}. 파일이 있는 폴더를 --data나 KOGPT_DATA로 지정하세요",
        )
    return _fetched(published)


def data_folder() -> Path | None:
    """The folder that KOGPT_DATA names."""
    value = os.environ.get("KOGPT_DATA")
    return Path(value) if value else None


def cache_folder() -> Path:
    """Where fetched files stay (XDG base directories)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kogpt" / "evaluation"


def read_tsv(content: bytes, quoted: bool = False) -> list[Row]:
    """Tab-separated rows under a line of column names; white space in a value becomes one space."""
    records = read_table(decode(content, "the data file", "utf-8"), "the data file", "\t", quoted)
    return [{name: tidy(value) for name, value in record.values.items()} for record in records]


def read_quoted_tsv(content: bytes) -> list[Row]:
    """As read_tsv, where a value may be in double quotes (KoBEST's official files)."""
    return read_tsv(content, quoted=True)


def read_gzip_tsv(content: bytes) -> list[Row]:
    """As read_tsv, compressed."""
    return read_tsv(unpack(content, Path("data.tsv.gz")))


def read_klue(content: bytes) -> list[Row]:
    """A KLUE file: a JSON list of objects; `labels` of KLUE-STS is flattened, `-` becomes `_`."""
    rows = []
    for record in json.loads(content):
        flat: dict[str, Any] = {k: v for k, v in record.items() if not isinstance(v, dict | list)}
        flat |= {key.replace("-", "_"): value for key, value in record.get("labels", {}).items()}
        rows.append({key: tidy(str(value)) for key, value in flat.items()})
    return rows


def tidy(text: str) -> str:
    """NFC, with every run of white space as one space."""
    return " ".join(nfc(text).split())


def _checked(source: Source, content: bytes, where: str) -> Table:
    """Rows of a file whose bytes are those that the source names."""
    found = digest_of(content, source.digest.partition(":")[0])
    if found != source.digest:
        raise InputError(
            f"{where} is not {source.note}: it has {found[:23]}…, expected {source.digest[:23]}…; replace it",
            f"{where} 파일이 기대한 자료({source.note})가 아닙니다: {found[:23]}…"
            f" (기대: {source.digest[:23]}…); 다른 파일로 바꾸세요",
        )
    return Table(source.read(content), source.file, source.digest, source.note)


def digest_of(content: bytes, kind: str) -> str:
    """`kind:HEX` of a file's bytes, for the two kinds that sources are written with."""
    if kind == "sha256":
        return "sha256:" + hashlib.sha256(content).hexdigest()
    assert kind == "git", kind
    return "git:" + hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _fetched(source: Source) -> Table:
    """Fetch an official file, check it, keep it."""
    assert source.url is not None and source.url.startswith("https://")
    print(f"kogpt: {source.url} -> {cache_folder()}", file=sys.stderr)
    try:
        with urllib.request.urlopen(source.url, timeout=TIMEOUT) as answer:
            content: bytes = answer.read(MAX_BYTES)
    except OSError as error:
        raise InputError(
            f"cannot fetch {source.url} ({error}): offline, name a folder with --data or KOGPT_DATA",
            f"{source.url} 파일을 받을 수 없습니다({error}): --data나 KOGPT_DATA로 폴더를 지정하세요",
        ) from error
    table = _checked(source, content, source.url)
    cache_folder().mkdir(parents=True, exist_ok=True)
    with atomic_write(cache_folder() / source.file) as file:
        file.write(content)
    return table
