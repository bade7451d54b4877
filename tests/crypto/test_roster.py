from __future__ import annotations

import dataclasses

import pytest

from qsfl_flower.crypto.errors import Malformed, Rejected
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.hybrid import HybridKey
from qsfl_flower.crypto.identity import (
    Authority,
    Identity,
    create_authority,
    create_identity,
)
from qsfl_flower.crypto.roster import DAY, Entry, Roster, Seen, open_roster, sign_roster
from qsfl_flower.crypto.statement import SigningKey, sign_statement
from qsfl_flower.crypto.suite import DEFAULT_SUITE, Suite
from qsfl_flower.errors import CryptoError

NOW = 1_800_000_000
WEAK = Suite("ml-kem-512", "ml-dsa-44")
AUTHORITY = create_authority("authority")


def entry(party: Identity, start: int = NOW, end: int = NOW + 365 * DAY, **more: bool) -> Entry:
    return Entry(party.public(), start, end, **more)


def roster(*entries: Entry, serial: int = 3, until: int = NOW + 90 * DAY) -> Roster:
    ordered = sorted(entries, key=lambda item: (item.identity.name, item.key_id))
    return Roster(serial, NOW, until, tuple(ordered))


ALICE = create_identity("alice", now=NOW, organization="Universitätsklinik")
ROTATED = ALICE.rotated(NOW + DAY)
HUB = create_identity("hub", now=NOW, role="server")
REVOKED = create_identity("mallory", now=NOW)
OLD = create_identity("old", now=NOW)
FUTURE = create_identity("future", now=NOW)
FEEBLE = create_identity("feeble", now=NOW, suite=WEAK)
CONTENT = roster(
    entry(ALICE, end=NOW + 8 * DAY),
    Entry(ROTATED.public(), NOW + DAY, NOW + 366 * DAY),
    entry(HUB),
    entry(REVOKED, revoked=True),
    entry(OLD, NOW - 9 * DAY, NOW - DAY),
    entry(FUTURE, NOW + 3 * DAY),
    entry(FEEBLE),
)
SIGNED = sign_roster(CONTENT, AUTHORITY)


def own(party: Identity) -> bytes:
    return party.keys[0].signing.public.key_id


def test_round_trip() -> None:
    opened = open_roster(SIGNED, AUTHORITY.public)
    assert opened == CONTENT
    assert opened.find("alice", own(ALICE), "client", NOW) == ALICE.public()
    assert opened.find("hub", own(HUB), "server", NOW) == HUB.public()


@pytest.mark.parametrize(
    ("name", "key", "role", "now", "reason"),
    [
        ("nobody", own(ALICE), "client", NOW, "unknown"),
        ("alice", own(HUB), "client", NOW, "wrong-key"),  # another party's key
        ("alice", own(ALICE), "server", NOW, "wrong-key"),  # a client acting as a server
        ("hub", own(HUB), "client", NOW, "wrong-key"),  # the server acting as a client
        ("mallory", own(REVOKED), "client", NOW, "revoked"),
        ("old", own(OLD), "client", NOW, "expired"),
        ("alice", own(ALICE), "client", NOW + 9 * DAY, "expired"),  # the overlap is over
        ("future", own(FUTURE), "client", NOW, "not-yet-valid"),
        ("feeble", own(FEEBLE), "client", NOW, "downgraded-algorithm"),
        ("hub", own(HUB), "server", NOW + 91 * DAY, "expired"),  # the roster itself
    ],
    ids=lambda value: "key" if isinstance(value, bytes) else None,
)
def test_lookup_names_its_reason(name: str, key: bytes, role: str, now: int, reason: str) -> None:
    opened = open_roster(SIGNED, AUTHORITY.public)
    with pytest.raises(Rejected) as caught:
        opened.find(name, key, role, now)  # type: ignore[arg-type]
    assert caught.value.reason == reason


def test_validity_includes_its_ends() -> None:
    single = roster(entry(ALICE, NOW, NOW + 10), until=NOW + 10)
    for now in (NOW - 300, NOW, NOW + 10):  # clocks may be 300 s behind
        assert single.find("alice", own(ALICE), "client", now)
    for now in (NOW - 301, NOW + 11):
        with pytest.raises(Rejected):
            single.find("alice", own(ALICE), "client", now)


def test_a_reader_who_accepts_a_weak_suite_gets_it() -> None:
    opened = open_roster(SIGNED, AUTHORITY.public, accepted=(DEFAULT_SUITE, WEAK))
    assert opened.find("feeble", own(FEEBLE), "client", NOW).suite == WEAK


def test_encryption_key_is_the_newest_usable_one() -> None:
    assert CONTENT.encryption_key("alice", NOW) == ALICE.public().encryption
    assert CONTENT.encryption_key("alice", NOW + DAY) == ROTATED.public().encryption
    for name, reason in (
        ("nobody", "unknown"),
        ("mallory", "revoked"),
        ("old", "expired"),
        ("future", "not-yet-valid"),
        ("feeble", "downgraded-algorithm"),
    ):
        with pytest.raises(Rejected) as caught:
            CONTENT.encryption_key(name, NOW)
        assert caught.value.reason == reason


def test_own_keys_are_the_newest_that_the_roster_knows() -> None:
    assert CONTENT.own_keys(ROTATED, NOW) is ROTATED.keys[1]
    assert CONTENT.own_keys(ROTATED, NOW + DAY) is ROTATED.keys[0]
    stranger = dataclasses.replace(ROTATED, keys=(create_identity("alice", now=NOW).keys[0],))
    with pytest.raises(Rejected) as caught:
        CONTENT.own_keys(stranger, NOW)
    assert caught.value.reason == "wrong-key"


def test_warnings_before_something_ends() -> None:
    assert list(CONTENT.expiring(NOW)) == ["the keys of old ended 1.0 days ago: rotate them"]
    later = list(CONTENT.expiring(NOW + 61 * DAY))
    assert any(text.startswith("the roster will end in 29.0 days") for text in later)
    # 30 days before alice's newest keys end, and not when her replaced ones do
    alone = roster(
        entry(ALICE, end=NOW + 8 * DAY), Entry(ROTATED.public(), NOW + DAY, NOW + 366 * DAY)
    )
    assert not any("alice" in text for text in alone.expiring(NOW + 335 * DAY))
    assert any("alice will end in 29.0 days" in text for text in alone.expiring(NOW + 337 * DAY))
    assert not any("mallory" in text for text in CONTENT.expiring(NOW + 999 * DAY))


def test_fresh_keys_for_a_month_give_no_warning_and_many_give_one() -> None:
    """The keys and the roster of a tutorial live for thirty days."""
    made = create_federation([f"client-{n}" for n in range(10)], now=NOW, valid_for=30 * DAY)
    opened = open_roster(made.roster, made.authority)
    assert not list(opened.expiring(NOW))
    assert not list(opened.expiring(NOW + 19 * DAY))
    told = list(opened.expiring(NOW + 21 * DAY))
    assert len(told) == 3
    assert "10 clients (client-0, client-1, client-2, client-3, client-4, ...)" in told[1]
    assert told[1].endswith("those of client-0 will end in 9.0 days: rotate them")
    assert told[2] == "the keys of server will end in 9.0 days: rotate them"


def test_rollback_and_equivocation_are_refused() -> None:
    newer = dataclasses.replace(CONTENT, serial=4)
    other = dataclasses.replace(CONTENT, issued_at=NOW + 1)
    assert open_roster(SIGNED, AUTHORITY.public, seen=CONTENT.seen) == CONTENT
    assert open_roster(sign_roster(newer, AUTHORITY), AUTHORITY.public, seen=CONTENT.seen)
    for seen in (newer.seen, other.seen, Seen(3, bytes(32))):
        with pytest.raises(Rejected, match="was seen before") as caught:
            open_roster(SIGNED, AUTHORITY.public, seen=seen)
        assert caught.value.reason == "rolled-back"


def test_forged_rosters_are_refused() -> None:
    impostor = Authority("authority", SigningKey.generate("ml-dsa-65"))
    weak = Authority("authority", SigningKey.generate("ml-dsa-44"))
    other = create_authority("other")
    party = Authority("authority", ALICE.keys[0].signing)  # a client's key used as an authority's
    for forger, reason in (
        (impostor, "wrong-key"),
        (party, "wrong-key"),
        (weak, "downgraded-algorithm"),
        (other, "wrong-key"),
    ):
        with pytest.raises(Rejected) as caught:
            open_roster(sign_roster(CONTENT, forger), AUTHORITY.public)
        assert caught.value.reason == reason
    # the authority's name and key id over somebody else's signature
    claimed = SigningKey(AUTHORITY.signing.public, impostor.signing.secret)
    with pytest.raises(Rejected) as caught:
        open_roster(sign_roster(CONTENT, Authority("authority", claimed)), AUTHORITY.public)
    assert caught.value.reason == "bad-signature"
    # what the authority signed as something else is no roster
    request = sign_statement("enrolment", "authority", AUTHORITY.signing, CONTENT.encode())
    with pytest.raises(Malformed):
        open_roster(request, AUTHORITY.public)


def test_every_byte_counts() -> None:
    small = sign_roster(roster(entry(HUB)), AUTHORITY)
    for at in range(0, len(small), 7):
        altered = bytearray(small)
        altered[at] ^= 1 << (at % 8)
        with pytest.raises(Rejected):
            open_roster(bytes(altered), AUTHORITY.public)
        with pytest.raises(Rejected):
            open_roster(small[:at], AUTHORITY.public)


def signed_body(body: bytes) -> bytes:
    return sign_statement("roster", "authority", AUTHORITY.signing, body)


def test_a_signed_but_malformed_body_is_refused() -> None:
    body = roster(entry(HUB)).encode()
    entries = body[len(roster().encode()) :]
    header, count = body[:30], 30  # magic, serial, issued, ends | number of entries
    cases = {
        "trailing bytes": body + b"\0",
        "bytes expected": header + (2).to_bytes(4, "big") + entries,
        "without duplicates": header + (2).to_bytes(4, "big") + entries * 2,
        "bad status": body[:-1] + b"\2",
        "starts with": b"x" + body[1:],
        "left": body[:count],
    }
    for message, bad in cases.items():
        with pytest.raises(Malformed, match=message):
            open_roster(signed_body(bad), AUTHORITY.public)
    huge = header + b"\xff\xff\xff\xff" + entries
    with pytest.raises(Malformed):  # four thousand million entries are not allocated
        open_roster(signed_body(huge), AUTHORITY.public)


def test_entries_must_be_ordered_and_keys_unique() -> None:
    with pytest.raises(CryptoError, match="ordered"):
        Roster(1, NOW, NOW, (entry(HUB), entry(ALICE)))
    double = dataclasses.replace(ALICE, name="bob")
    with pytest.raises(CryptoError, match="one key under two names"):
        roster(entry(ALICE), entry(double))
    with pytest.raises(CryptoError, match="before it begins"):
        entry(ALICE, NOW, NOW - 1)


def test_roster_of_an_authority_with_hash_based_signatures() -> None:
    careful = create_authority("careful", "slh-dsa-sha2-128f")
    assert open_roster(sign_roster(CONTENT, careful), careful.public) == CONTENT


def test_identity_keys_have_separate_purposes() -> None:
    keys = ALICE.keys[0]
    assert keys.encryption.public.key_id != keys.signing.public.key_id
    # an encryption key presented as a signing key fails by its form
    with pytest.raises(Rejected):
        CONTENT.find("alice", keys.encryption.public.key_id, "client", NOW)
    assert isinstance(keys.encryption, HybridKey)


def test_the_authority_is_known_by_name_and_key() -> None:
    renamed = dataclasses.replace(AUTHORITY.public, name="other")
    with pytest.raises(Rejected, match="signed by authority, trusted is other"):
        open_roster(SIGNED, renamed)
