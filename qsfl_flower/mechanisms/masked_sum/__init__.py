"""Sums under masks that cancel."""

from qsfl_flower.mechanisms.masked_sum.options import MaskedSumOptions
from qsfl_flower.plugins import Mechanism
from qsfl_flower.traits import HIDDEN_SUM, Trait

MASKED_SUM = Mechanism(
    "masked_sum",
    MaskedSumOptions,
    server="qsfl_flower.mechanisms.masked_sum.server:MaskedSum",
    client="qsfl_flower.mechanisms.masked_sum.client:MASKED_STEPS",
    tasks="qsfl_flower.mechanisms.masked_sum.client:MASKED_TASKS",
    needs=("credentials",),
    traits=HIDDEN_SUM | {Trait.NEEDS_EVERYBODY, Trait.ONE_MODEL},
)
