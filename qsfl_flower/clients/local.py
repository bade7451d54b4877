"""Arrays that stay on the device: put into the model before the app sees it, and kept after it."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from qsfl_flower.numerics import Layout
from qsfl_flower.wire import from_record, to_record
from qsfl_flower.wire.content import instruction_digest

LOCAL_RECORD = "qsfl-local"
"""ArrayRecord in the client state: this device's own values."""


_BEGAN = "qsfl-began"


def put_local(
    content: RecordDict, layout: Layout, state: RecordDict, *, secret: bool = False
) -> RecordDict:
    """Return an instruction whose model has this device's own values of the local arrays.

    Where the update is protected, own values count only if they began with those of this very
    instruction, which all clients of its sum have signed: a server that sent others to some
    clients in an earlier round would have them train on another model than the digest says.
    """
    kept = _own(state, layout)
    if not kept or (secret and _began(state) != _digest(content, layout)):
        return content
    ((key, record),) = content.array_records.items()
    own = ArrayRecord({name: kept.get(name, array) for name, array in record.items()})
    return RecordDict({**content, key: own})


def keep_local(
    reply: RecordDict, layout: Layout, state: RecordDict, told: RecordDict, *, secret: bool = False
) -> None:
    """Keep the local arrays of the model that the app has returned, and what they began with.

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
            own = to_record({name: trained[name] for name in layout.local})
            begins = _digest(told, layout)
            if not secret and _own(state, layout):
                begins = _began(state)
            own[_BEGAN] = Array(np.frombuffer(begins, np.uint8))
            state[LOCAL_RECORD] = own


def _own(state: RecordDict, layout: Layout) -> dict[str, Array]:
    kept = {**state.array_records.get(LOCAL_RECORD, {})}
    if _BEGAN not in kept or set(kept) != {_BEGAN, *layout.local}:
        return {}
    del kept[_BEGAN]
    return kept


def _began(state: RecordDict) -> bytes:
    return state.array_records[LOCAL_RECORD][_BEGAN].numpy().tobytes()


def _digest(content: RecordDict, layout: Layout) -> bytes:
    """Return what stands for the server's values of the local arrays."""
    ((_, record),) = content.array_records.items()
    told = ArrayRecord({name: a for name, a in record.items() if name in layout.local})
    return instruction_digest(RecordDict({"local": told}), "local")
