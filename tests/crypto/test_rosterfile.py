from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from qsfl_flower.crypto.errors import KeyFileError, Rejected
from qsfl_flower.crypto.identity import create_authority
from qsfl_flower.crypto.roster import Roster, sign_roster
from qsfl_flower.crypto.rosterfile import accept_roster

AUTHORITY = create_authority("authority")
THIRD = Roster(3, 0, 100, ())


def signed(serial: int, issued_at: int = 0) -> bytes:
    return sign_roster(dataclasses.replace(THIRD, serial=serial, issued_at=issued_at), AUTHORITY)


def test_a_rolled_back_roster_is_refused_across_processes(tmp_path: Path) -> None:
    memory = tmp_path / "seen.json"
    assert accept_roster(signed(3), AUTHORITY.public, memory).serial == 3
    assert accept_roster(signed(3), AUTHORITY.public, memory).serial == 3  # signed anew, same
    assert accept_roster(signed(5), AUTHORITY.public, memory).serial == 5
    for old in (signed(4), signed(3), signed(5, issued_at=9)):
        with pytest.raises(Rejected) as caught:
            accept_roster(old, AUTHORITY.public, memory)
        assert caught.value.reason == "rolled-back"
    assert accept_roster(signed(5), AUTHORITY.public, memory).serial == 5


def test_a_refused_roster_is_not_remembered(tmp_path: Path) -> None:
    memory = tmp_path / "seen.json"
    accept_roster(signed(3), AUTHORITY.public, memory)
    before = memory.read_bytes()
    forged = sign_roster(dataclasses.replace(THIRD, serial=9), create_authority("authority"))
    with pytest.raises(Rejected):
        accept_roster(forged, AUTHORITY.public, memory)
    assert memory.read_bytes() == before


def test_a_damaged_or_foreign_memory_gives_no_roster(tmp_path: Path) -> None:
    memory = tmp_path / "seen.json"
    other = create_authority("authority")
    accept_roster(sign_roster(THIRD, other), other.public, memory)
    with pytest.raises(KeyFileError, match="belongs to another authority"):
        accept_roster(signed(9), AUTHORITY.public, memory)
    for content in ("", "{}", '{"format": "x"}', "[1]"):
        memory.write_text(content)
        with pytest.raises(KeyFileError, match="is not a roster memory"):
            accept_roster(signed(9), AUTHORITY.public, memory)


def test_a_file_of_another_format_is_no_memory(tmp_path: Path) -> None:
    memory = tmp_path / "seen.json"
    accept_roster(signed(3), AUTHORITY.public, memory)
    memory.write_text(memory.read_text().replace("roster memory", "something else"))
    with pytest.raises(KeyFileError, match="is not a roster memory"):
        accept_roster(signed(4), AUTHORITY.public, memory)
