"""The client's half of `Broadcast`: from the model that it holds to the model of the round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError, QSFLError, Refusal
from qsfl_flower.mechanisms.compression.core.released import follow, model_digest
from qsfl_flower.numerics import Layout, Vector
from qsfl_flower.wire import (
    BASE_KEY,
    BROADCAST_KEY,
    QSFL_RECORD,
    RELEASED_KEY,
    ROLES_KEY,
    from_record,
    records_of,
    to_record,
)

HELD_RECORD = "qsfl-held"
"""ArrayRecord in the client state: the model that this client was sent last."""


def layout_told(arrays: Mapping[str, NDArray[Any]], told: ConfigRecord) -> Layout:
    """Return the layout of a model with the roles that the instruction tells about.

    Raises
    ------
    Refusal
        ``policy-roles``: they do not lead to the layout of the strategy.
    """
    if ROLES_KEY not in told:
        return Layout.of(arrays)
    try:
        return Layout.read(arrays, told[ROLES_KEY])
    except ConfigError as error:
        raise Refusal("policy-roles", str(error)) from None


def receive(content: RecordDict, state: RecordDict) -> RecordDict:
    """Return an instruction with the whole model, and keep that in the client state.

    Raises
    ------
    QSFLError
        If this client does not hold the model that the steps start from, or they lead elsewhere.
        The server then sends the whole model.
    """
    told = content.get(QSFL_RECORD)
    if not isinstance(told, ConfigRecord) or BROADCAST_KEY not in told:
        return content
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
