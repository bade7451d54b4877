from __future__ import annotations

import pytest

from qsfl_flower.crypto.errors import Malformed, Rejected
from qsfl_flower.crypto.statement import SigningKey, Statement, VerifyKey, sign_statement
from qsfl_flower.errors import CryptoError

KEY = SigningKey.generate("ml-dsa-65")
MESSAGE = sign_statement("report", "alice", KEY, b"body")


@pytest.mark.parametrize("algorithm", ["ml-dsa-44", "ml-dsa-87", "slh-dsa-sha2-128f"])
def test_round_trip_with_every_kind_of_algorithm(algorithm: str) -> None:
    key = SigningKey.generate(algorithm)
    statement = Statement.read(sign_statement("report", "alice", key, b"body"), "report")
    assert (statement.signer, statement.body, statement.algorithm) == ("alice", b"body", algorithm)
    statement.verify(key.public)


def test_a_statement_of_one_kind_is_not_one_of_another() -> None:
    with pytest.raises(Malformed, match="this is a statement of kind 'report'"):
        Statement.read(MESSAGE, "roster")
    # Even with the kind in the frame replaced, the context string of the signature differs.
    renamed = MESSAGE.replace(b"report", b"roster", 1)
    with pytest.raises(Rejected) as caught:
        Statement.read(renamed, "roster").verify(KEY.public)
    assert caught.value.reason == "bad-signature"


def test_reasons() -> None:
    statement = Statement.read(MESSAGE, "report")
    for key, reason in (
        (SigningKey.generate("ml-dsa-65").public, "wrong-key"),
        (SigningKey.generate("ml-dsa-44").public, "downgraded-algorithm"),
        (SigningKey.generate("ml-dsa-87").public, "downgraded-algorithm"),
    ):
        with pytest.raises(Rejected) as caught:
            statement.verify(key)
        assert caught.value.reason == reason


def test_a_key_of_a_wrong_length_is_a_bad_signature_not_a_crash() -> None:
    short = VerifyKey("ml-dsa-65", b"short")
    statement = Statement.read(MESSAGE, "report")
    forged = Statement(**{**vars(statement), "key_id": short.key_id})
    with pytest.raises(Rejected, match="must have 1952"):
        forged.verify(short)


def test_every_flip_and_truncation_is_rejected() -> None:
    for at in range(len(MESSAGE)):
        altered = bytearray(MESSAGE)
        altered[at] ^= 1 << (at % 8)
        with pytest.raises(Rejected):
            Statement.read(bytes(altered), "report").verify(KEY.public)
        with pytest.raises(Malformed):
            Statement.read(MESSAGE[:at], "report")
    with pytest.raises(Malformed, match="1 trailing bytes"):
        Statement.read(MESSAGE + b"\0", "report")


def test_bodies_are_bounded_before_they_are_read() -> None:
    with pytest.raises(Malformed, match="at most 3 allowed"):
        Statement.read(MESSAGE, "report", max_body=3)


def test_names_are_checked_before_signing() -> None:
    with pytest.raises(CryptoError, match="signer"):
        sign_statement("report", "not a name", KEY, b"")
    with pytest.raises(CryptoError, match="kind"):
        sign_statement("", "alice", KEY, b"")
