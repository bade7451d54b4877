r"""How much an update counts whose client trained on an old model.

Staleness s is the number of versions that the global model has moved on since the client got its
copy: 0 for a fresh update. Weights are at most 1 and are *not* normalized among themselves, so that
a buffer full of old updates makes a small step; with the fixed buffer size K as denominator, one
update moves the model by at most :math:`w(s)\,C/K` for a clip norm C.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from qsfl_flower.errors import ConfigError, RejectedUpdate

_SCALE = 16  # weights of hidden updates are multiples of 1/16


class StalenessWeight(ABC):
    """Weight of an update by its staleness."""

    constant: ClassVar[bool] = True
    """Whether the weights are the same in all versions."""

    @abstractmethod
    def weight(self, staleness: int, version: int) -> float:
        """Return the weight.

        Parameters
        ----------
        staleness : int
            Versions since the client got its model, >= 0.
        version : int
            The current version, counted from 0; only `Adaptive` looks at it.

        Returns
        -------
        float
            In (0, 1], and 1 for a fresh update.
        """


@dataclass(frozen=True)
class Constant(StalenessWeight):
    """Old updates count like fresh ones; training diverges sooner than with the others."""

    def weight(self, staleness: int, version: int) -> float:
        """Return 1."""
        del staleness, version
        return 1.0


@dataclass(frozen=True)
class Polynomial(StalenessWeight):
    r"""Decay with a power of the staleness.

    .. math:: w(s) = (1 + s)^{-\alpha}

    Parameters
    ----------
    exponent : float
        The power :math:`\alpha` > 0. FedBuff's is 0.5; 1 and more are on the safe side.

    References
    ----------
    C. Xie, O. Koyejo, I. Gupta, "Asynchronous federated optimization", 2019. arXiv:1903.03934.
    J. Nguyen et al., "Federated learning with buffered asynchronous aggregation", 2022.
    arXiv:2106.06639.
    """

    exponent: float = 0.5

    def __post_init__(self) -> None:
        _positive("polynomial", exponent=self.exponent)

    def weight(self, staleness: int, version: int) -> float:
        """Return the weight; see the class."""
        del version
        return float((1 + staleness) ** -self.exponent)


@dataclass(frozen=True)
class Hinge(StalenessWeight):
    r"""No decay up to a tolerance, and hyperbolic decay beyond it.

    .. math:: w(s) = \min\left(1, \frac{1}{a (s - b) + 1}\right)

    Parameters
    ----------
    slope : float
        The slope a > 0.
    tolerance : int
        The staleness b >= 0 up to which updates count in full.

    References
    ----------
    C. Xie, O. Koyejo, I. Gupta, "Asynchronous federated optimization", 2019. arXiv:1903.03934.
    """

    slope: float = 1.0
    tolerance: int = 4

    def __post_init__(self) -> None:
        _positive("hinge", slope=self.slope)
        if self.tolerance < 0:
            raise ConfigError(f"hinge: tolerance is {self.tolerance!r}; it must be >= 0")

    def weight(self, staleness: int, version: int) -> float:
        """Return the weight; see the class."""
        del version
        return 1.0 / (self.slope * max(staleness - self.tolerance, 0) + 1.0)


@dataclass(frozen=True)
class Adaptive(StalenessWeight):
    r"""Polynomial decay that gets steeper while training converges.

    Early steps are large and roughly right from any version; late ones are small, and an old one
    points the wrong way. The exponent rises linearly from `first` to `last` within `horizon`.

    Parameters
    ----------
    horizon : int
        Versions until the exponent has reached `last`, >= 1: the planned number of rounds.
    first, last : float
        Exponents > 0 at the start and after `horizon` versions.
    """

    constant = False

    horizon: int
    first: float = 0.5
    last: float = 2.0

    def __post_init__(self) -> None:
        _positive("adaptive", horizon=self.horizon, first=self.first, last=self.last)

    def weight(self, staleness: int, version: int) -> float:
        """Return the weight; see the class."""
        progress = min(version / self.horizon, 1.0)
        return float((1 + staleness) ** -(self.first + (self.last - self.first) * progress))


def integer_weights(rule: StalenessWeight, maximum: int) -> tuple[int, ...]:
    r"""Return the weights of a rule as small integers, for shares that can be multiplied by these.

    .. math:: q_s = \max(1, \operatorname{round}(16\, w(s))) / g, \qquad s = 0, \dots, s_{max}

    with the greatest common divisor g. Since w(0) = 1, an update counts :math:`q_s / q_0`.

    Parameters
    ----------
    rule : StalenessWeight
        With constant weights.
    maximum : int
        Largest staleness.

    Raises
    ------
    ConfigError
        If the weights depend on the version.
    """
    if not rule.constant:
        raise ConfigError(
            f"staleness: the weights of {type(rule).__name__} change from version to version, but "
            "clients that hide their updates agree to the weights when they share them; choose "
            "constant, polynomial or hinge"
        )
    weights = [max(1, round(_SCALE * rule.weight(s, 0))) for s in range(maximum + 1)]
    common = math.gcd(*weights)
    return tuple(weight // common for weight in weights)


@dataclass(frozen=True)
class StalenessLimit:
    """The oldest update that is still used.

    Parameters
    ----------
    maximum : int
        Largest staleness at the start, >= 0.
    final : int or None
        Largest staleness after `horizon` versions, at most `maximum`; in between the limit falls
        linearly. None: it stays.
    horizon : int
        Versions until `final` is reached, >= 1.
    """

    maximum: int
    final: int | None = None
    horizon: int = 1

    def __post_init__(self) -> None:
        if self.maximum < 0:
            raise ConfigError(f"staleness: maximum is {self.maximum!r}; it must be >= 0")
        if self.final is not None and not 0 <= self.final <= self.maximum:
            raise ConfigError(
                f"staleness: final is {self.final!r}; it must be in [0, {self.maximum}], "
                "the maximum at the start"
            )
        if self.horizon < 1:
            raise ConfigError(f"staleness: horizon is {self.horizon!r}; it must be >= 1")

    def at(self, version: int, tightened: int = 0) -> int:
        """Return the largest accepted staleness.

        Parameters
        ----------
        version : int
            The current version, counted from 0.
        tightened : int
            How often the limit has been halved on top, by a guard against divergence.
        """
        limit = float(self.maximum)
        if self.final is not None:
            limit -= (self.maximum - self.final) * min(version / self.horizon, 1.0)
        return int(limit) >> tightened


def staleness_of(version: int, origin: int, limit: int) -> int:
    """Return how stale an update is, if it may be used.

    Parameters
    ----------
    version, origin : int
        The current version of the global model, and the one that the client trained on.
    limit : int
        Largest accepted staleness.

    Raises
    ------
    RejectedUpdate
        ``"future-version"`` if the origin does not exist yet, ``"too-stale"`` beyond the limit.
    """
    staleness = version - origin
    if staleness < 0:
        raise RejectedUpdate(
            "future-version", f"trained on version {origin}, but the newest is {version}"
        )
    if staleness > limit:
        raise RejectedUpdate(
            "too-stale",
            f"trained on version {origin}, {staleness} versions old; at most {limit} are accepted",
        )
    return staleness


def _positive(name: str, **values: float) -> None:
    for key, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{name}: {key} is {value!r}; it must be greater than 0")
