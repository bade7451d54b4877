r"""A member's part: open shares, and check them together with the other members.

In a round a member answers twice. First it takes one sealed share per client and returns, per
client, the value

.. math:: v = \sum_c \rho_c s_c + b

of its share s and of the share b of the blind, with factors :math:`\rho` that a hash of the
client's signed header determines: neither the client, nor the server, nor a member chooses them.
If all shares lie on polynomials of degree t - 1, the members' values do so too; if not, they do
with probability 1 / p. Since the blind is uniform, the values tell nothing about the update. Where
the terms say so, the member also returns its shares of the pairwise squared distances, masked with
shares of zero. Second, it releases one sum: see `qsfl_flower.secure.desk`.

Who sees what: t - 1 members with the server see uniformly random values, and the sum.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from qsfl_flower.crypto.hybrid import HybridKey
from qsfl_flower.crypto.sealing import open_into, sealing_overhead
from qsfl_flower.errors import RejectedUpdate
from qsfl_flower.secure.dealing import Header, binding
from qsfl_flower.secure.desk import Held
from qsfl_flower.secure.field import (
    SEED_SIZE,
    Elements,
    P,
    dot,
    expand,
    gram,
    is_canonical,
    reduce_once,
)
from qsfl_flower.secure.krum import distances_of_gram, pairs
from qsfl_flower.secure.terms import Terms


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
    expands = member < terms.threshold
    length = SEED_SIZE // 8 if expands else header.size + 1
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
    if not expands and not is_canonical(share):
        raise RejectedUpdate("malformed", f"{header.client} has sent values outside the field")
    dealt_at, asked = header.round, header.instruction
    return Held(header.client, dealt_at, header.digest, asked, share, seeds, expands)


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


def _product_seeds(held: Held) -> dict[int, bytes]:
    """Keep the keys of the two uses of a client's seeds apart."""
    return {
        i: hashlib.sha256(b"qsfl-flower/1/products" + seed).digest()
        for i, seed in held.seeds.items()
    }
