"""From a target (epsilon, delta) to noise, rounds or sampling, by search on the accountant."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy.events import AnyEvent, Event

_LEAST, _MOST = 1e-2, 1e7

_ROOM = 2e-5
"""Share of epsilon that is left free: accounting round by round rounds elsewhere than all at once,
and must not end a run one round early."""


def epsilon_of_events(events: Sequence[AnyEvent], delta: float) -> float:
    """Return the epsilon that a list of events costs together."""
    from qsfl_flower.privacy.accountant import Accountant  # loads SciPy, which devices rarely need

    return Accountant(events, events).epsilon(delta)


def smallest_scale(
    events: Callable[[float], Sequence[AnyEvent]],
    epsilon: float,
    delta: float,
) -> float:
    """Return the smallest factor for which the events stay within (epsilon, delta).

    Parameters
    ----------
    events : callable
        Maps a factor > 0 to what would be accounted for; a larger factor must cost less.
    epsilon, delta : float
        The target, epsilon > 0 and 0 < delta < 1.

    Returns
    -------
    float
        Right to 1 in 100,000, rounded up.

    Raises
    ------
    ConfigError
        If no factor up to 10^7 is enough.
    """
    from scipy.optimize import brentq

    if not epsilon > 0:
        raise ConfigError(f"epsilon must be greater than 0, found {epsilon!r}")

    def excess(scale: float) -> float:
        spent = epsilon_of_events(events(scale), delta)
        return math.log(min(max(spent / (epsilon * (1 - _ROOM)), 1e-3), 1e3))

    high = 1.0
    while excess(high) > 0:
        high *= 4
        if high > _MOST:
            raise ConfigError(
                f"no noise reaches epsilon = {epsilon} at delta = {delta} for this plan; allow a "
                "larger epsilon or delta, or plan fewer rounds"
            )
    low = high / 4
    while low > _LEAST and excess(low) <= 0:
        low, high = low / 4, low
    if excess(low) <= 0:
        return low
    found = math.exp(
        brentq(lambda x: excess(math.exp(x)), math.log(low), math.log(high), xtol=2e-6)
    )
    while excess(found) > 0:
        found *= 1 + 2e-6
    return found


def noise_multiplier_for(
    epsilon: float,
    delta: float,
    rounds: int,
    sampling_rate: float = 1.0,
    *,
    slack: float = 0.0,
) -> float:
    """Return the smallest noise multiplier with which `rounds` releases cost at most epsilon.

    Examples
    --------
    >>> round(noise_multiplier_for(1.0, 1e-5, 1000, 0.05), 1)
    6.5
    """
    return smallest_scale(lambda z: [Event(z, sampling_rate, rounds, slack)], epsilon, delta)


def rounds_for(
    epsilon: float,
    delta: float,
    noise_multiplier: float,
    sampling_rate: float = 1.0,
    *,
    slack: float = 0.0,
    most: int = 1_000_000,
) -> int:
    """Return how many releases epsilon allows: 0 to `most`."""

    event = Event(noise_multiplier, sampling_rate, 1, slack)
    return repeats_within(epsilon, delta, [event], most=most)


def repeats_within(
    epsilon: float,
    delta: float,
    events: Sequence[AnyEvent],
    *,
    after: Sequence[AnyEvent] = (),
    most: int = 1_000_000,
) -> int:
    """Return how often `events` may happen after what has happened: 0 to `most`."""

    def allowed(count: int) -> bool:
        more = [replace(event, count=count * event.count) for event in events]
        return epsilon_of_events([*after, *more], delta) <= epsilon * (1 + 1e-9)

    if not allowed(1):
        return 0
    low, high = 1, 2
    while high <= most and allowed(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if allowed(middle) else (low, middle)
    return low
