from __future__ import annotations

import dataclasses

import pytest

from qsfl_flower.crypto.codec import Writer
from qsfl_flower.crypto.enrolment import enrol, make_request, new_roster, read_request, revoke
from qsfl_flower.crypto.errors import Malformed, Rejected
from qsfl_flower.crypto.identity import Identity, create_identity
from qsfl_flower.crypto.roster import DAY
from qsfl_flower.crypto.statement import sign_statement
from qsfl_flower.crypto.suite import Suite
from qsfl_flower.errors import CryptoError

NOW = 1_800_000_000
YEAR = 365 * DAY
ALICE = create_identity("alice", now=NOW, organization="Clinic")
BOB = create_identity("bob", now=NOW)
EMPTY = new_roster(NOW, NOW + YEAR)
FIRST = enrol(EMPTY, read_request(make_request(ALICE)), now=NOW, not_after=NOW + YEAR)


def key_id(party: Identity, index: int = 0) -> bytes:
    return party.keys[index].signing.public.key_id


def test_enrolment() -> None:
    assert EMPTY.serial == 0
    assert FIRST.serial == 1
    assert FIRST.find("alice", key_id(ALICE), "client", NOW) == ALICE.public()
    assert FIRST.entries[0].status == "active"


def test_rotation_keeps_the_old_key_for_the_overlap() -> None:
    later = NOW + 10 * DAY
    rotated = ALICE.rotated(later)
    request = read_request(make_request(rotated))
    second = enrol(FIRST, request, now=later, not_after=later + YEAR, overlap=2 * DAY)
    assert second.serial == 2
    for index, now in ((0, later), (1, later), (1, later + 2 * DAY), (0, later + YEAR - DAY)):
        if now <= second.not_after:
            assert second.find("alice", key_id(rotated, index), "client", now)
    with pytest.raises(Rejected) as caught:
        second.find("alice", key_id(rotated, 1), "client", later + 2 * DAY + 1)
    assert caught.value.reason == "expired"


def test_a_third_rotation_drops_the_oldest_keys() -> None:
    twice = ALICE.rotated(NOW + 1).rotated(NOW + 2)
    assert [keys.created_at for keys in twice.keys] == [NOW + 2, NOW + 1]
    assert len(twice.decryption_keys) == 2


def test_only_the_party_itself_can_rotate() -> None:
    rotated = ALICE.rotated(NOW)
    impostor = dataclasses.replace(rotated, keys=(rotated.keys[0], BOB.keys[0]))
    with pytest.raises(Rejected) as caught:
        enrol(FIRST, read_request(make_request(impostor)), now=NOW, not_after=NOW + YEAR)
    assert caught.value.reason == "wrong-key"
    gone = revoke(FIRST, "alice", now=NOW)
    with pytest.raises(Rejected) as caught:
        enrol(gone, read_request(make_request(rotated)), now=NOW, not_after=NOW + YEAR)
    assert caught.value.reason == "revoked"
    with pytest.raises(Rejected) as caught:
        enrol(EMPTY, read_request(make_request(rotated)), now=NOW, not_after=NOW + YEAR)
    assert caught.value.reason == "unknown"


def test_revocation_and_new_enrolment_under_the_same_name() -> None:
    gone = revoke(FIRST, "alice", now=NOW)
    assert gone.serial == 2
    assert gone.entries[0].status == "revoked"
    with pytest.raises(Rejected, match="is revoked"):
        gone.find("alice", key_id(ALICE), "client", NOW)
    fresh = create_identity("alice", now=NOW)
    again = enrol(gone, read_request(make_request(fresh)), now=NOW, not_after=NOW + YEAR)
    assert again.find("alice", key_id(fresh), "client", NOW)
    with pytest.raises(Rejected, match="is revoked"):  # the old key stays revoked
        again.find("alice", key_id(ALICE), "client", NOW)
    assert again.encryption_key("alice", NOW) == fresh.public().encryption
    with pytest.raises(CryptoError, match="bob is not in roster 1: nothing to revoke"):
        revoke(FIRST, "bob", now=NOW)


def test_a_name_cannot_be_taken_over() -> None:
    other = create_identity("alice", now=NOW)
    with pytest.raises(CryptoError, match="enrolled already"):
        enrol(FIRST, read_request(make_request(other)), now=NOW, not_after=NOW + YEAR)
    gone = revoke(FIRST, "alice", now=NOW)
    with pytest.raises(CryptoError, match="in the roster already"):  # a revoked key never returns
        enrol(gone, read_request(make_request(ALICE)), now=NOW, not_after=NOW + YEAR)


def test_a_request_proves_possession_of_its_key() -> None:
    out = Writer()
    ALICE.public().write(out)
    stolen = sign_statement("enrolment", "alice", BOB.keys[0].signing, out.done())
    with pytest.raises(Rejected) as caught:
        read_request(stolen)
    assert caught.value.reason == "wrong-key"
    out = Writer()
    BOB.public().write(out)
    with pytest.raises(Rejected, match="signed by another"):
        read_request(sign_statement("enrolment", "alice", BOB.keys[0].signing, out.done()))


def test_an_encryption_key_that_nobody_could_use_is_refused() -> None:
    for change in ({"x25519": bytes(32)}, {"kem_key": b"\xff" * 1184}, {"kem_key": b"short"}):
        bad = dataclasses.replace(ALICE.public().encryption, **change)
        out = Writer()
        dataclasses.replace(ALICE.public(), encryption=bad).write(out)
        message = sign_statement("enrolment", "alice", ALICE.keys[0].signing, out.done())
        with pytest.raises(Malformed, match="encryption key of alice is not usable"):
            read_request(message)


def test_requests_decode_strictly() -> None:
    for request in (make_request(ALICE), make_request(ALICE.rotated(NOW))):
        for at in range(0, len(request), 11):
            altered = bytearray(request)
            altered[at] ^= 1
            with pytest.raises(Rejected):
                enrol(FIRST, read_request(bytes(altered)), now=NOW, not_after=NOW + YEAR)
            with pytest.raises(Malformed):
                read_request(request[:at])


def test_bad_parties_are_refused() -> None:
    with pytest.raises(CryptoError, match="name"):
        create_identity("not a name", now=NOW)
    with pytest.raises(CryptoError, match="organization"):
        create_identity("dave", now=NOW, organization="line\nbreak")
    with pytest.raises(CryptoError, match="role"):
        create_identity("dave", now=NOW, role="boss")  # type: ignore[arg-type]
    with pytest.raises(CryptoError, match="unknown signature"):
        create_identity("dave", now=NOW, suite=Suite(signature="ecdsa"))
    with pytest.raises(CryptoError, match="no keys"):
        dataclasses.replace(ALICE, keys=())


def test_an_unknown_role_is_malformed() -> None:
    out = Writer()
    ALICE.public().write(out)
    body = bytearray(out.done())
    body[len("alice") + 1] = 7
    message = sign_statement("enrolment", "alice", ALICE.keys[0].signing, bytes(body))
    with pytest.raises(Malformed, match="role 7"):
        read_request(message)
