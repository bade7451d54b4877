"""Stages that hide updates and open their sum through a committee of clients."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qsfl_flower.simulations.config.base import Section


class CommitteeSpec(Section):
    """What secure_sum and secure_krum have in common: who opens the sum of hidden updates."""

    clip_norm: float = Field(
        gt=0, description="Largest L2 norm of an update; the clients clip to it before sharing."
    )
    members: int = Field(
        default=5, ge=2, le=16, description="Committee members, taken from the round's clients."
    )
    threshold: int = Field(
        default=3,
        ge=2,
        le=16,
        description="So many members open a sum; one fewer, with the server, learn nothing.",
    )
    quorum: int | None = Field(
        default=None,
        ge=2,
        le=16,
        description="So many members must answer alike before a sum opens: more than "
        "(members + threshold - 1) / 2, so that a server with threshold - 1 of them on its side "
        "opens one sum only; null: the least such number.",
    )
    min_clients: int = Field(
        default=3, ge=2, le=100_000, description="The members release no sum of fewer clients."
    )
    bits: int = Field(
        default=24, ge=1, le=52, description="Fractional bits of the fixed point: 2^-bits."
    )
    max_examples: int = Field(
        default=1000, ge=1, le=10**12, description="No client counts for more examples than this."
    )
    metrics: tuple[str, ...] = Field(
        default=("train-loss", "train-accuracy"),
        strict=False,
        description="Metrics that are summed with the updates; others stay on the clients.",
    )
    enforce_norm: bool = Field(
        default=False,
        description="Open every client's norm and drop who is beyond clip_norm; the server then "
        "learns all norms. Needs members >= 2 threshold - 1.",
    )


class SecureSumSpec(CommitteeSpec):
    """Hides every update; a committee of clients opens their sum (needs stage authenticate)."""

    stage: Literal["secure_sum"] = Field(description="Name of the stage.")
    bound: float | None = Field(
        default=None,
        gt=0,
        description="Largest magnitude of a coordinate with its noise; null: clip_norm, and under "
        "distributed_dp what its noise needs.",
    )
    weighted: bool = Field(
        default=True, description="Weigh by examples, which are hidden; false: all count alike."
    )


class SecureKrumSpec(CommitteeSpec):
    """Multi-Krum on hidden updates: a committee opens their distances and the selected sum."""

    stage: Literal["secure_krum"] = Field(description="Name of the stage.")
    num_byzantine: int = Field(
        ge=0,
        le=100_000,
        description="Clients that may send anything, f; a round needs 2 f + 3 clients.",
    )
    num_selected: int | None = Field(
        default=None, ge=1, le=100_000, description="Updates to average; null: n - f - 2."
    )
