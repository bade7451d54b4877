from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from qsfl_flower.crypto.errors import KeyFileError
from qsfl_flower.crypto.files import locked, read_file, write_file

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")


@posix
def test_private_files_are_created_with_0600_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_file(tmp_path / "new", b"1", private=True)
        write_file(tmp_path / "new", b"2", private=True, overwrite=True)
        write_file(tmp_path / "public", b"1", private=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o644
    assert read_file(tmp_path / "new", private=True) == b"2"


@posix
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o644])
def test_a_private_file_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    write_file(path, b"secret", private=True)
    path.chmod(mode)
    with pytest.raises(KeyFileError, match=f"has mode {mode:04o} .*chmod 600"):
        read_file(path, private=True)
    assert read_file(path, private=False) == b"secret"


def test_nothing_is_overwritten_unasked_and_nothing_is_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_file(path, b"old", private=True)
    with pytest.raises(KeyFileError, match="exists already"):
        write_file(path, b"new", private=True)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_a_failed_write_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    write_file(path, b"old", private=True)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match="No space left"):
        write_file(path, b"new", private=True, overwrite=True)
    with pytest.raises(KeyFileError, match="No space left"):
        write_file(tmp_path / "other", b"new", private=True)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be read"):
        read_file(tmp_path / "none", private=True)
    with pytest.raises(KeyFileError, match="cannot be written"):
        write_file(tmp_path / "none" / "key", b"", private=True)
    with pytest.raises(KeyFileError, match="cannot be written"), locked(tmp_path / "none" / "key"):
        pass


def test_the_lock_excludes(tmp_path: Path) -> None:
    order: list[str] = []
    started = threading.Event()

    def second() -> None:
        started.set()
        with locked(tmp_path / "memory"):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(tmp_path / "memory"):
        thread.start()
        started.wait()
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    write_file(tmp_path / "key", b"four", private=True)
    with pytest.raises(KeyFileError, match="more than 3 bytes"):
        read_file(tmp_path / "key", private=True, most=3)
