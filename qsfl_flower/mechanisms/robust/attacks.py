"""Attacks that a configuration can ask for: the one description of their parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qsfl_flower.errors import ConfigError
from qsfl_flower.plugins import Extension, Options, option


@dataclass(frozen=True)
class SignFlipOptions(Options):
    """Send the negated update."""

    scale: float = option("Factor on the negated update.", 1.0, gt=0)


@dataclass(frozen=True)
class ScalingOptions(Options):
    """Send the update enlarged."""

    factor: float = option("Factor on the update, not 0; 10, 100 or 1000.", 10.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor == 0:
            raise ConfigError("scaling: factor is 0; it must be a number, not 0")


@dataclass(frozen=True)
class GaussianOptions(Options):
    """Send noise."""

    norm_ratio: float = option(
        "Norm of the noise as a multiple of the honest update's.", 10.0, gt=0
    )


@dataclass(frozen=True)
class ZeroOptions(Options):
    """Send zeros."""


@dataclass(frozen=True)
class ReplayOptions(Options):
    """Send the first update again and again, amplified."""

    scale: float = option("Factor on the old update.", 3.0, gt=0)


@dataclass(frozen=True)
class SparseOptions(Options):
    """Negate and amplify the largest coordinates and send nothing else."""

    share: float = option("Share of coordinates that is sent.", 0.01, gt=0, le=1)
    scale: float = option("Factor on them.", 10.0, gt=0)


Knowledge = Literal["all", "colluders"]
_KNOWN = (
    "Whose honest updates of the round the attackers know: all (they train in the other clients' "
    "stead, so such runs take longer), or the colluders' own."
)


@dataclass(frozen=True)
class AlieOptions(Options):
    """A little is enough (Baruch et al. 2019): the mean shifted by a few standard deviations."""

    z: float | None = option(
        "Standard deviations of the shift; null: as many as hide behind honest clients that are "
        "still further out.",
        None,
        gt=0,
    )
    knowledge: Knowledge = option(_KNOWN, "all")


@dataclass(frozen=True)
class InnerProductOptions(Options):
    """Inner-product manipulation (Xie et al. 2020): the negated honest mean."""

    epsilon: float = option("Factor on the negated mean.", 0.5, gt=0)
    knowledge: Knowledge = option(_KNOWN, "all")


@dataclass(frozen=True)
class MimicOptions(Options):
    """Copy the honest client that differs most (Karimireddy et al. 2022)."""

    knowledge: Knowledge = option(_KNOWN, "all")


@dataclass(frozen=True)
class MinMaxOptions(Options):
    """As far as no honest client is further from it than from another (Shejwalkar et al. 2021)."""

    direction: Literal["std", "unit", "sign"] = option(
        "Where to: against the standard deviations, the mean, or its signs.", "std"
    )
    knowledge: Knowledge = option(_KNOWN, "all")


@dataclass(frozen=True)
class MinSumOptions(MinMaxOptions):
    """As far as its squared distances sum up to no more than an honest client's."""


@dataclass(frozen=True)
class FangKrumOptions(Options):
    """The furthest poison that Krum would choose (Fang et al. 2020)."""

    knowledge: Knowledge = option(_KNOWN, "all")


@dataclass(frozen=True)
class FangTrimmedMeanOptions(Options):
    """Values just outside the honest ones, against the trimmed mean (Fang et al. 2020)."""

    spread: float = option("How far outside: a factor.", 2.0, gt=1)
    knowledge: Knowledge = option(_KNOWN, "all")


@dataclass(frozen=True)
class LabelFlipOptions(Options):
    """Train on wrong labels: K - 1 - y for y, or one label for another."""

    source: int | None = option("Label to replace; null: all.", None, ge=0)
    target: int | None = option("What to replace it by.", None, ge=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.source is None) != (self.target is None):
            raise ConfigError(
                f"label-flip: source is {self.source} and target {self.target}; give both or none"
            )


@dataclass(frozen=True)
class BackdoorOptions(Options):
    """Teach the model that a patch in the corner means one label."""

    target: int = option("The label that the trigger shall give.", 0, ge=0)
    share: float = option("Share of examples with trigger.", 0.5, gt=0, le=1)
    size: int = option("Side of the trigger (pixels).", 4, ge=1, le=64)
    boost: float = option("Factor on the update; clients / attackers replaces the mean.", 1.0, gt=0)


DESCRIBED = tuple(
    Extension("attack", options, name)
    for name, options in {
        "sign-flip": SignFlipOptions,
        "scaling": ScalingOptions,
        "gaussian": GaussianOptions,
        "zero": ZeroOptions,
        "replay": ReplayOptions,
        "sparse": SparseOptions,
        "alie": AlieOptions,
        "inner-product": InnerProductOptions,
        "mimic": MimicOptions,
        "min-max": MinMaxOptions,
        "min-sum": MinSumOptions,
        "fang-krum": FangKrumOptions,
        "fang-trimmed-mean": FangTrimmedMeanOptions,
        "label-flip": LabelFlipOptions,
        "backdoor": BackdoorOptions,
    }.items()
)
"""What a configuration can name, in the order of the documentation."""
