"""Stages that send fewer bytes: which coordinates, in which format, and what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.config.base import Contradiction, Section, refuse

if TYPE_CHECKING:
    from qsfl_flower.compression import Scheme

Values = Literal[
    "float32", "float16", "bfloat16", "int8", "int4", "int2", "int1", "qsgd8", "qsgd4", "qsgd2"
]


class CompressSpec(Section):
    """Clients send few of their coordinates in few bits, and keep the rest for later rounds."""

    stage: Literal["compress"] = Field(description="Name of the stage.")
    select: Literal["topk", "randomk", "threshold", "all"] = Field(
        default="topk", description="Which coordinates of an update are sent."
    )
    ratio: float = Field(
        default=0.01, gt=0, le=1, description="Share of the coordinates (topk and randomk)."
    )
    threshold: float = Field(
        default=0.0, ge=0, description="Smallest magnitude that is sent (threshold only)."
    )
    values: Values = Field(default="int8", description="Format of the values.")
    zstd: bool = Field(default=False, description="Try zstandard on the result.")
    feedback: bool = Field(
        default=True,
        description="Keep on the client what is not sent, and add it to its next update.",
    )
    momentum: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Momentum correction of Lin et al. (2018); needs feedback.",
    )
    warmup_rounds: int = Field(
        default=0,
        ge=0,
        description="Rounds over which the ratio falls from 1 to its value, exponentially.",
    )

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        refuse(_complaints(self.scheme))
        return self

    def scheme(self) -> Scheme:
        """Return the parameters of the mechanism."""
        from qsfl_flower.compression import Scheme  # NumPy is heavy, and seldom needed here

        return Scheme(**self.model_dump(exclude={"stage"}))


class SharedMaskSpec(Section):
    """All clients of a round send the same public coordinates; sums of them can be hidden."""

    stage: Literal["shared_mask"] = Field(description="Name of the stage.")
    select: Literal["randomk", "topk"] = Field(
        default="randomk",
        description="Random coordinates, or half of them where the last released step was largest.",
    )
    ratio: float = Field(default=0.01, gt=0, le=1, description="Share of the coordinates.")
    values: Values = Field(
        default="int8", description="Format of the values where nothing hides them."
    )
    feedback: bool = Field(
        default=True, description="Keep the other coordinates for the client's next update."
    )
    epoch: int = Field(
        default=1,
        ge=1,
        le=10_000,
        description="Rounds in a row with the same random coordinates; in asynchronous strategies "
        "more than max_staleness.",
    )


class BroadcastSpec(Section):
    """Sends clients what changed since the model they hold, in few coordinates and bits."""

    stage: Literal["broadcast"] = Field(description="Name of the stage.")
    ratio: float = Field(
        default=0.05, gt=0, le=1, description="Share of the coordinates that a step changes."
    )
    values: Literal["float32", "float16", "bfloat16", "int8", "int4", "int2", "int1"] = Field(
        default="int8", description="Format of the values."
    )
    zstd: bool = Field(default=False, description="Try zstandard on the records.")


def _complaints(make: Callable[[], object]) -> Iterator[Contradiction]:
    try:
        make()
    except ConfigError as error:
        yield Contradiction(("strategy.stages",), str(error))
