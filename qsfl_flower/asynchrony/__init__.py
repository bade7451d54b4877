"""Asynchrony: staleness, exactly-once bookkeeping, selection by speed, and two kinds of time.

Nothing here knows Flower, torch, or the network.
"""

from qsfl_flower.asynchrony.clock import Clock, Fetch, Pause, WallClock
from qsfl_flower.asynchrony.devices import (
    ALWAYS,
    Availability,
    Device,
    DeviceClass,
    make_fleet,
)
from qsfl_flower.asynchrony.ledger import Ledger, Task, Verdict
from qsfl_flower.asynchrony.selection import (
    Draw,
    FasterFirst,
    Latencies,
    Selection,
    Tiered,
    Uniform,
    tiers,
)
from qsfl_flower.asynchrony.staleness import (
    Adaptive,
    Constant,
    Hinge,
    Polynomial,
    StalenessLimit,
    StalenessWeight,
    integer_weights,
    staleness_of,
)
from qsfl_flower.asynchrony.versions import Versions
from qsfl_flower.asynchrony.virtual import VirtualClock

__all__ = [
    "ALWAYS",
    "Adaptive",
    "Availability",
    "Clock",
    "Constant",
    "Device",
    "DeviceClass",
    "Draw",
    "FasterFirst",
    "Fetch",
    "Hinge",
    "Latencies",
    "Ledger",
    "Pause",
    "Polynomial",
    "Selection",
    "StalenessLimit",
    "StalenessWeight",
    "Task",
    "Tiered",
    "Uniform",
    "Verdict",
    "Versions",
    "VirtualClock",
    "WallClock",
    "integer_weights",
    "make_fleet",
    "staleness_of",
    "tiers",
]
