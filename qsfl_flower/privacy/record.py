"""Record-level privacy: what every client does for each of its records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics import Layout
from qsfl_flower.plugins import option
from qsfl_flower.privacy.calibration import smallest_scale
from qsfl_flower.privacy.events import Event
from qsfl_flower.privacy.gaussian import grid_slack
from qsfl_flower.privacy.options import SampledOptions

METRICS = {
    "clip_norm": "dp-clip-norm",
    "noise_multiplier": "dp-noise-multiplier",
    "sampling_rate": "dp-sampling-rate",
    "steps": "dp-steps",
    "sum_norm": "dp-sum-norm",
}
"""Metrics under which a client tells what it did."""


@dataclass(frozen=True, kw_only=True)
class RecordPrivacy(SampledOptions):
    """How a client protects its records while it trains.

    Parameters
    ----------
    clip_norm : float
        Bound C on the L2 norm of one record's gradient, > 0.
    noise_multiplier : float
        Standard deviation of the noise on the sum of clipped gradients over C, > 0.
    sampling_rate : float
        Probability with which each record is in a batch, in (0, 1].
    steps : int
        Noisy steps per round, >= 1.
    """

    noise_multiplier: float = option("Standard deviation of the noise over the clip norm.", gt=0)
    steps: int = option("Noisy steps of a client in a round.", ge=1)

    @classmethod
    def within(
        cls,
        epsilon: float,
        delta: float,
        rounds: int,
        *,
        clip_norm: float,
        sampling_rate: float,
        steps: int,
        size: int = 10_000_000,
    ) -> RecordPrivacy:
        """Return the protection with the least noise that costs at most epsilon in so many rounds.

        Parameters
        ----------
        epsilon, delta : float
            The target, epsilon > 0 and 0 < delta < 1.
        rounds : int
            Rounds in which a client takes part at most, >= 1.
        clip_norm, sampling_rate, steps
            As in the class.
        size : int
            Parameters of the model, at most: an allowance for the noise being discrete, >= 1.
        """
        slack = grid_slack(size)
        noise = smallest_scale(
            lambda z: [Event(z, sampling_rate, steps * rounds, slack)], epsilon, delta
        )
        return cls(
            clip_norm=clip_norm, noise_multiplier=noise, sampling_rate=sampling_rate, steps=steps
        )

    def event(self, size: int, rounds: int = 1) -> Event:
        """Return what so many rounds of a model with `size` parameters cost each record."""
        slack = grid_slack(size)
        return Event(self.noise_multiplier, self.sampling_rate, self.steps * rounds, slack)

    def told(self) -> dict[str, float]:
        """Return the metrics with which a client says that it has done this."""
        return _told(self)

    def weaker(self, told: Mapping[str, Any]) -> str | None:
        """Return in which way what a client told is weaker than this, or None if it is not.

        What a client tells is a claim; it protects its own records, so it has no reason to lie.
        """
        return _weaker(self, told)


@dataclass(frozen=True, kw_only=True)
class RecordBatch(SampledOptions):
    r"""What every client computes where noise is added to the sum over all clients.

    .. math:: G = P\Big(\sum_{i \in B} g_i \min(1, C / \lVert g_i \rVert)\Big)

    for a Poisson batch B of its records; P scales vectors longer than S down to S. Scaling to a
    ball brings no two vectors further apart, so that one record moves G by at most C still.

    Parameters
    ----------
    clip_norm : float
        Bound C on the L2 norm of one record's gradient, > 0.
    sampling_rate : float
        Probability with which each record is in the batch, in (0, 1].
    sum_norm : float
        Bound S on the L2 norm of the sum, >= `clip_norm`; larger sums lose accuracy, not privacy.
    """

    sum_norm: float = option("Largest L2 norm of the sum of a client's gradients.", gt=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sum_norm < self.clip_norm:
            raise ConfigError(f"a batch of records needs clip_norm <= sum_norm, found {self}")

    def told(self) -> dict[str, float]:
        """Return the metrics with which a client says that it has done this."""
        return _told(self)

    def check_layout(self, layout: Layout) -> None:
        """Refuse models of which a device keeps layers: nothing adds noise to them.

        Raises
        ------
        ConfigError
            With the first of them.
        """
        if layout.moved > layout.size:
            raise ConfigError(
                f"distributed_dp with records: array {layout.local[0]!r} would stay on the device "
                "and move by sums without noise, on which all that is sent later depends; use "
                "record_dp, or leave model.local empty"
            )

    def weaker(self, told: Mapping[str, Any]) -> str | None:
        """As `RecordPrivacy.weaker`."""
        return _weaker(self, told)


def _told(privacy: RecordPrivacy | RecordBatch) -> dict[str, float]:
    return {METRICS[name]: value for name, value in asdict(privacy).items()}


def _weaker(privacy: RecordPrivacy | RecordBatch, told: Mapping[str, Any]) -> str | None:
    for name, wanted in asdict(privacy).items():
        metric, found = METRICS[name], told.get(METRICS[name])
        good = isinstance(found, int | float) and (
            found >= wanted if name == "noise_multiplier" else found <= wanted
        )
        if not good:
            return f"{metric} is {found!r}, required is {wanted!r}"
    return None
