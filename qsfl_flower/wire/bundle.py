"""Several message contents in one: what is the same record in several of them travels once."""

from __future__ import annotations

import json
from collections.abc import Mapping

from flwr.app import ArrayRecord, ConfigRecord, Error, MetricRecord, RecordDict

from qsfl_flower.errors import RejectedUpdate
from qsfl_flower.wire.arrays import records_of

BUNDLE_RECORD = "qsfl-bundle"
"""ConfigRecord with the table of contents of a bundle."""

_INDEX = "index"


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
    """Return the contents that `pack` put into one.

    Raises
    ------
    RejectedUpdate
        ``malformed``: anything else.
    """
    try:
        text = records_of(content, ConfigRecord)[BUNDLE_RECORD][_INDEX]
        index = json.loads(str(text))
        return {int(number): _part(entry, content) for number, entry in index.items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RejectedUpdate(
            "malformed", f"bundle: {type(error).__name__}: {error!s:.80}"
        ) from None


def _part(entry: object, content: RecordDict) -> RecordDict | Error:
    if isinstance(entry, list):
        code, reason = entry
        return Error(int(code), str(reason))
    if not isinstance(entry, dict) or BUNDLE_RECORD in entry.values():
        raise ValueError("a part is neither an error nor a mapping of names to records")
    return RecordDict({str(name): content[key] for name, key in entry.items()})
