"""Reading and writing small files so that they are whole, and private where they must be."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from qsfl_flower.crypto.errors import KeyFileError
from qsfl_flower.crypto.sources import random_bytes

_PART = 1 << 20
MAX_FILE = 1 << 28


def write_file(path: Path, data: bytes, *, private: bool, overwrite: bool = False) -> None:
    """Write a file in one step: whoever reads `path` finds the old content or the new one.

    Parameters
    ----------
    path : Path
        Where to.
    data : bytes
        The content.
    private : bool
        Whether only the owner may read it; the file is created with mode 0600, never widened first.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    KeyFileError
        If the file exists and may not be replaced, or cannot be written.
    """
    mode = 0o600 if private else 0o644
    reserved = False
    try:
        if not overwrite:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
            reserved = True
        replace_file(path, data, mode)
    except FileExistsError:
        raise KeyFileError(f"{path} exists already and is not overwritten") from None
    except OSError as error:
        if reserved:
            path.unlink(missing_ok=True)
        raise KeyFileError(f"{path} cannot be written: {error.strerror}") from error


def replace_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Put a whole file in the place of `path`, also through a crash; `OSError` if it cannot be.

    The partial file has a name that nobody can guess and is never opened through a link; a link at
    `path` is replaced, not followed.
    """
    partial = path.with_name(f".{path.name}.{random_bytes(8, 'file name').hex()}.tmp")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def open_to_append(path: Path) -> TextIO:
    """Open a text file for more, and never through a link; `OSError` if it cannot be."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags, 0o644), "a", encoding="utf-8")


def _sync_folder(folder: Path) -> None:
    """Make the new name last through a power cut, where the system lets folders be synchronized."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_file(path: Path, *, private: bool, most: int = MAX_FILE) -> bytes:
    """Return the content of a file of at most `most` bytes; a private one is its owner's alone.

    Raises
    ------
    KeyFileError
        If it is missing, too large or, when `private`, accessible to group or others.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if private and os.name == "posix" and status.st_mode & 0o077:
                mode = stat.S_IMODE(status.st_mode)
                raise KeyFileError(
                    f"{path} has mode {mode:04o} and may be read by others: a secret key file must "
                    f"have 0600 (chmod 600 {path})"
                )
            data = bytearray()  # grows with the file; one `read(most)` would take it all at once
            while len(data) <= most and (part := file.read(_PART)):
                data += part
            if len(data) > most:
                raise KeyFileError(f"{path} has more than {most} bytes")
            return bytes(data)
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that belongs to `path`, so that read-compare-write is one step."""
    if os.name != "posix":
        yield
        return
    import fcntl

    name = path.with_name(f".{path.name}.lock")
    try:
        lock = os.open(name, os.O_WRONLY | os.O_CREAT, 0o600)
    except OSError as error:
        raise KeyFileError(f"{name} cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
