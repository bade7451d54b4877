"""Numbers: flat vectors and their layout, compensated sums, norms, and what is believed of clients.

Nothing here knows Flower, torch, or the network.
"""

from qsfl_flower.numerics.carried import combine_carried, median_carried
from qsfl_flower.numerics.layout import CastOverflow, Layout
from qsfl_flower.numerics.mean import CompensatedSum, sum_and_measure, weighted_sum
from qsfl_flower.numerics.monitor import Monitor, MonitorState, Reaction
from qsfl_flower.numerics.norms import Measure, clip_scale, clip_scales, measure, rough_norms
from qsfl_flower.numerics.npy import dump_npy, view_npy
from qsfl_flower.numerics.sparse import SparseVector
from qsfl_flower.numerics.validation import (
    bounded_weights,
    check_finite_and_size,
    example_count,
    not_finite,
)
from qsfl_flower.numerics.vector import Vector

__all__ = [
    "CastOverflow",
    "CompensatedSum",
    "Layout",
    "Measure",
    "Monitor",
    "MonitorState",
    "Reaction",
    "SparseVector",
    "Vector",
    "bounded_weights",
    "check_finite_and_size",
    "clip_scale",
    "clip_scales",
    "combine_carried",
    "dump_npy",
    "example_count",
    "measure",
    "median_carried",
    "not_finite",
    "rough_norms",
    "sum_and_measure",
    "view_npy",
    "weighted_sum",
]
