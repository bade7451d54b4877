"""Unusual updates are flagged, suspects kept out."""

from qsfl_flower.mechanisms.detection.options import DetectOptions
from qsfl_flower.plugins import Mechanism
from qsfl_flower.traits import Trait

DETECT = Mechanism(
    "detect",
    DetectOptions,
    server="qsfl_flower.mechanisms.detection.server:Detect",
    traits=frozenset({Trait.SEES_UPDATES}),
)

__all__ = ["DETECT", "DetectOptions"]
