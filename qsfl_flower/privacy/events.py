"""What an accountant is told: which noisy release happened, and how often."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qsfl_flower.errors import ConfigError

ADD_OR_REMOVE = "add or remove one"
REPLACE = "replace one"
ZERO = "one becomes zero"

RELATIONS = (ADD_OR_REMOVE, REPLACE, ZERO)
"""What makes two data sets neighbours: a unit more or less, another unit in its place, or one whose
contribution is zero and whose being there is public."""


@dataclass(frozen=True)
class Event:
    """Releases of a Gaussian (or discrete Gaussian) mechanism on Poisson samples.

    Parameters
    ----------
    noise_multiplier : float
        Standard deviation of the noise that was really added over the L2 sensitivity of what was
        released, > 0.
    sampling_rate : float
        Probability with which each unit took part, independently of all others, in (0, 1]. Any
        other way of choosing is 1.
    count : int
        Number of such releases, >= 1.
    slack : float
        Square root of half the Kullback-Leibler divergence of one release from the continuous
        mechanism, >= 0. The total variation of many is at most the root of the sum of their
        squares (Pinsker's inequality and the chain rule).
    relation : str
        Which data sets are neighbours, one of `RELATIONS`; the sensitivity is that of this
        relation. Sampling is accounted for where one unit is added or removed: a batch that is
        filled up or cut off depends on all units, so its sampling rate is 1.
    """

    noise_multiplier: float
    sampling_rate: float = 1.0
    count: int = 1
    slack: float = 0.0
    relation: str = ADD_OR_REMOVE

    def __post_init__(self) -> None:
        rules = (
            ("noise_multiplier", 0 < self.noise_multiplier < math.inf, "> 0"),
            ("sampling_rate", 0 < self.sampling_rate <= 1, "> 0 and <= 1"),
            ("count", self.count >= 1, ">= 1"),
            ("slack", 0 <= self.slack < 1, ">= 0 and < 1"),
            ("relation", self.relation in RELATIONS, f"one of {', '.join(RELATIONS)}"),
            (
                "sampling_rate",
                self.sampling_rate == 1 or self.relation == ADD_OR_REMOVE,
                f"1 where neighbours are: {self.relation}",
            ),
        )
        for field, valid, allowed in rules:
            if not valid:
                raise ConfigError(
                    f"{field} of a privacy event must be {allowed}, found {getattr(self, field)!r}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON values."""
        return {
            "noise_multiplier": self.noise_multiplier,
            "sampling_rate": self.sampling_rate,
            "count": self.count,
            "slack": self.slack,
            "relation": self.relation,
        }


@dataclass(frozen=True)
class PureEvent:
    """Releases with (epsilon, 0)-DP each, as of the Laplace or the exponential mechanism.

    Parameters
    ----------
    epsilon : float
        > 0.
    count : int
        Number of such releases, >= 1.
    """

    epsilon: float
    count: int = 1

    def __post_init__(self) -> None:
        if not (0 < self.epsilon < math.inf and self.count >= 1):
            raise ConfigError(
                "a pure privacy event needs epsilon > 0 and count >= 1, found "
                f"{self.epsilon!r} and {self.count!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON values."""
        return {"epsilon": self.epsilon, "count": self.count}


AnyEvent = Event | PureEvent


def event_from_dict(values: Mapping[str, Any]) -> AnyEvent:
    """Rebuild an event from `to_dict`."""
    try:
        return PureEvent(**values) if "epsilon" in values else Event(**values)
    except TypeError as error:
        raise ConfigError(f"{dict(values)} is not a privacy event: {error}") from None
