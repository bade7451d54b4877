r"""Shares of zero that the committee's members make up without talking to each other.

For every set T of t - 1 members, all members outside T know one secret seed. Member j adds up

.. math:: z(j) = \sum_{T \not\ni j} \sum_{k=1}^{k_{max}} \psi(r_T, k) f_{T,k}(j), \qquad
          f_{T,k}(x) = x^k \prod_{l \in T} (x - l)

with the pseudo-random function :math:`\psi`. These are the values of one polynomial of degree
:math:`t - 1 + k_{max}` that is zero at 0; and to any t - 1 colluding members T it is otherwise
uniformly random, through the seed that they do not know.

Added to shares of a product (degree 2t - 2) they leave nothing in the opened polynomial but its
value at 0. Added to shares of a sum they raise its degree, and so the number of members that must
answer alike before anything opens.

References
----------
R. Cramer, I. Damgard, Y. Ishai, "Share conversion, pseudorandom secret-sharing and applications to
secure computation", 2005. doi:10.1007/978-3-540-30576-7_19.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.secure.field import (
    Elements,
    P,
    accumulate,
    add_rows,
    expand,
    multiply,
    reduce_once,
)
from qsfl_flower.secure.shamir import Sharing

MAX_SETS = 256
"""Seeds per client, and terms per mask: committees of up to 10 members have at most 252."""
_P = np.uint64(P)


@dataclass(frozen=True)
class ZeroSharing:
    """The sets and polynomials of one committee.

    Parameters
    ----------
    sharing : Sharing
        m and t.
    degree : int
        Of the shares of zero, in [t, m - 1].
    """

    sharing: Sharing
    degree: int

    def __post_init__(self) -> None:
        m, t = self.sharing.members, self.sharing.threshold
        if not t <= self.degree < m:
            raise ConfigError(
                f"zero sharing of degree {self.degree}: allowed are {t} to {m - 1} in a committee "
                f"of {m} with threshold {t}"
            )
        if math.comb(m, t - 1) > MAX_SETS:
            raise ConfigError(
                f"a committee of {m} with threshold {t} needs {math.comb(m, t - 1)} seeds per "
                f"client for shares of zero, at most {MAX_SETS} are allowed: take fewer members"
            )

    @cached_property
    def sets(self) -> tuple[tuple[int, ...], ...]:
        """All sets of t - 1 members, in lexicographic order."""
        members = range(1, self.sharing.members + 1)
        return tuple(itertools.combinations(members, self.sharing.threshold - 1))

    def known_to(self, member: int) -> tuple[int, ...]:
        """Return the indices of the sets whose seeds a member knows: those without it."""
        return tuple(i for i, chosen in enumerate(self.sets) if member not in chosen)

    def factors(self, member: int, index: int) -> list[int]:
        """Return ``f_{T,k}(member)`` for k = 1 .. of the set of this index."""
        base = math.prod(member - other for other in self.sets[index])
        orders = range(1, self.degree - self.sharing.threshold + 2)
        return [base * member**k % P for k in orders]

    def add_to(self, total: Elements, member: int, seeds: Mapping[int, bytes]) -> None:
        """Add a member's shares of zero to a vector, in place.

        Parameters
        ----------
        total : ndarray of uint64, shape (d,)
            The vector.
        member : int
            In 1 .. m.
        seeds : mapping of int to bytes
            By index of the set, for all that `known_to` names. One set of seeds masks one vector.
        """
        stream = np.empty_like(total)
        for index in self.known_to(member):
            for k, factor in enumerate(self.factors(member, index)):
                expand(seeds[index], stream, k)
                accumulate(total, stream, factor)

    def labelled(
        self, member: int, seeds: Mapping[int, bytes], labels: NDArray[np.uint8]
    ) -> Elements:
        """Return one share of zero per label.

        Parameters
        ----------
        member : int
            In 1 .. m.
        seeds : mapping of int to bytes
            By index of the set.
        labels : ndarray of uint8, shape (n, 15)
            Public names of what is masked. A label masks one value under one set of seeds.

        Returns
        -------
        ndarray of uint64, shape (n,)
        """
        known = self.known_to(member)
        factors = np.array([self.factors(member, index) for index in known], np.uint64)
        # Distinct blocks under a key that serves nothing else: a pseudo-random permutation.
        blocks = np.empty((factors.shape[1], len(labels), 16), np.uint8)
        blocks[:, :, :15] = labels
        blocks[:, :, 15] = np.arange(factors.shape[1])[:, None]
        plain = blocks.tobytes()
        words = b"".join(
            Cipher(algorithms.AES(seeds[index]), modes.ECB()).encryptor().update(plain)
            for index in known
        )
        # Each element is 0 with probability 2^-60, else uniform.
        elements = np.frombuffer(words, "<u8")[::2].reshape(factors.size, len(labels)) & _P
        reduce_once(elements)
        return add_rows(multiply(elements, factors.reshape(-1, 1)))
