"""Files and folders: written whole or not at all, locked while in use, opened only inside their folder.

    write    atomic_write, replace_all, settled_names, sync, explain_disk_errors, cannot_write
    lock     lock_folder, share_folder, open_own, hold
    read     safe_join, open_file, open_inside, read_json, parse_json, damaged

Knows nothing of models and texts.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import IO, Any

from kogpt.errors import CheckpointError, DiskError, InputError, KoGPTError

FILE_NAME = re.compile(r"(?!\.{1,2}$)[^\\/:\x00-\x1f\ud800-\udfff]{1,255}")  # one part of a path
ELSEWHERE = re.compile(r"[A-Za-z]:[\\/]")  # how a path of Windows begins that is no name in a folder
TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")  # a file or a folder of files that is being written
COMPLETE = re.compile(r"\.[0-9a-f]{16}\.new")  # a folder of whole files on their way to their places
STALE_NAMES = ".stale.json"  # in a complete folder: the files that leave when the new ones come
LOCK = "lock"
MAX_STALE_BYTES = 1 << 20  # limit for the file STALE_NAMES
MAX_NESTING = 64  # levels of lists and objects in a JSON file; published ones have about eight
CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}

logger = logging.getLogger(__name__)


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Write a file whole or not at all: temporary file, fsync, rename, fsync of the folder.

    The temporary file vanishes when the block fails; one that a killed process left goes with the next write
    in the same folder. DiskError where the disk is full.
    """
    with explain_disk_errors(path):
        remove_leftovers(path.parent)
        temporary, file = _create_temporary(path.parent)
        try:
            with file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if sys.platform == "win32":
                    file.close()  # an open file cannot be renamed there
                temporary.replace(path)  # while it is locked: another process would take it for a leftover
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replace_all(
    folder: Path, names: Sequence[str], stale: re.Pattern[str] | None = None
) -> Iterator[Mapping[str, IO[bytes]]]:
    """Write the files `names` of a folder; all of them replace the old ones, or none.

    Other files whose names match `stale` are removed at the same time. The new files are written into a
    hidden folder inside `folder`. Renaming it, when all are on the disk, decides: before that the old files
    stay; after that the new ones move in, and if something stops them half way, the next writer moves the
    rest. Readers under `share_folder` wait meanwhile, and change nothing: a folder may come from anybody.
    """
    with explain_disk_errors(folder), ExitStack() as staging_lock:
        with _locked(folder, exclusive=True):
            _finish_replacing(folder)
            _require_room(folder, names)
            remove_leftovers(folder, folders=True)
            staging = folder / f".{os.urandom(8).hex()}.tmp"
            staging.mkdir()
            staging_lock.enter_context(_locked(staging, exclusive=True))
        try:
            with ExitStack() as stack:
                files = {name: stack.enter_context((staging / name).open("xb")) for name in names}
                yield files
                for file in files.values():
                    file.flush()
                    os.fsync(file.fileno())
            with _locked(folder, exclusive=True):
                try:
                    _commit(staging, names, stale)
                except BaseException:  # Ctrl-C as well: what is decided is finished, as no reader does
                    with suppress(OSError):
                        _finish_replacing(folder)
                    raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # folders cannot be opened there, and the file system journals renames
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def explain_disk_errors(place: Path) -> Iterator[None]:
    """Turn a full, broken or read-only disk under `place` into one clear DiskError."""
    try:
        yield
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise cannot_write(place, error.strerror or str(error)) from error


def cannot_write(place: Path, reason: str) -> DiskError:
    """The error for a file or folder that could not be written, with the free space of its disk."""
    existing = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    return DiskError(
        f"cannot write {place} ({reason}; {free / 1e9:.1f} GB free): make room, then repeat the command",
        f"{place}에 쓸 수 없습니다({reason}, 남은 공간 {free / 1e9:.1f} GB). 공간을 마련한 뒤 같은 명령을 "
        "다시 실행하세요",
    )


def _create_temporary(folder: Path) -> tuple[Path, IO[bytes]]:
    """A new hidden file of this process, locked so that no other process takes it for a leftover."""
    while True:
        path = folder / f".{os.urandom(8).hex()}.tmp"
        file = path.open("xb")
        if hold(file.fileno()) and path.exists():
            return path, file
        file.close()  # another process saw it before it was locked, and removed it


def remove_leftovers(folder: Path, folders: bool = False) -> None:
    """Remove what killed processes were writing in a folder: temporaries that nobody holds.

    folders: folders of files as well; the caller has locked `folder`.
    """
    for path in leftovers(folder):
        if path.is_dir() and not folders:
            continue
        with suppress(OSError):  # it is gone, or it is still written, on Windows
            # A pipe of that name, in a folder from elsewhere, would otherwise wait for its writer.
            flags = 0 if sys.platform == "win32" else os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = None if sys.platform == "win32" else os.open(path, flags)
            try:
                if descriptor is None or hold(descriptor):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                if descriptor is not None:
                    os.close(descriptor)


def leftovers(folder: Path) -> list[Path]:
    """Files and folders in `folder` that a write has not finished, or is not through with yet."""
    return [folder / name for name in os.listdir(folder) if TEMPORARY.fullmatch(name)]


def settled_names(folder: Path) -> set[str]:
    """Names of the files in a folder once a killed replacement will be finished; changes nothing."""
    sets = _complete_sets(folder)
    names = {*os.listdir(folder)} - {path.name for path in (*leftovers(folder), *sets)}
    return names.union(*map(_names_of_set, sets))


def require_folder(path: Path) -> None:
    """InputError where a file has the name of a folder to write into, or of one above it."""
    above = (path, *path.parents)
    if taken := next((place for place in above if os.path.exists(place) and not os.path.isdir(place)), None):
        raise InputError(
            f"{taken} is a file, where a folder is to be written: name another one",
            f"{taken}: 폴더를 쓸 곳에 파일이 있습니다. 다른 폴더를 지정하세요",
        )


def _require_room(folder: Path, names: Sequence[str]) -> None:
    """InputError where a folder has the name of a file to write, which could not move to its place."""
    if taken := next((name for name in names if _is_folder(folder / name)), None):
        raise InputError(
            f"{folder / taken} is a folder, where a file is to be written: move it away",
            f"{folder / taken}: 파일을 쓸 곳에 폴더가 있습니다. 다른 곳으로 옮기세요",
        )


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder itself, not a link to one."""
    return path.is_dir() and not path.is_symlink()


def _commit(staging: Path, names: Sequence[str], stale: re.Pattern[str] | None) -> None:
    """Give the whole files of `staging` their places in the folder above it."""
    folder = staging.parent
    if stale is not None:
        leaving = [name for name in os.listdir(folder) if stale.fullmatch(name) and name not in names]
        with (staging / STALE_NAMES).open("xb") as file:
            file.write(json.dumps(leaving).encode())
            file.flush()
            os.fsync(file.fileno())
    sync(staging)
    complete = staging.with_suffix(".new")
    staging.rename(complete)
    sync(folder)
    _move_in(complete)


def _finish_replacing(folder: Path) -> None:
    """Move in what a killed writer had completed; the caller has locked the folder."""
    for path in _complete_sets(folder):
        _move_in(path)


def _complete_sets(folder: Path) -> list[Path]:
    found = [folder / name for name in os.listdir(folder) if COMPLETE.fullmatch(name)]
    return [path for path in found if _is_folder(path)]


def _names_of_set(complete: Path) -> set[str]:
    """Names of the files of a set that have not moved to their places."""
    return {*os.listdir(complete)} - {STALE_NAMES}


def _move_in(complete: Path) -> None:
    """Move the files of a complete set into the folder above it; may be repeated after any interruption."""
    folder = complete.parent
    for name in _leaving(complete):
        if type(name) is str and FILE_NAME.fullmatch(name) and not _is_folder(folder / name):
            (folder / name).unlink(missing_ok=True)
    for name in _names_of_set(complete):
        (complete / name).replace(folder / name)
    sync(folder)
    shutil.rmtree(complete)


def _leaving(complete: Path) -> list[Any]:
    """Names of the files that are deleted when a complete set moves in. InputError for a damaged list."""
    path = complete / STALE_NAMES
    if not os.path.lexists(path):
        return []
    try:
        names = json.loads(read_limited(path, MAX_STALE_BYTES, InputError))
    except (ValueError, RecursionError):  # InputError is a ValueError
        names = None
    if type(names) is list:
        return names
    raise InputError(
        f"{path} is no list of names, so KoGPT did not write it: delete {complete}",
        f"{path}: 이름 목록이 아니어서 KoGPT가 쓴 파일이 아닙니다. {complete} 폴더를 지우세요",
    )


@contextmanager
def lock_folder(folder: Path, command: str) -> Iterator[None]:
    """Keep other processes of `command` out of the folder, which must exist; InputError if one is in it.

    The lock ends with the process, however that ends.
    """
    with open_own(folder / LOCK) as file:
        if not hold(file.fileno()):
            raise in_use(folder, _holder(file) or command)
        file.truncate(0)
        file.write(f"{command}, process {os.getpid()}".encode())
        file.flush()
        yield


def open_own(path: Path, buffering: int = -1) -> IO[bytes]:
    """Open a file to read and append, or make it; InputError for a link, which leads to another's file.

    The same for what is no regular file. buffering: as of `open`.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise _not_own(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_own(path)
    return os.fdopen(descriptor, "a+b", buffering)


def _not_own(path: Path) -> InputError:
    return InputError(
        f"{path} is a link or no regular file, and is not written: delete it, or choose another --out",
        f"{path}: 링크이거나 일반 파일이 아니어서 쓰지 않습니다. 지우거나 다른 --out을 고르세요",
    )


def in_use(path: Path, holder: str) -> InputError:
    """The error for a place in which another process writes."""
    return InputError(
        f"{path} is in use ({holder}): wait until it ends, or choose another --out",
        f"{path}: 다른 프로세스가 쓰고 있습니다({holder}). 끝날 때까지 기다리거나 다른 --out을 고르세요",
    )


def _holder(file: IO[bytes]) -> str:
    """What the holder of a lock wrote into its file."""
    file.seek(0)
    return file.read(200).decode("utf-8", "replace").strip()


def hold(descriptor: int) -> bool:
    """Lock an open file until it is closed; False if another process holds it.

    A file system without locks answers True: it cannot say who else is there.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            position = os.lseek(descriptor, 0, os.SEEK_CUR)
            os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # a byte beyond the text, which stays readable
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, position, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        logger.debug("no lock on descriptor %d: %s", descriptor, error)
    return True


@contextmanager
def share_folder(folder: Path) -> Iterator[None]:
    """Keep writers (`replace_all`) out of a folder while it is read, where locks exist.

    CheckpointError where a killed writer left files half way. Nothing is changed: a folder from elsewhere
    may claim such files.
    """
    with _locked(folder, exclusive=False):
        if unfinished := next((path for path in _complete_sets(folder) if _names_of_set(path)), None):
            raise CheckpointError(
                f"{folder} is not finished, its new files are in {unfinished.name}: write it again, or get it"
                " again if it came from elsewhere",
                f"{folder}: 쓰기가 끝나지 않아 새 파일이 {unfinished.name}에 남아 있습니다. 폴더를 다시 "
                "쓰거나, 받은 폴더라면 다시 받으세요",
            )
        yield


@contextmanager
def _locked(folder: Path, exclusive: bool) -> Iterator[None]:
    """Wait for a lock on a folder and keep it; shared with others unless it is exclusive."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        except OSError as error:  # some network file systems; the manifest still tells a mixture
            logger.debug("no lock on %s: %s", folder, error)
        yield
    finally:
        os.close(descriptor)


def safe_join(folder: Path, name: str, kind: type[KoGPTError] = CheckpointError) -> Path:
    """The regular file `name` of `folder`; an error of that kind if it is missing or would lie outside.

    A link may lead to where the hub's cache keeps the blobs of the same repository, and nowhere else.
    """
    if not all(FILE_NAME.fullmatch(part) for part in name.split("/")):
        raise _unfit_name(folder, name, kind)
    path, root = folder / name, folder.resolve()
    if root.parent.name == "snapshots" and (root.parent.parent / "blobs").is_dir():
        root = root.parent.parent
    try:
        real = path.resolve(strict=True)
    except (FileNotFoundError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise kind(f"{path} is missing", f"{path} 파일이 없습니다") from error
    if not real.is_relative_to(root):
        raise outside(folder, name, kind)
    if not real.is_file():
        raise _not_regular(path, kind)
    return path


def open_file(path: Path, kind: type[KoGPTError] = CheckpointError) -> BufferedReader:
    """Open a regular file; an error of that kind for a pipe or a device, which may block or never end."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(path, kind)
    return os.fdopen(descriptor, "rb")


def open_inside(folder: Path, name: str) -> BufferedReader:
    """Open the file `name` of a folder that may be hostile: see safe_join and open_file."""
    return open_file(safe_join(folder, name))


def read_limited(path: Path, max_bytes: int, kind: type[KoGPTError] = CheckpointError) -> bytes:
    """All bytes of a regular file; an error of that kind if it has more than `max_bytes`."""
    with open_file(path, kind) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        if n_bytes > max_bytes:
            raise kind(
                f"{path} has {n_bytes:,} bytes, at most {max_bytes:,} are read",
                f"{path}: {n_bytes:,}바이트 (최대 {max_bytes:,}바이트)",
            )
        return file.read(max_bytes)


def read_json(path: Path, max_bytes: int, kind: type[KoGPTError] = CheckpointError) -> dict[str, Any]:
    """The object of a JSON file that may be hostile; an error of that kind if it is too large or not valid.

    max_bytes: what such a file can need; an object takes up to fifty times its bytes in memory.
    """
    return parse_json(read_limited(path, max_bytes, kind), str(path), kind)


def parse_json(data: bytes, where: str, kind: type[KoGPTError] = CheckpointError) -> dict[str, Any]:
    """A JSON object from bytes that may be hostile: no duplicate keys, no NaN, no endless nesting."""
    try:
        document = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        if data.count(b"[") + data.count(b"{") > MAX_NESTING:
            _require_shallow(document)
    except (ValueError, RecursionError) as cause:
        reason = str(cause)[:200]
        raise kind(
            f"{where} is not valid JSON: {reason}", f"{where}: 올바른 JSON이 아닙니다 ({reason})"
        ) from cause
    if type(document) is not dict:
        raise kind(f"{where} is not a JSON object", f"{where}: JSON 객체가 아닙니다")
    return document


def _require_shallow(document: Any) -> None:
    """ValueError for values so deep that showing, hashing or writing them would end in a RecursionError."""
    level = [document]
    for _ in range(MAX_NESTING):
        values = chain.from_iterable(part.values() if type(part) is dict else part for part in level)
        level = [value for value in values if type(value) is list or type(value) is dict]
        if not level:
            return
    raise ValueError(f"its values nest deeper than {MAX_NESTING} levels")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def damaged(path: Path, reason: str) -> CheckpointError:
    """The error for a file that cannot be what it claims to be."""
    return CheckpointError(
        f"{path} is damaged or not a checkpoint: {reason}; get it again",
        f"{path}: 손상되었거나 체크포인트가 아닙니다 ({reason}). 파일을 다시 받으세요",
    )


def outside(folder: Path, name: str, kind: type[KoGPTError] = CheckpointError) -> KoGPTError:
    """The error for a folder that leads to a file beyond itself."""
    shown = repr(name[:200])
    return kind(
        f"{folder} names a file outside itself, {shown}: refused",
        f"{folder}: 폴더 밖의 파일 {shown} 접근을 거부합니다",
    )


def _unfit_name(folder: Path, name: str, kind: type[KoGPTError]) -> KoGPTError:
    """The error for a name that is none on every system, or that leads out of its folder."""
    if ELSEWHERE.match(name) or not {"", ".", ".."}.isdisjoint(name.split("/")):
        return outside(folder, name, kind)
    shown = repr(name[:200])
    return kind(
        f"{folder}: no file can be called {shown} everywhere: rename it, with at most 255 characters of UTF-8"
        " and without : and \\",
        f"{folder}: 모든 시스템에서 쓸 수 있는 파일 이름이 아닙니다: {shown}. :와 \\ 없이 UTF-8로 255자 "
        "이하의 이름으로 바꾸세요",
    )


def _not_regular(path: Path, kind: type[KoGPTError]) -> KoGPTError:
    return kind(f"{path} is not a regular file", f"{path}: 일반 파일이 아닙니다")
