r"""Numbers in few bits: three float formats, and levels of 8, 4, 2 or 1 bit.

Level formats cut the values into buckets of `BUCKET`. A bucket has a step h, and each of its values
becomes a whole number of steps, :math:`Q(v) = h\,c` with :math:`|c| \le L`, :math:`L = 2^{b-1} - 1`
(one bit: :math:`c = \pm 1`). ``int`` formats take :math:`h = \max|v| / L`, ``qsgd`` formats
:math:`h = \lVert v \rVert_2 / L`. A step is rounded up to 8 significant bits, so that every ``h c``
is exact in float32 and costs 2 bytes a bucket.

Rounding is stochastic, so that :math:`E[Q(v)] = v`, or to nearest. Error feedback needs the latter:
it converges if no round makes the error larger than the input, which nearest rounding promises and
stochastic rounding to few levels does not. One bit to nearest is the sign times the mean magnitude.

References
----------
D. Alistarh, D. Grubic, J. Li, R. Tomioka, M. Vojnovic, "QSGD: communication-efficient SGD via
gradient quantization and encoding", 2017. arXiv:1610.02132.
W. Wen et al., "TernGrad: ternary gradients to reduce communication in distributed deep learning",
2017. arXiv:1705.07878 (``int2``).
S. P. Karimireddy, Q. Rebjock, S. Stich, M. Jaggi, "Error feedback fixes SignSGD and other gradient
compression schemes", 2019. arXiv:1901.09847 (``int1`` to nearest).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError, RejectedUpdate
from qsfl_flower.mechanisms.compression.core.bits import (
    Bytes,
    pack,
    packed_size,
    padding_is_zero,
    unpack,
)

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

BUCKET = 1024
"""Values that share a step: 2 bytes among 1,024 values are 0.016 bit each."""

_BLOCK = 64 * BUCKET
"""Values that are worked on at a time, to stay in the cache."""

_MAX = 1e38
"""Larger magnitudes are refused by the encoder: their step would leave float32."""

_TINY = 2.0**-100
"""Buckets of only smaller magnitudes are sent as zeros: their step would be denormal."""


@dataclass(frozen=True)
class Format:
    """How values are written: `bits` per value, levels if `steps`, of the L2 norm if `l2`."""

    code: int
    bits: int
    steps: bool = False
    l2: bool = False

    @property
    def dtype(self) -> str:
        """NumPy type of one code."""
        return "u1" if self.steps else {0: "<f4", 1: "<f2", 2: "<u2"}[self.code]

    @property
    def levels(self) -> int:
        """Largest level L."""
        return max(1, (1 << (self.bits - 1)) - 1)


FORMATS = {
    "float32": Format(0, 32),
    "float16": Format(1, 16),
    "bfloat16": Format(2, 16),
    "int8": Format(3, 8, steps=True),
    "int4": Format(4, 4, steps=True),
    "int2": Format(5, 2, steps=True),
    "int1": Format(6, 1, steps=True),
    "qsgd8": Format(7, 8, steps=True, l2=True),
    "qsgd4": Format(8, 4, steps=True, l2=True),
    "qsgd2": Format(9, 2, steps=True, l2=True),
}
"""The formats by name. Codes are part of the wire format and never change their meaning."""


def values_size(count: int, kind: Format) -> int:
    """Return how many bytes `count` values take."""
    steps = 2 * -(-count // BUCKET) if kind.steps else 0
    return steps + packed_size(count, kind.bits)


def encode_values(
    values: NDArray[Any], name: str, rng: np.random.Generator | None
) -> tuple[Bytes, Floats, Singles]:
    r"""Write values in a format.

    Parameters
    ----------
    values : ndarray of float32 or float64, shape (k,)
        Finite, magnitudes up to 1e38 (for float16 up to 65504).
    name : str
        One of `FORMATS`.
    rng : numpy Generator, optional
        Rounds levels stochastically; without it they are rounded to nearest.

    Returns
    -------
    data : ndarray of uint8
        Exactly `values_size` bytes.
    taken : ndarray of float64, shape (k,)
        What was encoded: the values, for level formats rounded to multiples of
        :math:`2^{-50}` times the largest of the bucket. That changes only values that have more
        bits than a difference of float32 numbers usually has, and makes ``taken - sent`` exact.
    sent : ndarray of float32, shape (k,)
        What the receiver will read. ``taken - sent`` has no rounding error in float64.

    Raises
    ------
    ConfigError
        If a value is not finite or too large for the format.
    """
    kind = FORMATS[name]
    taken = values.astype(np.float64)
    sent = np.empty(taken.size, np.float32)
    steps = np.empty(-(-taken.size // BUCKET) if kind.steps else 0, "<u2")
    codes = np.empty(taken.size, kind.dtype)
    limit = 65504.0 if name == "float16" else _MAX
    for start in range(0, taken.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        part = taken[block]
        if not np.abs(part).max() <= limit:
            raise ConfigError(f"a value is not finite or beyond {limit:g}, the largest for {name}")
        if kind.steps:
            sizes, levels = _levels(part, kind, rng)
            steps[start // BUCKET :][: sizes.size] = sizes.view(np.uint32) >> 16
            codes[block] = levels > 0 if kind.bits == 1 else levels + np.float32(kind.levels)
            sent[block] = _spread(sizes, part.size) * levels
        else:
            codes[block] = _float_codes(part.astype(np.float32), name)
            sent[block] = _from_float_codes(codes[block], name)
    packed = pack(codes, kind.bits) if kind.steps else codes.view(np.uint8)
    return np.concatenate((steps.view(np.uint8), packed)), taken, sent


def decode_values(data: Bytes, count: int, name: str) -> Singles:
    """Return the values that `encode_values` wrote; `data` has exactly `values_size` bytes.

    Raises
    ------
    RejectedUpdate
        ``bad-values``: a value is not finite, a step is negative, a code stands for nothing, or
        unused bits are set.
    """
    kind = FORMATS[name]
    if kind.steps:
        values = _from_levels(data, count, kind)
    else:
        values = _from_float_codes(data.view(kind.dtype), name)
    if not np.isfinite(values).all():
        raise _bad("a value is NaN or infinite")
    return values


def _float_codes(singles: Singles, name: str) -> NDArray[Any]:
    if name != "bfloat16":
        return singles
    bits = singles.view(np.uint32)  # to nearest, ties to even
    return (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)


def _from_float_codes(codes: NDArray[Any], name: str) -> Singles:
    if name != "bfloat16":
        return codes.astype(np.float32)
    return (codes.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _levels(
    values: Floats, kind: Format, rng: np.random.Generator | None
) -> tuple[Singles, Singles]:
    """Return the steps of the buckets and the levels; round `values` in place to what is taken."""
    rows = np.zeros((-(-values.size // BUCKET), BUCKET))
    rows.reshape(-1)[: values.size] = values
    magnitudes = np.abs(rows)
    largest = magnitudes.max(axis=1)
    # Adding and subtracting 1.5 * 2**e rounds to multiples of 2**(e - 52).
    anchor = np.ldexp(1.5, np.frexp(largest)[1] + 2)[:, np.newaxis]
    rows += anchor
    rows -= anchor
    values[:] = rows.reshape(-1)[: values.size]
    if kind.l2:
        scale = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    elif kind.bits == 1 and rng is None:
        counts = np.full(len(rows), BUCKET)
        counts[-1] -= rows.size - values.size
        scale = magnitudes.sum(axis=1) / counts
    else:
        scale = largest
    steps = _round_up(np.where(largest < _TINY, 0.0, scale) / kind.levels)
    with np.errstate(divide="ignore"):
        per_step = np.where(steps > 0, 1.0 / steps.astype(np.float64), 0.0)
    ratio = rows * per_step[:, np.newaxis]
    if kind.bits == 1:
        up = ratio >= 0 if rng is None else 0.5 * (ratio + 1) > rng.random(ratio.shape)
        levels = np.where(up, 1.0, -1.0)
    elif rng is None:
        levels = np.rint(ratio)
    else:
        levels = np.floor(ratio + rng.random(ratio.shape))
    levels = np.clip(levels, -kind.levels, kind.levels)
    return steps, levels.reshape(-1)[: values.size].astype(np.float32)


def _round_up(scale: Floats) -> Singles:
    """Round upwards to 8 significant bits: float32 numbers whose lower 16 bits are zero."""
    singles = scale.astype(np.float32)
    bits = singles.view(np.uint32) + (singles < scale)  # of a positive number: the next one up
    return ((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)


def _from_levels(data: Bytes, count: int, kind: Format) -> Singles:
    head = 2 * -(-count // BUCKET)
    raw = data[:head].view("<u2").astype(np.uint32)
    if raw.size and raw.max() > 0x7F7F:
        raise _bad("a step is negative, NaN or infinite")
    steps = (raw << np.uint32(16)).view(np.float32)
    if not padding_is_zero(data[head:], count, kind.bits):
        raise _bad("bits are set behind the last value")
    codes = unpack(data[head:], count, kind.bits)
    if kind.bits == 1:
        levels = codes.astype(np.float32) * 2 - 1
    else:
        if count and codes.max() > 2 * kind.levels:
            raise _bad(f"a code of {int(codes.max())}; the largest is {2 * kind.levels}")
        levels = codes.astype(np.float32) - np.float32(kind.levels)
    with np.errstate(over="ignore"):
        return _spread(steps, count) * levels


def _spread(steps: Singles, count: int) -> Singles:
    """Repeat every bucket's step for each of its values."""
    return np.repeat(steps, BUCKET)[:count]


def _bad(detail: str) -> RejectedUpdate:
    return RejectedUpdate("bad-values", detail)
