"""Stages: what a strategy does to the updates of a round, one capability each.

A stage is pure: state goes in and comes out as a value, so that it can be saved and restored.
Stages of a `Chain` are put into the canonical order of their phases whatever the order in which
they were given; a single-purpose strategy is the chain with one stage.

A `MessageStage` works on whole messages, before anything in them is read; a `DecodeStage` reads
replies that a mechanism has encoded. A `CohortStage` works on single updates and comes before the
round is combined; a `VectorStage` works on the combined difference and comes after it. The
combination between them is the only crossing: a weighted mean, or what a `CombineStage` does.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from qsfl_flower.errors import QSFLError
from qsfl_flower.numerics import Layout, Vector
from qsfl_flower.privacy.events import Event
from qsfl_flower.rounds.composition import Trait
from qsfl_flower.rounds.context import Exchange, Measurements, Phase, RoundContext, State, Steps
from qsfl_flower.rounds.facts import Facts, Sentences
from qsfl_flower.rounds.spending import Spending
from qsfl_flower.rounds.update import Cohort, Sender, Update, Weighting


class Stage(ABC):
    """Common part; subclass one of the kinds below."""

    name: ClassVar[str]
    phase: ClassVar[Phase]
    volatile: ClassVar[bool] = False
    """True if the state must not be written to a checkpoint; it starts anew after a restart."""
    declares: ClassVar[frozenset[Trait]] = frozenset()
    """Traits besides those that follow from the kind of stage."""

    @property
    def traits(self) -> frozenset[Trait]:
        """What this stage does that matters to the others; see `composition.REFUSALS`."""
        return self.declares

    @property
    def needs_start(self) -> bool:
        """Whether what becomes of the updates depends on the model that the round began with."""
        return True

    @property
    def facts(self) -> Facts:
        """What other stages of a chain may rely on."""
        return Facts()

    def check(self, stages: Sequence[Stage]) -> None:
        """Refuse a chain in which this stage's guarantee would not hold.

        Parameters
        ----------
        stages : Sequence[Stage]
            All stages of the chain in canonical order, this one included.

        Raises
        ------
        CompositionError
            With the reason and an alternative.
        """
        del stages

    def bind(self, stages: Sequence[Stage]) -> Self:
        """Return this stage as it is in a chain: a copy that knows what it needs of the others.

        The stage itself stays as it is and can be part of other chains too. Its account is its own
        in each of them.

        Parameters
        ----------
        stages : Sequence[Stage]
            As for `check`, which has refused nothing; not bound themselves.
        """
        del stages
        return self if self.spending is None else self.knowing(spending=self.spending.anew())

    def knowing(self, **known: Any) -> Self:
        """Return a copy with these attributes, for `bind`."""
        bound = copy(self)
        vars(bound).update(known)
        return bound

    def explain(self, layout: Layout, rounds: int) -> Sentences:
        """Return what holds because of this stage, as sentences by topic.

        Parameters
        ----------
        layout : Layout
            The model's layout.
        rounds : int
            How many rounds are planned, >= 1.
        """
        del layout, rounds
        return {}

    def upload(self, size: int, clients: int) -> int | None:
        """Return about how large a reply of `size` coordinates is in bytes; None if free."""
        del size, clients
        return None

    def prepare(self, state: State, context: RoundContext) -> State:
        """Return the state with what this round needs, before its instruction is made."""
        del context
        return state

    def client_steps(self, state: State, context: RoundContext) -> Steps:
        """Return what the clients' mod has to do for this stage in this round."""
        del state, context
        return ()

    def address(
        self, contents: Mapping[int, RecordDict], state: State, exchange: Exchange
    ) -> tuple[dict[int, RecordDict], State]:
        """Change what each node is told to train on or to evaluate, and return the next state.

        Comes before `MessageStage.instruct`. The contents usually are one object for all nodes:
        put new ones in its place instead of changing it.
        """
        del exchange
        return dict(contents), state

    def joins(self, state: State, origin: int) -> None:
        """Refuse an update whose client was asked in an earlier round than the one prepared last.

        Called before anything in the update is looked at.

        Raises
        ------
        RejectedUpdate
            If it cannot come together with those of this round.
        """
        del state, origin

    def heard(self, answered: Mapping[int, bool], state: State) -> State:
        """Return the next state, told which of the nodes that were asked have been let in."""
        del answered
        return state

    spending: Spending | None = None
    """Keeps the account of a stage that costs privacy."""

    def planned(self, layout: Layout, rounds: int) -> list[Event]:
        """Return what so many rounds cost in privacy."""
        del layout, rounds
        return []

    def spent(self, state: State) -> float | None:
        """Return the epsilon that was paid so far, whatever became of the rounds; None without."""
        return None if self.spending is None else self.spending.epsilon(state)

    def init(self, layout: Layout) -> State:
        """Return the state before the first round."""
        del layout
        return {}


class MessageStage(Stage):
    """A stage on whole messages: what leaves the server and what is let in."""

    @property
    def traits(self) -> frozenset[Trait]:
        """There can be one only."""
        return self.declares | {Trait.HANDLES_MESSAGES}

    @abstractmethod
    def instruct(
        self, contents: Mapping[int, RecordDict], state: State, exchange: Exchange
    ) -> tuple[dict[int, RecordDict], State]:
        """Return what each node is sent, and the next state.

        Parameters
        ----------
        contents : Mapping[int, RecordDict]
            What each node is told; usually one object for all of them.
        """

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


class DecodeStage(Stage):
    """Reads replies whose arrays a mechanism has encoded on the client."""

    encoding: ClassVar[str]
    """Name of the encoding; replies in any other form are rejected."""

    epoch: int = 1
    """For how many rounds in a row the public coordinates stay the same."""

    warmup_rounds: int = 0
    """In how many first rounds more is sent than later."""

    phase = Phase.DECODE

    @property
    def traits(self) -> frozenset[Trait]:
        """Whose coordinates they are follows from `support`, for how long from `epoch`."""
        found = self.declares | {Trait.ENCODES}
        if type(self).support is DecodeStage.support:
            return found | {Trait.OWN_SUPPORT}
        return found | {Trait.ROUND_SUPPORT} if self.epoch == 1 else found

    @abstractmethod
    def decode(self, payload: ArrayRecord, context: RoundContext) -> Vector:
        """Return the difference of shape (d,) that a payload stands for.

        Raises
        ------
        RejectedUpdate
            If the payload is not what `client_steps` asked for.
        """

    def support(self, state: State, context: RoundContext) -> NDArray[np.int64] | None:
        """Return the public coordinates to which this round is restricted, if it is."""
        del state, context
        return None


class CohortStage(Stage):
    """A stage on the single updates of a round."""

    needs_norms: bool = True
    """Whether every update has to be measured before this stage sees it."""

    blind: ClassVar[bool] = False
    """Whether the clients' half is enough where updates are hidden from the server."""

    @property
    def traits(self) -> frozenset[Trait]:
        """A stage that is not `blind` has to see."""
        return self.declares if self.blind else self.declares | {Trait.SEES_UPDATES}

    @abstractmethod
    def apply(
        self, cohort: Cohort, state: State, context: RoundContext
    ) -> tuple[Cohort, State, Measurements]:
        """Return the changed cohort, the next state and what was measured."""


@dataclass(frozen=True)
class Combined:
    """What became of a cohort.

    Parameters
    ----------
    cohort : Cohort
        With the weights that the updates had, and a `status` where one did not count.
    step : numpy.ndarray or None
        The combined difference, float64, shape (d,) or (k,) on the round's support; None if the
        model stays as it is.
    state : State
        The next state.
    measured : Measurements
        What was measured.
    skipped : str or None
        Why the model stays as it is.
    metrics : Mapping[str, float] or None
        The clients' mean metrics where the stage computes them itself.
    statistics : Mapping[str, numpy.ndarray]
        Likewise the next values of the model's buffers of floats.
    """

    cohort: Cohort
    step: NDArray[np.float64] | None
    state: State
    measured: Measurements = field(default_factory=dict)
    skipped: str | None = None
    metrics: Mapping[str, float] | None = None
    statistics: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class CombineStage(Stage):
    """Makes one difference of the updates of a round, in place of the weighted mean."""

    phase = Phase.COMBINE

    needs_norms: bool = True
    """Whether every update has to be measured before this stage sees it."""

    hides: ClassVar[bool] = False
    """Whether the server never sees single updates: they carry `Update.sealed` instead."""

    @property
    def sums_statistics(self) -> bool:
        """Where it hides: whether it adds up the buffers of floats too, behind the updates."""
        return False

    overlaps: ClassVar[bool] = False
    """Where it hides: whether updates from different versions of the model may come together."""

    @property
    def traits(self) -> frozenset[Trait]:
        """It hides the updates or sees them."""
        found = self.declares | {Trait.COMBINES}
        if not self.hides:
            return found | {Trait.SEES_UPDATES}
        return found | {Trait.HIDES_UPDATES} | (frozenset() if self.overlaps else {Trait.ONE_MODEL})

    def least_clients(self, weighting: Weighting) -> int:
        """Return how many clients a federation needs, for a round to lead to anything."""
        del weighting
        return 1

    def unready(self, state: State) -> str | None:
        """Return why nobody needs to train in the round that was prepared last; None if all is set.

        The round is skipped for this reason then, and no client is asked.
        """
        del state
        return None

    def check_buffer(self, weighting: Weighting) -> None:
        """Refuse a buffer of updates of which no step could be made.

        Raises
        ------
        ConfigError
            With the reason.
        """
        del weighting

    @abstractmethod
    def combine(self, cohort: Cohort, state: State, context: RoundContext) -> Combined:
        """Combine the updates of a round, in canonical order."""

    def read(self, sender: Sender, content: RecordDict, context: RoundContext) -> Update:
        """Read a reply whose update is hidden (`hides`).

        Raises
        ------
        RejectedUpdate
            If it is not what `client_steps` asked for.
        """
        del content, context
        raise QSFLError(f"{type(self).__name__} does not read replies (of {sender.label})")


class VectorStage(Stage):
    """A stage on the combined difference of a round."""

    denominator: float | None = None
    """What the sum of the updates must be divided by, if that must not depend on the clients."""

    poisson_rate: float | None = None
    """Probability with which each client must take part, independently of all others, if any."""

    @property
    def traits(self) -> frozenset[Trait]:
        """What follows from its phase and `poisson_rate`."""
        found = set(self.declares)
        if self.phase is Phase.UPDATE:
            found.add(Trait.OPTIMISES)
        if self.poisson_rate is not None:
            found.add(Trait.DRAWS_CLIENTS)
        return frozenset(found)

    def limit(self, clients: int, context: RoundContext) -> float:
        """Return the largest norm that the combined difference of so many clients can have.

        A longer one is not applied: some client did not keep to its bound.
        """
        del clients, context
        return math.inf

    def noise_std(self, clients: int, context: RoundContext) -> float:
        """Return the standard deviation of this stage's noise in the sum of so many vectors.

        That of each coordinate, if all of them add what they are asked for.
        """
        del clients, context
        return 0.0

    def participants(self, clients: Sequence[int], server_round: int, run_id: int) -> list[int]:
        """Return the clients of a round if there is a `poisson_rate`."""
        raise QSFLError(f"{self.name} does not draw clients (round {server_round})")

    @abstractmethod
    def apply(
        self, vector: NDArray[np.float64], state: State, context: RoundContext
    ) -> tuple[NDArray[np.float64], State, Measurements]:
        """Return the changed vector, the next state and what was measured.

        The vector may be changed in place, and what is returned will be: keep no reference to it.
        """
