"""How a round of training goes, whichever way: what it is given, and what becomes of it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from qsfl_flower.rounds.aggregate import Outcome
from qsfl_flower.rounds.checkpoint import Snapshot
from qsfl_flower.rounds.context import State
from qsfl_flower.rounds.engine import Engine
from qsfl_flower.rounds.update import Cohort

log = logging.getLogger("qsfl_flower")

EvaluateFunction = Callable[[int, ArrayRecord], MetricRecord | None]


@dataclass(frozen=True)
class Job:
    """What a run was started with; see `StableFedAvg.start`."""

    grid: Grid
    num_rounds: int
    train_config: ConfigRecord
    evaluate_config: ConfigRecord
    evaluate_fn: EvaluateFunction | None


@dataclass(frozen=True)
class Trained:
    """What became of the training of a round.

    Parameters
    ----------
    messages, replies : Sequence[Message]
        What was sent and what came back meanwhile.
    arrays : ArrayRecord or None
        The next model; None: it stays as it is.
    metrics : MetricRecord or None
        The clients' mean metrics.
    outcome : Outcome or None
        The details; None if nobody trains.
    """

    messages: Sequence[Message]
    replies: Sequence[Message]
    arrays: ArrayRecord | None = None
    metrics: MetricRecord | None = None
    outcome: Outcome | None = None


class Hooks(Protocol):
    """What a strategy lets its user override: Flower's hooks of a ``Strategy``."""

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make the instructions to train."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the replies."""

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make the instructions to evaluate."""

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the metrics."""


class Rounds(ABC):
    """How a round of training goes.

    Parameters
    ----------
    engine : Engine
        State, sampling, tasks and time.
    hooks : Hooks
        The strategy.
    """

    def __init__(self, engine: Engine, hooks: Hooks) -> None:
        self.engine, self.hooks = engine, hooks

    @abstractmethod
    def train(
        self, job: Job, server_round: int, arrays: ArrayRecord, lap: Callable[[str], None]
    ) -> Trained:
        """Train once: ask, wait, combine.

        Parameters
        ----------
        job : Job
            What the run was started with.
        server_round : int
            Counted from 1.
        arrays : ArrayRecord
            The model to train.
        lap : Callable[[str], None]
            Told the name of each part of the round when it is over.
        """

    def to_save(self) -> tuple[dict[str, State], dict[str, Any] | None]:
        """Return what a checkpoint holds besides model and history: states, and tasks under way."""
        return self.engine.to_save()

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from what `to_save` returned."""
        self.engine.restore(snapshot)

    def skip(self, server_round: int, why: str) -> Trained:
        """Leave the model as it is without asking anybody to train."""
        self.engine.outcome = Outcome(Cohort((), ()), self.engine.states, skipped=why)
        log.warning("round %d: no client is asked to train: %s", server_round, why)
        return Trained((), (), outcome=self.engine.outcome)
