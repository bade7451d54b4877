"""Arrays that stay on the device: put into the model before the app sees it, and kept after it."""

from __future__ import annotations

from flwr.app import ArrayRecord, RecordDict

from qsfl_flower.numerics import Layout
from qsfl_flower.wire import from_record, to_record

LOCAL_RECORD = "qsfl-local"
"""ArrayRecord in the client state: this device's own values."""


def put_local(content: RecordDict, layout: Layout, state: RecordDict) -> RecordDict:
    """Return an instruction whose model has this device's own values of the local arrays."""
    kept = state.array_records.get(LOCAL_RECORD)
    if not layout.local or kept is None or set(kept) != set(layout.local):
        return content
    ((key, record),) = content.array_records.items()
    own = ArrayRecord({name: kept.get(name, array) for name, array in record.items()})
    return RecordDict({**content, key: own})


def keep_local(reply: RecordDict, layout: Layout, state: RecordDict) -> None:
    """Keep the local arrays of the model that the app has returned.

    Raises
    ------
    RejectedUpdate
        If an array does not fit the layout.
    """
    if not layout.local:
        return
    for record in reply.array_records.values():
        trained = from_record(record)
        layout.check(trained)
        if all(name in trained for name in layout.local):
            state[LOCAL_RECORD] = to_record({name: trained[name] for name in layout.local})
