"""All rules and preparations by name."""

from __future__ import annotations

from qsfl_flower.mechanisms.robust.core.bounded_krum import FastKrum
from qsfl_flower.mechanisms.robust.core.centres import CenteredClipping, GeometricMedian
from qsfl_flower.mechanisms.robust.core.coordinates import MeaMed, Median, TrimmedMean
from qsfl_flower.mechanisms.robust.core.preparations import Bucketing, NearestNeighbourMixing
from qsfl_flower.mechanisms.robust.core.rule import Preparation, Rule
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

RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        Mean,
        Krum,
        FastKrum,
        MultiKrum,
        Median,
        TrimmedMean,
        MeaMed,
        Bulyan,
        GeometricMedian,
        CenteredClipping,
        MDA,
        CGE,
        NormBoundedMean,
        FLTrust,
    )
}

PREPARATIONS: dict[str, type[Preparation]] = {
    preparation.name: preparation for preparation in (Bucketing, NearestNeighbourMixing)
}
