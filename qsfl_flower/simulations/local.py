"""The in-process grid, which `qsfl_flower.testing` holds."""

from qsfl_flower.testing import LocalGrid

__all__ = ["LocalGrid"]
