"""Limits on single updates: the one description of their parameters."""

from __future__ import annotations

from dataclasses import dataclass

from qsfl_flower.plugins import Options, option


@dataclass(frozen=True)
class ValidateOptions(Options):
    """Refuses replies that are malformed, not finite, or absurdly large."""

    max_norm: float | None = option(
        "Largest L2 norm of an update that is still believed; null: 1e15, which only stops absurd "
        "sizes.",
        None,
        gt=0,
    )


@dataclass(frozen=True)
class ClipOptions(Options):
    """Scales updates down to a given L2 norm; shorter ones stay as they are."""

    clip_norm: float = option("Largest L2 norm of an update after this stage.", gt=0)
    per_layer: bool = option(
        "Clip each of the L arrays to clip_norm / sqrt(L) instead of the whole update.", False
    )
