"""One SQLite file in a folder: what an index keeps, its transactions, locks, and signs of damage.

A command that writes is one transaction: killed at any moment, it leaves the index as it was. Writing uses
SQLite's write-ahead log, so that queries go on meanwhile; at rest the index is `index.sqlite` alone. A
rebuild writes a file beside it; the old index is replaced the moment that file gets its name.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from kogpt.errors import InputError
from kogpt.files import explain_disk_errors, lock_folder

FILE = "index.sqlite"
NEW = "new-index.sqlite"  # of a rebuild, until it is whole
JOURNALS = ("-wal", "-shm", "-journal")
APPLICATION = 0x4B6F5365  # "KoSe"
VERSION = 1  # of the tables
COMMAND = "kogpt search index"
TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value ANY) WITHOUT ROWID;
CREATE TABLE documents (id INTEGER PRIMARY KEY, source TEXT UNIQUE, digest BLOB);
CREATE TABLE passages (
    id INTEGER PRIMARY KEY, document INTEGER, position INTEGER, digest BLOB, text TEXT);
CREATE INDEX passages_of_document ON passages (document);
CREATE TABLE segments (id INTEGER PRIMARY KEY, first INTEGER, lengths BLOB);
CREATE TABLE postings (segment INTEGER, term TEXT, entries BLOB, PRIMARY KEY (segment, term)) WITHOUT ROWID;
CREATE TABLE vectors (digest BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID;
"""
FULL = {"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_READONLY", "SQLITE_CANTOPEN"}


def open_reading(folder: Path) -> sqlite3.Connection:
    """The database of a finished index. InputError where there is none, or it is another's or damaged."""
    path = folder / FILE
    if not path.is_file():
        raise InputError(
            f"{folder} holds no index: make one with kogpt search index DIR --out {folder}",
            f"{folder}: 색인이 없습니다. kogpt search index DIR --out {folder} 명령으로 만드세요",
        )
    with explain_damage(folder):
        database = connect_reading(path)
        _require_ours(database, folder)
    return database


def identity(folder: Path) -> tuple[int, int] | None:
    """Device and inode of the index file, which a rebuild changes; None if the file is missing."""
    try:
        found = (folder / FILE).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def connect_reading(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing but what a killed writer left half done, which it takes back."""
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=10)
    database.execute("PRAGMA query_only=ON")
    return database


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder, made if there is none; others are locked out. InputError if another process writes."""
    folder.mkdir(parents=True, exist_ok=True)
    with explain_disk_errors(folder), lock_folder(folder, COMMAND), explain_damage(folder):
        yield


@contextmanager
def open_writing(folder: Path, rebuild: bool = False) -> Iterator[sqlite3.Connection]:
    """The database of a locked folder in one transaction, which is kept if the block ends well.

    rebuild: an empty index, which `replace` puts in place of the old one. InputError as `open_reading`.
    """
    path = folder / (NEW if rebuild else FILE)
    if rebuild:
        remove(path)
    database = sqlite3.connect(path, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA cache_size=-65536")  # KiB
        database.execute("BEGIN IMMEDIATE")
        _create_or_check(database, folder)
        yield database
        database.execute("COMMIT")
        with suppress(sqlite3.OperationalError):  # a query has it open: the next writer folds the log in
            database.execute("PRAGMA journal_mode=DELETE")
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")
        database.close()


def replace(folder: Path) -> None:
    """Put the index that a rebuild has made in place of the old one, whose journals must not outlive it."""
    path = folder / FILE
    if path.is_file():
        with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=0)) as old:  # it may be damaged
            old.execute("PRAGMA wal_checkpoint")  # its log is folded in: a kill from here on loses nothing
            old.execute("PRAGMA journal_mode=DELETE")
    for suffix in JOURNALS:
        path.with_name(f"{FILE}{suffix}").unlink(missing_ok=True)
    (folder / NEW).replace(path)


def remove(path: Path) -> None:
    """Remove a database and its journals."""
    for suffix in ("", *JOURNALS):
        path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)


def _create_or_check(database: sqlite3.Connection, folder: Path) -> None:
    """Make the tables of a new index; refuse a file that is not an index, or not a sound one."""
    if database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
        database.execute(f"PRAGMA application_id={APPLICATION}")
        database.execute(f"PRAGMA user_version={VERSION}")
        for statement in TABLES.split(";"):
            database.execute(statement)
        return
    _require_ours(database, folder)
    [(verdict,)] = database.execute("PRAGMA quick_check(1)").fetchall()
    if verdict != "ok":
        raise damaged(folder, verdict)


def _require_ours(database: sqlite3.Connection, folder: Path) -> None:
    """InputError for a database that is not an index of this version."""
    application, version = (
        database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
    )
    if application == 0 and database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] == 0:
        raise InputError(
            f"{folder} holds an index that was never finished: repeat {COMMAND}",
            f"{folder}: 완성되지 않은 색인입니다. {COMMAND} 명령을 다시 실행하세요",
        )
    if application != APPLICATION:
        raise InputError(
            f"{folder / FILE} is not an index of kogpt: choose another --out",
            f"{folder / FILE}: kogpt의 색인이 아닙니다. 다른 --out을 고르세요",
        )
    if version != VERSION:
        raise another_version(folder, version)


def another_version(folder: Path, version: object) -> InputError:
    """The error for an index that another KoGPT made."""
    return InputError(
        f"{folder} is an index of version {version}, this KoGPT reads {VERSION}: index again with --rebuild",
        f"{folder}: 색인 버전 {version} (지원: {VERSION}). --rebuild로 다시 색인하세요",
    )


def damaged(folder: Path, reason: object) -> InputError:
    """The error for an index whose bytes cannot be right."""
    return InputError(
        f"{folder} is damaged ({reason}): index again with --rebuild",
        f"{folder}: 색인이 손상되었습니다({reason}). --rebuild로 다시 색인하세요",
    )


@contextmanager
def explain_damage(folder: Path) -> Iterator[None]:
    """Turn what SQLite finds wrong with a file into one line of InputError."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        if name in FULL:
            raise InputError(
                f"cannot write {folder}: {error}", f"{folder}에 쓸 수 없습니다: {error}"
            ) from error
        if name.startswith("SQLITE_BUSY"):
            raise InputError(
                f"{folder} is in use by another process: try again later",
                f"{folder}: 다른 프로세스가 쓰고 있습니다. 나중에 다시 시도하세요",
            ) from error
        if isinstance(error, sqlite3.ProgrammingError):
            raise
        raise damaged(folder, error) from error
