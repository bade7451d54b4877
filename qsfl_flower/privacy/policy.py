"""What protection a round offers, and what a client insists on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from qsfl_flower.errors import ConfigError, Refusal
from qsfl_flower.privacy.calibration import epsilon_of_events
from qsfl_flower.privacy.events import Event

PLACEMENTS = ("record", "distributed-record", "local", "distributed", "central")
"""From needing nobody's honesty to needing the server's."""

_LARGEST = 1e15


@dataclass(frozen=True, kw_only=True)
class Protection:
    """What a server promises for a whole run; it travels in every instruction.

    Parameters
    ----------
    placement : str
        One of `PLACEMENTS`: who adds the noise.
    clip_norm : float
        Bound on the unit's influence, > 0.
    noise_multiplier : float
        Smallest noise multiplier of any release, > 0.
    sampling_rate : float
        Poisson rate that the accounting assumes, in (0, 1].
    releases : int
        Largest number of releases that one unit takes part in, >= 1.
    delta : float
        In (0, 1).
    """

    placement: str
    clip_norm: float
    noise_multiplier: float
    sampling_rate: float
    releases: int
    delta: float

    def epsilon(self) -> float:
        """Return what the promise comes to: recomputed, never taken from the sender."""
        event = Event(self.noise_multiplier, self.sampling_rate, self.releases)
        return epsilon_of_events([event], self.delta)

    def to_dict(self) -> dict[str, Any]:
        """Return the promise as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Protection:
        """Read a promise that was received; it is checked like any other input."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            raise ConfigError(f"a protection has exactly the keys {sorted(names)}")
        if values["placement"] not in PLACEMENTS:
            raise ConfigError(f"placement must be one of {', '.join(PLACEMENTS)}")
        numbers = [values[name] for name in names - {"placement"}]
        if not all(type(n) in (int, float) and 0 < n <= _LARGEST for n in numbers):
            raise ConfigError(f"every number of a protection must be above 0, at most {_LARGEST:g}")
        if type(values["releases"]) is not int:
            raise ConfigError("a protection counts its releases by an integer")
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class MinimumPolicy:
    """The least protection under which a client trains.

    Parameters
    ----------
    epsilon : float
        Largest epsilon of the whole run, > 0.
    delta : float
        Largest delta, in (0, 1).
    placements : tuple of str
        Accepted placements; leave out ``"central"`` to distrust the server.
    """

    epsilon: float
    delta: float = 1e-5
    placements: tuple[str, ...] = PLACEMENTS

    def __post_init__(self) -> None:
        unknown = set(self.placements) - set(PLACEMENTS)
        if not (self.epsilon > 0 and 0 < self.delta < 1) or unknown:
            raise ConfigError(
                "a policy needs epsilon > 0, 0 < delta < 1 and placements out of "
                f"{', '.join(PLACEMENTS)}, found {self}"
            )

    def and_also(self, other: MinimumPolicy | None) -> MinimumPolicy:
        """Return the policy that holds where both do."""
        if other is None:
            return self
        return MinimumPolicy(
            epsilon=min(self.epsilon, other.epsilon),
            delta=min(self.delta, other.delta),
            placements=tuple(p for p in self.placements if p in other.placements),
        )

    def check(self, offered: Protection | None) -> None:
        """Refuse what is weaker than this policy.

        Raises
        ------
        Refusal
            ``privacy-no-protection``, ``privacy-placement-not-accepted``,
            ``privacy-delta-too-large`` or ``privacy-epsilon-too-large``.
        """
        if offered is None:
            raise Refusal("privacy-no-protection", "the server offers no differential privacy")
        if offered.placement not in self.placements:
            raise Refusal(
                "privacy-placement-not-accepted",
                f"offered is {offered.placement}, accepted are {', '.join(self.placements)}",
            )
        if offered.delta > self.delta:
            raise Refusal(
                "privacy-delta-too-large",
                f"offered is {offered.delta:g}, accepted up to {self.delta:g}",
            )
        epsilon = offered.epsilon()
        if epsilon > self.epsilon * (1 + 1e-9):
            raise Refusal(
                "privacy-epsilon-too-large",
                f"the offer comes to epsilon = {epsilon:.4g}, accepted up to {self.epsilon:g}",
            )
