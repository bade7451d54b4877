"""The client's half of `Broadcast`: from the model that it holds to the model of the round."""

from __future__ import annotations

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from qsfl_flower.errors import QSFLError
from qsfl_flower.mechanisms.compression.core.released import follow, model_digest
from qsfl_flower.node.steps import layout_told
from qsfl_flower.numerics import Vector
from qsfl_flower.wire import (
    BASE_KEY,
    BROADCAST_KEY,
    QSFL_RECORD,
    RELEASED_KEY,
    config_of,
    from_record,
    records_of,
    to_record,
)

HELD_RECORD = "qsfl-held"
"""ArrayRecord in the client state: the model that this client was sent last."""


def receive(content: RecordDict, state: RecordDict) -> RecordDict:
    """Return an instruction with the whole model, and keep that in the client state.

    Raises
    ------
    QSFLError
        If this client does not hold the model that the steps start from, or they lead elsewhere.
        The server then sends the whole model.
    """
    told = config_of(content)
    ((key, record),) = records_of(content, ArrayRecord).items()
    wanted, steps = told[BROADCAST_KEY], told.get(RELEASED_KEY)
    if isinstance(steps, list):
        held = state.get(HELD_RECORD)
        arrays = from_record(held) if isinstance(held, ArrayRecord) else {}
        layout = layout_told(arrays, told)
        if model_digest(Vector.of(arrays, layout)) != told[BASE_KEY]:
            raise QSFLError("broadcast: this client does not hold the model to start from")
        carried = from_record(record)
        layout.check_carried(carried)
        records = [step for step in steps if isinstance(step, bytes)]
        record = to_record(follow({**arrays, **carried}, layout, records))
    arrays = from_record(record)
    if model_digest(Vector.of(arrays, layout_told(arrays, told))) != wanted:
        raise QSFLError("broadcast: the steps do not lead to the model of the round")
    state[HELD_RECORD] = record
    rest = {k: v for k, v in told.items() if k not in (BROADCAST_KEY, BASE_KEY, RELEASED_KEY)}
    whole = RecordDict({k: v for k, v in content.items() if k != QSFL_RECORD})
    whole[key] = record
    if rest:
        whole[QSFL_RECORD] = ConfigRecord(rest)
    return whole


BROADCAST_RECEIVES = {BROADCAST_KEY: receive}
"""The client's half of `qsfl_flower.mechanisms.BROADCAST`."""
