"""The model as what changed: the one description of its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qsfl_flower.plugins import Options, option


@dataclass(frozen=True)
class BroadcastOptions(Options):
    """Sends clients what changed since the model they hold, in few coordinates and bits."""

    ratio: float = option("Share of the coordinates that a step changes.", 0.05, gt=0, le=1)
    values: Literal["float32", "float16", "bfloat16", "int8", "int4", "int2", "int1"] = option(
        "Format of the values.", "int8"
    )
    zstd: bool = option("Try zstandard on the records.", False)
