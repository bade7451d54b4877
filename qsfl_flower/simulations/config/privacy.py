"""The protection that clients demand."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qsfl_flower.simulations.config.base import Section

Placement = Literal["record", "distributed-record", "local", "distributed", "central"]


class MinimumSpec(Section):
    """The least protection under which clients train."""

    epsilon: float = Field(gt=0, description="Largest epsilon that is accepted for a run.")
    delta: float = Field(
        default=1e-5, gt=0, lt=1, description="Largest delta that is accepted (delta)."
    )
    placements: tuple[Placement, ...] = Field(
        default=("record", "distributed-record", "local", "distributed", "central"),
        min_length=1,
        strict=False,
        description="Who may add the noise; without central the server need not be trusted.",
    )
