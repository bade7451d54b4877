"""Detection of unusual updates: the one description of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qsfl_flower.plugins import Options, option


@dataclass(frozen=True, kw_only=True)
class DetectOptions(Options):
    """Flags unusual updates with reasons, keeps reputations, and may keep suspects out."""

    detector: Literal["isolation-forest", "robust-z"] = option(
        "Name of the detector; plugins bring others.", "isolation-forest", kind="detector"
    )
    options: Mapping[str, Any] = option(
        "Options of a detector that a plugin brings, by name; which there are depends on detector.",
        {},
        schema={"x-options-of": "detector"},
    )
    threshold: float = option(
        "Anomaly scores above it are flagged; at 0.5 about one honest update in a hundred is.",
        0.5,
        ge=0,
        le=1,
    )
    quarantine: bool = option(
        "Keep flagged updates and clients in quarantine out of the model.", True
    )
    decay: float = option("What remains of suspicion after a round.", 0.95, ge=0, lt=1)
    quarantine_threshold: float = option(
        "Suspicion at which a client goes into quarantine.", 0.8, gt=0, le=1
    )
    quarantine_rounds: int = option(
        "Length of the first quarantine; it doubles with a relapse, up to four times.",
        5,
        ge=1,
        le=100_000,
    )
    probation_rounds: int = option(
        "Rounds after a quarantine in which one flag leads back into it.", 3, ge=0, le=100_000
    )
