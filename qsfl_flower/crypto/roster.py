"""The roster: who belongs to the federation, with which keys, from when to when, signed.

Everybody checks it against the authority's public key, so the server can neither add a party nor
replace the key of one. Its serial number only goes up: whoever has seen a serial refuses a lower
one, and a second roster of the same serial. It also ends by itself, which bounds for how long
somebody who holds back newer rosters can hide a revocation.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from qsfl_flower.crypto.codec import Reader, Writer
from qsfl_flower.crypto.errors import Reason, Rejected
from qsfl_flower.crypto.hybrid import HybridPublicKey
from qsfl_flower.crypto.identity import (
    ROLES,
    Authority,
    AuthorityKey,
    Identity,
    KeySet,
    PartyRole,
    PublicIdentity,
)
from qsfl_flower.crypto.statement import Statement, sign_statement
from qsfl_flower.crypto.suite import DEFAULT_SUITE, Suite
from qsfl_flower.errors import CryptoError

MAX_ROSTER = 1 << 28
WARNING_DAYS = 30
DAY = 24 * 3600
# Seconds by which the clock of a reader may be behind that of whoever wrote a time. Keys that were
# enrolled just now must not be refused for it; ends are taken as they are.
MAX_CLOCK_SKEW = 300
_MAGIC = b"QROST\x01"
_STATUS = ("active", "revoked")


@dataclass(frozen=True)
class Entry:
    """One party with one generation of keys.

    Parameters
    ----------
    identity : PublicIdentity
        The party and its public keys.
    not_before, not_after : int
        Unix times, seconds, between which the keys are valid (inclusive).
    revoked : bool
        A revoked entry stays in the roster, so that its use is named for what it is.
    """

    identity: PublicIdentity
    not_before: int
    not_after: int
    revoked: bool = False

    def __post_init__(self) -> None:
        if self.not_before > self.not_after:
            raise CryptoError(
                f"entry of {self.identity.name} ends ({self.not_after}) before it begins "
                f"({self.not_before})"
            )

    @property
    def key_id(self) -> bytes:
        """Name of its signing key."""
        return self.identity.signing.key_id

    @property
    def status(self) -> str:
        """``"active"`` or ``"revoked"``."""
        return _STATUS[self.revoked]


@dataclass(frozen=True)
class Seen:
    """The newest roster that somebody has accepted: what a rolled-back one is recognized by.

    Parameters
    ----------
    serial : int
        Its serial number.
    digest : bytes
        SHA-256 of its content.
    """

    serial: int
    digest: bytes


@dataclass(frozen=True)
class Roster:
    """The content of a roster; one that came from `open_roster` was signed by the authority.

    Parameters
    ----------
    serial : int
        Goes up with every change.
    issued_at, not_after : int
        Unix times, seconds: when it was signed, and until when it may be used.
    entries : tuple of Entry
        Ordered by party name and key id, without duplicates.
    accepted : tuple of Suite
        The reader's own policy, not part of the content: suites whose keys may be used.
    """

    serial: int
    issued_at: int
    not_after: int
    entries: tuple[Entry, ...]
    accepted: tuple[Suite, ...] = field(default=(DEFAULT_SUITE,), compare=False)

    def __post_init__(self) -> None:
        order = [(entry.identity.name, entry.key_id) for entry in self.entries]
        if any(first >= second for first, second in itertools.pairwise(order)):
            raise CryptoError("the roster's entries must be ordered and without duplicates")
        if len({key for _, key in order}) != len(order):
            raise CryptoError("the roster has one key under two names")

    @cached_property
    def _by_name(self) -> dict[str, tuple[Entry, ...]]:
        found: dict[str, tuple[Entry, ...]] = {}
        for entry in self.entries:
            found[entry.identity.name] = (*found.get(entry.identity.name, ()), entry)
        return found

    @cached_property
    def seen(self) -> Seen:
        """What to remember of this roster."""
        return Seen(self.serial, hashlib.sha256(self.encode()).digest())

    def find(self, name: str, key_id: bytes, role: PartyRole, now: int) -> PublicIdentity:
        """Return the party whose signing key this is, if it may be used as `role` at time `now`.

        Raises
        ------
        Rejected
            ``unknown``, ``wrong-key``, ``revoked``, ``expired``, ``not-yet-valid`` or
            ``downgraded-algorithm``.
        """
        self.check_current(now)
        entries = self._by_name.get(name)
        if entries is None:
            raise Rejected(Reason.UNKNOWN, f"{name} is not in roster {self.serial}")
        entry = next((entry for entry in entries if entry.key_id == key_id), None)
        if entry is None:
            raise Rejected(
                Reason.WRONG_KEY, f"key {key_id.hex()} does not belong to {name}, says the roster"
            )
        if entry.identity.role != role:
            raise Rejected(
                Reason.WRONG_KEY, f"{name} is a {entry.identity.role} and cannot act as a {role}"
            )
        self._check_usable(entry, now)
        return entry.identity

    def verify(
        self, message: bytes, kind: str, role: PartyRole, now: int
    ) -> tuple[Statement, PublicIdentity]:
        """Return a signed statement and who signed it, if that party may sign such a thing now.

        Parameters
        ----------
        message : bytes
            What `sign_statement` returned.
        kind : str
            The kind of statement that is expected.
        role : {"client", "server"}
            Who may make it.
        now : int
            Unix time, seconds.

        Raises
        ------
        Rejected
            ``malformed``, ``bad-signature``, or as `find`.
        """
        statement = Statement.read(message, kind)
        signer = self.find(statement.signer, statement.key_id, role, now)
        statement.verify(signer.signing)
        return statement, signer

    def encryption_key(self, name: str, now: int) -> HybridPublicKey:
        """Return the newest usable key to encrypt to the party of this name.

        Raises
        ------
        Rejected
            As `find`.
        """
        self.check_current(now)
        entries = self._by_name.get(name)
        if entries is None:
            raise Rejected(Reason.UNKNOWN, f"{name} is not in roster {self.serial}")
        newest = sorted(entries, key=lambda entry: (entry.not_before, entry.not_after))[::-1]
        usable = (entry for entry in newest if not entry.revoked and entry.not_before <= now)
        entry = next(usable, newest[0])
        self._check_usable(entry, now)
        return entry.identity.encryption

    def own_keys(self, identity: Identity, now: int) -> KeySet:
        """Return the newest generation of one's own keys that this roster lets one use.

        Raises
        ------
        Rejected
            As `find`, for the newest generation, if there is none.
        """
        failures = []
        for keys in identity.keys:
            try:
                self.find(identity.name, keys.signing.public.key_id, identity.role, now)
            except Rejected as failure:
                failures.append(failure)
            else:
                return keys
        raise failures[0]

    def check_current(self, now: int) -> None:
        """Raise ``expired`` if the roster itself has ended."""
        if now > self.not_after:
            raise Rejected(
                Reason.EXPIRED,
                f"roster {self.serial} ended {_days(now - self.not_after)} ago: get a newer one "
                "from the authority",
            )

    def expiring(self, now: int) -> Iterator[str]:
        """Yield a warning for the roster, for the server's keys and for the clients' that end soon.

        Soon is the last third of the time that they were made for, and at most 30 days. A
        generation of keys that a newer one has replaced is meant to end and gives no warning.
        """
        if _soon(self.issued_at, self.not_after, now):
            yield f"the roster {_ends(self.not_after, now)}: have the authority sign a new one"
        active = ([e for e in entries if not e.revoked] for entries in self._by_name.values())
        newest = [max(entries, key=lambda e: e.not_after) for entries in active if entries]
        ending = sorted(
            (e for e in newest if _soon(e.not_before, e.not_after, now)), key=lambda e: e.not_after
        )
        for role in ROLES:
            names = [e.identity.name for e in ending if e.identity.role == role]
            if not names:
                continue
            first = next(e.not_after for e in ending if e.identity.name == names[0])
            if len(names) == 1:
                yield f"the keys of {names[0]} {_ends(first, now)}: rotate them"
                continue
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            yield (
                f"the keys of {len(names)} {role}s ({shown}) end soon or have ended; those of "
                f"{names[0]} {_ends(first, now)}: rotate them"
            )

    def _check_usable(self, entry: Entry, now: int) -> None:
        name = entry.identity.name
        if entry.revoked:
            raise Rejected(Reason.REVOKED, f"key {entry.key_id.hex()} of {name} is revoked")
        if now + MAX_CLOCK_SKEW < entry.not_before:
            raise Rejected(
                Reason.NOT_YET_VALID,
                f"the key of {name} is valid only in {_days(entry.not_before - now)}",
            )
        if now > entry.not_after:
            raise Rejected(
                Reason.EXPIRED, f"the key of {name} ended {_days(now - entry.not_after)} ago"
            )
        if entry.identity.suite not in self.accepted:
            allowed = ", ".join(str(suite) for suite in self.accepted)
            raise Rejected(
                Reason.DOWNGRADED,
                f"{name} uses {entry.identity.suite}, accepted here: {allowed}",
            )

    def encode(self) -> bytes:
        """Return the canonical encoding."""
        out = Writer(_MAGIC).uint(self.serial, 8).uint(self.issued_at, 8).uint(self.not_after, 8)
        out.uint(len(self.entries), 4)
        for entry in self.entries:
            entry.identity.write(out)
            out.uint(entry.not_before, 8).uint(entry.not_after, 8).uint(entry.revoked, 1)
        return out.done()


def sign_roster(roster: Roster, authority: Authority) -> bytes:
    """Return `roster` signed by the authority: the bytes to publish."""
    return sign_statement("roster", authority.name, authority.signing, roster.encode())


def open_roster(
    data: bytes,
    authority: AuthorityKey,
    *,
    seen: Seen | None = None,
    accepted: tuple[Suite, ...] = (DEFAULT_SUITE,),
) -> Roster:
    """Return the roster in `data` if the authority has signed it and it is not an older one.

    Parameters
    ----------
    data : bytes
        What `sign_roster` returned.
    authority : AuthorityKey
        The authority that the reader trusts.
    seen : Seen, optional
        The newest roster that the reader has accepted so far.
    accepted : tuple of Suite
        Suites whose keys the reader will use.

    Raises
    ------
    Rejected
        ``malformed``, ``wrong-key``, ``downgraded-algorithm``, ``bad-signature`` or
        ``rolled-back``.
    """
    statement = Statement.read(data, "roster", MAX_ROSTER)
    if statement.signer != authority.name:
        raise Rejected(
            Reason.WRONG_KEY,
            f"the roster is signed by {statement.signer}, trusted is {authority.name}",
        )
    statement.verify(authority.key)
    roster = decode_roster(statement, accepted)
    if seen is not None and roster.seen != seen and roster.serial <= seen.serial:
        raise Rejected(
            Reason.ROLLED_BACK,
            f"this is roster {roster.serial}, but {seen.serial} was seen before"
            + (" with another content" if roster.serial == seen.serial else ""),
        )
    return roster


def decode_roster(statement: Statement, accepted: tuple[Suite, ...] = (DEFAULT_SUITE,)) -> Roster:
    """Return the content of a roster whose signature has NOT been checked, to look at it."""
    data = Reader(statement.body, "roster")
    data.expect(_MAGIC)
    serial, issued_at, not_after, count = data.uint(8), data.uint(8), data.uint(8), data.uint(4)
    entries = []
    for _ in range(count):
        identity = PublicIdentity.read(data)
        not_before, entry_after, revoked = data.uint(8), data.uint(8), data.uint(1)
        if revoked > 1 or not_before > entry_after:
            raise data.fail(f"entry of {identity.name} has a bad status or validity")
        entries.append(Entry(identity, not_before, entry_after, bool(revoked)))
    data.finish()
    try:
        return Roster(serial, issued_at, not_after, tuple(entries), accepted)
    except CryptoError as error:
        raise data.fail(str(error)) from None


def _soon(start: int, end: int, now: int) -> bool:
    return end - now < min(WARNING_DAYS * DAY, (end - start) / 3)


def _ends(when: int, now: int) -> str:
    return f"ended {_days(now - when)} ago" if when < now else f"will end in {_days(when - now)}"


def _days(seconds: int) -> str:
    return f"{seconds / DAY:.1f} days"
