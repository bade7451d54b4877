"""The server's side of a pairwise-mask sum: relay, check, recover, and never see one vector."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from qsfl_flower.crypto.codec import Reader, Writer
from qsfl_flower.crypto.roster import Roster
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.errors import QSFLError, RejectedUpdate, other_instruction
from qsfl_flower.secure.field import SEED_SIZE
from qsfl_flower.secure.pairwise.client import (
    COMMITMENTS_SIZE,
    MAX_PACKET,
    MAX_STATEMENT,
    STATEMENT,
    Promise,
    read_statement,
)
from qsfl_flower.secure.pairwise.masks import Ring, apply_masks
from qsfl_flower.secure.pairwise.recovery import SHARE_SIZE, check_share, join_shares
from qsfl_flower.secure.pairwise.seeds import (
    TAG_SIZE,
    commit_one,
    commit_seed,
    committed,
    decrypt,
    edge_key,
    open_locker,
    packet_digest,
    pair_seed,
)
from qsfl_flower.secure.pairwise.terms import Terms, write_places

PROVEN = frozenset(
    {
        "inconsistent-release",
        "inconsistent-shares",
        "malformed",
        "wrong-edge-key",
        "wrong-locker",
        "wrong-share",
    }
)
"""Reasons for which bytes that the client itself has signed are the proof.

- ``inconsistent-shares``: its statement commits to a seed and to shares; t of them, each as
  committed, do not open it.
- ``wrong-edge-key``: its statement commits to a pair key and to edge keys; one does not come from
  the other.
- ``wrong-locker``: its masked vector came with a locker that the edge key in its hands, which is
  the one that the dealer committed to, does not open. Without that key it had to leave.
- ``inconsistent-release``: the openers of its neighbours open its locks, and what is in them does
  not open what it released.
- ``wrong-share``: what it released is not the share that the dealer committed to, and that it
  accepted before it masked.
- ``malformed``: what it signed is no answer at all.
"""

_LOCKER = SEED_SIZE + TAG_SIZE


class SumAbandoned(QSFLError):
    """A sum cannot be finished; nothing of it is known, and the model stays as it is.

    Parameters
    ----------
    reason : str
        Short machine-readable name.
    detail : str
        One sentence for a person.
    culprit : str, optional
        Whose fault it is, if that is proven (`PROVEN`).
    """

    def __init__(self, reason: str, detail: str, culprit: str | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.culprit = culprit


@dataclass(frozen=True, repr=False)
class Deal:
    """What one client dealt: packets and commitments by neighbour."""

    statement: bytes
    promise: Promise
    packets: Mapping[int, bytes]
    commitments: Mapping[int, bytes]


@dataclass(frozen=True, repr=False)
class Release:
    """What one client released: openers and locks by neighbour, and its shares, encrypted."""

    openers: Mapping[int, Secret]
    locks: Mapping[int, bytes]
    payload: bytes


@dataclass
class Findings:
    """What the server finds out about the clients while it unmasks a sum.

    Parameters
    ----------
    faults : dict of int to RejectedUpdate
        By place: who released something wrong.
    apart : set of (int, int)
        Pairs of places, the lower one first, of which one lies; nothing proves which.
    short : set of int
        Places of which too few shares came back, where everybody with all edges had enough.
    """

    faults: dict[int, RejectedUpdate] = field(default_factory=dict)
    apart: set[tuple[int, int]] = field(default_factory=set)
    short: set[int] = field(default_factory=set)


def read_deal(
    terms: Terms, place: int, data: bytes, instruction: bytes, roster: Roster, now: int
) -> Deal:
    """Check what the client at `place` dealt, having been given an instruction of this digest.

    Raises
    ------
    RejectedUpdate
        ``malformed``, ``bad-packet``, ``other-instruction``, or as `Roster.verify`.
    """
    name = terms.seats[place]
    reader = Reader(data, f"shares of {name}")
    statement = reader.blob(MAX_STATEMENT)
    signed, signer = roster.verify(statement, STATEMENT, "client", now)
    if signer.name != name:
        raise RejectedUpdate("bad-packet", f"the shares of {name} are signed by {signer.name}")
    promise = read_statement(signed.body, terms, place)
    if promise.instruction != instruction:
        raise other_instruction(name, terms.round)
    packets, commitments = {}, {}
    for digest, neighbour in zip(promise.digests, terms.neighbours(place), strict=True):
        packets[neighbour] = reader.blob(MAX_PACKET)
        commitments[neighbour] = reader.fixed(COMMITMENTS_SIZE)
        if digest != packet_digest(packets[neighbour], commitments[neighbour]):
            raise RejectedUpdate("bad-packet", f"{name} did not sign what it dealt")
    reader.finish()
    return Deal(statement, promise, packets, commitments)


def check_enough(terms: Terms, places: Collection[int]) -> None:
    """Raise ``too-few-clients`` unless everybody has enough neighbours among `places`."""
    if len(places) < 2 or terms.fewest_neighbours(places) < terms.threshold:
        raise SumAbandoned(
            "too-few-clients",
            f"{len(places)} of {len(terms.names)} clients are left; each needs "
            f"{terms.threshold} neighbours among them",
        )


def stranded(terms: Terms, places: Collection[int]) -> set[int]:
    """Return who has to leave since pairs without an edge leave it too few among `places`.

    Those who have all their edges stay. So do honest clients: of pairs without an edge one lies.
    """
    left, thinned = set(places), terms.thinned
    while few := {p for p in too_few(terms, left) if p in thinned}:
        left -= few
    return set(places) - left


def too_few(terms: Terms, places: Collection[int]) -> set[int]:
    """Return who among `places` has fewer neighbours there than it takes to open its secrets."""
    return {p for p, degree in terms.degrees(places).items() if degree < terms.threshold}


def at_fault(terms: Terms, short: Collection[int], answered: int) -> set[int]:
    """Return those of `short` of whom too few neighbours answered, but only for lack of edges.

    On the complete graph honest clients that share all edges with each other are never among them
    while no honest client drops out and at most n - 1 - t others lie.
    """
    if not terms.graph.complete or answered <= terms.threshold:
        return set()
    return set(short) & terms.thinned


def relay(terms: Terms, deals: Mapping[int, Deal], place: int) -> bytes:
    """Return what the client at `place` is sent for the mask step."""
    out = Writer()
    write_places(out, deals, len(terms.names))
    for neighbour in _active(terms, deals, place):
        dealt = deals[neighbour]
        out.blob(dealt.statement).blob(dealt.packets[place])
        out.fixed(dealt.commitments[place], COMMITMENTS_SIZE)
    return out.done()


def read_lockers(
    terms: Terms, deals: Mapping[int, Deal], place: int, data: bytes
) -> dict[int, bytes]:
    """Return the lockers that came with a masked vector, by neighbour.

    Raises
    ------
    RejectedUpdate
        ``malformed`` if there are too few or too many.
    """
    reader = Reader(data, f"lockers of {terms.seats[place]}")
    upper = [other for other in _active(terms, deals, place) if other > place]
    lockers = {other: reader.fixed(_LOCKER) for other in upper}
    reader.finish()
    return lockers


def survivor_list(terms: Terms, survivors: Iterable[int]) -> bytes:
    """Return what the survivors are told for the release step."""
    out = Writer()
    write_places(out, frozenset(survivors), len(terms.names))
    return out.done()


def read_release(
    terms: Terms, deals: Mapping[int, Deal], survivors: Iterable[int], place: int, data: bytes
) -> Release:
    """Return what the client at `place` released.

    Raises
    ------
    RejectedUpdate
        ``malformed``, or ``wrong-survivors`` if it answers another question.
    """
    reader = Reader(data, f"release of {terms.seats[place]}")
    if reader.fixed(32) != terms.agreed(deals, frozenset(survivors)):
        raise RejectedUpdate("wrong-survivors", "the release is for another list of survivors")
    openers, locks = {}, {}
    active = _active(terms, deals, place)
    for neighbour in active:
        openers[neighbour] = Secret(reader.fixed(SEED_SIZE))
        locks[neighbour] = reader.fixed(SHARE_SIZE + TAG_SIZE)
    payload = reader.blob(len(active) * SHARE_SIZE + TAG_SIZE)
    reader.finish()
    return Release(openers, locks, payload)


def unmask(
    terms: Terms,
    deals: Mapping[int, Deal],
    lockers: Mapping[int, Mapping[int, bytes]],
    releases: Mapping[int, Release],
    total: Ring,
    found: Findings,
) -> None:
    """Take all masks off the sum of the masked vectors, in place.

    Parameters
    ----------
    terms : qsfl_flower.secure.pairwise.terms.Terms
        The sum.
    deals : mapping of int to Deal
        By place: who dealt, and was in what everybody was told before masking.
    lockers : mapping of int to mapping
        By place: who sent a masked vector, the survivors.
    releases : mapping of int to Release
        By place: who released its shares.
    total : ndarray of uint32, shape (d,)
        The sum of the survivors' vectors.

    found : Findings
        What is found out is added to it, whether or not the sum can be opened.

    Raises
    ------
    SumAbandoned
        ``recovery-failed`` if too few good shares of some seed came back, or ``wrong-edge-key``,
        ``inconsistent-shares`` or ``wrong-locker``, with the culprit.
    """
    held: dict[int, dict[int, bytes]] = {place: {} for place in deals}
    for holder in releases:
        try:
            opened = _opened(terms, releases, holder, found)
        except RejectedUpdate as error:
            found.faults[holder] = error
            continue
        for owner, share in opened.items():
            kind = b"self" if owner in lockers else b"pair"
            promised = committed(deals[owner].commitments[holder], kind)
            if commit_one(owner, holder, kind, share) == promised:
                held[owner][holder + 1] = share
            else:
                detail = f"{terms.seats[holder]} released a wrong share of {terms.seats[owner]}"
                found.faults[holder] = RejectedUpdate("wrong-share", detail)
    short = [owner for owner, shares in held.items() if len(shares) < terms.threshold]
    found.short |= at_fault(terms, short, len(releases))
    add: list[Secret] = []
    subtract: list[Secret] = []
    for owner, shares in held.items():
        if owner in lockers:
            subtract.append(_joined(terms, owner, shares, deals[owner].promise.self_seed))
        else:
            below, above = lost_masks(terms, deals, lockers, owner, shares)
            add += below
            subtract += above
    apply_masks(total, add, subtract)


def lost_masks(
    terms: Terms,
    deals: Mapping[int, Deal],
    lockers: Mapping[int, Mapping[int, bytes]],
    owner: int,
    shares: Mapping[int, bytes],
) -> tuple[list[Secret], list[Secret]]:
    """Return the seeds to add and to subtract for a client that dealt and sent no vector.

    Parameters
    ----------
    shares : mapping of int to bytes
        Shares of its pair key by point; the others as in `unmask`.
    """
    pair_key = _joined(terms, owner, shares, deals[owner].promise.pair_key)
    agreed, name = terms.agreed(deals), terms.seats[owner]
    add, subtract = [], []
    for place in _active(terms, lockers, owner):
        edge = edge_key(pair_key, place)
        promised = committed(deals[owner].commitments[place], b"edge")
        if commit_one(owner, place, b"edge", edge.reveal()) != promised:
            detail = (
                f"{name} dealt {terms.seats[place]} an edge key that its pair key does not give"
            )
            raise SumAbandoned("wrong-edge-key", detail, name)
        if owner < place:  # the survivor has subtracted this mask
            add.append(pair_seed(edge, agreed))
        else:
            subtract.append(_unlocked(terms, edge, agreed, lockers[place][owner], place))
    return add, subtract


def _opened(
    terms: Terms, releases: Mapping[int, Release], owner: int, found: Findings
) -> dict[int, bytes]:
    """Return the shares that a client released, by whose they are.

    Raises
    ------
    RejectedUpdate
        ``locked`` if too few neighbours opened it, ``inconsistent-release`` if it cannot be opened.
    """
    release = releases[owner]
    shares: dict[int, bytes] = {}
    for holder, lock in release.locks.items():
        if holder not in releases or len(shares) == terms.threshold:
            continue
        try:
            shares[holder + 1] = decrypt(releases[holder].openers[owner], lock)
        except RejectedUpdate:  # one of the two lies; others can open it
            found.apart.add((min(owner, holder), max(owner, holder)))
    name = terms.seats[owner]
    if len(shares) < terms.threshold:
        raise RejectedUpdate("locked", f"too few neighbours of {name} opened what it released")
    try:
        for share in shares.values():
            check_share(share)
        plain = decrypt(join_shares(shares), release.payload)
    except RejectedUpdate as error:
        raise RejectedUpdate("inconsistent-release", f"{name}: {error.detail}") from None
    return {
        place: plain[at * SHARE_SIZE : (at + 1) * SHARE_SIZE]
        for at, place in enumerate(release.locks)
    }


def _joined(terms: Terms, owner: int, shares: Mapping[int, bytes], commitment: bytes) -> Secret:
    name, needed = terms.seats[owner], terms.threshold
    if len(shares) < needed:
        raise SumAbandoned(
            "recovery-failed", f"{len(shares)} shares of {name} came back, {needed} are needed"
        )
    try:
        seed = join_shares(dict(list(shares.items())[:needed]))
    except RejectedUpdate:
        seed = None
    if seed is None or commit_seed(seed) != commitment:
        detail = f"{name} dealt shares that do not open its seed"
        raise SumAbandoned("inconsistent-shares", detail, name)
    return seed


def _unlocked(terms: Terms, edge: Secret, agreed: bytes, locker: bytes, place: int) -> Secret:
    try:
        return open_locker(edge, agreed, locker)
    except RejectedUpdate:
        name = terms.seats[place]
        detail = f"{name} sent a pair seed that cannot be opened"
        raise SumAbandoned("wrong-locker", detail, name) from None


def _active(terms: Terms, places: Iterable[int], place: int) -> list[int]:
    """Return the neighbours of a place that are among `places`, in ascending order."""
    among = frozenset(places)
    return [other for other in terms.neighbours(place) if other in among]
