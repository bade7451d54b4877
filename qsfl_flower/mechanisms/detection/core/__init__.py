"""Detection of unusual updates, with reasons, reputation and quarantine."""

from qsfl_flower.mechanisms.detection.core.detector import Detector, Judgement, RobustZ
from qsfl_flower.mechanisms.detection.core.features import NAMES, Table, extract
from qsfl_flower.mechanisms.detection.core.forest import Forest, explain, path_contributions
from qsfl_flower.mechanisms.detection.core.groups import coordinated
from qsfl_flower.mechanisms.detection.core.inspect import (
    Detection,
    Finding,
    Memory,
    counted,
    inspect,
)
from qsfl_flower.mechanisms.detection.core.kinds import kind_of
from qsfl_flower.mechanisms.detection.core.opposed import opposed
from qsfl_flower.mechanisms.detection.core.registry import DETECTORS
from qsfl_flower.mechanisms.detection.core.reputation import Reputation, Standing

__all__ = [
    "DETECTORS",
    "NAMES",
    "Detection",
    "Detector",
    "Finding",
    "Forest",
    "Judgement",
    "Memory",
    "Reputation",
    "RobustZ",
    "Standing",
    "Table",
    "coordinated",
    "counted",
    "explain",
    "extract",
    "inspect",
    "kind_of",
    "opposed",
    "path_contributions",
]
