"""The client's half of questions about tables: read what is asked strictly, and add up."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError, Refusal
from qsfl_flower.mechanisms.analytics.core.plan import Ask, needed_columns
from qsfl_flower.node.steps import PARAMETERS, SOURCES, STEPS, ClientUpdate, StepContext
from qsfl_flower.privacy.record import RecordBatch
from qsfl_flower.wire.keys import QUESTIONS
from qsfl_flower.wire.kinds import Purpose

Columns = Mapping[str, NDArray[Any]]
ReadTable = Callable[[Mapping[str, type]], Columns]
"""From the columns that are needed, and what they hold, to the columns."""


@dataclass(frozen=True)
class Opened:
    """A table that may be asked about.

    Parameters
    ----------
    read : Callable
        Reads columns of it.
    columns : collection of str or None
        Columns that may be asked for; None: all.
    """

    read: ReadTable
    columns: Collection[str] | None = None


_TABLE: ContextVar[Opened | None] = ContextVar("qsfl_table", default=None)


@contextmanager
def opening(table: Opened) -> Iterator[None]:
    """Let questions be answered from a table, while a message is handled."""
    before = _TABLE.set(table)
    try:
        yield
    finally:
        _TABLE.reset(before)


def questions_step(
    update: ClientUpdate, parameters: Mapping[str, Any], context: StepContext
) -> ClientUpdate:
    """Make this client's sums, for the steps that add noise and hide them.

    Sensitivities are computed here from the questions; nothing of them is taken from the server.

    Raises
    ------
    Refusal
        ``policy-questions``: the questions cannot be read, there is no table, or they ask for
        another column.
    """
    table, most = _TABLE.get(), float(parameters["most_rows"])
    if table is None or context.purpose is not Purpose.ANALYTICS:
        raise Refusal("policy-questions", "this node has no table that is open to questions")
    try:
        ask = Ask.decode(parameters["questions"])
        needs = needed_columns(ask.questions)
    except ConfigError as error:
        raise Refusal("policy-questions", str(error)) from None
    closed = sorted(set(needs) - set(needs if table.columns is None else table.columns))
    if closed:
        raise Refusal("policy-questions", f"column {closed[0]!r:.60} is not open to questions")
    if parameters["size"] != ask.size or not 1 <= most < 1e15:
        raise Refusal(
            "policy-questions",
            f"{parameters['size']} sums of up to {most:g} rows are asked for, the questions make "
            f"{ask.size} of at least 1",
        )
    batch = RecordBatch(clip_norm=1.0, sampling_rate=1.0, sum_norm=most)
    vector = ask.vector(table.read(needs), most)
    return replace(update, vector=vector, metrics={"num-examples": 1, **batch.told()})


@dataclass(frozen=True)
class _Asked:
    size: int
    questions: str
    most_rows: float


STEPS[QUESTIONS], PARAMETERS[QUESTIONS], SOURCES[QUESTIONS] = questions_step, _Asked, False
