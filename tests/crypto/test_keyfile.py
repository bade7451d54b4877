from __future__ import annotations

import json
from pathlib import Path

import pytest

from qsfl_flower.crypto import keyfile
from qsfl_flower.crypto.errors import KeyFileError, Malformed
from qsfl_flower.crypto.identity import create_authority, create_identity
from qsfl_flower.crypto.keyfile import (
    describe_key_file,
    is_encrypted,
    load_authority,
    load_authority_key,
    load_identity,
    pack_identity,
    save_authority,
    save_authority_key,
    save_identity,
    unpack_identity,
)
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.errors import CryptoError

ALICE = create_identity("alice", now=1, organization="Klinik Süd").rotated(2)
AUTHORITY = create_authority("authority")
DEFAULT_COST = keyfile.SCRYPT_N
PASSPHRASE = Secret(b"correct horse battery staple")


@pytest.fixture(autouse=True)
def _cheap_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyfile, "SCRYPT_N", 1 << 10)


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE])
def test_round_trip(tmp_path: Path, passphrase: Secret | None) -> None:
    save_identity(tmp_path / "alice.key", ALICE, passphrase)
    assert load_identity(tmp_path / "alice.key", passphrase) == ALICE
    save_authority(tmp_path / "authority.key", AUTHORITY, passphrase)
    assert load_authority(tmp_path / "authority.key", passphrase) == AUTHORITY
    assert is_encrypted(tmp_path / "alice.key") == (passphrase is not None)
    assert describe_key_file(tmp_path / "alice.key")["kind"] == "identity"


def test_public_file(tmp_path: Path) -> None:
    save_authority_key(tmp_path / "authority.pub", AUTHORITY.public)
    assert load_authority_key(tmp_path / "authority.pub") == AUTHORITY.public


def test_guessing_a_passphrase_costs_what_the_documentation_says() -> None:
    assert DEFAULT_COST == 1 << 17


def test_an_encrypted_file_shows_no_key(tmp_path: Path) -> None:
    save_identity(tmp_path / "alice.key", ALICE, PASSPHRASE)
    save_identity(tmp_path / "again.key", ALICE, PASSPHRASE)
    first, second = (json.loads((tmp_path / n).read_text()) for n in ("alice.key", "again.key"))
    assert first["payload"] != second["payload"]
    assert first["protection"]["salt"] != second["protection"]["salt"]
    with pytest.raises(KeyFileError, match="passphrase is needed"):
        load_identity(tmp_path / "alice.key")
    with pytest.raises(KeyFileError, match="wrong passphrase"):
        load_identity(tmp_path / "alice.key", Secret(b"wrong"))
    with pytest.raises(KeyFileError, match="empty passphrase"):
        save_identity(tmp_path / "empty.key", ALICE, Secret(b""))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "bob"}, "file was altered"),
        ({"version": 2}, "version 2, only 1"),
        ({"format": "other"}, "'format' is not"),
        ({"kind": "authority"}, "kind 'authority', expected 'identity'"),
        ({"payload": "!"}, "not base64"),
        ({"payload": 3}, "not base64"),
        ({"protection": "weak"}, "not understood"),
        ({"protection": {"kdf": "scrypt"}}, "not understood"),
        ({"protection": {"kdf": "scrypt", "n": 1 << 40, "r": 8, "p": 1, "salt": ""}}, "not under"),
        ({"protection": {"kdf": "scrypt", "n": 1000, "r": 8, "p": 1, "salt": ""}}, "not underst"),
        ({"protection": {"kdf": "md5", "n": 1024, "r": 8, "p": 1, "salt": ""}}, "not understood"),
        ({"extra": 1}, "exactly the fields"),
    ],
)
def test_altered_files_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "alice.key"
    save_identity(path, ALICE, PASSPHRASE)
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, **change}))
    with pytest.raises(KeyFileError, match=message):
        load_identity(path, PASSPHRASE)


def test_files_that_are_no_key_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"", b"\xff\xfe", b"[]", b"{}", b'{"format": "qsfl-flower key"}'):
        path.write_bytes(content)
        path.chmod(0o600)
        with pytest.raises(KeyFileError):
            load_identity(path)
    with pytest.raises(KeyFileError, match="cannot be read"):
        load_identity(tmp_path / "missing")


def test_damaged_payloads_end_in_our_error(tmp_path: Path) -> None:
    path = tmp_path / "alice.key"
    save_identity(path, ALICE)
    document = json.loads(path.read_text())
    for size in range(0, len(document["payload"]) - 4, 404):
        path.write_text(json.dumps({**document, "payload": document["payload"][:size]}))
        with pytest.raises(CryptoError):
            load_identity(path)


def test_packed_identity() -> None:
    packed = pack_identity(ALICE)
    assert unpack_identity(packed) == ALICE
    for bad in (b"", b"\0", packed.reveal()[:-1], packed.reveal() + b"\0"):
        with pytest.raises(Malformed):
            unpack_identity(Secret(bad))


@pytest.mark.parametrize("cost", [1 << 19, 1 << 20, 1024.0, True, 0, -2, 1023, "1024", None])
def test_no_file_makes_the_reader_work_for_long(tmp_path: Path, cost: object) -> None:
    """2^20 took 1 GiB and seconds for every file that somebody sends."""
    path = tmp_path / "alice.key"
    save_identity(path, ALICE, PASSPHRASE)
    document = json.loads(path.read_text())
    document["protection"]["n"] = cost
    path.write_text(json.dumps(document))
    with pytest.raises(KeyFileError, match="protection is not understood"):
        load_identity(path, PASSPHRASE)


def test_a_key_file_has_a_size(tmp_path: Path) -> None:
    path = tmp_path / "alice.key"
    path.write_bytes(b"[" * (1 << 20) + b"[")
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match="more than 1048576 bytes"):
        load_identity(path)
