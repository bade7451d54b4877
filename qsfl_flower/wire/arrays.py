"""Flower array records as numpy arrays, without copying what need not be copied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.constant import SType
from numpy.typing import NDArray

from qsfl_flower.errors import RejectedUpdate
from qsfl_flower.numerics.npy import dump_npy, view_npy
from qsfl_flower.wire.keys import DETAIL_KEY, QSFL_RECORD, REFUSED_KEY

Record = TypeVar("Record", ArrayRecord, ConfigRecord, MetricRecord)


class Made(Array):
    """An array made in this process: it becomes bytes when somebody asks for these, or never.

    Parameters
    ----------
    values : numpy.ndarray
        Not to be changed as long as this is in use.
    """

    def __init__(self, values: NDArray[Any]) -> None:
        native = values.dtype.newbyteorder("=")
        self.values = np.require(values, native, requirements="C").view()
        self.values.flags.writeable = False
        self.dtype, self.shape, self.stype = str(native), tuple(values.shape), SType.NUMPY

    def __getattr__(self, name: str) -> Any:
        """Write the bytes when they are asked for."""
        if name != "data":
            raise AttributeError(name)
        self.data = dump_npy(self.values)
        return self.data


_STAYS: ContextVar[bool] = ContextVar("qsfl_stays", default=False)


@contextmanager
def staying_here(stays: bool) -> Iterator[None]:
    """Let `to_mods` know whether a mod of this process takes what the app returns."""
    token = _STAYS.set(stays)
    try:
        yield
    finally:
        _STAYS.reset(token)


def to_mods(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Return what an app returns to its mods; serialized only if it may leave as it is."""
    if not _STAYS.get():
        return to_record(arrays)
    return record_of({name: Made(np.asarray(value)) for name, value in arrays.items()})


def from_record(record: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
    """Read-only views on the arrays of a record, in the record's order.

    The bytes are what somebody sent: they are checked, never trusted.

    Parameters
    ----------
    record : Mapping[str, Array]
        A Flower ``ArrayRecord`` (or anything that maps names to Flower ``Array``).

    Returns
    -------
    dict[str, numpy.ndarray]
        One read-only array per name that shares memory with the record.

    Raises
    ------
    RejectedUpdate
        ``malformed``: not a numpy array, or bytes that do not match the stated dtype and shape.
    """
    return {name: _view(name, array) for name, array in record.items()}


def records_of(content: RecordDict, kind: type[Record]) -> dict[str, Record]:
    """Return the records of one type by name.

    Flower's own ``content.array_records`` and its siblings do the same, but make reference cycles:
    arrays would stay in memory until Python's cycle collector runs.
    """
    return {name: record for name, record in content.items() if isinstance(record, kind)}


def config_of(content: RecordDict, name: str = QSFL_RECORD) -> ConfigRecord:
    """Return the ConfigRecord of a name, by default the suite's own; an empty one without it."""
    record = content.get(name)
    return record if isinstance(record, ConfigRecord) else ConfigRecord()


def record_of(arrays: Mapping[str, Array]) -> ArrayRecord:
    """Return a record of these very arrays; Flower's constructor makes another one of each."""
    record = ArrayRecord()
    record.update(arrays)
    return record


def to_record(arrays: Mapping[str, NDArray[Any]]) -> ArrayRecord:
    """Serialize named arrays into a Flower ``ArrayRecord``, keeping their order."""
    return record_of(
        {
            name: Array(str(a.dtype), tuple(a.shape), SType.NUMPY, dump_npy(a))
            for name, a in ((name, np.asarray(value)) for name, value in arrays.items())
        }
    )


def refusal(told: Mapping[str, object]) -> ConfigRecord:
    """Return the qsfl record of a reply that refuses a round.

    Parameters
    ----------
    told : Mapping[str, object]
        ``refused``: the named reason; ``refused-detail``: a sentence.
    """
    return ConfigRecord({key: str(told.get(key, "")) for key in (REFUSED_KEY, DETAIL_KEY)})


def content_bytes(content: RecordDict) -> int:
    """Payload size of a message in bytes: array data, texts and 8 bytes per number.

    Parameters
    ----------
    content : RecordDict
        The content of a Flower message, in either direction.

    Returns
    -------
    int
        Bytes of payload. Flower's framing (object ids, headers, protobuf) comes on top.
    """
    total = 0
    for record in content.values():
        if isinstance(record, ArrayRecord):
            total += sum(len(array.data) for array in record.values())
        else:
            total += sum(len(key) + _value_bytes(value) for key, value in record.items())
    return total


def numbers_only(values: Mapping[str, object]) -> dict[str, int | float | list[int] | list[float]]:
    """Return the plain numbers of a mapping: what fits into a Flower ``MetricRecord``."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _value_bytes(value: object) -> int:
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, list):
        return sum(_value_bytes(v) for v in value)
    return 8


def _view(name: str, array: Array) -> NDArray[Any]:
    if isinstance(array, Made):
        return array.values
    if array.stype != SType.NUMPY:
        raise RejectedUpdate(
            "malformed",
            f"array {name!r:.80} is serialized as {array.stype!r:.40}; "
            f"only {SType.NUMPY!r} is read",
        )
    try:
        return view_npy(array.data, array.dtype, tuple(array.shape))
    except RejectedUpdate as error:
        raise RejectedUpdate(error.reason, f"array {name!r:.80}: {error.detail}") from None
