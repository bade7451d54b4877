"""Several message contents in one: what is the same record in several of them travels once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import copy

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode

from qsfl_flower.errors import RejectedUpdate, plain
from qsfl_flower.wire.arrays import records_of

BUNDLE_RECORD = "qsfl-bundle"
"""ConfigRecord with the table of contents of a bundle."""

_INDEX = "index"
_NUMBER = re.compile("0|[1-9][0-9]{0,17}")
_MOST_CODES = 1 << 31


def pack(parts: Mapping[int, RecordDict | Error]) -> RecordDict:
    """Return one content that holds the contents or errors of several messages.

    Parameters
    ----------
    parts : Mapping[int, RecordDict or Error]
        By number of the sender or receiver, not negative.
    """
    keys: dict[int, str] = {}
    records: dict[str, ArrayRecord | ConfigRecord | MetricRecord] = {}
    index: dict[str, object] = {}
    for number, part in parts.items():
        if isinstance(part, Error):
            index[str(number)] = [part.code, part.reason or ""]
            continue
        named = {}
        for name, record in part.items():
            key = keys.setdefault(id(record), str(len(keys)))
            records[key] = record
            named[name] = key
        index[str(number)] = named
    return RecordDict({BUNDLE_RECORD: ConfigRecord({_INDEX: json.dumps(index)}), **records})


def is_bundle(content: RecordDict) -> bool:
    """Tell whether a content was made by `pack`."""
    return BUNDLE_RECORD in content


def unpack(content: RecordDict) -> dict[int, RecordDict | Error]:
    """Return the contents that `pack` put into one; a part that makes no sense is an error.

    No two parts share a record: whoever writes into one part does not change another. The bytes of
    arrays, which nobody can write into, are shared.

    Raises
    ------
    RejectedUpdate
        ``malformed``: this is no bundle.
    """
    try:
        index = json.loads(str(records_of(content, ConfigRecord)[BUNDLE_RECORD][_INDEX]))
        numbers = {int(text): entry for text, entry in index.items() if _NUMBER.fullmatch(text)}
        if len(numbers) < len(index):
            raise ValueError("a part has no number")
    except (KeyError, ValueError, AttributeError, RecursionError) as error:
        raise RejectedUpdate("malformed", f"bundle: {plain(error, 80)}") from None
    return {number: _part(entry, content) for number, entry in numbers.items()}


def _part(entry: object, content: RecordDict) -> RecordDict | Error:
    match entry:
        case [int(code), str(reason)] if 0 <= code < _MOST_CODES:
            return Error(code, reason)
        case dict() if all(isinstance(key, str) and key in content for key in entry.values()):
            if BUNDLE_RECORD not in entry.values():
                return RecordDict({name: own_record(content[key]) for name, key in entry.items()})
    return Error(
        ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
        "malformed: neither an error nor a mapping of names to records",
    )


def own_record(
    record: ArrayRecord | ConfigRecord | MetricRecord,
) -> ArrayRecord | ConfigRecord | MetricRecord:
    """Return a record with the same content that can be written into without changing this one."""
    if isinstance(record, ArrayRecord):
        return ArrayRecord(
            {k: Array(a.dtype, tuple(a.shape), a.stype, a.data) for k, a in record.items()}
        )
    if isinstance(record, MetricRecord):
        return MetricRecord({k: copy(value) for k, value in record.items()})
    return ConfigRecord({k: copy(value) for k, value in record.items()})
