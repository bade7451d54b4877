"""Key files: one JSON document per party or authority, optionally under a passphrase.

``format``, ``version``, ``kind``, ``name``, ``protection`` and ``payload``. The payload holds the
keys in the package's canonical encoding, in base64. With a passphrase it is encrypted with
AES-256-GCM under a key that scrypt derives from the passphrase and a fresh salt, and everything
else in the document is authenticated with it. Public files have the same form.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from qsfl_flower.crypto.codec import Reader, Writer
from qsfl_flower.crypto.errors import KeyFileError
from qsfl_flower.crypto.files import read_file, write_file
from qsfl_flower.crypto.hybrid import HybridKey
from qsfl_flower.crypto.identity import (
    Authority,
    AuthorityKey,
    Identity,
    KeySet,
    PublicIdentity,
)
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.crypto.sources import random_bytes
from qsfl_flower.crypto.statement import SigningKey, VerifyKey

FORMAT = "qsfl-flower key"
VERSION = 1
SCRYPT_N = 1 << 17  # with r = 8: 128 MiB and some tenths of a second for each guess
_MAX_SCRYPT_N = 1 << 18  # 256 MiB: a file from outside may cost no more
_FIELDS = {"format", "version", "kind", "name", "protection", "payload"}
_MAX_SECRET = 1 << 16
_MAX_FILE = 1 << 20


def pack_identity(identity: Identity) -> Secret:
    """Return a party with its secret keys as bytes: what its key file holds."""
    out = Writer().uint(len(identity.keys), 1)
    for keys in identity.keys:
        identity.public(keys).write(out)
        for secret in (
            keys.signing.secret,
            keys.encryption.x25519,
            keys.encryption.kem_key,
            keys.storage,
        ):
            out.blob(secret.reveal())
        out.uint(keys.created_at, 8)
    return Secret(out.done())


def unpack_identity(packed: Secret) -> Identity:
    """Return the party that `pack_identity` has packed; anything else is `Malformed`."""
    data = Reader(packed.reveal(), "packed identity")
    generations, party = [], None
    for _ in range(data.uint(1)):
        party = PublicIdentity.read(data)
        signing = SigningKey(party.signing, Secret(data.blob(_MAX_SECRET)))
        encryption = HybridKey(
            party.encryption, Secret(data.blob(_MAX_SECRET)), Secret(data.blob(_MAX_SECRET))
        )
        generations.append(
            KeySet(signing, encryption, Secret(data.blob(_MAX_SECRET)), data.uint(8))
        )
    data.finish()
    if party is None:
        raise data.fail("no keys")
    return Identity(party.name, party.role, party.organization, tuple(generations))


def save_identity(
    path: Path, identity: Identity, passphrase: Secret | None = None, *, overwrite: bool = False
) -> None:
    """Write a party's secret keys to a file of mode 0600, encrypted if a passphrase is given."""
    packed = pack_identity(identity)
    _save_secret(path, "identity", identity.name, packed, passphrase, overwrite)


def load_identity(path: Path, passphrase: Secret | None = None) -> Identity:
    """Return the party whose secret keys are in `path`.

    Raises
    ------
    KeyFileError
        If the file is missing, damaged, readable by others, or its passphrase missing or wrong.
    """
    return unpack_identity(Secret(_load_secret(path, "identity", passphrase)))


def save_authority(
    path: Path, authority: Authority, passphrase: Secret | None = None, *, overwrite: bool = False
) -> None:
    """Write the authority's secret key to a file of mode 0600; see `save_identity`."""
    out = Writer().text(authority.name)
    authority.signing.public.write(out)
    out.blob(authority.signing.secret.reveal())
    _save_secret(path, "authority", authority.name, Secret(out.done()), passphrase, overwrite)


def load_authority(path: Path, passphrase: Secret | None = None) -> Authority:
    """Return the authority whose secret key is in `path`; see `load_identity`."""
    data = Reader(_load_secret(path, "authority", passphrase), "authority file")
    name = data.identifier("name")
    key = SigningKey(VerifyKey.read(data), Secret(data.blob(_MAX_SECRET)))
    data.finish()
    return Authority(name, key)


def save_authority_key(path: Path, authority: AuthorityKey, *, overwrite: bool = False) -> None:
    """Write the authority's public key: the file that every party must get over a trusted path."""
    out = Writer().text(authority.name)
    authority.key.write(out)
    header = _header("authority-public", authority.name, "none")
    write_file(path, _document(header, out.done()), private=False, overwrite=overwrite)


def load_authority_key(path: Path) -> AuthorityKey:
    """Return the authority's public key from `path`."""
    document = _read(path, private=False, kind="authority-public")
    data = Reader(_payload(path, document), "public key file")
    authority = AuthorityKey(data.identifier("name"), VerifyKey.read(data))
    data.finish()
    return authority


def describe_key_file(path: Path) -> dict[str, Any]:
    """Return ``kind``, ``name`` and ``protection`` of a key file; nothing in it is decrypted."""
    document = _read(path, private=False, kind=None)
    return {key: document[key] for key in ("kind", "name", "protection")}


def is_encrypted(path: Path) -> bool:
    """Return whether a key file needs a passphrase."""
    return bool(describe_key_file(path)["protection"] != "none")


def _save_secret(
    path: Path, kind: str, name: str, plain: Secret, passphrase: Secret | None, overwrite: bool
) -> None:
    if passphrase is None:
        header, payload = _header(kind, name, "none"), plain.reveal()
    else:
        if not len(passphrase):
            raise KeyFileError("an empty passphrase protects nothing")
        salt = random_bytes(16, "key file salt")
        protection = {"kdf": "scrypt", "n": SCRYPT_N, "r": 8, "p": 1, "salt": salt.hex()}
        header = _header(kind, name, protection)
        # The salt is fresh, so the key is used for this one encryption and the nonce may be fixed.
        cipher = AESGCM(_stretch(passphrase, salt, SCRYPT_N))
        payload = cipher.encrypt(bytes(12), plain.reveal(), _canonical(header))
    write_file(path, _document(header, payload), private=True, overwrite=overwrite)


def _load_secret(path: Path, kind: str, passphrase: Secret | None) -> bytes:
    document = _read(path, private=True, kind=kind)
    payload = _payload(path, document)
    protection = document["protection"]
    if protection == "none":
        return payload
    if passphrase is None:
        raise KeyFileError(f"{path} is encrypted: its passphrase is needed")
    header = {key: document[key] for key in _FIELDS - {"payload"}}
    try:
        cost, salt = protection["n"], bytes.fromhex(protection["salt"])
        known = {"kdf": "scrypt", "n": cost, "r": 8, "p": 1, "salt": salt.hex()}
        sound = type(cost) is int and 1 < cost <= _MAX_SCRYPT_N and not cost & (cost - 1)
        if not sound or protection != known:
            raise ValueError("parameters out of range")
    except (KeyError, TypeError, ValueError) as error:
        raise KeyFileError(f"{path}: the protection is not understood ({error})") from None
    try:
        cipher = AESGCM(_stretch(passphrase, salt, cost))
        return cipher.decrypt(bytes(12), payload, _canonical(header))
    except InvalidTag:
        raise KeyFileError(f"{path}: wrong passphrase, or the file was altered") from None


def _stretch(passphrase: Secret, salt: bytes, cost: int) -> bytes:
    return Scrypt(salt=salt, length=32, n=cost, r=8, p=1).derive(passphrase.reveal())


def _header(kind: str, name: str, protection: object) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "name": name,
        "protection": protection,
    }


def _canonical(header: dict[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _document(header: dict[str, Any], payload: bytes) -> bytes:
    document = {**header, "payload": base64.b64encode(payload).decode()}
    return (json.dumps(document, indent=2) + "\n").encode()


def _read(path: Path, *, private: bool, kind: str | None) -> dict[str, Any]:
    try:
        document = json.loads(read_file(path, private=private, most=_MAX_FILE))
    except (ValueError, RecursionError):
        raise KeyFileError(f"{path} is not a key file: not JSON") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise KeyFileError(f"{path} is not a key file: 'format' is not {FORMAT!r}")
    if document.get("version") != VERSION:
        raise KeyFileError(f"{path} has version {document.get('version')!r}, only 1 is known")
    if set(document) != _FIELDS or not isinstance(document["name"], str):
        raise KeyFileError(f"{path} must have exactly the fields {', '.join(sorted(_FIELDS))}")
    if kind is not None and document["kind"] != kind:
        raise KeyFileError(f"{path} is a file of kind {document['kind']!r}, expected {kind!r}")
    return document


def _payload(path: Path, document: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(document["payload"], validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise KeyFileError(f"{path}: 'payload' is not base64") from None
