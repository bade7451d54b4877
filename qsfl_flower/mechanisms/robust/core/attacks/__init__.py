"""Attacks on a federation, as pure functions: for simulations, tests and your own evaluations."""

from qsfl_flower.mechanisms.robust.core.attacks.base import Attack, Collusion, View
from qsfl_flower.mechanisms.robust.core.attacks.collusion import (
    Alie,
    InnerProduct,
    Mimic,
    MinMax,
    MinSum,
)
from qsfl_flower.mechanisms.robust.core.attacks.data import Backdoor, LabelFlip
from qsfl_flower.mechanisms.robust.core.attacks.fang import FangKrum, FangTrimmedMean
from qsfl_flower.mechanisms.robust.core.attacks.registry import ATTACKS, build_attack
from qsfl_flower.mechanisms.robust.core.attacks.solo import (
    Gaussian,
    Replay,
    Scaling,
    SignFlip,
    Sparse,
    Zero,
)

__all__ = [
    "ATTACKS",
    "Alie",
    "Attack",
    "Backdoor",
    "Collusion",
    "FangKrum",
    "FangTrimmedMean",
    "Gaussian",
    "InnerProduct",
    "LabelFlip",
    "Mimic",
    "MinMax",
    "MinSum",
    "Replay",
    "Scaling",
    "SignFlip",
    "Sparse",
    "View",
    "Zero",
    "build_attack",
]
