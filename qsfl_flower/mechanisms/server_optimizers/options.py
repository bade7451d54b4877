"""Server optimizers: the one description of their parameters."""

from __future__ import annotations

from dataclasses import dataclass

from qsfl_flower.plugins import Options, option


@dataclass(frozen=True)
class MomentumOptions(Options):
    """Momentum on the server."""

    server_learning_rate: float = option("Step of the server along the averaged update.", 1.0, gt=0)
    server_momentum: float = option(
        "Share of the last step that is kept in the next one.", 0.0, ge=0, lt=1
    )


@dataclass(frozen=True)
class StaleOptions(Options):
    """Momentum on a server whose updates are stale."""

    server_learning_rate: float = option("Step of the server along the combined update.", 1.0, gt=0)
    server_momentum: float = option(
        "Momentum of the server; what staleness adds by itself is taken off.", 0.0, ge=0, lt=1
    )
    scale_by_staleness: bool = option("Divide the step by one plus the mean staleness.", False)


@dataclass(frozen=True)
class AdamOptions(Options):
    """Adam on the server."""

    eta: float = option("Learning rate of the server.", 0.1, gt=0)
    beta_1: float = option("Decay of the first moment.", 0.9, ge=0, lt=1)
    beta_2: float = option("Decay of the second moment.", 0.99, ge=0, lt=1)
    tau: float = option("Adaptivity: added to the root of the second moment.", 1e-3, gt=0)


@dataclass(frozen=True)
class YogiOptions(AdamOptions):
    """Yogi on the server."""

    eta: float = option("Learning rate of the server.", 0.01, gt=0)
