"""How much noise each round gets, fixed before the first one."""

from __future__ import annotations

from dataclasses import dataclass

from qsfl_flower.plugins import Options, option
from qsfl_flower.privacy.calibration import smallest_scale
from qsfl_flower.privacy.events import Event


@dataclass(frozen=True)
class NoiseSchedule(Options):
    """A geometric schedule: round r of R gets ``first * (last / first) ** ((r - 1) / (R - 1))``.

    Less noise in later rounds, when updates are small, costs more budget in those rounds, not
    less; the calibration pays for it with more noise in the first ones.

    Parameters
    ----------
    noise_multiplier : float
        Noise multiplier of the first round, > 0.
    last_over_first : float
        Ratio of the last round's multiplier to the first one's, > 0; 1 keeps it constant.
    rounds : int
        Number of planned rounds R, >= 1; later rounds keep the last value.
    """

    noise_multiplier: float = option("Noise multiplier of the first round.", gt=0)
    last_over_first: float = option("Noise of the last round over the first.", 1.0, gt=0)
    rounds: int = option("Rounds that are planned.", 1, ge=1)

    def at(self, server_round: int) -> float:
        """Return the noise multiplier of a round >= 1."""
        step = min(server_round - 1, self.rounds - 1) / max(self.rounds - 1, 1)
        return float(self.noise_multiplier * self.last_over_first**step)

    def events(self, sampling_rate: float, slack: float = 0.0) -> list[Event]:
        """Return what all planned rounds cost."""
        if self.last_over_first == 1:
            return [Event(self.noise_multiplier, sampling_rate, self.rounds, slack)]
        return [Event(self.at(r), sampling_rate, 1, slack) for r in range(1, self.rounds + 1)]

    @classmethod
    def within(
        cls,
        epsilon: float,
        delta: float,
        rounds: int,
        *,
        sampling_rate: float = 1.0,
        last_over_first: float = 1.0,
        slack: float = 0.0,
    ) -> NoiseSchedule:
        """Return the least noisy schedule of this shape that costs at most (epsilon, delta)."""
        first = smallest_scale(
            lambda z: cls(z, last_over_first, rounds).events(sampling_rate, slack),
            epsilon,
            delta,
        )
        return cls(first, last_over_first, rounds)
