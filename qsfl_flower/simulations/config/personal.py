"""The `personalization` section: what each client makes of the common model for itself."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qsfl_flower.simulations.config.base import Section


class PersonalizationSpec(Section):
    """How clients make a model of their own; needs data.test_fraction to be judged."""

    method: Literal[
        "none", "fine-tune", "maml", "per-fedavg", "reptile", "fedper", "fedrep", "ditto"
    ] = Field(default="none", description="Method; none: every client uses the common model.")
    inner_rate: float = Field(default=0.05, gt=0, description="Learning rate of adaptation.")
    inner_steps: int = Field(default=5, ge=1, le=1000, description="Steps of adaptation.")
    meta_rate: float = Field(default=0.05, gt=0, description="Learning rate of meta-gradients.")
    meta_steps: int = Field(
        default=1, ge=1, le=1000, description="Meta-steps of a client in a round; 1 for maml."
    )
    meta_batch: int = Field(
        default=20, ge=1, le=10**6, description="Examples for each part of a meta-step (examples)."
    )
    order: Literal["second", "first", "hessian-free"] = Field(
        default="second",
        description="Whether meta-gradients know the curvature: exactly, not at all, or by a "
        "difference of gradients (per-fedavg with inner_steps 1 only).",
    )
    query_share: float = Field(
        default=0.5, gt=0, lt=1, description="Share of the training examples kept for the query."
    )
    head: tuple[str, ...] = Field(
        default=(),
        strict=False,
        description="Names of parameters, or beginnings of them, that stay on the device with "
        "fedper and fedrep.",
    )
    proximal: float = Field(
        default=0.1, ge=0, description="Weight of Ditto's pull towards the common model."
    )
