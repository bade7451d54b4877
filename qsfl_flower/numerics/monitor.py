"""Early signs of divergence, as a pure function with its state as a value."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qsfl_flower.errors import CheckpointError, ConfigError


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
    """

    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    best: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""
        return {"losses": list(self.losses), "norms": list(self.norms), "best": self.best}

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
            best = values["best"]
            return cls(losses, norms, None if best is None else float(best))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the state of the monitor is damaged: {error!r}") from None


@dataclass(frozen=True)
class Monitor:
    """Watches the loss and the norm of the model's steps.

    The loss is compared with the best mean over `window` rounds, since a single round is noisy and
    "it doubled" needs a reference; a loss that is not finite is an alarm at once.

    Parameters
    ----------
    window : int
        Rounds over which the loss is averaged and the median norm is taken, >= 1.
    loss_factor : float
        Alarm when the mean loss exceeds this many times the best one, > 1.
    norm_factor : float
        Alarm when a step is this many times longer than the median one, > 1.
    """

    window: int = 5
    loss_factor: float = 2.0
    norm_factor: float = 10.0

    def __post_init__(self) -> None:
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
