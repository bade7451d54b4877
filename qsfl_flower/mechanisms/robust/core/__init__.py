"""Robust rules: from many updates, some of which lie, to one.

Every rule is a parameter object whose `aggregate` is a pure function; nothing here knows Flower.
"""

from qsfl_flower.mechanisms.robust.core.bounded_krum import FastKrum, fast_krum
from qsfl_flower.mechanisms.robust.core.centres import CenteredClipping, GeometricMedian
from qsfl_flower.mechanisms.robust.core.coordinates import MeaMed, Median, TrimmedMean
from qsfl_flower.mechanisms.robust.core.distances import dots, gram, squared_distances
from qsfl_flower.mechanisms.robust.core.geometry import Geometry
from qsfl_flower.mechanisms.robust.core.krum import bulyan_select, krum_scores, multi_krum_select
from qsfl_flower.mechanisms.robust.core.preparations import Bucketing, NearestNeighbourMixing
from qsfl_flower.mechanisms.robust.core.registry import PREPARATIONS, RULES
from qsfl_flower.mechanisms.robust.core.rule import (
    Aggregate,
    Preparation,
    Rule,
    TooFewUpdates,
    aggregate,
)
from qsfl_flower.mechanisms.robust.core.selection import (
    CGE,
    MDA,
    Bulyan,
    Krum,
    Mean,
    MultiKrum,
    NormBoundedMean,
)
from qsfl_flower.mechanisms.robust.core.trust import FLTrust
from qsfl_flower.mechanisms.robust.core.updates import Updates

__all__ = [
    "CGE",
    "MDA",
    "PREPARATIONS",
    "RULES",
    "Aggregate",
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "FLTrust",
    "FastKrum",
    "GeometricMedian",
    "Geometry",
    "Krum",
    "MeaMed",
    "Mean",
    "Median",
    "MultiKrum",
    "NearestNeighbourMixing",
    "NormBoundedMean",
    "Preparation",
    "Rule",
    "TooFewUpdates",
    "TrimmedMean",
    "Updates",
    "aggregate",
    "bulyan_select",
    "dots",
    "fast_krum",
    "gram",
    "krum_scores",
    "multi_krum_select",
    "squared_distances",
]
