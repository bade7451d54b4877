"""The `attacks` section: which clients attack, when, and how."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from qsfl_flower.simulations.config.base import Section
from qsfl_flower.simulations.config.sections import Rounds

_Knowledge = Literal["all", "colluders"]
_KNOWN = (
    "Whose honest updates of the round the attackers know: all (they train in the other clients' "
    "stead, so such runs take longer), or the colluders' own."
)


class AttackKeys(Section):
    """Keys that every attack has."""

    attack: str = Field(description="Name of the attack.")
    clients: tuple[Annotated[int, Field(ge=0, le=99_999)], ...] = Field(
        strict=False,
        min_length=1,
        description="Indices of the clients that attack, counted from 0 to clients.count - 1; "
        "those of one entry act together.",
    )
    rounds: Rounds = Field(
        default="all", description="Rounds in which they attack, counted from 1."
    )

    @property
    def parameters(self) -> dict[str, Any]:
        """The keys of the attack itself."""
        return self.model_dump(exclude={"attack", "clients", "rounds"})


class SignFlipSpec(AttackKeys):
    """Send the negated update."""

    attack: Literal["sign-flip"] = Field(description="Name of the attack.")
    scale: float = Field(default=1.0, gt=0, description="Factor on the turned update.")


class ScalingSpec(AttackKeys):
    """Send the update enlarged."""

    attack: Literal["scaling"] = Field(description="Name of the attack.")
    factor: float = Field(default=10.0, gt=0, description="Factor on the update; 10, 100 or 1000.")


class GaussianSpec(AttackKeys):
    """Send noise."""

    attack: Literal["gaussian"] = Field(description="Name of the attack.")
    norm_ratio: float = Field(
        default=10.0, gt=0, description="Norm of the noise as a multiple of the honest update's."
    )


class ZeroSpec(AttackKeys):
    """Send zeros."""

    attack: Literal["zero"] = Field(description="Name of the attack.")


class ReplaySpec(AttackKeys):
    """Send the first update again and again, amplified."""

    attack: Literal["replay"] = Field(description="Name of the attack.")
    scale: float = Field(default=3.0, gt=0, description="Factor on the old update.")


class SparseSpec(AttackKeys):
    """Turn round and amplify the largest coordinates and send nothing else."""

    attack: Literal["sparse"] = Field(description="Name of the attack.")
    share: float = Field(default=0.01, gt=0, le=1, description="Share of coordinates that is sent.")
    scale: float = Field(default=10.0, gt=0, description="Factor on them.")


class AlieSpec(AttackKeys):
    """A little is enough (Baruch et al. 2019): the mean shifted by a few standard deviations."""

    attack: Literal["alie"] = Field(description="Name of the attack.")
    z: float | None = Field(
        default=None,
        gt=0,
        description="Standard deviations of the shift; null: as many as hide behind honest clients "
        "that are still further out.",
    )
    knowledge: _Knowledge = Field(default="all", description=_KNOWN)


class InnerProductSpec(AttackKeys):
    """Inner-product manipulation (Xie et al. 2020): the negated honest mean."""

    attack: Literal["inner-product"] = Field(description="Name of the attack.")
    epsilon: float = Field(default=0.5, gt=0, description="Factor on the turned mean.")
    knowledge: _Knowledge = Field(default="all", description=_KNOWN)


class MimicSpec(AttackKeys):
    """Copy the honest client that differs most (Karimireddy et al. 2022)."""

    attack: Literal["mimic"] = Field(description="Name of the attack.")
    knowledge: _Knowledge = Field(default="all", description=_KNOWN)


class MinMaxSpec(AttackKeys):
    """As far as no honest client is further from it than from another (Shejwalkar et al. 2021)."""

    attack: Literal["min-max"] = Field(description="Name of the attack.")
    direction: Literal["std", "unit", "sign"] = Field(
        default="std",
        description="Where to: against the standard deviations, the mean, or its signs.",
    )
    knowledge: _Knowledge = Field(default="all", description=_KNOWN)


class MinSumSpec(AttackKeys):
    """As far as its squared distances sum up to no more than an honest client's."""

    attack: Literal["min-sum"] = Field(description="Name of the attack.")
    direction: Literal["std", "unit", "sign"] = Field(
        default="std",
        description="Where to: against the standard deviations, the mean, or its signs.",
    )
    knowledge: _Knowledge = Field(default="all", description=_KNOWN)


class FangKrumSpec(AttackKeys):
    """The furthest poison that Krum would choose (Fang et al. 2020)."""

    attack: Literal["fang-krum"] = Field(description="Name of the attack.")
    knowledge: _Knowledge = Field(default="all", description=_KNOWN)


class FangTrimmedMeanSpec(AttackKeys):
    """Values just outside the honest ones, against the trimmed mean (Fang et al. 2020)."""

    attack: Literal["fang-trimmed-mean"] = Field(description="Name of the attack.")
    spread: float = Field(default=2.0, gt=1, description="How far outside: a factor.")
    knowledge: _Knowledge = Field(default="all", description=_KNOWN)


class LabelFlipSpec(AttackKeys):
    """Train on wrong labels: K - 1 - y for y, or one label for another."""

    attack: Literal["label-flip"] = Field(description="Name of the attack.")
    source: int | None = Field(default=None, ge=0, description="Label to replace; null: all.")
    target: int | None = Field(default=None, ge=0, description="What to replace it by.")


class BackdoorSpec(AttackKeys):
    """Teach the model that a patch in the corner means one label."""

    attack: Literal["backdoor"] = Field(description="Name of the attack.")
    target: int = Field(default=0, ge=0, description="The label that the trigger shall give.")
    share: float = Field(default=0.5, gt=0, le=1, description="Share of examples with trigger.")
    size: int = Field(default=4, ge=1, le=64, description="Side of the trigger (pixels).")
    boost: float = Field(
        default=1.0,
        gt=0,
        description="Factor on the update; clients / attackers replaces the mean.",
    )


AttackSpec = Annotated[
    SignFlipSpec
    | ScalingSpec
    | GaussianSpec
    | ZeroSpec
    | ReplaySpec
    | SparseSpec
    | AlieSpec
    | InnerProductSpec
    | MimicSpec
    | MinMaxSpec
    | MinSumSpec
    | FangKrumSpec
    | FangTrimmedMeanSpec
    | LabelFlipSpec
    | BackdoorSpec,
    Field(discriminator="attack"),
]
