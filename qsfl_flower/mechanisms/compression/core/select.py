"""Which coordinates are sent. The same input always gives the same coordinates, on every machine.

Order is by magnitude, and by index where magnitudes are equal: ``(-|v|, index)``. Sorting routines
break ties as they please; `torch.topk` of ten equal values returns any three of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics.blocks import blocks

Indices = NDArray[np.int64]

_SAMPLE = 61
"""One key in so many is looked at first; a prime, to be out of step with the shapes of layers."""

NOT_FINITE = "a value is NaN or infinite; only finite values can be compressed"


def keep_count(size: int, ratio: float) -> int:
    """Return how many of `size` coordinates a ratio keeps: ``max(1, floor(size * ratio))``."""
    return min(size, max(1, int(size * ratio * (1 + 1e-12))))


def top_k(values: NDArray[Any], count: int) -> Indices:
    """Return the increasing indices of the `count` first coordinates in order ``(-|v|, index)``.

    Magnitudes are compared in float32 as unsigned integers, which keep their order, and only those
    that are equal to the last one kept are compared in full precision.

    Parameters
    ----------
    values : ndarray of float32 or float64, shape (d,)
        Finite.
    count : int
        0 <= count <= d.

    Raises
    ------
    ConfigError
        If some value is NaN or infinite, or `count` does not fit.
    """
    if not 0 <= count <= values.size:
        raise ConfigError(f"{count} of {values.size} coordinates cannot be kept")
    if count == 0:
        return np.empty(0, np.int64)
    if count == values.size:
        chosen = np.arange(count)
    else:
        keys = _magnitude_keys(values)
        last = _largest(keys, count)
        chosen = np.flatnonzero(keys > last)
        ties = np.flatnonzero(keys == last)
        if (missing := count - chosen.size) < ties.size:
            order = np.argsort(-np.abs(values[ties]), kind="stable")
            ties = ties[order[:missing]]
        chosen = np.concatenate((chosen, ties))
        chosen.sort()
    # Values that are not finite have the largest keys: if there are any, some were chosen.
    if not np.isfinite(values[chosen]).all():
        raise ConfigError(NOT_FINITE)
    return chosen


def _magnitude_keys(values: NDArray[Any]) -> NDArray[np.uint32]:
    singles = np.empty(values.size, np.float32)
    with np.errstate(over="ignore"):  # what is beyond float32 ties, and is told apart later
        for lo, hi in blocks(0, values.size):
            singles[lo:hi] = values[lo:hi]
    keys = singles.view(np.uint32)
    keys &= np.uint32(0x7FFFFFFF)  # the sign
    return keys


def _largest(keys: NDArray[np.uint32], count: int) -> int:
    """Return the key at place `count` in descending order.

    A sample guesses a little too low a key; if enough keys reach it, only these are partitioned.
    """
    sample = keys[::_SAMPLE]
    place = sample.size - int(1.2 * count / _SAMPLE) - 64
    if place > 0:
        candidates = keys[keys >= np.partition(sample, place)[place]]
        if candidates.size >= count:
            keys = candidates
    return int(np.partition(keys, keys.size - count)[keys.size - count])


def above(values: NDArray[Any], threshold: float) -> Indices:
    """Return the increasing indices of the coordinates with ``|v| >= threshold > 0``."""
    if not np.isfinite(values).all():
        raise ConfigError(NOT_FINITE)
    return np.flatnonzero(np.abs(values) >= threshold)


def random_k(size: int, count: int, seed: int) -> Indices:
    """Return a uniformly random set of `count` coordinates, increasing, from a seed of 64 bits.

    The set is the first `count` different numbers of a stream of uniform ones: by symmetry every
    set of this size is equally likely (up to ``size / 2**53``). Only the raw bits of Philox are
    used, which NumPy promises never to change, so both ends find the same set.

    Parameters
    ----------
    size, count : int
        ``0 <= count <= size < 2**32``.
    seed : int
        ``0 <= seed < 2**64``.
    """
    if not 0 <= count <= size:
        raise ConfigError(f"{count} of {size} coordinates cannot be kept")
    if 2 * count > size:
        kept = np.ones(size, bool)
        kept[random_k(size, size - count, seed)] = False
        return np.flatnonzero(kept)
    stream = np.random.Philox(key=seed)
    drawn = np.empty(0, np.int64)
    while True:
        raw = stream.random_raw(count + count // 2 + 16) >> np.uint64(11)
        fresh = (raw.astype(np.float64) * (size * 2.0**-53)).astype(np.int64)
        drawn = np.concatenate((drawn, np.minimum(fresh, max(0, size - 1))))
        different, first = np.unique(drawn, return_index=True)
        if different.size >= count:
            in_order = np.argsort(first)[:count]
            return np.sort(different[in_order])
