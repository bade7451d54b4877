"""Early signs of divergence and what to do then, as pure functions with the state as a value."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from qsfl_flower.errors import CheckpointError, ConfigError


class Reaction(StrEnum):
    """What is done about an alarm."""

    LOWER_RATE = "lower-rate"
    TIGHTEN_STALENESS = "tighten-staleness"
    ROLL_BACK = "roll-back"
    HALT = "halt"


@dataclass(frozen=True)
class MonitorState:
    """What the monitor remembers.

    Parameters
    ----------
    losses : tuple[float, ...]
        The latest losses, at most a window of them.
    norms : tuple[float, ...]
        The latest update norms, at most a window of them.
    best : float or None
        Smallest mean loss over a full window so far.
    reactions : int
        How often there was a reaction.
    quiet : int
        Rounds for which alarms are still expected because of the last one.
    """

    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    best: float | None = None
    reactions: int = 0
    quiet: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {**asdict(self), "losses": list(self.losses), "norms": list(self.norms)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> MonitorState:
        """Restore a state from JSON values.

        Raises
        ------
        CheckpointError
            If the values are not those of a state.
        """
        try:
            losses, norms = (tuple(map(float, values[key])) for key in ("losses", "norms"))
            best = None if values["best"] is None else float(values["best"])
            return cls(losses, norms, best, int(values["reactions"]), int(values["quiet"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"the state of the monitor is damaged: {error!r}") from None


@dataclass(frozen=True)
class Monitor:
    """Watches the loss and the norm of the model's steps, and says what to do about an alarm.

    The loss is compared with the best mean over `window` rounds, since a single round is noisy and
    "it doubled" needs a reference; a loss that is not finite is an alarm at once.

    The first alarm has the first of the `reactions` as its consequence, the next alarm the second,
    and so on; the last one repeats. After a reaction, alarms are ignored for `patience` rounds, in
    which the loss may take its time to come down, unless the loss is not finite.

    Parameters
    ----------
    window : int
        Rounds over which the loss is averaged and the median norm is taken, >= 1.
    loss_factor : float
        Alarm when the mean loss exceeds this many times the best one, > 1.
    norm_factor : float
        Alarm when a step is this many times longer than the median one, > 1.
    reactions : tuple[Reaction, ...]
        What to do at the first alarm, the second ...; none: alarms are only told.
    patience : int
        Rounds after a reaction in which there is no other, >= 0.
    """

    window: int = 5
    loss_factor: float = 2.0
    norm_factor: float = 10.0
    reactions: tuple[Reaction, ...] = ()
    patience: int = 5

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise ConfigError(f"monitor: patience is {self.patience!r}; it must be >= 0")
        if self.window < 1:
            raise ConfigError(f"monitor: window is {self.window!r}; it must be >= 1")
        for name in ("loss_factor", "norm_factor"):
            if not getattr(self, name) > 1:
                raise ConfigError(f"monitor: {name} is {getattr(self, name)!r}; it must be > 1")

    def init(self) -> MonitorState:
        """Return the state before the first round."""
        return MonitorState()

    def observe(
        self, state: MonitorState, loss: float | None, update_norm: float | None
    ) -> tuple[MonitorState, str | None]:
        """Take in one round and return the next state and an alarm, if any.

        Parameters
        ----------
        state : MonitorState
            As returned for the round before.
        loss : float or None
            Loss of the round; None if it is not known.
        update_norm : float or None
            L2 norm of the model's step; None if the model did not move.
        """
        alarms = []
        if loss is not None and not math.isfinite(loss):
            alarms.append(f"the loss is {loss}")
        elif loss is not None:
            state, alarm = self._loss(state, loss)
            alarms += [alarm] if alarm else []
        if update_norm is not None:
            state, alarm = self._norm(state, update_norm)
            alarms += [alarm] if alarm else []
        return state, "; ".join(alarms) or None

    def react(
        self, state: MonitorState, alarm: str | None, loss: float | None
    ) -> tuple[MonitorState, Reaction | None]:
        """Decide what to do, once a round, with what `observe` returned.

        Parameters
        ----------
        state : MonitorState
            From `observe`.
        alarm : str or None
            From `observe`.
        loss : float or None
            Loss of the round.

        Returns
        -------
        tuple[MonitorState, Reaction or None]
            After a reaction the windows begin anew; the best loss so far stays the reference.
        """
        finite = loss is None or math.isfinite(loss)
        if alarm is None or not self.reactions or (state.quiet and finite):
            return replace(state, quiet=max(state.quiet - 1, 0)), None
        reaction = self.reactions[min(state.reactions, len(self.reactions) - 1)]
        after = MonitorState((), (), state.best, state.reactions + 1, self.patience)
        return after, reaction

    def _loss(self, state: MonitorState, loss: float) -> tuple[MonitorState, str | None]:
        losses = (*state.losses, loss)[-self.window :]
        mean = math.fsum(losses) / len(losses)
        alarm = None
        # The absolute value lets the rule make sense for a loss below zero.
        if state.best is not None and (
            mean > state.best + (self.loss_factor - 1) * abs(state.best)
        ):
            alarm = (
                f"the mean loss of {len(losses)} rounds is {mean:.4g}, more than "
                f"{self.loss_factor:g} times the best ({state.best:.4g})"
            )
        if len(losses) == self.window:
            best = mean if state.best is None else min(mean, state.best)
            state = replace(state, best=best)
        return replace(state, losses=losses), alarm

    def _norm(self, state: MonitorState, norm: float) -> tuple[MonitorState, str | None]:
        if not math.isfinite(norm):
            return state, f"the step has norm {norm}"
        alarm = None
        if len(state.norms) == self.window:
            median = statistics.median(state.norms)
            if norm > self.norm_factor * median > 0:
                alarm = (
                    f"the step has norm {norm:.4g}, more than {self.norm_factor:g} times the "
                    f"median of the last {self.window} ({median:.4g})"
                )
        return replace(state, norms=(*state.norms, norm)[-self.window :]), alarm
