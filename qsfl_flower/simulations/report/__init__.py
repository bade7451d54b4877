"""The report of a run and the comparison of several: pictures and one self-contained page."""

from __future__ import annotations

from qsfl_flower.simulations.report.comparison import compare, write_comparison
from qsfl_flower.simulations.report.writer import write_report

__all__ = ["compare", "write_comparison", "write_report"]
