"""Sums under masks: the one description of their parameters."""

from __future__ import annotations

from dataclasses import dataclass

from qsfl_flower.plugins import Options, option


@dataclass(frozen=True, kw_only=True)
class MaskedSumOptions(Options):
    """Hides every update under masks that cancel in the sum (needs stage authenticate)."""

    bound: float = option(
        "Largest magnitude of a coordinate of an update; a client beyond it does not take part. "
        "Clip to this norm or less.",
        8.0,
        gt=0,
    )
    min_clients: int = option("The clients unmask no sum of fewer.", 3, ge=2, le=100_000)
    max_examples: int = option(
        "No client counts for more examples than this.", 1000, ge=1, le=10**12
    )
    metrics: tuple[str, ...] = option(
        "Metrics that are averaged under the masks; others stay on the clients.",
        ("train-loss", "train-accuracy"),
    )
    colluding: float = option("Share of the clients that may help the server.", 0.1, ge=0, lt=1)
    sparse: bool = option(
        "Mask with few neighbours instead of all clients; holds only against a server that follows "
        "the protocol.",
        False,
    )
    dropouts: float = option(
        "For a sparse graph: share of the clients that may drop out while masking.", 0.1, ge=0, lt=1
    )
