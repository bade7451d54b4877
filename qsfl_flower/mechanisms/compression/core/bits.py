"""Unsigned integers of a few bits each, packed without gaps, most significant bit first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_BLOCK = 1 << 16
"""Numbers per step, a multiple of 8: the bits of a block fill whole bytes."""


def packed_size(count: int, width: int) -> int:
    """Return how many bytes `count` numbers of `width` bits take."""
    return (count * width + 7) // 8


def pack(values: NDArray[Any], width: int) -> Bytes:
    """Pack numbers ``0 <= v < 2**width``, width 0 to 32; the last byte is filled up with zeros."""
    if width == 0:
        return np.empty(0, np.uint8)
    if width == 8:
        return values.astype(np.uint8)
    if width == 16:
        return values.astype(">u2").view(np.uint8)
    if 8 % width == 0:
        return _pack_within_bytes(values, width)
    parts = []
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK].astype(">u4").view(np.uint8).reshape(-1, 4)
        parts.append(np.packbits(np.unpackbits(block, axis=1)[:, 32 - width :]))
    return np.concatenate(parts) if parts else np.empty(0, np.uint8)


def unpack(data: Bytes, count: int, width: int) -> NDArray[np.uint32]:
    """Return the numbers that `pack` wrote; `data` has exactly ``packed_size(count, width)`` bytes.

    Bits that fill up the last byte are not looked at: see `padding_is_zero`.
    """
    if width == 0:
        return np.zeros(count, np.uint32)
    if width == 8:
        return data.astype(np.uint32)
    if width == 16:
        return data.view(">u2").astype(np.uint32)
    if 8 % width == 0:
        shifts = np.arange(8 - width, -1, -width, dtype=np.uint8)
        codes = (data[:, np.newaxis] >> shifts) & np.uint8((1 << width) - 1)
        return codes.reshape(-1)[:count].astype(np.uint32)
    out = np.empty(count, np.uint32)
    for start in range(0, count, _BLOCK):
        number = min(_BLOCK, count - start)
        first = start * width // 8
        bits = np.zeros((number, 32), np.uint8)
        bits[:, 32 - width :] = np.unpackbits(
            data[first : first + packed_size(number, width)], count=number * width
        ).reshape(number, width)
        out[start : start + number] = np.packbits(bits, axis=1).view(">u4")[:, 0]
    return out


def padding_is_zero(data: Bytes, count: int, width: int) -> bool:
    """Return whether the unused bits of the last byte are zero."""
    unused = -count * width % 8
    return not unused or not int(data[-1]) & ((1 << unused) - 1)


def _pack_within_bytes(values: NDArray[Any], width: int) -> Bytes:
    per_byte = 8 // width
    codes = np.zeros(-(-values.size // per_byte) * per_byte, np.uint8)
    codes[: values.size] = values
    out = np.zeros(codes.size // per_byte, np.uint8)
    for place in range(per_byte):
        out |= codes[place::per_byte] << np.uint8(8 - width * (place + 1))
    return out
