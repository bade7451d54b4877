"""Tools for tests: a federation in one process.

Needs Flower, and neither pytest nor torch.
"""

from qsfl_flower.testing.grid import AppNode, LocalGrid, NodeGrid, context_of, inside_run

__all__ = ["AppNode", "LocalGrid", "NodeGrid", "context_of", "inside_run"]
