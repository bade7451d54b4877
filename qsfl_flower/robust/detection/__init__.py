"""Detection of unusual updates, with reasons, reputation and quarantine."""

from qsfl_flower.robust.detection.detector import Detector, Judgement, RobustZ
from qsfl_flower.robust.detection.features import NAMES, Table, extract
from qsfl_flower.robust.detection.forest import Forest, explain, path_contributions
from qsfl_flower.robust.detection.groups import coordinated
from qsfl_flower.robust.detection.inspect import Detection, Finding, Memory, counted, inspect
from qsfl_flower.robust.detection.kinds import kind_of
from qsfl_flower.robust.detection.opposed import opposed
from qsfl_flower.robust.detection.registry import DETECTORS
from qsfl_flower.robust.detection.reputation import Reputation, Standing

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
