"""Compression of updates: the one description of its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qsfl_flower.errors import ConfigError
from qsfl_flower.plugins import Options, option

Values = Literal[
    "float32", "float16", "bfloat16", "int8", "int4", "int2", "int1", "qsgd8", "qsgd4", "qsgd2"
]


@dataclass(frozen=True)
class CompressOptions(Options):
    """Clients send few of their coordinates in few bits, and keep the rest for later rounds.

    Raises
    ------
    ConfigError
        If a value is out of range, or two do not go together.
    """

    select: Literal["topk", "randomk", "threshold", "all"] = option(
        "Which coordinates of an update are sent.", "topk"
    )
    ratio: float = option("Share of the coordinates (topk and randomk).", 0.01, gt=0, le=1)
    threshold: float = option("Smallest magnitude that is sent (threshold only).", 0.0, ge=0)
    values: Values = option("Format of the values.", "int8")
    zstd: bool = option("Try zstandard on the result.", False)
    feedback: bool = option(
        "Keep on the client what is not sent, and add it to its next update.", True
    )
    momentum: float = option(
        "Momentum correction of Lin et al. (2018); needs feedback.", 0.0, ge=0, lt=1
    )
    warmup_rounds: int = option(
        "Rounds over which the ratio falls from 1 to its value, exponentially.", 0, ge=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.select == "threshold") != (self.threshold > 0):
            raise _error("threshold", self.threshold, "> 0 with select: threshold, else not given")
        if self.feedback and self.values.startswith("qsgd"):
            raise ConfigError(
                f"compression: {self.values} with error feedback can enlarge the residual from "
                "round to round; use int8, int4, int2 or int1, or feedback: false"
            )
        if self.momentum and not self.feedback:
            raise _error("momentum", self.momentum, "0 <= momentum < 1, and 0 without feedback")
        if self.warmup_rounds and self.select not in ("topk", "randomk"):
            raise _error("warmup_rounds", self.warmup_rounds, ">= 0, with topk and randomk only")


@dataclass(frozen=True)
class MaskOptions(Options):
    """How the public coordinates of a round are found, and how their values are sent."""

    select: Literal["randomk", "topk"] = option(
        "Random coordinates, or half of them where the last released step was largest.", "randomk"
    )
    ratio: float = option("Share of the coordinates.", 0.01, gt=0, le=1)
    values: Values = option("Format of the values where nothing hides them.", "int8")
    feedback: bool = option("Keep the other coordinates for the client's next update.", True)


@dataclass(frozen=True)
class SharedMaskOptions(MaskOptions):
    """All clients of a round send the same public coordinates; sums of them can be hidden."""

    epoch: int = option(
        "Rounds in a row with the same random coordinates; in asynchronous strategies more than "
        "max_staleness.",
        1,
        ge=1,
        le=10_000,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epoch > 1 and self.select != "randomk":
            raise ConfigError(
                f"shared_mask: epoch is {self.epoch}, but the coordinates of select "
                f"{self.select!r} follow every step of the model; set select to randomk"
            )


def _error(name: str, value: object, allowed: str) -> ConfigError:
    return ConfigError(f"compression: {name} is {value!r}; allowed: {allowed}")
