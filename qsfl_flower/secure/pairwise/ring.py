"""Floats as integers modulo 2^32: sums that are exact, because they cannot wrap."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError, RejectedUpdate
from qsfl_flower.secure.pairwise.masks import BLOCK, Ring

MAX_TERMS = 1 << 16
LIMBS = 4
_LIMB_BITS = 16
_MIN_BITS = 8


@dataclass(frozen=True)
class RingCode:
    r"""A fixed-point format modulo 2^32: x is sent as the integer nearest to :math:`2^f x`.

    f is the largest number with ``terms * ceil(bound * 2^f) < 2^31``, so no sum of `terms` values
    can wrap, and the resolution is the finest that 4 bytes per coordinate allow.

    Parameters
    ----------
    bound : float
        Largest magnitude of a value, > 0.
    terms : int
        Most values that are ever added up, in [1, 2^16].

    Raises
    ------
    ConfigError
        If a parameter is out of range, or fewer than 8 bits would be left of each value.
    """

    bound: float
    terms: int

    def __post_init__(self) -> None:
        if not (0 < self.bound < math.inf and 1 <= self.terms <= MAX_TERMS):
            raise ConfigError(
                f"ring: bound {self.bound!r} must be finite and greater than 0, terms "
                f"{self.terms!r} in [1, {MAX_TERMS}]"
            )
        if self.limit < 1 << _MIN_BITS:
            raise ConfigError(
                f"ring: {self.terms} terms of up to {self.bound:g} leave fewer than {_MIN_BITS} "
                "bits of each value"
            )

    @property
    def bits(self) -> int:
        """The number f of fractional bits; the resolution is 2^-f, and f may be negative."""
        room = (1 << 31) // self.terms - 1
        return math.floor(math.log2(room / self.bound))

    @property
    def limit(self) -> int:
        """Largest magnitude of an encoded value, as an integer."""
        return math.ceil(math.ldexp(self.bound, self.bits))

    def encode(self, values: NDArray[np.float64], out: Ring) -> None:
        """Write the integers of `values` (d,) to `out` (d,).

        Raises
        ------
        RejectedUpdate
            ``not-finite`` or ``out-of-range``; nothing is cut off or wraps.
        """
        scaled = np.empty(min(BLOCK, values.size))
        integers = out.view(np.int32)
        limit, scale = self.limit, math.ldexp(1.0, self.bits)
        for lo in range(0, values.size, BLOCK):
            part = scaled[: min(BLOCK, values.size - lo)]
            np.multiply(values[lo : lo + BLOCK], scale, out=part)
            np.rint(part, out=part)
            lowest, highest = float(part.min()), float(part.max())
            if not (math.isfinite(lowest) and math.isfinite(highest)):
                raise RejectedUpdate("not-finite", "a value to be masked is NaN or infinite")
            if max(-lowest, highest) > limit:
                raise RejectedUpdate(
                    "out-of-range",
                    f"a value to be masked is beyond {self.bound:g}: clip the update, or raise the "
                    "bound",
                )
            integers[lo : lo + BLOCK] = part

    def decode(self, total: Ring, terms: int) -> NDArray[np.float64]:
        """Return the exact sum of `terms` values.

        Raises
        ------
        RejectedUpdate
            ``out-of-range`` if a coordinate cannot be the sum of so many values.
        """
        values = total.view(np.int32).astype(np.float64)
        if values.size and max(-values.min(), values.max()) > terms * self.limit:
            raise RejectedUpdate(
                "out-of-range",
                f"a coordinate of the sum is beyond {terms} x {self.bound:g}: some client was not "
                "within its bound",
            )
        values *= math.ldexp(1.0, -self.bits)
        return values


def encode_scalars(values: NDArray[np.int64], out: Ring) -> None:
    """Write signed 64-bit integers as `LIMBS` words of 16 bits each, so that up to 2^16 add up."""
    for limb in range(LIMBS):
        out[limb::LIMBS] = (values >> (_LIMB_BITS * limb)) & ((1 << _LIMB_BITS) - 1)


def decode_scalars(total: Ring) -> NDArray[np.int64]:
    """Return the sums, modulo 2^64 and as signed integers, of what `encode_scalars` wrote."""
    sums = np.zeros(total.size // LIMBS, np.uint64)
    for limb in range(LIMBS):
        sums += total[limb::LIMBS].astype(np.uint64) << np.uint64(_LIMB_BITS * limb)
    return sums.view(np.int64)
