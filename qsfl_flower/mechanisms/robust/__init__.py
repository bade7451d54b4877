"""Rules that a minority cannot mislead."""

from qsfl_flower.mechanisms.robust.options import RobustOptions
from qsfl_flower.plugins import Mechanism
from qsfl_flower.traits import Trait

ROBUST = Mechanism(
    "robust",
    RobustOptions,
    server="qsfl_flower.mechanisms.robust.server:Robust",
    traits=frozenset({Trait.COMBINES, Trait.SEES_UPDATES, Trait.WITHSTANDS_LIARS}),
)

__all__ = ["ROBUST", "RobustOptions"]
