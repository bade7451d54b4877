"""Parts of the `strategy` section: asynchronous strategies, and what is done about divergence."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from qsfl_flower.simulations.config.base import Section


class MonitorSpec(Section):
    """When a run counts as diverging, and what is done then."""

    window: int = Field(
        default=5, ge=1, le=100_000, description="Rounds over which the loss is averaged (rounds)."
    )
    loss_factor: float = Field(
        default=2.0,
        gt=1,
        description="Alarm when the mean loss is so many times the best one.",
    )
    norm_factor: float = Field(
        default=10.0, gt=1, description="Alarm when a step is so many times the median one."
    )
    patience: int = Field(
        default=5,
        ge=0,
        le=100_000,
        description="Rounds after a reaction without another one (rounds).",
    )
    reactions: tuple[Literal["lower-rate", "tighten-staleness", "roll-back", "halt"], ...] = Field(
        default=(),
        strict=False,
        description="What to do at the first alarm, the second and so on; the last one repeats. "
        "Empty: alarms are only logged.",
    )


class ConstantSpec(Section):
    """Old updates count like fresh ones."""

    rule: Literal["constant"] = Field(description="Name of the rule.")


class PolynomialSpec(Section):
    """Weight 1 / (1 + staleness) ** exponent."""

    rule: Literal["polynomial"] = Field(description="Name of the rule.")
    exponent: float = Field(default=0.5, gt=0, description="The exponent.")


class HingeSpec(Section):
    """Weight 1 up to a tolerance, then 1 / (1 + slope * excess)."""

    rule: Literal["hinge"] = Field(description="Name of the rule.")
    slope: float = Field(default=1.0, gt=0, description="How fast the weight falls.")
    tolerance: int = Field(
        default=4, ge=0, le=100_000, description="Staleness up to which the weight is 1 (versions)."
    )


class AdaptiveSpec(Section):
    """Polynomial weight whose exponent rises while training converges."""

    rule: Literal["adaptive"] = Field(description="Name of the rule.")
    horizon: int = Field(
        ge=1, le=100_000, description="Rounds until the exponent has reached its last value."
    )
    first: float = Field(default=0.5, gt=0, description="Exponent at the start.")
    last: float = Field(default=2.0, gt=0, description="Exponent after the horizon.")


StalenessSpec = Annotated[
    ConstantSpec | PolynomialSpec | HingeSpec | AdaptiveSpec, Field(discriminator="rule")
]


class AsynchronousKeys(Section):
    """Keys of both asynchronous strategies."""

    concurrency: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="Clients kept at work; null: clients.fraction_train of all.",
    )
    staleness: StalenessSpec = Field(
        default=PolynomialSpec(rule="polynomial"),
        description="Weight of an update whose client trained on an older model.",
    )
    max_staleness: int = Field(
        default=20,
        ge=0,
        le=100_000,
        description="Older updates are rejected (versions).",
    )
    tighten_to: int | None = Field(
        default=None,
        ge=0,
        le=100_000,
        description="What max_staleness falls to linearly; null: it stays (versions).",
    )
    tighten_over: int = Field(
        default=100, ge=1, le=100_000, description="Rounds in which it does so (rounds)."
    )
