"""The content of a Flower message as a sequence of items, to be signed without a second copy."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.constant import SType

from qsfl_flower.crypto.digest import Item, content_digest
from qsfl_flower.errors import RejectedUpdate
from qsfl_flower.wire.arrays import from_record
from qsfl_flower.wire.keys import (
    BASE_KEY,
    BROADCAST_KEY,
    ENCRYPT_KEY,
    QSFL_RECORD,
    RELEASED_KEY,
)

AUTH_RECORD = "qsfl-auth"
"""ConfigRecord with signed messages; everything else in a message is covered by them."""

FRAME_TYPE = "qsfl.frame"
"""Serialization type of an array that is an encrypted ArrayRecord."""

_FRAME_NAME = "frame"
_MAX_HEAD = 4 * 1024 * 1024


def digest_of(content: RecordDict) -> bytes:
    """Return the SHA-256 digest of a message's content, its authentication record left out.

    Records count in the order of their names, since transports may reorder them; the arrays of a
    record count in their own order, since many apps use them by position.
    """
    return content_digest(_items(content))


def instruction_digest(content: RecordDict, message_type: str) -> bytes:
    """Return 32 bytes that stand for all that clients of a round are asked to do alike.

    Model, configuration, plan and the app's action are covered. What differs between clients that
    are asked for the same is not: how the model travels (`Broadcast`), signatures and encryption.
    Arrays count by values, names, shapes and dtypes, whatever bytes carried them.

    Parameters
    ----------
    content : RecordDict
        The instruction with the whole model.
    message_type : str
        Flower's type of the message, which picks the app's function: ``train.lora`` is another one
        than ``train``.
    """
    shared = RecordDict({k: v for k, v in content.items() if k != QSFL_RECORD})
    if isinstance(told := content.get(QSFL_RECORD), ConfigRecord):
        shared[QSFL_RECORD] = ConfigRecord({k: v for k, v in told.items() if k not in _OWN})
    action = Item("message-type", message_type, "", (), b"")
    return content_digest(chain([action], _items(shared, by_value=True)))


_OWN = frozenset({BASE_KEY, BROADCAST_KEY, ENCRYPT_KEY, RELEASED_KEY})


def pack_arrays(record: ArrayRecord) -> bytes:
    """Return an ArrayRecord as one run of bytes, to be encrypted."""
    head = json.dumps(
        [[name, a.dtype, list(a.shape), a.stype, len(a.data)] for name, a in record.items()]
    ).encode()
    return b"".join([struct.pack(">I", len(head)), head, *(a.data for a in record.values())])


def unpack_arrays(data: bytes) -> ArrayRecord:
    """Return the ArrayRecord that `pack_arrays` wrote.

    Raises
    ------
    RejectedUpdate
        ``malformed``: anything else.
    """
    try:
        (size,) = struct.unpack_from(">I", data)
        if size > _MAX_HEAD:
            raise ValueError("the list of arrays is too long")
        position, arrays = 4 + size, {}
        listed = json.loads(data[4:position])
        if not isinstance(listed, list):
            raise ValueError("the arrays are not listed")
        for name, dtype, shape, stype, length in listed:
            if type(length) is not int or not 0 <= length <= len(data) - position:
                raise ValueError("an array is cut off")
            if not all(isinstance(s, str) for s in (name, dtype, stype)):
                raise ValueError("the list of arrays has wrong types")
            if not (isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)):
                raise ValueError("a shape is not a list of sizes")
            end = position + length
            arrays[name] = Array(dtype, tuple(shape), stype, data[position:end])
            position = end
        if position != len(data):
            raise ValueError(f"{len(data) - position} bytes are left over")
    except (struct.error, ValueError, TypeError, RecursionError) as error:
        raise RejectedUpdate("malformed", f"encrypted arrays: {error}") from None
    return ArrayRecord(arrays)


def frame_record(frame: bytes) -> ArrayRecord:
    """Return a record that carries an encrypted ArrayRecord."""
    return ArrayRecord({_FRAME_NAME: Array("uint8", (len(frame),), FRAME_TYPE, frame)})


def frame_of(record: ArrayRecord) -> bytes | None:
    """Return the encrypted ArrayRecord that a record carries, or None if it is a plain one."""
    array = record.get(_FRAME_NAME)
    return (
        array.data if len(record) == 1 and array is not None and array.stype == FRAME_TYPE else None
    )


def _items(content: RecordDict, by_value: bool = False) -> Iterator[Item]:
    for name in sorted(content):
        if name == AUTH_RECORD:
            continue
        record = content[name]
        yield Item("record", name, type(record).__name__, (len(record),), b"")
        for key, value in record.items():
            place = f"{len(name)}:{name}/{key}"
            if by_value and isinstance(value, Array) and value.stype == SType.NUMPY:
                ((_, array),) = from_record({key: value}).items()
                data = np.ascontiguousarray(array).data
                yield Item("array", place, array.dtype.str, array.shape, data)
            elif isinstance(value, Array):
                dtype = f"{value.stype}:{value.dtype}"
                yield Item("array", place, dtype, tuple(value.shape), value.data)
            else:
                yield Item("value", place, type(value).__name__, (), _encode(value))


def _encode(value: Any) -> bytes:
    """Return a canonical encoding of a config or metric value; the type is told beside it."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    if isinstance(value, float):
        return struct.pack(">d", value)
    if isinstance(value, int):
        return str(int(value)).encode()
    parts = [type(part).__name__.encode() + b"\0" + _encode(part) for part in value]
    return b"".join(struct.pack(">Q", len(part)) + part for part in parts)
