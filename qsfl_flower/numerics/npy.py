"""Read a serialized array without copying it and without trusting it.

Flower carries every array as the bytes that ``np.save`` writes, next to a claimed dtype and shape.
``np.load`` would copy the bytes and believe the header; here the header is parsed by a small
grammar and compared with the claim, and the data are viewed in place.
"""

from __future__ import annotations

import io
import math
import re
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import RejectedUpdate

MAGIC = b"\x93NUMPY"
MAX_HEADER = 4096
"""Longest header that is looked at, in bytes. ``np.save`` writes 118 for a usual array."""

# Only the white space that `int` strips too; possessive, so that the time is linear in the header.
_FIELD = re.compile(
    r"\s*+'(descr|fortran_order|shape)'\s*+:\s*+"
    r"(?:'([^'\\]{1,8})'|(True|False)"
    r"|\(((?:\s*+[0-9]{1,20}\s*+,)*+\s*+(?:[0-9]{1,20})?+)\s*+\))\s*+(,|$)",
    re.ASCII,
)
_NATIVE = [
    np.dtype(code)
    for code in ("f2", "f4", "f8", "b1", *(f"{k}{w}" for k in "iu" for w in (1, 2, 4, 8)))
]
# From every spelling, such as "float32" and "<f4", to the dtype and its native twin.
_DTYPES: dict[str, tuple[np.dtype[Any], np.dtype[Any]]] = {
    name: (native if dtype.isnative else dtype, native)
    for native in _NATIVE
    for dtype in (native, native.newbyteorder(">"), native.newbyteorder("<"))
    for name in (dtype.name if dtype.isnative else dtype.str, dtype.str)
}


class Header(NamedTuple):
    """What an .npy header says about the data behind it."""

    dtype: np.dtype[Any]
    native: np.dtype[Any]
    fortran_order: bool
    shape: tuple[int, ...]
    data_bytes: int


def view_npy(data: bytes, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """View the array inside an .npy payload: read-only, C order, native byte order.

    Nothing is allocated for a payload in C order and native byte order; Fortran order and foreign
    byte order cost one copy, made only after the length of the payload has been found to be exact.

    Parameters
    ----------
    data : bytes
        A complete payload as written by ``np.save``, format version 1, 2 or 3.
    dtype : str
        The claimed dtype, for example ``"float32"`` or ``">f4"``: a boolean, integer or float of
        at most 8 bytes.
    shape : tuple of int
        The claimed shape; ``()`` is a scalar, and a dimension may be 0.

    Returns
    -------
    ndarray
        Of the claimed shape and of the claimed dtype in native byte order. It keeps `data` alive.

    Raises
    ------
    RejectedUpdate
        With reason ``"malformed"``: the payload is not exactly one .npy array of the claimed dtype
        and shape.
    """
    claimed = _DTYPES.get(dtype) if isinstance(dtype, str) else None
    if claimed is None:
        raise _malformed(
            f"dtype {dtype!r:.40} is not a boolean, integer or float of at most 8 bytes"
        )
    header, start = _header(data)
    if header.native is not claimed[1]:  # byte order may differ
        raise _malformed(f"the payload holds {header.dtype}, the record claims {claimed[0]}")
    if header.shape != tuple(shape):
        raise _malformed(f"the payload has shape {header.shape}, the record claims {tuple(shape)}")
    if len(data) != (expected := start + header.data_bytes):
        raise _malformed(f"the payload has {len(data)} bytes, shape and dtype require {expected}")
    array = _view(data, start, header)
    if header.native.kind == "b" and array.size and array.view(np.uint8).max() > 1:
        raise _malformed("a boolean array holds a byte other than 0 and 1")
    return array


def dump_npy(array: NDArray[Any]) -> bytes:
    """Serialize an array as ``np.save`` does, with one copy of the data instead of three.

    Parameters
    ----------
    array : ndarray
        Booleans, integers or floats of at most 8 bytes, of any shape and memory order.

    Returns
    -------
    bytes
        An .npy payload of version 1 in C order.
    """
    array = np.require(array, requirements="C")
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
    return b"".join((head.getvalue(), array.reshape(-1).view(np.uint8).data))


def _header(data: bytes) -> tuple[Header, int]:
    """Return the parsed header and the offset of the data."""
    if len(data) < 10 or data[:6] != MAGIC:
        raise _malformed("the payload does not begin like an .npy file")
    version = (data[6], data[7])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise _malformed(f".npy format {version[0]}.{version[1]} is not 1.0, 2.0 or 3.0")
    start = 10 if version == (1, 0) else 12
    length = int.from_bytes(data[8:start], "little")
    if length > MAX_HEADER or len(data) < start + length:
        raise _malformed(f"a header of {length} bytes is cut off or beyond {MAX_HEADER} bytes")
    return _parse(bytes(data[start : start + length])), start + length


@lru_cache(maxsize=256)  # the same few headers come back from every client in every round
def _parse(header: bytes) -> Header:
    text = header.decode("latin-1").strip()
    if not (text.startswith("{") and text.endswith("}")):
        raise _malformed("the header is not a dictionary")
    body, position = text[1:-1].rstrip(), 0
    found: dict[str, tuple[str | Any, ...]] = {}
    while position < len(body):
        field = _FIELD.match(body, position)
        if field is None or field[1] in found:
            raise _malformed("the header does not describe one plain array")
        found[field[1]] = field.groups()[1:4]
        position = field.end()
    descr = found.get("descr", (None,))[0]
    order = found.get("fortran_order", (None, None))[1]
    dimensions = found.get("shape", (None, None, None))[2]
    if descr is None or order is None or dimensions is None:
        raise _malformed("the header lacks descr, fortran_order or shape")
    if descr not in _DTYPES:
        raise _malformed(f"dtype {descr!r} is not a boolean, integer or float of at most 8 bytes")
    shape = tuple(int(number) for number in dimensions.split(",") if number.strip())
    dtype, native = _DTYPES[descr]
    return Header(dtype, native, order == "True", shape, math.prod(shape) * dtype.itemsize)


def _view(data: bytes, start: int, header: Header) -> NDArray[Any]:
    """View data of known exact length; the shape is from outside, so NumPy may still refuse it."""
    dtype, native, fortran_order, shape, length = header
    try:
        flat = np.frombuffer(data, dtype, offset=start) if length else np.empty(0, dtype)
        array = flat.reshape(shape, order="F" if fortran_order else "C")
    except (ValueError, OverflowError) as error:
        raise _malformed(f"shape {shape} is not possible: {error}") from None
    flags = array.flags
    if dtype is not native or not (flags.c_contiguous and flags.aligned):
        array = np.require(array, native, ["C", "A"])
    array.flags.writeable = False
    return array


def _malformed(detail: str) -> RejectedUpdate:
    return RejectedUpdate("malformed", detail)
