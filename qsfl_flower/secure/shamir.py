r"""Shamir's secret sharing of whole vectors, and the algebra on the shares.

A dealer hides a vector x in a random polynomial of degree t - 1 per coordinate,
:math:`f(0) = x`, and gives member j the value f(j). Any t values determine f; t - 1 of them are
uniformly random whatever x is. The t - 1 random coefficients are the same thing as t - 1 free
values, so members 1 .. t-1 get a 32-byte seed of theirs and only the others get a vector.

References
----------
A. Shamir, "How to share a secret", 1979. doi:10.1145/359168.359176.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qsfl_flower.crypto.sources import random_bytes
from qsfl_flower.errors import ConfigError
from qsfl_flower.secure.field import (
    BLOCK,
    SEED_SIZE,
    Elements,
    P,
    combine,
    expand,
    reduce_once,
)

MAX_MEMBERS = 16
_P = np.uint64(P)


@dataclass(frozen=True)
class Sharing:
    """How many members hold shares, and how many of them can open a secret.

    Parameters
    ----------
    members : int
        m, in [2, 16]. They hold the values at the points 1 .. m.
    threshold : int
        t, in [2, m].
    """

    members: int = 5
    threshold: int = 3

    def __post_init__(self) -> None:
        if not 2 <= self.members <= MAX_MEMBERS:
            raise ConfigError(
                f"a committee of {self.members}: allowed are 2 to {MAX_MEMBERS} members"
            )
        if not 2 <= self.threshold <= self.members:
            raise ConfigError(
                f"threshold {self.threshold} with {self.members} members: it must be at least 2 "
                "and at most their number"
            )


@dataclass(frozen=True, repr=False)
class Shares:
    """The shares of one vector: seeds for the first members, vectors for the others.

    Parameters
    ----------
    seeds : tuple of bytes
        Of members 1 .. t-1: `expand` gives the share.
    vectors : ndarray of uint64, shape (m - t + 1, d)
        Of members t .. m.
    """

    seeds: tuple[bytes, ...]
    vectors: Elements

    def of(self, member: int) -> Elements:
        """Return the share of member `member` in 1 .. m as a vector."""
        if member > len(self.seeds):
            vector: Elements = self.vectors[member - len(self.seeds) - 1]
            return vector
        out = np.empty(self.vectors.shape[1], np.uint64)
        expand(self.seeds[member - 1], out)
        return out


def share(
    secret: Elements,
    sharing: Sharing,
    seeds: Sequence[bytes] | None = None,
    out: Elements | None = None,
) -> Shares:
    """Share a vector.

    The polynomial runs through the secret at 0 and the expanded seeds at 1 .. t-1; its values at
    t .. m follow by backward differences: t - 1 additions each, no multiplication.

    Parameters
    ----------
    secret : ndarray of uint64, shape (d,)
        Field elements.
    sharing : Sharing
        The committee's m and t.
    seeds : sequence of bytes, optional
        The t - 1 seeds; by default drawn from the operating system. To be used once.
    out : ndarray of uint64, shape (m - t + 1, d), optional
        Where to put the vectors.

    Returns
    -------
    Shares
        t - 1 seeds and m - t + 1 vectors.
    """
    m, t = sharing.members, sharing.threshold
    if seeds is None:
        seeds = [random_bytes(SEED_SIZE, "shares") for _ in range(t - 1)]
    vectors = np.empty((m - t + 1, secret.size), np.uint64) if out is None else out
    # A whole stream is expanded into a row that is overwritten only after it has been read.
    rows = [vectors[i] if i < len(vectors) else np.empty_like(secret) for i in range(t - 1)]
    for seed, row in zip(seeds, rows, strict=True):
        expand(seed, row)
    for lo in range(0, secret.size, BLOCK):
        block = slice(lo, lo + BLOCK)
        differences = [secret[block].copy(), *(row[block].copy() for row in rows)]
        for order in range(1, t):
            for i in range(t - order):
                _subtract(differences[i], differences[i + 1])
        # differences[i] is now the backward difference of order t - 1 - i at the point t - 1.
        for j in range(m - t + 1):
            for i in range(1, t):
                differences[i] += differences[i - 1]
                reduce_once(differences[i])
            vectors[j, block] = differences[-1]
    return Shares(tuple(seeds), vectors)


def lagrange(points: Sequence[int], at: int = 0) -> list[int]:
    """Return the factors that turn values at distinct `points` into the value at `at`, modulo p."""
    if len({point % P for point in points}) != len(points):
        raise ConfigError(f"interpolation points {list(points)} are not distinct")
    factors = []
    for i in points:
        above = below = 1
        for j in points:
            if j != i:
                above = above * (at - j) % P
                below = below * (i - j) % P
        factors.append(above * pow(below, -1, P) % P)
    return factors


def interpolate(values: Mapping[int, Elements], at: int = 0) -> Elements:
    """Return the value at `at` of the polynomials of degree ``len(values) - 1`` through `values`.

    Parameters
    ----------
    values : mapping of int to ndarray of uint64
        Arrays of one shape by point; as many as the degree plus one.
    at : int
        Where to evaluate; 0 opens the secret.
    """
    return combine(lagrange(list(values), at), list(values.values()))


def _subtract(a: Elements, b: Elements) -> None:
    """Set `a` to ``b - a``."""
    np.subtract(b, a, out=a)
    a += _P
    reduce_once(a)
