"""Sums and distances that only a committee can open."""

from qsfl_flower.mechanisms.secure_sum.options import SecureKrumOptions, SecureSumOptions
from qsfl_flower.plugins import Mechanism
from qsfl_flower.traits import HIDDEN_SUM, Trait

SECURE_SUM = Mechanism(
    "secure_sum",
    SecureSumOptions,
    server="qsfl_flower.mechanisms.secure_sum.server:SecureSum",
    client="qsfl_flower.mechanisms.secure_sum.client:COMMITTEE_STEPS",
    tasks="qsfl_flower.mechanisms.secure_sum.client:COMMITTEE_TASKS",
    needs=("bound",),
    traits=HIDDEN_SUM,
)
SECURE_KRUM = Mechanism(
    "secure_krum",
    SecureKrumOptions,
    server="qsfl_flower.mechanisms.secure_sum.server:SecureKrum",
    client="qsfl_flower.mechanisms.secure_sum.client:COMMITTEE_STEPS",
    tasks="qsfl_flower.mechanisms.secure_sum.client:COMMITTEE_TASKS",
    needs=(),
    traits=HIDDEN_SUM | {Trait.OPENS_DISTANCES, Trait.WITHSTANDS_LIARS},
)
"""The same on the clients, who deal shares and serve on the committee."""
