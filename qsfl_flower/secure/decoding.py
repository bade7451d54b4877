r"""Opening values of which a few may be lies: shares are a Reed-Solomon code.

r values of a polynomial of degree k are determined by any k + 1 of them. With r >= k + 2 a lie
shows; with :math:`e \le (r - k - 1) / 2` lies there is only one polynomial that agrees with r - e
values, so the truth and the liars are both known.

References
----------
R. McEliece, D. Sarwate, "On sharing secrets and Reed-Solomon codes", 1981.
doi:10.1145/358746.358762.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from qsfl_flower.crypto.sources import random_bytes
from qsfl_flower.errors import QSFLError
from qsfl_flower.secure.field import SEED_SIZE, Elements, P, dot, expand
from qsfl_flower.secure.shamir import interpolate, lagrange


class Inconsistent(QSFLError):
    """The values lie on no polynomial of the degree, and too few are there to tell the lies."""


@dataclass(frozen=True, eq=False, repr=False)
class Opened:
    """What values of a polynomial have opened to.

    Parameters
    ----------
    vector : ndarray of uint64, shape (d,)
        The value at 0.
    liars : frozenset of int
        Points whose values were not on the polynomial; they are not used.
    """

    vector: Elements
    liars: frozenset[int]


def find_liars(values: Mapping[int, int], degree: int) -> frozenset[int]:
    """Return the points whose values are not on the polynomial that all others are on.

    Parameters
    ----------
    values : mapping of int to int
        Field elements by point, at least ``degree + 1``.
    degree : int
        Of the polynomial.

    Raises
    ------
    Inconsistent
        If there are too few values for the degree or for the number of lies.
    """
    points = sorted(values)
    spare = len(points) - degree - 1
    if spare < 0:
        raise Inconsistent(f"{len(points)} values of a polynomial of degree {degree}")
    # At most 16 points, and usually no lie: trying is simpler than decoding, and as certain.
    for count in range(spare // 2 + 1):
        for liars in itertools.combinations(points, count):
            rest = [point for point in points if point not in liars]
            if _on_one_polynomial({point: values[point] for point in rest}, degree):
                return frozenset(liars)
    raise Inconsistent(
        f"{len(points)} values lie on no polynomial of degree {degree}, also without any "
        f"{spare // 2} of them"
    )


def open_vectors(values: Mapping[int, Elements], degree: int) -> Opened:
    """Open vectors of values, coordinate by coordinate, and name whoever lied in any of them.

    A random linear combination of the coordinates, drawn after the values are there, tells the
    liars: a wrong vector passes with probability 1 / p. As many values as are needed are then
    interpolated.

    Parameters
    ----------
    values : mapping of int to ndarray of uint64, shape (d,)
        Canonical field elements by point.
    degree : int
        Of the polynomials.

    Raises
    ------
    Inconsistent
        As `find_liars`.
    """
    points = list(values)
    liars: frozenset[int] = frozenset()
    if len(points) != degree + 1:
        factors = np.empty_like(values[points[0]])
        expand(random_bytes(SEED_SIZE, "share check"), factors)
        liars = find_liars({point: dot(values[point], factors) for point in points}, degree)
    used = [point for point in points if point not in liars][: degree + 1]
    return Opened(interpolate({point: values[point] for point in used}), liars)


def _on_one_polynomial(values: Mapping[int, int], degree: int) -> bool:
    base = list(values)[: degree + 1]
    for point in list(values)[degree + 1 :]:
        factors = lagrange(base, point)
        expected = sum(f * values[b] for f, b in zip(factors, base, strict=True)) % P
        if expected != values[point]:
            return False
    return True
