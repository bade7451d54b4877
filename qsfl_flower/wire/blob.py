"""A mechanism's bytes in a Flower record, without the header of an .npy file."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord

from qsfl_flower.errors import RejectedUpdate

BLOB_TYPE = "qsfl.blob"
"""Serialization type of an array that is bytes in a format of the suite."""


def to_blobs(blobs: dict[str, bytes]) -> ArrayRecord:
    """Wrap named byte strings."""
    return ArrayRecord(
        {name: Array("uint8", (len(data),), BLOB_TYPE, data) for name, data in blobs.items()}
    )


def from_blob(record: ArrayRecord, name: str) -> bytes:
    """Return the byte string of a record that has this one alone.

    Raises
    ------
    RejectedUpdate
        ``malformed``: anything else.
    """
    if list(record) != [name] or record[name].stype != BLOB_TYPE:
        raise RejectedUpdate("malformed", f"expected one array of {BLOB_TYPE}, named {name!r}")
    return record[name].data
