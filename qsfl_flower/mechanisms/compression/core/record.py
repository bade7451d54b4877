"""The binary form of a compressed vector: versioned, and decoded strictly.

====== ===== ==========================================================================
offset bytes field (integers big-endian; float values and steps in the body little-endian)
====== ===== ==========================================================================
0      4     ``QSC`` and the version, 1
4      1     support: 0 all coordinates, 1 indices follow, 2 random from the seed
5      1     code of the value format
6      1     Rice parameter, or 255 for plain indices; 0 without indices
7      1     0 body as it is, 1 body compressed by zstandard
8      4     number of coordinates d
12     4     number of values k
16     4     length of the body before zstandard
20     8     seed, only for support 2
then         body: the indices, then the values
====== ===== ==========================================================================

Everything that memory is taken for is bounded beforehand by the numbers d and "at most k" that the
receiver knows, and by the length of what arrived.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError, RejectedUpdate
from qsfl_flower.mechanisms.compression.core.indices import (
    decode_indices,
    encode_indices,
    most_bytes,
)
from qsfl_flower.mechanisms.compression.core.select import Indices, random_k
from qsfl_flower.mechanisms.compression.core.values import (
    FORMATS,
    Floats,
    Singles,
    decode_values,
    encode_values,
    values_size,
)
from qsfl_flower.numerics.sparse import SparseVector
from qsfl_flower.numerics.vector import Vector

MAGIC = b"QSC\x01"
MAX_SIZE = (1 << 32) - 1
"""Most coordinates of one record."""

_HEAD = struct.Struct(">4sBBBBIII")
_SEED_BYTES = 8
_NAMES = {kind.code: name for name, kind in FORMATS.items()}


class Support(IntEnum):
    """Which coordinates the values of a record belong to."""

    ALL = 0
    INDICES = 1
    SEED = 2


def encode_record(
    values: NDArray[Any],
    size: int,
    support: Indices | int | None,
    *,
    values_format: str,
    zstd: bool = False,
    rng: np.random.Generator | None = None,
) -> tuple[bytes, Floats, Singles]:
    """Write a vector of `size` coordinates of which only `values` are sent.

    Parameters
    ----------
    values : ndarray of float32 or float64, shape (k,)
        The values, in the order of their indices.
    size : int
        Number of coordinates d, at most 2**32 - 1.
    support : ndarray of integer, int or None
        The indices of the values, increasing; or the seed of `random_k`; or None for all.
    values_format : str
        One of `FORMATS`.
    zstd : bool
        Try zstandard on the body, and use it where that is shorter.
    rng : numpy Generator, optional
        See `encode_values`.

    Returns
    -------
    record : bytes
        The binary form.
    taken, sent : ndarray, shape (k,)
        See `encode_values`.
    """
    if size > MAX_SIZE:
        raise ConfigError(f"a vector of {size} coordinates; one record holds at most {MAX_SIZE}")
    data, taken, sent = encode_values(values, values_format, rng)
    kind, rice, indices, seed = Support.ALL, 0, np.empty(0, np.uint8), b""
    if isinstance(support, int):
        kind, seed = Support.SEED, support.to_bytes(_SEED_BYTES)
    elif support is not None:
        kind = Support.INDICES
        rice, indices = encode_indices(support, size)
    body: bytes = np.concatenate((indices, data)).tobytes()
    length, squeezed = len(body), b""
    if zstd:
        squeezed = zstandard.ZstdCompressor(level=3).compress(body)
    packed = 0 < len(squeezed) < length
    head = _HEAD.pack(
        MAGIC, kind, FORMATS[values_format].code, rice, packed, size, taken.size, length
    )
    return b"".join((head, seed, squeezed if packed else body)), taken, sent


def decode_record(
    record: bytes, size: int, most: int | None = None, values_format: str | None = None
) -> Vector:
    """Read a record.

    Parameters
    ----------
    record : bytes
        What arrived.
    size : int
        Number of coordinates that it must have.
    most : int, optional
        Most values that are accepted; by default `size`.
    values_format : str, optional
        The only format that is accepted; by default any.

    Returns
    -------
    Vector
        A `SparseVector` of float32, or a dense vector if the record has all coordinates.

    Raises
    ------
    RejectedUpdate
        ``bad-record``: not a record of this version, of another size or format, with too many
        values, or not of the length that its numbers demand; ``bad-indices`` and ``bad-values``:
        see `decode_indices` and `decode_values`.
    """
    start = _HEAD.size
    if len(record) < start:
        raise _bad(f"{len(record)} bytes are too few for a record")
    magic, kind, code, rice, packed, claimed, count, length = _HEAD.unpack_from(record)
    if magic != MAGIC:
        raise _bad(f"it begins with {magic!r}; this release reads {MAGIC!r}")
    if kind not in tuple(Support) or code not in _NAMES or packed > 1:
        raise _bad(f"support {kind}, value format {code} or stage {packed} is unknown")
    if kind != Support.INDICES and rice:
        raise _bad("a Rice parameter without indices")
    if claimed != size:
        raise _bad(f"it has {claimed} coordinates; expected are {size}")
    most = size if most is None else min(size, most)
    if count > most or (kind == Support.ALL and count != size):
        raise _bad(f"it has {count} values; at most {most} of {size} are allowed")
    name = _NAMES[code]
    if values_format not in (None, name):
        raise _bad(f"its value format is {name}; expected is {values_format}")
    ending = values_size(count, FORMATS[name])
    room = most_bytes(count, size, rice) if kind == Support.INDICES else 0
    if not ending <= length <= ending + room:
        raise _bad(f"a body of {length} bytes for {count} values of {name}")
    seed = record[start : start + _SEED_BYTES] if kind == Support.SEED else b""
    start += len(seed)
    body = np.frombuffer(_body(record[start:], length, bool(packed)), np.uint8)
    values = decode_values(body[length - ending :], count, name)
    if kind == Support.ALL:
        return Vector.dense(values)
    if kind == Support.SEED:
        if len(seed) < _SEED_BYTES:
            raise _bad("it ends within the seed")
        return SparseVector(size, random_k(size, count, int.from_bytes(seed)), values)
    return SparseVector(size, decode_indices(body[: length - ending], count, size, rice), values)


def _body(data: bytes, length: int, packed: bool) -> bytes:
    """Return the body, of exactly `length` bytes."""
    if packed:
        try:
            frame = zstandard.get_frame_parameters(data)
            if frame.content_size != length:
                raise _bad(f"zstandard announces {frame.content_size} bytes, the head {length}")
            data = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompress(
                data, max_output_size=length, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise _bad(f"zstandard: {error}") from None
    if len(data) != length:
        raise _bad(f"a body of {len(data)} bytes; the head says {length}")
    return data


def _bad(detail: str) -> RejectedUpdate:
    return RejectedUpdate("bad-record", detail)
