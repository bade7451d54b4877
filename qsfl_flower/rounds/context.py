"""What a stage may know of a round besides the updates, and what it answers with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from qsfl_flower.errors import QSFLError
from qsfl_flower.numerics import Layout, Vector
from qsfl_flower.rounds.update import Rejection, Sender, Weighting
from qsfl_flower.wire import QSFL_RECORD, TASK_KEY, ClientPhase, PlanItem
from qsfl_flower.wire.kinds import Purpose

Record = ArrayRecord | ConfigRecord

State = Mapping[str, Any]
"""A stage's state: names to arrays or JSON values. Stages without state use an empty mapping."""

Measurements = Mapping[str, float]


class Phase(IntEnum):
    """Where in the server's side of a round a stage stands."""

    AUTHENTICATE = 10
    ADMIT = 20
    DECODE = 30
    BOUND = 40
    DETECT = 50
    COMBINE = 60
    PRIVATIZE = 70
    UPDATE = 80
    GUARD = 90
    RELEASE = 95


Steps = Sequence[tuple[ClientPhase, PlanItem]]


@dataclass(frozen=True)
class Exchange:
    """One exchange of messages with the clients.

    Parameters
    ----------
    kind : str
        Flower's type of the messages: ``"train"``, ``"evaluate"``, ``"query.version"``.
    server_round : int
        The round it belongs to.
    run_id : int
        Flower's id of the run.
    timeout : float
        Seconds for which replies are waited for.
    window : int
        How many rounds may be under way at once; replies to older ones are refused.
    inside : bool
        Whether it is a further exchange inside a round: a node may then owe another answer.
    """

    kind: str
    server_round: int
    run_id: int
    timeout: float
    window: int = 1
    inside: bool = False


Ask = Callable[[Mapping[int, RecordDict]], dict[int, tuple[Sender, RecordDict] | Rejection]]
"""Sends one message to each of some nodes and waits: what came back from each of them."""


def _nobody(contents: Mapping[int, RecordDict]) -> dict[int, tuple[Sender, RecordDict] | Rejection]:
    raise QSFLError(f"there is no grid to ask {len(contents)} nodes on")


@dataclass(frozen=True)
class RoundContext:
    """What a stage may know about the round besides the updates.

    Parameters
    ----------
    server_round : int
        The round.
    layout : Layout
        The model's layout, of d floating-point coordinates.
    model : Vector
        The model of this round, shape (d,).
    run_id : int
        Flower's id of the run.
    senders : tuple[Sender, ...]
        The nodes that are asked to train, or may be asked meanwhile, in canonical order.
    weighting : Weighting
        How claimed sample counts become weights.
    ask : Ask
        A further exchange inside the round, through the chain's `MessageStage`. The contents should
        name a task (`task_content`), which the clients' mod answers without the app.
    support : numpy.ndarray or None
        Where the round's updates are restricted to k public coordinates: these, ascending.
    staleness : float
        Mean staleness of the updates that are combined; 0 in synchronous rounds.
    states : Mapping[str, State]
        For a `VectorStage`: the states of all stages as far as the round has come, by name.
    carried : Mapping[str, numpy.ndarray]
        The model's buffers.
    purpose : Purpose
        What the vectors are for that come together.
    instructions : Mapping[int, bytes]
        Where updates are hidden: digest of what the clients were asked to do, by round; see
        `qsfl_flower.wire.content.instruction_digest`.
    """

    server_round: int
    layout: Layout
    model: Vector
    run_id: int = 0
    senders: tuple[Sender, ...] = ()
    weighting: Weighting = field(default_factory=Weighting)
    ask: Ask = _nobody
    support: NDArray[np.int64] | None = None
    staleness: float = 0.0
    states: Mapping[str, State] = field(default_factory=dict)
    carried: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    purpose: Purpose = Purpose.TRAIN
    instructions: Mapping[int, bytes] = field(default_factory=dict)


def task_content(task: str, **records: Record) -> RecordDict:
    """Return the content of a message that the clients' mod answers by itself.

    Parameters
    ----------
    task : str
        Name in `qsfl_flower.node.steps.TASKS`.
    **records : ArrayRecord or ConfigRecord
        What goes with it.
    """
    return RecordDict({QSFL_RECORD: ConfigRecord({TASK_KEY: task}), **records})
