r"""A member's part: take shares, check them together with the others, release one sum.

In a round a member answers twice. First it takes one sealed share per client and returns, per
client, the value

.. math:: v = \sum_c \rho_c s_c + b

of its share s and of the share b of the blind, with factors :math:`\rho` that a hash of the
client's signed header determines: neither the client, nor the server, nor a member chooses them.
If all shares lie on polynomials of degree t - 1, the members' values do so too; if not, they do
with probability 1 / p. Since the blind is uniform, the values tell nothing about the update. Where
the terms say so, the member also returns its shares of the pairwise squared distances, masked with
shares of zero.

Second, it is told which clients are to be added up, adds their shares up, and forgets all of them.
It does this once per round, for at least `terms.min_clients` clients, whatever it is asked.

Where shares that were dealt in several rounds may come together (`Terms.weights`), a member
remembers which it has taken, as long as they could still count, and takes none of them for another
round. It proves that it remembers by its seat: see `Terms.seats`.

Who sees what: t - 1 members with the server see uniformly random values, and the sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from qsfl_flower.crypto.hybrid import HybridKey
from qsfl_flower.crypto.sealing import open_into, sealing_overhead
from qsfl_flower.errors import QSFLError, RejectedUpdate
from qsfl_flower.secure.dealing import Header, binding
from qsfl_flower.secure.field import (
    SEED_SIZE,
    Elements,
    P,
    accumulate,
    dot,
    expand,
    gram,
    is_canonical,
    reduce_once,
)
from qsfl_flower.secure.krum import distances_of_gram, pairs
from qsfl_flower.secure.terms import Terms


class Refused(QSFLError):
    """A member does not do what it was asked, to protect the clients."""


@dataclass(frozen=True, eq=False, repr=False)
class Held:
    """One client's share, as a member holds it between its two answers.

    Parameters
    ----------
    client : str
        Who dealt it.
    dealt : int
        The round in which it dealt it.
    digest : bytes
        Digest of the client's header.
    share : ndarray of uint64
        Shape (size + 1,), or (4,): the seed of such a vector.
    seeds : mapping of int to bytes
        Seeds for shares of zero by index of the set.
    """

    client: str
    dealt: int
    digest: bytes
    share: Elements
    seeds: Mapping[int, bytes]

    def vector(self, size: int) -> Elements:
        """Return the share of the vector and, behind it, of the blind: shape (size + 1,)."""
        if self.share.size == size + 1:
            return self.share
        out = np.empty(size + 1, np.uint64)
        expand(self.share.tobytes(), out)
        return out


def receive(
    header: Header,
    sealed: bytes | bytearray | memoryview,
    terms: Terms,
    member: int,
    keys: Sequence[HybridKey],
) -> Held:
    """Open one client's share and check all that a member can check alone.

    Parameters
    ----------
    header : Header
        The client's, verified by `read_header`.
    sealed : bytes-like
        The payload for this member.
    terms : qsfl_flower.secure.terms.Terms
        The round's terms.
    member : int
        Who receives, in 1 .. m.
    keys : sequence of HybridKey
        The member's decryption keys.

    Raises
    ------
    RejectedUpdate
        ``malformed``, ``wrong-key``, ``altered`` or ``bad-seed``.
    CryptoError
        If it cannot be decrypted.
    """
    zero = terms.zero_sets
    known = zero.known_to(member) if zero else ()
    room = SEED_SIZE // 8 * len(known)
    length = SEED_SIZE // 8 if member < terms.threshold else header.size + 1
    expected = 8 * (room + length) + sealing_overhead(keys[0].public.kem)
    if len(sealed) != expected:
        raise RejectedUpdate(
            "malformed", f"the share from {header.client} has {len(sealed)} bytes, not {expected}"
        )
    if hashlib.sha256(sealed).digest() != header.payloads[member - 1]:
        raise RejectedUpdate("altered", f"the share from {header.client} is not the one it signed")
    payload = np.empty(room + length, np.uint64)
    me = terms.members[member - 1]
    dealt = terms.of_round(header.round)
    open_into(payload.data, keys, sealed, binding(dealt, header.client, me))
    raw = payload[:room].tobytes()
    seeds = {i: raw[SEED_SIZE * k :][:SEED_SIZE] for k, i in enumerate(known)}
    for i, seed in seeds.items():
        if hashlib.sha256(seed).digest() != header.commitments[i]:
            raise RejectedUpdate("bad-seed", f"{header.client} has dealt another seed than stated")
    share = payload[room:]
    if member >= terms.threshold and not is_canonical(share):
        raise RejectedUpdate("malformed", f"{header.client} has sent values outside the field")
    return Held(header.client, header.round, header.digest, share, seeds)


def check_value(held: Held, size: int) -> int:
    """Return the value that shows, together with the other members', whether shares fit."""
    vector = held.vector(size)
    factors = np.empty(size, np.uint64)
    expand(hashlib.sha256(b"qsfl-flower/1/check" + held.digest).digest(), factors)
    return (dot(vector[:size], factors) + int(vector[size])) % P


def products(held: Sequence[Held], size: int, terms: Terms, member: int) -> tuple[Elements, ...]:
    """Return this member's masked shares of the squared distances, and of the squared norms.

    Parameters
    ----------
    held : sequence of Held
        The shares of n clients.
    size : int
        Length of the shared vectors.
    terms : qsfl_flower.secure.terms.Terms
        The round's terms; they say which of the two are returned, the other one is empty.
    member : int
        In 1 .. m.

    Returns
    -------
    tuple of ndarray of uint64
        Shapes (n (n - 1) / 2,), in the order of `krum.pairs`, and (n,).
    """
    zero = terms.zero_sharings[1]
    empty = np.empty(0, np.uint64)
    if zero is None or not held:
        return empty, empty
    matrix = gram([h.vector(size)[: size - terms.extras] for h in held])
    labels = np.array([list(h.digest[:15]) for h in held], np.uint8)
    # masks[i, j] comes from the seeds of client i under the name of client j, so that a pair is
    # masked by what either of them has drawn, whoever else takes part.
    masks = np.stack([zero.labelled(member, _product_seeds(h), labels) for h in held])
    distances = norms = empty
    if terms.distances:
        i, j = pairs(len(held))
        distances = distances_of_gram(matrix)
        for mask in (masks[i, j], masks[j, i]):
            distances += mask
            reduce_once(distances)
    if terms.norms:
        norms = np.diagonal(matrix) + np.diagonal(masks)
        reduce_once(norms)
    return distances, norms


@dataclass(frozen=True, eq=False, repr=False)
class Desk:
    """What a member keeps between two messages of one run: a value, to be saved and restored.

    Parameters
    ----------
    closed : int
        The last round of which a sum was released, or 0.
    seat : str
        What the member has drawn when it was appointed.
    opened : int
        The last round for which shares were taken, or 0.
    taken : mapping of (str, int) to int
        For clients and the rounds in which they dealt: the round for which their shares were taken.
    terms : qsfl_flower.secure.terms.Terms or None
        Of the round whose shares are held.
    size : int
        Length of the shared vectors.
    held : tuple of Held
        One share per client.
    """

    closed: int = 0
    seat: str = ""
    opened: int = 0
    taken: Mapping[tuple[str, int], int] = field(default_factory=dict)
    terms: Terms | None = None
    size: int = 0
    held: tuple[Held, ...] = ()

    def check_new(self, header: Header, terms: Terms) -> None:
        """Refuse shares that were taken for another round.

        Raises
        ------
        RejectedUpdate
            ``already-taken``.
        """
        before = self.taken.get((header.client, header.round), terms.round)
        if before != terms.round:
            raise RejectedUpdate(
                "already-taken",
                f"the shares that {header.client} dealt in round {header.round} were taken for "
                f"round {before}",
            )

    def take(self, terms: Terms, size: int, held: Sequence[Held], member: int) -> Desk:
        """Return the desk with the shares of a round; what it held before is forgotten.

        Raises
        ------
        Refused
            If a sum of this round has already been released, a later round was begun, the shares
            were taken before, or were dealt to a member whose memory is not this one.
        """
        if terms.seats[member - 1] != self.seat:
            raise Refused(
                f"round {terms.round}: these shares were dealt to a member that had another memory "
                "than this one; which sums it has released is not known"
            )
        if terms.round < self.opened:
            raise Refused(f"round {terms.round}: round {self.opened} has begun")
        if terms.round <= self.closed:
            raise Refused(
                f"round {terms.round}: a sum of round {self.closed} was released; there is one per "
                "round, and no way back"
            )
        names = [h.client for h in held]
        if len(set(names)) != len(names):
            raise Refused(f"round {terms.round}: a client is there twice")
        if len(held) > terms.max_clients:
            raise Refused(
                f"round {terms.round}: {len(held)} clients, but the terms are for "
                f"{terms.max_clients}"
            )
        new = {(h.client, h.dealt): terms.round for h in held}
        if again := sorted(k for k in new if self.taken.get(k, terms.round) != terms.round):
            raise Refused(f"round {terms.round}: shares of {again[0][0]} were taken before")
        # What is older cannot come back: rounds only go up.
        oldest = terms.round - len(terms.weights) + 1
        kept = {key: at for key, at in self.taken.items() if key[1] >= oldest}
        return replace(
            self,
            opened=terms.round,
            taken={**kept, **new},
            terms=terms,
            size=size,
            held=tuple(held),
        )

    def release(
        self, server_round: int, clients: Collection[str], member: int
    ) -> tuple[Elements, Desk]:
        """Return this member's share of one weighted sum, and the desk without any shares.

        The updates count with the weights of the terms, what is behind them counts once.

        Parameters
        ----------
        server_round : int
            The round that the shares must belong to.
        clients : collection of str
            Different clients, to be added up.
        member : int
            In 1 .. m.

        Returns
        -------
        ndarray of uint64, shape (size,)
            If the quorum is larger than the threshold, masked by shares of zero that depend on the
            clients: answers to different questions do not fit together.
        Desk
            What to keep.

        Raises
        ------
        Refused
            If this is not the round, fewer clients than the minimum, or an unknown client. The
            shares are kept.
        """
        terms = self.terms
        if terms is None or terms.round != server_round or server_round <= self.closed:
            raise Refused(
                f"round {server_round}: no shares are held for it; a sum is released once"
            )
        if not terms.min_clients <= len(set(clients)) == len(clients):
            raise Refused(
                f"round {server_round}: a sum of {len(set(clients))} different clients is asked "
                f"for, the clients agreed to at least {terms.min_clients}"
            )
        by_name = {h.client: h for h in self.held}
        if unknown := sorted(set(clients) - set(by_name)):
            raise Refused(f"round {server_round}: no valid share of {', '.join(unknown)} is held")
        chosen = [by_name[name] for name in sorted(clients)]
        total = np.zeros(self.size, np.uint64)
        d = self.size - terms.extras
        for h in chosen:
            vector = h.vector(self.size)
            accumulate(total[:d], vector[:d], terms.weight(h.dealt))
            accumulate(total[d:], vector[d : self.size], 1)
        if zero := terms.zero_sharings[0]:
            seeds = _sum_seeds(chosen, server_round, zero.known_to(member))
            zero.add_to(total, member, seeds)
        return total, replace(self, closed=server_round, terms=None, size=0, held=())


def _sum_seeds(held: Sequence[Held], server_round: int, known: Sequence[int]) -> dict[int, bytes]:
    """Join the clients' seeds for one sum; one honest client makes the result secret."""
    chosen = hashlib.sha256(b"qsfl-flower/1/sum" + server_round.to_bytes(8, "big"))
    for h in held:
        chosen.update(h.digest)
    label = chosen.digest()
    return {i: hashlib.sha256(label + b"".join(h.seeds[i] for h in held)).digest() for i in known}


def _product_seeds(held: Held) -> dict[int, bytes]:
    """Keep the keys of the two uses of a client's seeds apart."""
    return {
        i: hashlib.sha256(b"qsfl-flower/1/products" + seed).digest()
        for i, seed in held.seeds.items()
    }
