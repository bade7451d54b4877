"""Stages that send fewer bytes: which coordinates, in which format, and what is kept."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qsfl_flower.mechanisms.compression.options import Values
from qsfl_flower.simulations.config.base import Section


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
