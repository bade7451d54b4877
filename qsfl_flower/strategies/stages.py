"""Stages: what a strategy does to the updates of a round, one capability each.

A stage is pure: state goes in and comes out as a value, so that it can be saved and restored.
Stages of a `Chain` are put into the canonical order of their phases whatever the order in which
they were given; a single-purpose strategy is the chain with one stage.

There are three kinds. A `MessageStage` works on whole messages, before anything in them is read. A
`CohortStage` works on single updates and comes before the round is combined; a `VectorStage` works
on the combined difference and comes after it. The combination between them is the only crossing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, ClassVar

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics import Clip as ClipParameters
from qsfl_flower.numerics import Layout, Vector, check_finite_and_size, measure
from qsfl_flower.strategies.update import Cohort, Sender, Update
from qsfl_flower.wire import PlanItem

State = Mapping[str, Any]
"""A stage's state: names to arrays or JSON values. Stages without state use an empty mapping."""

Measurements = Mapping[str, float]

ABSURD_NORM = 1e15
"""No honest update has a larger norm: a million coordinates of 1e12 each."""


class Phase(IntEnum):
    """Where in the server's side of a round a stage stands."""

    AUTHENTICATE = 10
    ADMIT = 20
    BOUND = 40
    PRIVATIZE = 70
    UPDATE = 80


@dataclass(frozen=True)
class Exchange:
    """One exchange of messages with the clients.

    Parameters
    ----------
    kind : str
        ``"train"`` or ``"evaluate"``.
    server_round : int
        The round it belongs to.
    run_id : int
        Flower's id of the run.
    timeout : float
        Seconds for which replies are waited for.
    """

    kind: str
    server_round: int
    run_id: int
    timeout: float


@dataclass(frozen=True)
class RoundContext:
    """What a stage may know about the round besides the updates."""

    server_round: int
    layout: Layout
    model: Vector


class Stage(ABC):
    """Common part; subclass `MessageStage`, `CohortStage` or `VectorStage`."""

    name: ClassVar[str]
    phase: ClassVar[Phase]
    volatile: ClassVar[bool] = False
    """True if the state must not be written to a checkpoint; it starts anew after a restart."""

    def client_step(self) -> PlanItem | None:
        """Return what the clients' mod has to do for this stage, or None if nothing."""
        return None

    def init(self, layout: Layout) -> State:
        """Return the state before the first round."""
        del layout
        return {}


class MessageStage(Stage):
    """A stage on whole messages: what leaves the server and what is let in."""

    @abstractmethod
    def instruct(
        self, content: RecordDict, nodes: Sequence[int], state: State, exchange: Exchange
    ) -> tuple[dict[int, RecordDict], State]:
        """Return what each node is sent, and the next state."""

    @abstractmethod
    def admit(
        self, sender: Sender, content: RecordDict, state: State, exchange: Exchange
    ) -> tuple[Sender, RecordDict, State]:
        """Return who really sent a reply, its content, and the next state.

        Raises
        ------
        RejectedUpdate
            If the reply is not let in.
        """

    def measure(self, state: State) -> Measurements:
        """Return what there is to tell about the last exchange."""
        del state
        return {}


class CohortStage(Stage):
    """A stage on the single updates of a round."""

    needs_norms: bool = True
    """Whether every update has to be measured before this stage sees it."""

    @abstractmethod
    def apply(
        self, cohort: Cohort, state: State, context: RoundContext
    ) -> tuple[Cohort, State, Measurements]:
        """Return the changed cohort, the next state and what was measured."""


class VectorStage(Stage):
    """A stage on the combined difference of a round."""

    @abstractmethod
    def apply(
        self, vector: NDArray[np.float64], state: State, context: RoundContext
    ) -> tuple[NDArray[np.float64], State, Measurements]:
        """Return the changed vector, the next state and what was measured.

        The vector may be changed in place, and what is returned will be: keep no reference to it.
        """


class Validate(CohortStage):
    """Reject updates with NaN or Inf, or whose size cannot be honest.

    Parameters
    ----------
    max_norm : float, optional
        Largest accepted L2 norm of the difference to the round's model; set it near the norms that
        your clients really have. Without it only absurd updates are stopped, with norms above
        1e15, and differences are measured only if some reply looks absurd as it was sent.

    Notes
    -----
    Who sees what: works on each update in the clear, for itself; it needs no other client's data.
    """

    name = "validate"
    phase = Phase.ADMIT

    def __init__(self, max_norm: float | None = None) -> None:
        if max_norm is not None and not max_norm > 0:
            raise ConfigError(f"validate: max_norm is {max_norm!r}; it must be greater than 0")
        self.max_norm = ABSURD_NORM if max_norm is None else max_norm
        self.needs_norms = max_norm is not None

    def apply(
        self, cohort: Cohort, state: State, context: RoundContext
    ) -> tuple[Cohort, State, Measurements]:
        """Drop what is not finite or larger than `max_norm`."""

        def check(update: Update) -> Update:
            if update.measure is not None:
                check_finite_and_size(update.measure, self.max_norm)
            return update

        return cohort.each(check), state, {}


class Clip(CohortStage):
    r"""Bound the influence of every client on the mean.

    .. math:: \Delta_i \leftarrow \Delta_i \cdot \min(1, C / \lVert \Delta_i \rVert_2)

    The mod clips on the device; the strategy does it again, since a client is not trusted to have
    done so. Clipping twice changes nothing.

    Parameters
    ----------
    clip_norm : float
        The bound C on the L2 norm over all floating-point arrays together, > 0.
    per_layer : bool
        Bound each of the L arrays by C / sqrt(L) instead; the bound on the whole is still C.

    Notes
    -----
    Who sees what: the server sees single updates and their norms.
    """

    name = "clip"
    phase = Phase.BOUND

    def __init__(self, clip_norm: float, per_layer: bool = False) -> None:
        self.parameters = ClipParameters(clip_norm=clip_norm, per_layer=per_layer)

    def client_step(self) -> PlanItem:
        """Ask the mod to clip with the same parameters."""
        p = self.parameters
        return PlanItem(self.name, {"clip_norm": p.clip_norm, "per_layer": p.per_layer})

    def apply(
        self, cohort: Cohort, state: State, context: RoundContext
    ) -> tuple[Cohort, State, Measurements]:
        """Set the scale of every update."""

        def clip(update: Update) -> Update:
            size = update.measured()
            if self.parameters.per_layer:
                size = measure(update.vector, update.base(context.model), context.layout)
            return replace(update, scale=self.parameters.scales(size))

        clipped = cohort.each(clip)
        changed = sum(bool(np.any(np.asarray(u.scale) < 1.0)) for u in clipped.updates)
        share = changed / len(clipped.updates) if clipped.updates else 0.0
        return clipped, state, {"clipped_share": share}
