"""Floats as field elements, with room for the sum that is checked before anything is added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.crypto.sources import random_bytes
from qsfl_flower.errors import ConfigError, RejectedUpdate
from qsfl_flower.secure.field import BLOCK, SEED_SIZE, Elements, P, each_block, expand

Rounding = Literal["nearest", "stochastic"]
_P = np.uint64(P)


@dataclass(frozen=True)
class FixedPoint:
    r"""A fixed-point format: x is sent as the integer nearest to :math:`2^{bits} x`, modulo p.

    Sums of `terms` encoded values are exact, whatever the order, because they cannot wrap: the
    construction requires ``terms * bound * 2^bits <= (p - 1) / 2``.

    Parameters
    ----------
    bits : int
        Fractional bits, in [0, 52]; the resolution is 2^-bits.
    bound : float
        Largest magnitude of a value, > 0; the clip norm is one for every coordinate.
    terms : int
        Most values that are ever added up: clients times the largest integer weight, >= 1.
    rounding : {"nearest", "stochastic"}
        Nearest is off by at most half a unit; stochastic by less than one, but right on average.

    Raises
    ------
    ConfigError
        If a parameter is out of range or the field has no room for the sum.
    """

    bits: int = 24
    bound: float = 1.0
    terms: int = 1
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        if not 0 <= self.bits <= 52:
            raise ConfigError(f"fixed point: {self.bits} fractional bits; allowed are 0 to 52")
        if not 0 < self.bound < np.inf or self.terms < 1:
            raise ConfigError(
                f"fixed point: bound {self.bound} must be finite and greater than 0, "
                f"terms {self.terms} at least 1"
            )
        if self.rounding not in ("nearest", "stochastic"):
            raise ConfigError(
                f"fixed point: rounding {self.rounding!r} must be nearest or stochastic"
            )
        if self.terms * self.limit > P // 2:
            raise ConfigError(
                f"fixed point: {self.terms} terms of up to {self.bound:g} with {self.bits} bits "
                f"need {(2 * self.terms * self.limit).bit_length()} bits, the field has 61: lower "
                "the fractional bits, the bound (clip norm) or the number of clients"
            )

    @property
    def limit(self) -> int:
        """Largest magnitude of an encoded value, as an integer."""
        return int(np.ceil(np.ldexp(self.bound, self.bits)))

    def encode(
        self,
        values: NDArray[np.float64],
        out: Elements | None = None,
        *,
        seed: bytes | None = None,
    ) -> Elements:
        """Encode a vector.

        Parameters
        ----------
        values : ndarray of float64, shape (d,)
            Finite and at most `bound` in magnitude.
        out : ndarray of uint64, shape (d,), optional
            Where to put the elements.
        seed : bytes, optional
            Of the stochastic rounding; by default drawn from the operating system.

        Raises
        ------
        RejectedUpdate
            ``not-finite`` or ``out-of-range``; nothing ever wraps or saturates.
        """
        out = np.empty(values.size, np.uint64) if out is None else out
        integers = out.view(np.int64)
        if self.rounding == "stochastic":
            expand(random_bytes(SEED_SIZE, "rounding") if seed is None else seed, out)
        scaled = np.empty(min(BLOCK, values.size))

        def work(lo: int, hi: int) -> None:
            part = scaled[: hi - lo]
            np.ldexp(values[lo:hi], self.bits, out=part)
            lowest, highest = part.min(), part.max()
            if not (np.isfinite(lowest) and np.isfinite(highest)):
                raise RejectedUpdate("not-finite", "a value to be encoded is NaN or infinite")
            if max(-lowest, highest) > self.limit:
                raise RejectedUpdate(
                    "out-of-range",
                    f"a value to be encoded is beyond {self.bound:g}: clip to less, or raise the "
                    "bound",
                )
            if self.rounding == "stochastic":
                part += np.ldexp((out[lo:hi] >> np.uint64(8)).astype(np.float64), -53)
                np.floor(part, out=part)
                np.minimum(part, self.limit, out=part)
            else:
                np.rint(part, out=part)
            integers[lo:hi] = part
            integers[lo:hi] += (integers[lo:hi] >> 63) & P

        each_block(values.size, work)
        return out

    def decode(self, elements: Elements) -> NDArray[np.float64]:
        """Return the values of a sum of at most `terms` encoded vectors, correctly rounded.

        Raises
        ------
        RejectedUpdate
            ``out-of-range`` if a coordinate cannot be such a sum. A summand that is not in range
            turns up here, unless it stays within what honest ones may reach together.
        """
        out = np.empty(elements.size)
        room = self.terms * self.limit

        def work(lo: int, hi: int) -> None:
            integers = signed(elements[lo:hi])
            if integers.size and max(int(integers.max()), -int(integers.min())) > room:
                raise RejectedUpdate(
                    "out-of-range",
                    f"a coordinate of the sum is beyond {self.terms} x {self.bound:g}: a summand "
                    "was not within its bound",
                )
            np.ldexp(integers.astype(np.float64), -self.bits, out=out[lo:hi])

        each_block(elements.size, work)
        return out


def signed(elements: Elements) -> NDArray[np.int64]:
    """Return the representatives of least magnitude, in [-(p - 1) / 2, (p - 1) / 2]."""
    integers = elements.astype(np.int64)
    integers -= np.where(elements > _P // np.uint64(2), np.int64(P), np.int64(0))
    return integers
