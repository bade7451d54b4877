"""Print the tables of keys for docs/analytics.md."""

from qsfl_flower.simulations.inquiry.config import reference

print(reference(), end="")
