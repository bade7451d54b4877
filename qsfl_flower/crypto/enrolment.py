"""How parties get into the roster and out of it: requests, enrolment, rotation, revocation.

A party asks with a signed request for the public half of its keys; the authority, having made sure
out of band who is asking, answers with the next roster.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qsfl_flower.crypto.codec import Reader, Writer
from qsfl_flower.crypto.errors import InvalidKey, Malformed, Reason, Rejected
from qsfl_flower.crypto.hybrid import encapsulate
from qsfl_flower.crypto.identity import Identity, PublicIdentity
from qsfl_flower.crypto.roster import DAY, Entry, Roster
from qsfl_flower.crypto.statement import Statement, sign_statement
from qsfl_flower.errors import CryptoError


def make_request(identity: Identity) -> bytes:
    """Return the enrolment request for the newest keys of `identity`.

    It is signed with the key to be enrolled, as proof of possession. With an older generation at
    hand that signature is wrapped in one of the older key, as proof that the rotation is wanted by
    the party itself.
    """
    out = Writer()
    identity.public().write(out)
    request = sign_statement("enrolment", identity.name, identity.keys[0].signing, out.done())
    if len(identity.keys) == 1:
        return request
    return sign_statement("rotation", identity.name, identity.keys[1].signing, request)


@dataclass(frozen=True)
class Request:
    """A request whose own signature is good.

    Parameters
    ----------
    identity : PublicIdentity
        Who asks to be enrolled, and with which keys.
    rotation : Statement, optional
        For a rotation: the statement under the old key, which the authority checks against the
        roster.
    """

    identity: PublicIdentity
    rotation: Statement | None


def read_request(data: bytes) -> Request:
    """Decode an enrolment or rotation request and check its proof of possession.

    Raises
    ------
    Rejected
        ``malformed``, ``wrong-key`` or ``bad-signature``.
    """
    rotation: Statement | None = None
    try:
        statement = Statement.read(data, "enrolment")
    except Malformed:
        rotation = Statement.read(data, "rotation")
        statement = Statement.read(rotation.body, "enrolment")
    body = Reader(statement.body, "enrolment")
    identity = PublicIdentity.read(body)
    body.finish()
    if statement.signer != identity.name or (rotation and rotation.signer != identity.name):
        raise Rejected(Reason.WRONG_KEY, f"the request for {identity.name} is signed by another")
    statement.verify(identity.signing)
    try:
        encapsulate(identity.encryption, b"")
    except InvalidKey as error:
        # Else everybody who encrypts to this party would stumble over it.
        raise Malformed(f"the encryption key of {identity.name} is not usable: {error}") from None
    return Request(identity, rotation)


def new_roster(now: int, not_after: int) -> Roster:
    """Return an empty roster with serial 0, to enrol parties into."""
    return Roster(0, now, not_after, ())


def enrol(
    roster: Roster, request: Request, *, now: int, not_after: int, overlap: int = 7 * DAY
) -> Roster:
    """Return the next roster, with the party of `request` in it.

    Parameters
    ----------
    roster : Roster
        The current one.
    request : Request
        From `read_request`. For a party that is already in the roster it must be a rotation, signed
        with a key that is still good.
    now, not_after : int
        Unix times, seconds, between which the new keys are valid.
    overlap : int
        Seconds for which the older keys of the party stay valid.

    Raises
    ------
    Rejected
        If a rotation is not signed with a usable key of the same party.
    CryptoError
        If the party is enrolled already and this is not a rotation.
    """
    name, entries = request.identity.name, list(roster.entries)
    own = [entry for entry in entries if entry.identity.name == name]
    if request.rotation is not None:
        # Which suites are good enough is for the readers to say, not for the authority's default.
        suites = tuple({entry.identity.suite for entry in own})
        known = replace(roster, accepted=suites, not_after=max(roster.not_after, now))
        old = known.find(name, request.rotation.key_id, request.identity.role, now)
        request.rotation.verify(old.signing)
    elif any(not entry.revoked for entry in own):
        raise CryptoError(
            f"{name} is enrolled already: let it send a rotation request, or revoke it first"
        )
    if any(entry.key_id == request.identity.signing.key_id for entry in own):
        raise CryptoError(f"this key of {name} is in the roster already")
    entries = [
        replace(entry, not_after=max(min(entry.not_after, now + overlap), entry.not_before))
        if entry.identity.name == name
        else entry
        for entry in entries
    ]
    return _next(roster, now, [*entries, Entry(request.identity, now, not_after)])


def renew(roster: Roster, *, now: int, not_after: int) -> Roster:
    """Return the next roster with the same entries, usable until `not_after` (Unix time)."""
    return replace(_next(roster, now, list(roster.entries)), not_after=not_after)


def revoke(roster: Roster, name: str, *, now: int) -> Roster:
    """Return the next roster, in which every key of `name` is revoked.

    Raises
    ------
    CryptoError
        If there is no such party.
    """
    if not any(entry.identity.name == name for entry in roster.entries):
        raise CryptoError(f"{name} is not in roster {roster.serial}: nothing to revoke")
    entries = [
        replace(entry, revoked=True) if entry.identity.name == name else entry
        for entry in roster.entries
    ]
    return _next(roster, now, entries)


def _next(roster: Roster, now: int, entries: list[Entry]) -> Roster:
    ordered = sorted(entries, key=lambda entry: (entry.identity.name, entry.key_id))
    return replace(roster, serial=roster.serial + 1, issued_at=now, entries=tuple(ordered))
