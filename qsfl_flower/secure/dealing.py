r"""A client's part: encode an update, share it, and seal each share to its member.

What leaves the client is one signed header and one sealed payload per member::

    header   statement "shares": format 2 | terms' digest | round | instruction's digest | size
                                 | digest of each sealed payload
                                 | commitment to each seed for shares of zero
    payload  seeds for shares of zero of the sets that the member is not in | its share

The share is a vector of ``size`` field elements (update, hidden weight and metrics) and one
more, the *blind*: a uniformly random element, shared like the rest. It lets the members prove to
each other that all shares lie on one polynomial without telling a thing about the update, and is
part of no sum.

The instruction is all that the client was asked to do: action, model, configuration, plan. Members
add up only what was dealt on one instruction, so that a server cannot make up models for all but
one.

Who sees what: the server relays ciphertext. Members verify the client's signature against the
roster, so a server cannot invent clients whose updates it knows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.crypto.binding import Binding
from qsfl_flower.crypto.codec import Reader, Writer
from qsfl_flower.crypto.hybrid import HybridPublicKey
from qsfl_flower.crypto.roster import Roster
from qsfl_flower.crypto.sealing import seal_into, sealing_overhead
from qsfl_flower.crypto.sources import random_below, random_bytes
from qsfl_flower.crypto.statement import SigningKey, sign_statement
from qsfl_flower.errors import RejectedUpdate
from qsfl_flower.secure.field import SEED_SIZE, P
from qsfl_flower.secure.shamir import share
from qsfl_flower.secure.terms import TRAIN, Terms

KIND = "shares"
_MAGIC = b"QSHAR\x02"
_DIGEST_SIZE = 32


@dataclass(frozen=True)
class Header:
    """What a client states about the shares that it deals.

    Parameters
    ----------
    client : str
        Who deals; from the signature.
    terms : bytes
        Digest of the terms.
    round : int
        The round of the terms: when the shares were dealt.
    instruction : bytes
        Digest of what the client was asked to do (`qsfl_flower.wire.content.instruction_digest`).
    size : int
        Length of the vector, without the blind.
    payloads : tuple of bytes
        SHA-256 of each member's sealed payload.
    commitments : tuple of bytes
        SHA-256 of each seed for shares of zero.
    """

    client: str
    terms: bytes
    round: int
    instruction: bytes
    size: int
    payloads: tuple[bytes, ...]
    commitments: tuple[bytes, ...]

    def encode(self) -> bytes:
        """Return the body of the statement."""
        out = Writer(_MAGIC).fixed(self.terms, _DIGEST_SIZE).uint(self.round, 8)
        out.fixed(self.instruction, _DIGEST_SIZE).uint(self.size, 8)
        for digest in (*self.payloads, *self.commitments):
            out.fixed(digest, _DIGEST_SIZE)
        return out.done()

    @property
    def digest(self) -> bytes:
        """32 bytes that name this deal; what the members' challenge is derived from."""
        text = Writer(b"qsfl-flower/1/deal").text(self.client).done() + self.encode()
        return hashlib.sha256(text).digest()


@dataclass(frozen=True, repr=False)
class Dealt:
    """What a client sends: a signed header, and one sealed payload per member."""

    header: bytes
    sealed: tuple[bytearray, ...]


def read_header(statement: bytes, terms: Terms, roster: Roster, now: int) -> Header:
    """Return a header that a client of the roster has signed under these terms.

    It may be of an earlier round if its shares may be opened together with those of this one.

    Raises
    ------
    Rejected
        If form or signature are not in order, as `Roster.verify`.
    RejectedUpdate
        ``other-terms`` if the client has dealt under others; see `Terms.of_round` for the round.
    """
    signed, client = roster.verify(statement, KIND, "client", now)
    data = Reader(signed.body, KIND)
    data.expect(_MAGIC)
    digest, dealt = data.fixed(_DIGEST_SIZE), data.uint(8)
    instruction, size = data.fixed(_DIGEST_SIZE), data.uint(8)
    if digest != terms.of_round(dealt).digest:
        raise RejectedUpdate("other-terms", f"{client.name} has dealt under other terms")
    payloads = tuple(data.fixed(_DIGEST_SIZE) for _ in terms.members)
    zero = terms.zero_sets
    commitments = tuple(data.fixed(_DIGEST_SIZE) for _ in (zero.sets if zero else ()))
    data.finish()
    return Header(client.name, digest, dealt, instruction, size, payloads, commitments)


def deal(
    values: NDArray[np.float64],
    integers: Sequence[int],
    terms: Terms,
    name: str,
    signing: SigningKey,
    keys: Sequence[HybridPublicKey],
    instruction: bytes,
) -> Dealt:
    """Share a vector among the committee.

    Parameters
    ----------
    values : ndarray of float64, shape (d,)
        The update, within `terms.bound` in every coordinate.
    integers : sequence of int
        `terms.extras` further integers to be summed, below 2^41 in magnitude (`Tally.take`).
    terms : qsfl_flower.secure.terms.Terms
        The round's terms.
    name : str
        The client.
    signing : SigningKey
        Its key.
    keys : sequence of HybridPublicKey
        The members' keys from the roster, in the order of `terms.members`.
    instruction : bytes
        32 bytes: digest of what this client was asked to do.

    Raises
    ------
    RejectedUpdate
        ``not-finite`` or ``out-of-range``: this update cannot be encoded.
    ConfigError
        If the distances between vectors of this length could wrap.
    """
    d, size = values.size, values.size + len(integers)
    terms.check_size(d)
    secret = np.empty(size + 1, np.uint64)
    terms.fixed_point.encode(values, secret[:d])
    secret[d:] = [*(integer % P for integer in integers), random_below(P, "blinding")]

    zero = terms.zero_sets
    seeds = [random_bytes(SEED_SIZE, "zero sharing") for _ in (zero.sets if zero else ())]
    known = [[seeds[i] for i in zero.known_to(j + 1)] if zero else [] for j in range(len(keys))]
    m, t = terms.sharing.members, terms.sharing.threshold
    # The vectors are written where they are sealed from: behind the seeds.
    room = SEED_SIZE // 8 * len(known[-1])
    payloads = np.empty((m - t + 1, room + size + 1), np.uint64)
    shares = share(secret, terms.sharing, out=payloads[:, room:])

    sealed = []
    for j, (key, member) in enumerate(zip(keys, terms.members, strict=True)):
        prefix = b"".join(known[j])
        if j < t - 1:
            payload = memoryview(prefix + shares.seeds[j])
        else:
            payloads[j - t + 1, :room] = np.frombuffer(prefix, np.uint64)
            payload = payloads[j - t + 1].data
        out = bytearray(payload.nbytes + sealing_overhead(key.kem))
        seal_into(out, key, payload, binding(terms, name, member))
        sealed.append(out)
    header = Header(
        name,
        terms.digest,
        terms.round,
        instruction,
        size,
        tuple(hashlib.sha256(part).digest() for part in sealed),
        tuple(hashlib.sha256(seed).digest() for seed in seeds),
    )
    return Dealt(sign_statement(KIND, name, signing, header.encode()), tuple(sealed))


def binding(terms: Terms, client: str, member: str) -> Binding:
    """Return what a sealed payload is bound to."""
    kind = KIND if terms.purpose == TRAIN else f"{KIND}-{terms.purpose}"
    return Binding(terms.run, terms.round, client, member, kind)
