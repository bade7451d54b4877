"""Buffers: the statistics and counters of normalization, masks.

They are not part of the flat vector: they are never clipped, noised, compressed or stepped. Where
a rule or a clip norm bounds what one client can do, their median bounds it here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics.blocks import blocks
from qsfl_flower.numerics.mean import weighted_sum
from qsfl_flower.numerics.vector import Vector

_WEIGHT_BITS = 53
_WORD_BITS = 62  # a product of this length plus a carry of the same length fits an uint64


def combine_carried(arrays: Sequence[NDArray[Any]], weights: Sequence[float]) -> NDArray[Any]:
    r"""Weighted mean, of integers rounded half to even; of booleans the weighted majority.

    .. math:: \mathrm{round}\Bigl(\sum_i w_i x_i \Big/ \sum_i w_i\Bigr)

    The mean of floats is that of `weighted_sum`, rounded once to their own type, and never outside
    of the range of the values. That of integers is exact before it is rounded, for every value of
    every integer type: the arithmetic is long division in words of 62 bits. Only weights that need
    more than 53 bits beside each other are rounded first, to multiples of 2**-52 of their sum.

    Parameters
    ----------
    arrays : sequence of ndarray
        One array per client, all of one shape and of one dtype; floats must be finite.
    weights : sequence of float
        Finite and not negative, with a sum above 0.

    Returns
    -------
    ndarray
        A new array of the same shape and dtype. A boolean tie is False.

    Raises
    ------
    ConfigError
        If arrays and weights do not fit together.
    """
    shares = _integers(weights) if len(arrays) == len(weights) else []
    if not shares:
        raise ConfigError(
            f"{len(arrays)} arrays and {len(weights)} weights cannot be combined; one weight per "
            "array, not all zero, is needed"
        )
    if arrays[0].dtype.kind == "f":
        total = math.fsum(weights)
        return _blockwise(arrays, lambda columns: _mean(columns, weights, total))
    return _blockwise(arrays, lambda columns: _rounded_mean(columns, shares))


def median_carried(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    r"""Median, of an even number the lower value in the middle; of booleans the majority.

    Fewer than half of the clients cannot move it out of the range of the others' values, whatever
    they send: among n values the result has rank :math:`\lfloor (n - 1) / 2 \rfloor`.

    Parameters
    ----------
    arrays : sequence of ndarray
        One array per client, at least one, all of one shape and of one dtype; floats must be
        finite.

    Returns
    -------
    ndarray
        A new array of the same shape and dtype. A boolean tie is False.

    Raises
    ------
    ConfigError
        If the arrays do not fit together.
    """
    rank = (len(arrays) - 1) // 2
    return _blockwise(arrays, lambda columns: np.partition(np.stack(columns), rank, axis=0)[rank])


def _blockwise(
    arrays: Sequence[NDArray[Any]], combine: Callable[[list[NDArray[Any]]], NDArray[Any]]
) -> NDArray[Any]:
    """Combine arrays of one kind, a block of coordinates at a time."""
    kinds = {(array.shape, array.dtype) for array in arrays}
    if len(kinds) != 1:
        raise ConfigError(
            f"{len(arrays)} arrays of {len(kinds)} kinds cannot be combined; one kind is needed"
        )
    ((shape, dtype),) = kinds
    if dtype.kind not in "iubf":
        raise ConfigError(f"{dtype} is not carried; allowed are integers, booleans and floats")
    flat = [np.ascontiguousarray(array).reshape(-1) for array in arrays]
    if dtype == np.bool_:
        flat = [array.view(np.uint8) for array in flat]
    out = np.empty(flat[0].size, flat[0].dtype)
    for start, stop in blocks(0, out.size):
        out[start:stop] = combine([array[start:stop] for array in flat])
    return out.astype(dtype).reshape(shape)


def _mean(columns: Sequence[NDArray[Any]], weights: Sequence[float], total: float) -> NDArray[Any]:
    """Return the mean of floats: identical values stay as they are, bit by bit."""
    mean = weighted_sum([Vector([column]) for column in columns], weights) / total
    least, largest = np.minimum.reduce(columns), np.maximum.reduce(columns)
    return np.clip(mean, least, largest).astype(columns[0].dtype)


def _integers(weights: Sequence[float]) -> list[int]:
    """Return integers in the proportion of the weights, with a sum below 2**53."""
    if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        return []
    ratios = [float(weight).as_integer_ratio() for weight in weights]
    denominator = max(ratio[1] for ratio in ratios)  # a power of two, as all of them
    shares = [numerator * (denominator // own) for numerator, own in ratios]
    divisor = math.gcd(*shares)
    shares = [share // divisor for share in shares]
    shift = sum(shares).bit_length() - (_WEIGHT_BITS - 1)
    if shift > 0:
        shares = [(share + (1 << shift - 1)) >> shift for share in shares]
    return shares


def _rounded_mean(columns: Sequence[NDArray[Any]], shares: Sequence[int]) -> NDArray[Any]:
    """Divide the weighted sum by the sum of the weights, limb by limb from the top."""
    least = min(int(column.min()) for column in columns)
    span = max(int(column.max()) for column in columns) - least
    offset = np.uint64(least % 2**64)
    excess = [_as_uint64(column) - offset for column in columns]  # exact: between 0 and span
    total = np.uint64(sum(shares))
    limb = _WORD_BITS - sum(shares).bit_length()
    mask, width = np.uint64((1 << limb) - 1), np.uint64(limb)
    quotient = np.zeros(columns[0].size, np.uint64)
    remainder = np.zeros_like(quotient)
    for shift in reversed(range(0, span.bit_length(), limb)):
        dividend = remainder << width
        for share, values in zip(shares, excess, strict=True):
            dividend += np.uint64(share) * ((values >> np.uint64(shift)) & mask)
        digit, remainder = np.divmod(dividend, total)
        quotient = (quotient << width) + digit
    quotient += offset
    twice = remainder * np.uint64(2)
    odd = (quotient & np.uint64(1)).astype(np.bool_)
    quotient += (twice > total) | ((twice == total) & odd)
    dtype = columns[0].dtype
    return (quotient.view(np.int64) if dtype.kind == "i" else quotient).astype(dtype)


def _as_uint64(values: NDArray[Any]) -> NDArray[np.uint64]:
    if values.dtype.kind == "i":
        return values.astype(np.int64).view(np.uint64)
    return values.astype(np.uint64)
