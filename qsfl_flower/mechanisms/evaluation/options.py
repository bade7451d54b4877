"""Private evaluation: the one description of its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qsfl_flower.errors import ConfigError
from qsfl_flower.plugins import Options, option

MOST_SIZE = 1 << 16
_LARGEST = 1e300


@dataclass(frozen=True, kw_only=True)
class MetricOptions(Options):
    """A number, or numbers, that every client reports, and how much of it may count."""

    name: str = option("What the app reports under this name.")
    kind: Literal["mean", "count", "sum", "histogram", "confusion", "spread"] = option(
        "mean: over all examples; count, sum: over the clients; histogram: a list of counts; "
        "confusion: a list of size x size counts, rows by true class; spread: how the clients' "
        "values lie, as a histogram over clients.",
        "mean",
    )
    low: float = option("Values below count as this (mean, sum, spread).", 0.0)
    high: float = option("Values above count as this (mean, sum, spread).", 1.0)
    most: float = option(
        "A client counts at most so much: examples of a mean, a count, or the sum of a list.",
        1000.0,
        gt=0,
        le=10**9,
    )
    size: int = option("Bins of a histogram or spread, classes of a confusion.", 10, ge=1, le=256)
    weighted_by: str = option("Metric that counts the examples of a mean.", "num-examples")
    by: str | None = option(
        "Metric with the number of the client's group, 0 to groups - 1; the result is one for each "
        "group. Needs noise: a group may be one client.",
        None,
    )
    groups: int = option("How many groups there are, with by.", 1, ge=1, le=256)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -_LARGEST <= self.low < self.high <= _LARGEST:
            raise ConfigError(
                f"metric {self.name!r}: low is {self.low:g} and high {self.high:g}; low must be "
                f"below high, and both within {_LARGEST:g}"
            )
        if (self.by is None) != (self.groups == 1):
            raise ConfigError(
                f"metric {self.name!r}: by and groups belong together: a metric that tells the "
                "group, and 2 or more groups"
            )
        total = self.size ** (2 if self.kind == "confusion" else 1) * self.groups
        if total > MOST_SIZE:
            raise ConfigError(
                f"metric {self.name!r} has {total:,} numbers; at most {MOST_SIZE:,} are summed"
            )


@dataclass(frozen=True, kw_only=True)
class AskedOptions(Options):
    """What is asked of clients that evaluate, and how; not how the noise is sized."""

    metrics: tuple[MetricOptions, ...] = option(
        "What is summed of what the clients report; all else stays on them.",
        (MetricOptions(name="accuracy"), MetricOptions(name="loss", high=10.0)),
    )
    unit: Literal["client", "record"] = option(
        "Protect a client with all of its data, or one record. For records the app is believed "
        "that each counts at most once in counts, and has values from low to high in means.",
        "client",
    )
    every: int = option("Evaluate after every so many rounds (rounds).", 1, ge=1, le=100_000)
    fraction: float = option(
        "Share of the clients that evaluate; exact hidden sums need all.", 1.0, gt=0, le=1
    )
    min_clients: int | None = option(
        "No sum of fewer is opened; null: as in training.", None, ge=2, le=100_000
    )
    non_contributors: int = option(
        "Clients of a sum that may omit their noise or show it to the server.", 0, ge=0, le=100_000
    )
    level: float = option(
        "Probability with which an interval covers the number without noise.", 0.95, gt=0, lt=1
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(AskedOptions):
    """What is summed of the clients' evaluation without seeing one of them."""

    epsilon: float | None = option(
        "Largest loss of privacy of all evaluations of the run (epsilon), besides that of "
        "training; null: exact sums. Devices take less noise for none.",
        None,
        gt=0,
        le=100,
    )
    delta: float = option(
        "Probability with which epsilon may be exceeded (delta).", 1e-5, gt=0, lt=1
    )
    ledger: str | None = option("File of budgets that is charged as well; null: none.", None)
    account: str = option("The ledger's account that holds the clients' accounts.", "federation")
