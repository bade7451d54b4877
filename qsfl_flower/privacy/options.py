"""Parameters that the mathematics of privacy and its stages share, described once; no NumPy."""

from __future__ import annotations

from dataclasses import dataclass

from qsfl_flower.plugins import Options, option


@dataclass(frozen=True, kw_only=True)
class QuantileOptions(Options):
    """A clip norm that follows a quantile of the clients' norms."""

    initial: float = option("Clip norm of the first round.", gt=0)
    quantile: float = option("Share of the clients that should not be clipped.", 0.5, gt=0, lt=1)
    learning_rate: float = option("How fast the clip norm follows.", 0.2, gt=0, le=10)


@dataclass(frozen=True, kw_only=True)
class SampledOptions(Options):
    """Clipped gradients of a Poisson batch of records."""

    clip_norm: float = option("Largest L2 norm of one record's gradient.", gt=0)
    sampling_rate: float = option(
        "Probability with which a record is in its client's batch.", gt=0, le=1
    )
