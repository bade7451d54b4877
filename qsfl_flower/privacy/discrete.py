r"""Exact samples of the discrete Gaussian distribution.

Only integer arithmetic and exactly uniform integers are used, so no rounding of a floating-point
number can show through (Mironov 2012), and the accountant's formulas hold for what is sampled.

References
----------
C. Canonne, G. Kamath, T. Steinke, "The discrete Gaussian for differential privacy", 2020.
arXiv:2004.00010.
C. Karney, "Sampling exactly from the normal distribution", 2016. arXiv:1303.6257.
I. Mironov, "On significance of the least significant bits for differential privacy", 2012.
doi:10.1145/2382196.2382264.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy.randomness import Keystream

Integers = NDArray[np.int64]

BLOCKS = 64
"""Blocks per standard deviation: a scale is a multiple of it."""

LARGEST_GAUSSIAN = 1 << 64
"""Largest scale of a discrete Gaussian."""

_PIECE = 1 << 16
"""Values sampled at a time, so that they stay in the cache."""

_LAST = 19 * BLOCKS
"""Blocks in all: beyond 19 standard deviations lies a probability below 2^-260."""

_PRECISION = 256
"""Bits of the cumulated probabilities of the blocks."""

_SLOT_BITS, _STEP_BITS = 16, 13
_UNDECIDED = 0xFFFF


def discrete_gaussian(scale: int, count: int, source: Keystream, drop: int = 0) -> Integers:
    r"""Return independent integers x with probability proportional to :math:`e^{-x^2/2\sigma^2}`.

    Parameters
    ----------
    scale : int
        Parameter sigma, a multiple of 64 up to 2^64. It is the standard deviation up to a relative
        error of 1e-1000.
    count : int
        How many, >= 0.
    source : Keystream
        Where the randomness comes from.
    drop : int
        Lowest bits that are cut off each value, 0 <= drop <= 58: it is divided by 2^drop and
        rounded down. sigma is then a multiple of 64 * 2^drop, and sigma / 2^drop at most 2^57.

    Returns
    -------
    ndarray of int64, shape (count,)

    Notes
    -----
    The whole numbers are cut into blocks of sigma / 64. With F in [0, 1] the place within block b,

    .. math:: e^{-x^2 / 2\sigma^2} = e^{-b^2 / 8192} \cdot e^{-\gamma}, \qquad
              \gamma = F (2 b + F) / 8192 .

    A sign, a block (with the first factor as weight) and a uniform place are sampled, and x is kept
    with the second factor as probability. The first k at which an event of probability gamma / k
    fails is odd with probability exp(-gamma) (Canonne et al., algorithm 1). Such an event is made
    of whole numbers: one below 8192 k is less than 2 b, or equal to 2 b and a chance of F succeeds;
    and another chance of F succeeds (after Karney). The first number settles 98 % of all values.
    Positive values have F in {0, .. w - 1} / w, negative ones in {1, .. w} / w, w = sigma / 64, so
    that zero comes once. All of this is exact but for the weights of the blocks, which are right to
    2^-240, and their end at 19 sigma: in total variation a value is within 2^-200 of its
    distribution.

    The time of a call depends on the noise, never on what the noise protects.
    """
    width = scale // BLOCKS
    good = 0 <= drop <= 58 and 1 <= width << 6 <= LARGEST_GAUSSIAN and scale >> drop <= 1 << 57
    if not good or scale % (BLOCKS << drop):
        raise ConfigError(
            f"scale {scale} with {drop} bits dropped: a discrete Gaussian has a scale that is a "
            f"multiple of {BLOCKS} * 2^drop, up to 2^64, and up to 2^57 after dropping; choose a "
            "finer or coarser grid"
        )
    out = np.empty(count, dtype=np.int64)
    done = 0
    while done < count:
        size = int(min(count - done, _PIECE) * 1.02) + 16
        words = source.words(size)
        places = source.below(width, size)
        blocks = _blocks(words, source)
        negative = ((words >> np.uint64(64 - _SLOT_BITS - 1)) & np.uint64(1)).view(np.int64)
        first = (words & np.uint64((1 << _STEP_BITS) - 1)).view(np.int64)
        values = (blocks * (width >> drop) + (places >> drop)) ^ -negative
        unsettled = np.flatnonzero(first <= 2 * blocks)
        kept = _kept(
            first[unsettled],
            blocks[unsettled],
            places[unsettled] + negative[unsettled],
            width,
            source,
        )
        values = np.delete(values, unsettled[~kept])[: count - done]
        out[done : done + values.size] = values
        done += values.size
    return out


@dataclass(frozen=True)
class _Table:
    """Where the blocks end, as parts of all probability.

    `ends[b]` times 2^-256 is the probability of the blocks 0 to b, `tops` are their first 64 bits,
    and `slots` is the block of each number that begins with these 16 bits, if it is the same for
    all.
    """

    ends: list[int]
    tops: NDArray[np.uint64]
    slots: NDArray[np.uint16]


@lru_cache(maxsize=1)
def _table() -> _Table:
    """Cumulate exp(-b^2 / 8192) in fixed point; every step is off by a few units of 2^-320."""
    one = 1 << (_PRECISION + 64)
    base, term = one, one
    for k in range(1, 60):  # exp(-1 / 8192): term k is below 2^-13k
        term = -term // (2 * BLOCKS * BLOCKS * k)
        base += term
    square = base * base // one
    weight, factor, sums = one, base, [0]
    for _ in range(_LAST):
        sums.append(sums[-1] + weight)
        weight, factor = weight * factor // one, factor * square // one
    ends = [(part << _PRECISION) // sums[-1] for part in sums[1:-1]]
    tops = np.array([end >> (_PRECISION - 64) for end in ends], dtype=np.uint64)
    low = np.arange(1 << _SLOT_BITS, dtype=np.uint64) << np.uint64(64 - _SLOT_BITS)
    high = low | np.uint64((1 << (64 - _SLOT_BITS)) - 1)
    before, after = np.searchsorted(tops, low, "left"), np.searchsorted(tops, high, "right")
    return _Table(ends, tops, np.where(before == after, after, _UNDECIDED).astype(np.uint16))


def _blocks(words: NDArray[np.uint64], source: Keystream) -> Integers:
    """Return the block that each word's first 16 bits begin to choose."""
    table = _table()
    slots = words >> np.uint64(64 - _SLOT_BITS)
    blocks = table.slots[slots.view(np.int64)].astype(np.int64)
    if (open_ := np.flatnonzero(blocks == _UNDECIDED)).size:
        more = source.words(open_.size)
        keys = slots[open_] << np.uint64(64 - _SLOT_BITS) | more >> np.uint64(_SLOT_BITS)
        found = np.searchsorted(table.tops, keys, "right")
        for tie in np.flatnonzero(found != np.searchsorted(table.tops, keys, "left")):
            exact = int(keys[tie])
            for word in source.words(_PRECISION // 64 - 1):
                exact = exact << 64 | int(word)
            found[tie] = bisect_right(table.ends, exact)
        blocks[open_] = found
    return blocks


def _kept(
    first: Integers, blocks: Integers, places: Integers, width: int, source: Keystream
) -> NDArray[np.bool_]:
    """Return true with probability exp(-gamma), given the first n; F is `places` / `width`."""
    odd = np.empty(first.size, dtype=bool)
    active, n, k = np.arange(first.size), first, 1
    while active.size:
        block, place = 2 * blocks[active], places[active]
        happens = (n < block) | ((n == block) & (source.below(width, n.size) < place))
        happens &= source.below(width, n.size) < place
        odd[active[~happens]] = k % 2 == 1
        active, k = active[happens], k + 1
        n = source.below(2 * BLOCKS * BLOCKS * k, active.size)
    return odd
