"""The client's half of questions about tables: read what is asked strictly, and add up."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError, Refusal
from qsfl_flower.mechanisms.analytics.core.plan import Ask, needed_columns
from qsfl_flower.privacy.record import RecordBatch
from qsfl_flower.wire import from_record
from qsfl_flower.wire.keys import MOST_ROWS_KEY, QUESTIONS_KEY

Columns = Mapping[str, NDArray[Any]]
ReadTable = Callable[[Mapping[str, type]], Columns]
"""From the columns that are needed, and what they hold, to the columns."""


def answer(message: Message, read: ReadTable, allowed: Collection[str] | None) -> Message:
    """Return a client's sums, for the steps that add noise and hide them.

    Sensitivities are computed here from the questions; nothing of them is taken from the server.

    Parameters
    ----------
    message : Message
        The instruction.
    read : Callable
        Reads the table.
    allowed : collection of str or None
        Columns that may be asked for; None: all.

    Raises
    ------
    Refusal
        ``policy-questions``: the questions cannot be read, or ask for another column.
    """
    told = next(iter(message.content.config_records.values()), ConfigRecord())
    ((key, record),) = message.content.array_records.items()
    try:
        ask, most = Ask.decode(told.get(QUESTIONS_KEY)), told.get(MOST_ROWS_KEY)
        needs = needed_columns(ask.questions)
    except ConfigError as error:
        raise Refusal("policy-questions", str(error)) from None
    if allowed is not None and (closed := sorted(set(needs) - set(allowed))):
        raise Refusal(
            "policy-questions",
            f"column {closed[0]!r} is not open to questions; open are {', '.join(sorted(allowed))}",
        )
    ((name, start),) = from_record(record).items()
    if start.shape != (ask.size,) or start.dtype != np.float64 or start.any():
        raise Refusal("policy-questions", f"the sums must start as {ask.size} zeros")
    if not (isinstance(most, int | float) and 1 <= most < 1e15):
        raise Refusal("policy-questions", f"the most rows of a client are {most!r:.40}")
    vector = ask.vector(read(needs), float(most))
    batch = RecordBatch(clip_norm=1.0, sampling_rate=1.0, sum_norm=float(most))
    content = RecordDict(
        {
            key: ArrayRecord({name: Array(vector)}),
            "metrics": MetricRecord({"num-examples": 1, **batch.told()}),
        }
    )
    return Message(content, reply_to=message)
