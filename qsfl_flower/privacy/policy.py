"""What protection a round offers, and what a client insists on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from qsfl_flower.errors import Refusal
from qsfl_flower.plugins import Options, option
from qsfl_flower.privacy.calibration import epsilon_of_events
from qsfl_flower.privacy.events import Event

Placement = Literal["record", "distributed-record", "local", "distributed", "central"]
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
"""From needing nobody's honesty to needing the server's."""

_LARGEST = 1e15


@dataclass(frozen=True, kw_only=True)
class Protection(Options):
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

    placement: Placement = option("Who adds the noise.")
    clip_norm: float = option("Bound on the unit's influence.", gt=0, le=_LARGEST)
    noise_multiplier: float = option("Least of any release.", gt=0, le=_LARGEST)
    sampling_rate: float = option("Poisson rate that the accounting assumes.", gt=0, le=1)
    releases: int = option("Most releases that a unit takes part in.", ge=1, le=_LARGEST)
    delta: float = option("Probability with which epsilon may be exceeded.", gt=0, lt=1)

    def epsilon(self) -> float:
        """Return what the promise comes to: recomputed, never taken from the sender."""
        event = Event(self.noise_multiplier, self.sampling_rate, self.releases)
        return epsilon_of_events([event], self.delta)


@dataclass(frozen=True, kw_only=True)
class MinimumPolicy(Options):
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

    epsilon: float = option("Largest epsilon that is accepted for a run.", gt=0)
    delta: float = option("Largest delta that is accepted (delta).", 1e-5, gt=0, lt=1)
    placements: tuple[Placement, ...] = option(
        "Who may add the noise; without central the server need not be trusted.",
        PLACEMENTS,
        schema={"min_length": 1},
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
