"""Detectors by name, for configurations."""

from __future__ import annotations

from qsfl_flower.mechanisms.detection.core.detector import Detector, RobustZ
from qsfl_flower.mechanisms.detection.core.forest import Forest

DETECTORS: dict[str, Detector] = {"isolation-forest": Forest(), "robust-z": RobustZ()}
"""Every detector by its name; put your own here to use it by name."""
