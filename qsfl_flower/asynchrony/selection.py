r"""Whom to ask: faster clients more often, slow ones still often enough.

Latency is the time between sending a task and having its answer, both by the server's clock. What
a client says about time is not used: it would measure the difference of two clocks, and could lie.
"""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError

_WINDOW = 10


@dataclass(frozen=True)
class Latencies:
    """The latest latencies of every client, at most ten each, in seconds."""

    seen: MappingProxyType[int, tuple[float, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )

    def observe(self, client: int, seconds: float) -> Latencies:
        """Take in one more; negative ones cannot be and count as 0."""
        latest = (*self.seen.get(client, ()), max(seconds, 0.0))[-_WINDOW:]
        seen = self.seen.copy()  # unpacking a proxy would take 25 times as long
        seen[client] = latest
        return Latencies(MappingProxyType(seen))

    def typical(self, clients: Sequence[int]) -> NDArray[np.float64]:
        """Return the median of each client; who was never asked counts like the median client.

        Returns
        -------
        numpy.ndarray
            Seconds, shape (len(clients),), all greater than 0; all 1 if nothing is known.
        """
        known = {c: statistics.median(self.seen[c]) for c in clients if self.seen.get(c)}
        usual = statistics.median(known.values()) if known else 1.0
        # A latency of 0 has no inverse; a millionth of the usual one is as good as none.
        floor = usual * 1e-6 or 1.0
        return np.array([max(known.get(c, usual), floor) for c in clients])


@dataclass(frozen=True)
class Draw:
    """Among whom to draw, and how many.

    Parameters
    ----------
    clients : Sequence[int]
        Who can be asked, in canonical order, at least `count`.
    count : int
        How many different clients are wanted, >= 0.
    latencies : Latencies
        What is known about their speed.
    generator : numpy.random.Generator
        Source of the draws.
    """

    clients: Sequence[int]
    count: int
    latencies: Latencies
    generator: np.random.Generator

    def among(self, clients: Sequence[int], count: int) -> Draw:
        """Return the same draw among other clients."""
        return replace(self, clients=clients, count=count)

    def lot(self, chances: NDArray[np.float64] | None = None) -> list[int]:
        """Draw without replacement: everybody alike, or in these proportions."""
        drawn = self.generator.choice(
            np.asarray(self.clients), self.count, replace=False, p=chances
        )
        return [int(c) for c in drawn]

    def smallest(self, keys: NDArray[Any]) -> list[int]:
        """Return those with the smallest keys, by lot among equals."""
        order = np.lexsort((self.generator.random(len(self.clients)), keys))
        return [self.clients[i] for i in order[: self.count]]


class Selection(ABC):
    """Draws clients."""

    @abstractmethod
    def choose(self, draw: Draw) -> list[int]:
        """Return the clients that were drawn."""


@dataclass(frozen=True)
class Uniform(Selection):
    """Everybody alike."""

    def choose(self, draw: Draw) -> list[int]:
        """Draw without replacement."""
        return draw.lot()


@dataclass(frozen=True)
class FasterFirst(Selection):
    r"""Faster clients more often, everybody at least sometimes.

    .. math:: p_i = (1 - \varphi) \frac{\ell_i^{-\gamma}}{\sum_j \ell_j^{-\gamma}} +
        \frac{\varphi}{n}

    Only ratios of latencies matter, so that the unit of time does not.

    Parameters
    ----------
    power : float
        The power :math:`\gamma` >= 0: 0 ignores latency, 1 asks a client that takes twice as long
        half as often.
    fairness : float
        The share :math:`\varphi` in (0, 1] of the draws that ignores latency: in a draw among n,
        nobody's probability is below :math:`\varphi / n`.
    """

    power: float = 1.0
    fairness: float = 0.2

    def __post_init__(self) -> None:
        if not (self.power >= 0 and math.isfinite(self.power)):
            raise ConfigError(f"selection: power is {self.power!r}; it must be >= 0")
        _check_fairness(self.fairness)

    def probabilities(self, clients: Sequence[int], latencies: Latencies) -> NDArray[np.float64]:
        """Return the probabilities of a single draw, shape (len(clients),), which sum to 1."""
        typical = latencies.typical(clients)
        preference = (typical.min() / typical) ** self.power
        share = preference / preference.sum()
        return np.asarray((1 - self.fairness) * share + self.fairness / len(clients))

    def choose(self, draw: Draw) -> list[int]:
        """Draw without replacement: each draw among those who are left, in these proportions."""
        return draw.lot(self.probabilities(draw.clients, draw.latencies))


@dataclass(frozen=True)
class Tiered(Selection):
    """All clients of a round from one tier of similar speed, so that none waits for another.

    Parameters
    ----------
    tiers : int
        Number of tiers of equal size, >= 1.
    fairness : float
        Share in (0, 1] of the rounds in which every tier has the same chance; in the others it is
        inverse to the tier's latency.

    References
    ----------
    Z. Chai et al., "TiFL: a tier-based federated learning system", 2020. arXiv:2001.09249.
    """

    tiers: int = 3
    fairness: float = 0.2

    def __post_init__(self) -> None:
        if self.tiers < 1:
            raise ConfigError(f"selection: tiers is {self.tiers!r}; it must be >= 1")
        _check_fairness(self.fairness)

    def choose(self, draw: Draw) -> list[int]:
        """Draw a tier, and clients out of it; one that is too small is filled up from the next."""
        groups = tiers(draw.clients, draw.latencies, min(self.tiers, len(draw.clients)))
        speed = np.array([draw.latencies.typical(group).mean() for group in groups])
        inverse = speed.min() / speed
        chances = (1 - self.fairness) * inverse / inverse.sum() + self.fairness / len(groups)
        first = int(draw.generator.choice(len(groups), p=chances))
        chosen: list[int] = []
        for group in sorted(range(len(groups)), key=lambda g: (abs(g - first), g)):
            left = min(draw.count - len(chosen), len(groups[group]))
            chosen += draw.among(groups[group], left).lot()
        return chosen


def tiers(clients: Sequence[int], latencies: Latencies, count: int) -> list[list[int]]:
    """Divide clients by speed into groups of equal size up to one, the fastest first.

    Parameters
    ----------
    clients : Sequence[int]
        In canonical order, which decides between equally fast ones.
    latencies : Latencies
        What is known about their speed.
    count : int
        Number of groups, in [1, len(clients)].
    """
    order = np.argsort(latencies.typical(clients), kind="stable")
    return [[clients[i] for i in part] for part in np.array_split(order, count)]


def _check_fairness(fairness: float) -> None:
    if not 0 < fairness <= 1:
        raise ConfigError(
            f"selection: fairness is {fairness!r}; it must be in (0, 1], or slow clients starve"
        )
