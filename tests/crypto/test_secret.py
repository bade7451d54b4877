"""Secrets must not appear where Python prints: every holder, every way of printing."""

from __future__ import annotations

import base64
import copy
import dataclasses
import json
import logging
import pickle
import traceback
from collections.abc import Callable

import pytest

from qsfl_flower.crypto.algorithms import find_kem, find_signature
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.handshake import make_offer
from qsfl_flower.crypto.hybrid import HybridKey
from qsfl_flower.crypto.identity import create_authority, create_identity
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.crypto.session import Session
from qsfl_flower.crypto.suite import DEFAULT_SUITE
from qsfl_flower.errors import CryptoError

HYBRID = HybridKey.generate("ml-kem-768")
IDENTITY = create_identity("alice", now=0)
AUTHORITY = create_authority("authority")
FEDERATION = create_federation(["alice"], now=0)
OFFER = make_offer(DEFAULT_SUITE)
SESSION = Session("client", 1, 2, "alice", "hub", DEFAULT_SUITE, Secret(b"\xa5" * 32), 9, 9, 0)
KEM_PAIR = find_kem("ml-kem-768").keygen()
SIGNATURE_PAIR = find_signature("ml-dsa-65", "pqcrypto").keygen()
SENT = find_kem("ml-kem-768").encapsulate(KEM_PAIR.public)
KEYS = IDENTITY.keys[0]

HOLDERS: dict[str, tuple[object, list[Secret]]] = {
    "secret": (SENT.shared, [SENT.shared]),
    "kem pair": (KEM_PAIR, [KEM_PAIR.secret]),
    "signature pair": (SIGNATURE_PAIR, [SIGNATURE_PAIR.secret]),
    "encapsulation": (SENT, [SENT.shared]),
    "hybrid key": (HYBRID, [HYBRID.x25519, HYBRID.kem_key]),
    "key set": (KEYS, [KEYS.storage]),
    "identity": (
        IDENTITY,
        [KEYS.signing.secret, KEYS.encryption.x25519, KEYS.encryption.kem_key, KEYS.storage],
    ),
    "authority": (AUTHORITY, [AUTHORITY.signing.secret]),
    "federation": (FEDERATION, [FEDERATION.server.keys[0].signing.secret]),
    "offer": (OFFER, [OFFER.key.x25519, OFFER.key.kem_key]),
    "session": (SESSION, [SESSION.root]),
    "sealer": (SESSION.sealer("update"), [SESSION.root]),
}


def _logged(value: object) -> str:
    record = logging.LogRecord("test", logging.ERROR, "", 0, "%s %r", (value, value), None)
    return logging.Formatter().format(record)


def _raised(value: object) -> str:
    try:
        raise CryptoError(f"failed with {value}", value)
    except CryptoError as error:
        return "".join(
            traceback.TracebackException.from_exception(error, capture_locals=True).format()
        )


PRINTERS: dict[str, Callable[[object], str]] = {
    "repr": repr,
    "str": str,
    "format": lambda value: f"{value}{value!r}{value!s}",
    "percent": lambda value: "%s %r" % (value, value),  # noqa: UP031
    "log": _logged,
    "traceback": _raised,
    "json": lambda value: json.dumps(value, default=str),
    "container": lambda value: str({"a": [value, (value,)]}),
    "vars": lambda value: str(getattr(value, "__dict__", "")),
}


def _shown(secret: Secret, text: str) -> bool:
    data = secret.reveal()
    # An expanded ML-DSA key opens with 32 bytes that are in the public key, too.
    data = data[32:] if len(data) > 64 else data
    pieces = (data[:8], data[-8:])
    shapes = [
        form
        for piece in pieces
        for form in (piece.hex(), repr(piece)[2:-1], str(list(piece))[1:-1], str(piece))
    ]
    shapes.append(base64.b64encode(data[:9]).decode())
    return any(shape in text for shape in shapes)


@pytest.mark.parametrize("printer", PRINTERS)
@pytest.mark.parametrize("holder", HOLDERS)
def test_secrets_do_not_print(holder: str, printer: str) -> None:
    value, secrets = HOLDERS[holder]
    text = PRINTERS[printer](value)
    assert secrets
    for secret in secrets:
        assert not _shown(secret, text)


def test_the_search_finds_a_leak() -> None:
    leak = Secret(b"0123456789abcdef")
    for text in (repr(leak.reveal()), leak.reveal().hex(), str(list(leak.reveal()))):
        assert _shown(leak, text)


@pytest.mark.parametrize("holder", [name for name in HOLDERS if name != "sealer"])
def test_secrets_are_not_pickled_or_deeply_copied(holder: str) -> None:
    value, _ = HOLDERS[holder]
    for spread in (pickle.dumps, copy.deepcopy):
        with pytest.raises(CryptoError, match="cannot be pickled or copied"):
            spread(value)


def test_a_failing_operation_does_not_print_its_key() -> None:
    kem = find_kem("ml-kem-768", "pqcrypto")
    bad = Secret(b"\xa5\x5a" * 1200)
    with pytest.raises(CryptoError) as caught:
        kem.decapsulate(bad, bytes(1088))
    report = traceback.format_exception(caught.value)
    assert not _shown(bad, "".join(report))


def test_comparison_and_hash() -> None:
    assert Secret(b"a") == Secret(bytearray(b"a"))
    assert Secret(b"a") != Secret(b"b")
    assert Secret(b"a") != b"a"
    assert len(Secret(b"abc")) == 3
    assert repr(Secret(b"abc")) == f"{Secret(b'abc')}" == "Secret(3 bytes)"
    with pytest.raises(TypeError):
        hash(Secret(b"a"))
    assert dataclasses.replace(SESSION, run=3).root is SESSION.root
