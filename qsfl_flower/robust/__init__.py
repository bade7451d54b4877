"""Robust rules: from many updates, some of which lie, to one.

Every rule is a parameter object whose `aggregate` is a pure function; nothing here knows Flower.
"""

from qsfl_flower.robust.bounded_krum import FastKrum, fast_krum
from qsfl_flower.robust.centres import CenteredClipping, GeometricMedian
from qsfl_flower.robust.coordinates import MeaMed, Median, TrimmedMean
from qsfl_flower.robust.distances import dots, gram, squared_distances
from qsfl_flower.robust.geometry import Geometry
from qsfl_flower.robust.krum import bulyan_select, krum_scores, multi_krum_select
from qsfl_flower.robust.preparations import Bucketing, NearestNeighbourMixing
from qsfl_flower.robust.registry import PREPARATIONS, RULES
from qsfl_flower.robust.rule import Aggregate, Preparation, Rule, TooFewUpdates, aggregate
from qsfl_flower.robust.selection import (
    CGE,
    MDA,
    Bulyan,
    Krum,
    Mean,
    MultiKrum,
    NormBoundedMean,
)
from qsfl_flower.robust.trust import FLTrust
from qsfl_flower.robust.updates import Updates

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
