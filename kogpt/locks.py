"""One process at a time in a folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kogpt.errors import InputError

NAME = "lock"


@contextmanager
def lock_folder(folder: Path, command: str) -> Iterator[None]:
    """Keep other processes of `command` out of the folder, which must exist; InputError if one is in it.

    The lock goes with the process, however that ends. Windows has none.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{folder} is in use by another {command}: wait for it, or choose another --out",
                f"{folder}: 다른 {command} 명령이 쓰고 있습니다. 기다리거나 다른 --out을 고르세요",
            ) from error
        yield
    finally:
        os.close(descriptor)
