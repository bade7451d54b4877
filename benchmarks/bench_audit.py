"""Claimed epsilon and audited lower bound of every placement, and of what leaves beside the noise.

One run with canaries each (Steinke, Nasr, Jagielski 2023). The bound holds with a confidence of
95 %; with so many guesses it cannot exceed 2.97. Without noise it must exceed the claim.
"""

from __future__ import annotations

from typing import Any

from benchmarks.audit_leaks import CASES, leak
from benchmarks.audited import CONFIDENCE, DELTA, PLACEMENTS, audited
from qsfl_flower.privacy.gaussian import gaussian_noise_multiplier

NAME = "audit"
DESCRIPTION = "claimed epsilon and audited lower bound of every placement"

CLAIMS = (1.0, 2.5)

Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    """Return one row per placement and claim, and one per way around the noise."""
    names = ("central", "record") if quick else tuple(PLACEMENTS)
    rows = [_row(name, claim) for name in names for claim in CLAIMS]
    return rows + [_beside(name) for name in CASES]


def _row(name: str, claim: float) -> Row:
    noise = gaussian_noise_multiplier(claim, DELTA)
    honest, broken = audited(name, noise), audited(name, noise / 2000)
    return {
        "placement": PLACEMENTS[name].words,
        "claimed epsilon": claim,
        "audited at least": round(honest.epsilon, 2),
        "right guesses": f"{honest.correct} of {honest.guesses}",
        "noise off": round(broken.epsilon, 2),
        "confidence": f"{CONFIDENCE:.0%}",
        "ok": honest.epsilon <= claim < broken.epsilon,
    }


def _beside(name: str) -> Row:
    found = leak(name)
    return {
        "placement": f"beside it: {name}",
        "claimed epsilon": found["claimed epsilon"],
        "audited at least": found["audited at least"],
        "right guesses": found.get("right guesses", "refused"),
        "confidence": f"{CONFIDENCE:.0%}",
        "ok": found["audited at least"] <= found["claimed epsilon"],
    }
