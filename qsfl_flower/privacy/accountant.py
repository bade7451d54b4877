"""The accountant: accumulates events round by round."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial

import numpy as np

from qsfl_flower.privacy.events import AnyEvent, Event, PureEvent
from qsfl_flower.privacy.gaussian import check_delta, gaussian_epsilon
from qsfl_flower.privacy.pld import LEAST_DELTA, LossDistribution
from qsfl_flower.privacy.rdp import ORDERS, epsilon_of, rdp_of

_USELESS = 50.0
"""Beyond it the Renyi bound is not made tighter: it says nothing anyway."""

_LEAST_DELTA = 1e-100
"""The same below it."""


class Accountant:
    """Accumulates privacy losses of one unit of protection.

    Releases without sampling are composed exactly, all others on a grid (`privacy.pld`, within 0.1
    % of the smallest epsilon). The Renyi bound, 5 to 10 % larger, is the limit, and all there is
    above epsilon 50 and below delta 2e-10; what is purely private costs at most its plain sum.

    Parameters
    ----------
    events : iterable of Event or PureEvent
        What has happened already.
    planned : sequence of Event or PureEvent
        What is to come, `events` included: the grid is made for it, which saves making it anew when
        the releases have become twice as many. What comes may differ.

    Examples
    --------
    >>> accountant = Accountant()
    >>> accountant.add(Event(noise_multiplier=1.0, sampling_rate=0.01, count=1000))
    >>> round(accountant.epsilon(1e-5), 2)
    1.83
    """

    def __init__(self, events: Iterable[AnyEvent] = (), planned: Sequence[AnyEvent] = ()) -> None:
        self.planned = planned
        self._events: list[AnyEvent] = []
        self._rdp = np.zeros(ORDERS.size)
        self._slack = self._sampled_slack = 0.0
        self._losses: dict[float, tuple[LossDistribution, int]] = {}
        self._spent: dict[float, float] = {}
        for event in events:
            self.add(event)

    @property
    def events(self) -> Sequence[AnyEvent]:
        """What has been added so far."""
        return tuple(self._events)

    def add(self, event: AnyEvent) -> None:
        """Account for an event."""
        self._events.append(event)
        self._spent.clear()
        self._rdp = self._rdp + event.count * rdp_of(event)
        if isinstance(event, Event):
            slack = math.sqrt(event.count) * event.slack
            self._slack = math.hypot(self._slack, slack)
            if event.sampling_rate < 1:  # else it obeys the continuous one's Renyi bound itself
                self._sampled_slack = math.hypot(self._sampled_slack, slack)

    def epsilon(self, delta: float) -> float:
        """Return an upper bound on the epsilon of all events together at delta."""
        if delta not in self._spent:
            self._spent[delta] = self._epsilon(delta)
        return self._spent[delta]

    def _epsilon(self, delta: float) -> float:
        bound = _with_slack(partial(epsilon_of, self._rdp), delta, self._sampled_slack)
        pure = [e for e in self._events if isinstance(e, PureEvent)]
        if len(pure) == len(self._events):
            bound = min(bound, math.fsum(e.count * e.epsilon for e in pure))
        if bound > _USELESS or delta < _LEAST_DELTA or not self._events:
            return bound
        whole = [e for e in self._events if isinstance(e, Event) and e.sampling_rate == 1]
        if len(whole) == len(self._events):
            mu = math.sqrt(sum(e.count * (1 / e.noise_multiplier) ** 2 for e in whole))
            return min(bound, _with_slack(partial(gaussian_epsilon, mu), delta, self._slack))
        if delta < 2 * LEAST_DELTA:
            return bound
        return min(bound, _with_slack(self._composed(delta).epsilon, delta, self._slack))

    def with_event(self, event: AnyEvent) -> Accountant:
        """Return an accountant that has also seen `event`; this one stays as it is."""
        after = Accountant((), self.planned)
        after._events = [*self._events]
        after._rdp = self._rdp
        after._slack, after._sampled_slack = self._slack, self._sampled_slack
        after._losses = {d: (copy(losses), seen) for d, (losses, seen) in self._losses.items()}
        after.add(event)
        return after

    def _composed(self, delta: float) -> LossDistribution:
        """Return the distribution of all events, brought up to date."""
        losses, seen = self._losses.get(delta) or (None, 0)
        if losses is None and self.planned:
            losses = LossDistribution(self.planned, delta / 2)
        if losses is None or not losses.fits(self._events[seen:]):
            losses, seen = LossDistribution([*self._events, *self._events], delta / 2), 0
        counted: Counter[AnyEvent] = Counter()
        for event in self._events[seen:]:
            counted[replace(event, count=1)] += event.count
        for event, count in counted.items():
            losses.add(replace(event, count=count))
        self._losses[delta] = losses, len(self._events)
        return losses


def _with_slack(epsilon: Callable[[float], float], delta: float, slack: float) -> float:
    """Return epsilon where all releases lie within `slack` of what is accounted for."""
    check_delta(delta)
    if slack == 0:
        return epsilon(delta)
    # The larger epsilon at half of delta bounds the factor e^epsilon of the slack from above.
    lost = (1 + math.exp(min(epsilon(delta / 2), 700.0))) * slack
    return epsilon(delta - lost) if lost <= delta / 2 else math.inf
