"""Tools for tests: a federation in one process, parties that lie, and what a coalition learns.

Needs Flower, and neither pytest nor torch. ::

    federation = LocalFederation(clients=6)
    view = federation.watch()                       # what the server sees
    federation.run([SecureSum(1.0, Committee(3, 2), clock=federation.grid_time)])
    assert learned(federation.updates, view.bytes_up()) == []
"""

from qsfl_flower.testing.claims import Claim, page
from qsfl_flower.testing.clock import VirtualTime
from qsfl_flower.testing.federation import LocalFederation, Outcome, View
from qsfl_flower.testing.grid import AppNode, LocalGrid, NodeGrid, Tap, context_of, inside_run
from qsfl_flower.testing.seam import fixed
from qsfl_flower.testing.solver import coefficients, correlations, learned, rank, solves
from qsfl_flower.testing.taps import alter, answer, copy_of, delay, drop, observe, reorder, repeat

__all__ = [
    "AppNode",
    "Claim",
    "LocalFederation",
    "LocalGrid",
    "NodeGrid",
    "Outcome",
    "Tap",
    "View",
    "VirtualTime",
    "alter",
    "answer",
    "coefficients",
    "context_of",
    "copy_of",
    "correlations",
    "delay",
    "drop",
    "fixed",
    "inside_run",
    "learned",
    "observe",
    "page",
    "rank",
    "reorder",
    "repeat",
    "solves",
]
