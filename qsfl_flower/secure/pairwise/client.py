r"""The pairwise-mask sum: its public terms, and everything that a client does.

A sum takes three steps; every step is bytes in and bytes out, and the server only relays.

1. *Deal.* Client i draws a self seed :math:`b_i` and a pair key :math:`K_i`. Each neighbour j gets,
   sealed to its roster key (X25519 and ML-KEM), a Shamir share of both, an edge key
   :math:`e_{ij}` derived from :math:`K_i`, and a lock key. One ML-DSA signature covers all packets,
   commitments to shares, seeds and edge keys, and the digest of the instruction that i answers.
2. *Mask.* With the packets of all neighbours that dealt, if they answer the same instruction, i
   uploads
   :math:`x_i + m(b_i) + \sum_{j>i} m(s_{ij}) - \sum_{j<i} m(s_{ji})` modulo 2^32. The pair seed
   :math:`s_{ij}` comes from the edge key of the lower end; that end also uploads it encrypted
   under the edge key of the upper end, so that either pair key alone brings it back.
3. *Release.* Told who survived, i hands out of every neighbour *either* the share of its self seed
   (it survived) *or* the share of its pair key (it did not), never both in one sum.

What i releases is encrypted under a fresh key. That key is shared among the neighbours of i, each
share under a pad that its holder discloses only for the list of survivors that the holder was told
itself. So a release can be opened only if t neighbours of i were told the same as i: a server that
tells stories to different clients learns nothing, without another exchange to compare notes.

References
----------
K. Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning", 2017.
doi:10.1145/3133956.3133982.
J. H. Bell, K. Bonawitz, A. Gascon, T. Lepoint, M. Raykova, "Secure single-server aggregation with
(poly)logarithmic overhead", 2020. doi:10.1145/3372297.3417885.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qsfl_flower.crypto.codec import Reader, Writer
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.hybrid import derive
from qsfl_flower.crypto.sealing import open_sealed, seal
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.crypto.sources import random_bytes
from qsfl_flower.crypto.statement import sign_statement
from qsfl_flower.errors import CryptoError, Refusal, RejectedUpdate
from qsfl_flower.secure.field import SEED_SIZE
from qsfl_flower.secure.pairwise.masks import Ring, apply_masks
from qsfl_flower.secure.pairwise.recovery import SHARE_SIZE, check_share, split_seed
from qsfl_flower.secure.pairwise.seeds import (
    COMMITMENT_SIZE,
    DEALT,
    TAG_SIZE,
    commit_dealt,
    commit_seed,
    edge_key,
    encrypt,
    make_locker,
    opener,
    packet_digest,
    pair_seed,
    place_bytes,
    shared_lock,
)
from qsfl_flower.secure.pairwise.terms import Policy, Terms, read_places, write_places

STATEMENT = "masked-sum-shares"
MAX_PACKET = 1 << 14
MAX_STATEMENT = 1 << 18
MAX_PAIRS = 1 << 26
COMMITMENTS_SIZE = len(DEALT) * COMMITMENT_SIZE
INSTRUCTION_SIZE = 32


class BadPacket(RejectedUpdate):
    """What neighbours dealt is not what it should be.

    Parameters
    ----------
    dealers : tuple of str
        The neighbours.
    detail : str
        One sentence for a person.
    """

    def __init__(self, dealers: tuple[str, ...], detail: str) -> None:
        super().__init__("bad-packet", detail)
        self.dealers = dealers

    def __reduce__(self) -> tuple[Any, ...]:
        """Let the error travel between processes."""
        return type(self), (self.dealers, self.detail)


@dataclass(frozen=True, repr=False)
class Holding:
    """What a client keeps of one neighbour: its lock key and its two shares."""

    lock: Secret
    self_share: bytes
    pair_share: bytes


@dataclass(frozen=True, repr=False)
class Client:
    """A client between two steps; `encode` gives the bytes to keep, which must be encrypted.

    Parameters
    ----------
    terms : qsfl_flower.secure.pairwise.terms.Terms
        The sum.
    place : int
        The client's place on the ring.
    master : Secret
        All of the client's own secrets are derived from it.
    instruction : bytes
        Digest of the instruction that the vector answers, 32 bytes.
    view : frozenset of int
        The places that dealt; empty before the mask step.
    holdings : mapping of int to Holding
        By neighbour; empty before the mask step.
    released : bytes
        `Terms.agreed` of the list of survivors that was answered; empty before.
    """

    terms: Terms
    place: int
    master: Secret
    instruction: bytes
    view: frozenset[int] = frozenset()
    holdings: Mapping[int, Holding] = field(default_factory=dict)
    released: bytes = b""

    @property
    def self_seed(self) -> Secret:
        """The seed b of the client's own mask."""
        return derive(self.master, b"self seed")

    @property
    def pair_key(self) -> Secret:
        """The key K that all of the client's edge keys come from."""
        return derive(self.master, b"pair key")

    def lock_key(self, neighbour: int) -> Secret:
        """The client's half of the key by which two neighbours lock what they release."""
        return derive(self.master, b"lock key", place_bytes(neighbour))

    def active(self) -> list[int]:
        """The neighbours that dealt, in ascending order."""
        return sorted(self.holdings)

    def encode(self) -> bytes:
        """Return what to keep until the next step."""
        out = Writer().blob(self.terms.encode()).uint(self.place, 2)
        out.fixed(self.master.reveal(), SEED_SIZE).fixed(self.instruction, INSTRUCTION_SIZE)
        out.blob(self.released)
        write_places(out, self.view, len(self.terms.names))
        out.uint(len(self.holdings), 2)
        for place in self.active():
            held = self.holdings[place]
            out.uint(place, 2).fixed(held.lock.reveal(), SEED_SIZE)
            out.fixed(held.self_share, SHARE_SIZE).fixed(held.pair_share, SHARE_SIZE)
        if self.terms.parted:
            out.blob(self.terms.write_parted())
        return out.done()

    @classmethod
    def decode(cls, data: bytes) -> Client:
        """Return what `encode` wrote."""
        reader = Reader(data, "state of a masked sum")
        terms = Terms.decode(reader.blob(MAX_STATEMENT))
        place, master = reader.uint(2), Secret(reader.fixed(SEED_SIZE))
        instruction, released = reader.fixed(INSTRUCTION_SIZE), reader.blob(32)
        view = read_places(reader, len(terms.names))
        holdings = {}
        for _ in range(reader.uint(2)):
            at = reader.uint(2)
            lock = Secret(reader.fixed(SEED_SIZE))
            holdings[at] = Holding(lock, reader.fixed(SHARE_SIZE), reader.fixed(SHARE_SIZE))
        if reader.remaining:
            terms = terms.read_parted(reader.blob(MAX_PAIRS))
        reader.finish()
        return cls(terms, place, master, instruction, view, holdings, released)


def deal(
    terms: Terms, instruction: bytes, credentials: Credentials, policy: Policy, now: int
) -> tuple[Client, bytes]:
    """Take the first step: draw secrets, and seal shares of them to the neighbours.

    Parameters
    ----------
    terms : qsfl_flower.secure.pairwise.terms.Terms
        As the server proposes them.
    instruction : bytes
        Digest of what this client was asked to do, 32 bytes: model, configuration, plan.
    credentials : Credentials
        The client's keys, and the roster with those of the others.
    policy : qsfl_flower.secure.pairwise.terms.Policy
        What the client insists on.
    now : int
        Unix time, seconds.

    Returns
    -------
    tuple[Client, bytes]
        What to keep, and what to send.

    Raises
    ------
    Refusal
        ``policy-terms`` if the client is not in the sum; or as `Policy.check`.
    RejectedUpdate
        As `Roster.encryption_key`.
    """
    name = credentials.identity.name
    if name not in terms.places:
        raise Refusal("policy-terms", f"{name} is not among the clients of the sum")
    policy.check(terms, len(terms.names))
    master = Secret(random_bytes(SEED_SIZE, "mask seed"))
    client = Client(terms, terms.places[name], master, instruction)
    neighbours = terms.neighbours(client.place)
    points = [place + 1 for place in neighbours]
    self_shares = split_seed(client.self_seed, terms.threshold, points)
    pair_shares = split_seed(client.pair_key, terms.threshold, points)
    packets, commitments, digests = [], [], []
    for place in neighbours:
        held = self_shares[place + 1], pair_shares[place + 1]
        edge = edge_key(client.pair_key, place)
        out = Writer().fixed(edge.reveal(), SEED_SIZE)
        out.fixed(client.lock_key(place).reveal(), SEED_SIZE)
        plain = out.fixed(held[0], SHARE_SIZE).fixed(held[1], SHARE_SIZE).done()
        key = credentials.roster.encryption_key(terms.seats[place], now)
        packets.append(seal(key, plain, terms.binding(client.place, place)))
        commitments.append(commit_dealt(client.place, place, *held, edge))
        digests.append(packet_digest(packets[-1], commitments[-1]))
    body = Writer().fixed(terms.digest, 32).fixed(instruction, INSTRUCTION_SIZE)
    body.fixed(commit_seed(client.self_seed), 32).fixed(commit_seed(client.pair_key), 32)
    body.blob(b"".join(digests))
    keys = credentials.roster.own_keys(credentials.identity, now)
    out = Writer().blob(sign_statement(STATEMENT, name, keys.signing, body.done()))
    for packet, commitment in zip(packets, commitments, strict=True):
        out.blob(packet).fixed(commitment, COMMITMENTS_SIZE)
    return client, out.done()


def check(client: Client, relay: bytes, credentials: Credentials, now: int) -> tuple[str, ...]:
    """Try the packets of all neighbours that dealt, and name those whose cannot be used.

    The server asks for this before the mask step if somebody has complained in an earlier round;
    what it is told decides who shares no edge. Nothing is kept, and no secret leaves.

    Parameters
    ----------
    client, relay, credentials, now
        As in `mask`.

    Returns
    -------
    tuple[str, ...]
        The dealers.

    Raises
    ------
    Refusal
        As `mask`.
    RejectedUpdate
        As `Roster.verify`.
    """
    if client.view:
        raise Refusal("policy-second-answer", "this client has masked its vector already")
    _, _, bad = _open_packets(client, client.terms, relay, credentials, now)
    return tuple(name for error in bad for name in error.dealers)


def mask(
    client: Client,
    relay: bytes,
    vector: Ring,
    credentials: Credentials,
    policy: Policy,
    now: int,
    pairs: bytes = b"",
) -> tuple[Client, bytes]:
    """Take the second step: mask the vector with every neighbour that dealt.

    Parameters
    ----------
    client : Client
        What `deal` kept.
    relay : bytes
        Who dealt, and the neighbours' packets.
    vector : ndarray of uint32, shape (d,)
        The client's encoded values; masked in place, also if this raises.
    credentials, policy, now
        As in `deal`.
    pairs : bytes
        `Terms.parted`, where there are any.

    Returns
    -------
    tuple[Client, bytes]
        What to keep, and what to send with the vector: the pair seeds, each encrypted for the case
        that the other end is lost.

    Raises
    ------
    Refusal
        ``policy-second-answer``, ``policy-terms`` if a neighbour answers another instruction or
        too few dealt, or as `Policy.check`.
    RejectedUpdate
        `BadPacket`, or as `Roster.verify`.
    """
    if client.view:
        raise Refusal("policy-second-answer", "this client has masked its vector already")
    terms = client.terms.read_parted(pairs) if pairs else client.terms
    view, opened, bad = _open_packets(client, terms, relay, credentials, now)
    policy.check(terms, len(view))
    if client.place not in view or len(opened) + len(bad) < terms.threshold:
        raise Refusal(
            "policy-terms",
            f"{len(opened) + len(bad)} neighbours dealt shares; at least {terms.threshold} are "
            "needed",
        )
    if bad:
        dealers = tuple(name for error in bad for name in error.dealers)
        raise BadPacket(dealers, "; ".join(error.detail for error in bad))
    adding, subtracting, lockers = [client.self_seed], [], []
    agreed = terms.agreed(view)
    for place, (edge, _) in opened.items():
        if client.place < place:
            seed = pair_seed(edge_key(client.pair_key, place), agreed)
            adding.append(seed)
            lockers.append(make_locker(edge, agreed, seed))
        else:
            subtracting.append(pair_seed(edge, agreed))
    apply_masks(vector, adding, subtracting)
    holdings = {place: holding for place, (_, holding) in opened.items()}
    return replace(client, terms=terms, view=view, holdings=holdings), b"".join(lockers)


def read_survivors(terms: Terms, told: bytes) -> frozenset[int]:
    """Return the places that survived, as the server says; strictly."""
    reader = Reader(told, "survivors")
    survivors = read_places(reader, len(terms.names))
    reader.finish()
    return survivors


def release(client: Client, told: bytes, policy: Policy) -> tuple[Client, bytes]:
    """Take the third step: hand out one share of every neighbour, for one list of survivors.

    Parameters
    ----------
    client : Client
        What `mask` kept.
    told : bytes
        Who survived.
    policy : qsfl_flower.secure.pairwise.terms.Policy
        What the client insists on.

    Returns
    -------
    tuple[Client, bytes]
        What to keep, and what to send.

    Raises
    ------
    Refusal
        ``policy-second-answer`` if another list was answered before, ``policy-terms`` if the sum is
        one that no client may be part of, or as `Policy.check`.
    """
    terms, survivors = client.terms, read_survivors(client.terms, told)
    agreed = terms.agreed(client.view, survivors)
    if client.released not in (b"", agreed):
        raise Refusal(
            "policy-second-answer",
            "the shares of this sum were released for other survivors already",
        )
    if client.place not in survivors or not survivors <= client.view:
        raise Refusal("policy-terms", "the list of survivors is not one of clients that dealt")
    policy.check(terms, len(survivors))
    if (fewest := terms.fewest_neighbours(survivors)) < terms.threshold:
        raise Refusal(
            "policy-terms", f"a survivor has {fewest} surviving neighbours, not {terms.threshold}"
        )
    active = client.active()
    key = derive(client.master, b"release", agreed)
    randomness = derive(client.master, b"release shares", agreed)
    locks = split_seed(key, terms.threshold, [place + 1 for place in active], randomness)
    out, shares = Writer().fixed(agreed, 32), []
    for place in active:
        held = client.holdings[place]
        shared = shared_lock(client.lock_key(place), held.lock, client.place < place)
        out.fixed(opener(shared, place, agreed).reveal(), SEED_SIZE)
        lock = encrypt(opener(shared, client.place, agreed), locks[place + 1])
        out.fixed(lock, SHARE_SIZE + TAG_SIZE)
        shares.append(held.self_share if place in survivors else held.pair_share)
    out.blob(encrypt(key, b"".join(shares)))
    return replace(client, released=agreed), out.done()


def _open_packets(
    client: Client, terms: Terms, relay: bytes, credentials: Credentials, now: int
) -> tuple[frozenset[int], dict[int, tuple[Secret, Holding]], list[BadPacket]]:
    """Return who dealt, what the neighbours' packets hold, and what is wrong with the others."""
    reader = Reader(relay, "relayed packets")
    view = read_places(reader, len(terms.names))
    opened, bad = {}, []
    for place in terms.neighbours(client.place):
        if place in view:
            try:
                opened[place] = _open_packet(client, place, reader, credentials, now)
            except BadPacket as error:
                bad.append(error)
    reader.finish()
    return view, opened, bad


def _open_packet(
    client: Client, place: int, reader: Reader, credentials: Credentials, now: int
) -> tuple[Secret, Holding]:
    terms, sender = client.terms, client.terms.seats[place]
    statement, packet = reader.blob(MAX_STATEMENT), reader.blob(MAX_PACKET)
    commitment = reader.fixed(COMMITMENTS_SIZE)
    signed, signer = credentials.roster.verify(statement, STATEMENT, "client", now)
    if signer.name != sender:
        raise BadPacket((sender,), f"the shares of {sender} are signed by {signer.name}")
    promise = read_statement(signed.body, terms, place)
    if promise.instruction != client.instruction:
        raise Refusal(
            "policy-terms",
            f"{sender} was asked for something else: the digests of action, model, "
            "configuration and plan differ",
        )
    at = terms.neighbours(place).index(client.place)
    if promise.digests[at] != packet_digest(packet, commitment):
        raise BadPacket((sender,), f"{sender} did not sign this packet")
    try:
        plain = Reader(
            open_sealed(
                credentials.identity.decryption_keys, packet, terms.binding(place, client.place)
            ),
            f"packet of {sender}",
        )
        edge, lock = Secret(plain.fixed(SEED_SIZE)), Secret(plain.fixed(SEED_SIZE))
        held = Holding(lock, plain.fixed(SHARE_SIZE), plain.fixed(SHARE_SIZE))
        plain.finish()
        check_share(held.self_share)
        check_share(held.pair_share)
    except (CryptoError, RejectedUpdate) as error:
        raise BadPacket((sender,), f"from {sender}: {error}") from None
    if commitment != commit_dealt(place, client.place, held.self_share, held.pair_share, edge):
        raise BadPacket((sender,), f"what {sender} dealt is not what it vouches for")
    return edge, held


@dataclass(frozen=True)
class Promise:
    """What a client signs when it deals.

    Parameters
    ----------
    instruction : bytes
        Digest of the instruction that it answers.
    self_seed, pair_key : bytes
        Commitments.
    digests : tuple of bytes
        Of its packets with their commitments, by neighbour.
    """

    instruction: bytes
    self_seed: bytes
    pair_key: bytes
    digests: tuple[bytes, ...]


def read_statement(body: bytes, terms: Terms, place: int) -> Promise:
    """Return what the client at `place` signed, if it is about these terms."""
    reader = Reader(body, f"shares of {terms.seats[place]}")
    if reader.fixed(32) != terms.digest:
        raise reader.fail("they belong to another sum")
    instruction = reader.fixed(INSTRUCTION_SIZE)
    self_seed, pair_key = reader.fixed(32), reader.fixed(32)
    joined = reader.blob(COMMITMENT_SIZE * terms.degree)
    reader.finish()
    degree = len(terms.neighbours(place))
    if len(joined) != COMMITMENT_SIZE * degree:
        raise reader.fail(f"{len(joined)} bytes of digests for {degree} neighbours")
    starts = range(0, len(joined), COMMITMENT_SIZE)
    digests = tuple(joined[at : at + COMMITMENT_SIZE] for at in starts)
    return Promise(instruction, self_seed, pair_key, digests)
