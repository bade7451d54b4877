"""Waiting for nodes: what is missing is said at once, and a simulation does not wait for long."""

import importlib
import time

import numpy as np
import pytest

from qsfl_flower.errors import TooFewReplies
from qsfl_flower.rounds import exchange
from qsfl_flower.stages import Committee, MaskedSum, SecureKrum
from qsfl_flower.strategies import StableFedAvg
from qsfl_flower.testing import LocalFederation, NodeGrid
from qsfl_flower.wire import to_record


class InMemoryGrid(NodeGrid):
    """Has the name of the grid of Flower's simulations; a further node appears at each look."""

    later = 0

    def get_nodes(self):
        if self.later:
            self.later -= 1
            self.clients[100 + self.later] = print
        return super().get_nodes()


@pytest.fixture
def hurried(monkeypatch, inside_run):
    for name, seconds in (
        ("_FIRST_WORD", 0.0),
        ("_TELL_AGAIN", 0.15),
        ("_CLOSED", {"InMemoryGrid": 0.4, "NodeGrid": 0.0}),
    ):
        monkeypatch.setattr(exchange, name, seconds)


def start(grid, timeout):
    strategy = StableFedAvg(min_available_nodes=7)
    with pytest.raises(TooFewReplies) as caught:
        strategy.start(grid, to_record({"w": np.zeros(2)}), num_rounds=1, timeout=timeout)
    return str(caught.value)


def test_flowers_simulation_still_uses_the_grid_of_this_name():
    module = importlib.import_module("flwr.simulation.run_simulation")
    assert module.InMemoryGrid.__name__ == InMemoryGrid.__name__


def test_a_simulation_with_too_few_nodes_ends_soon_with_the_command(hurried, caplog):
    """Flower's simulation registers its two default nodes at once; more never come."""
    with caplog.at_level("WARNING", "flwr"):
        told = start(InMemoryGrid({1: print, 2: print}), timeout=3600.0)
    missing = "2 nodes are connected and 7 are needed (min_available_nodes = 7)"
    assert missing in told
    assert "flwr run . --federation-config 'num-supernodes=7'" in told
    assert caplog.text.count(missing) >= 2


def test_nodes_that_still_come_are_waited_for(hurried):
    """Eight come one by one, a tenth of a second apart: longer than the patience without any."""
    grid = InMemoryGrid({1: print})
    grid.later = 8
    found = exchange.wait_for_nodes(grid, {"min_train_nodes": 9}, 60.0, lambda: False)
    assert len(found) == 9


def test_where_all_nodes_are_there_nobody_waits(inside_run):
    """A committee of five has five clients; three that are all there never become more."""
    federation, before = LocalFederation(3), time.monotonic()
    stage = SecureKrum(1.0, 0, Committee(3, 2), clock=federation.grid_time)
    outcome = federation.run([stage], min_train_nodes=2, min_available_nodes=2)
    assert time.monotonic() - before < 5.0
    assert str(outcome.error).startswith("3 nodes are connected and 5 are needed (min_train_nodes")
    assert "the smallest federation of stage secure_krum = 5" in str(outcome.error)
    masks = MaskedSum(federation.credentials, min_clients=4, clock=federation.grid_time)
    outcome = federation.run([masks], min_train_nodes=2, min_available_nodes=2)
    assert "3 nodes are connected and 4 are needed" in str(outcome.error)


class Deployed:
    """A grid that is neither Flower's simulation nor one of the tests."""

    def __init__(self, grid):
        self._grid = grid

    def __getattr__(self, name):
        return getattr(self._grid, name)


def test_a_deployment_waits_and_repeats_what_is_missing(hurried, caplog):
    with caplog.at_level("WARNING", "flwr"):
        told = start(Deployed(NodeGrid({1: print})), timeout=0.6)
    assert "start more SuperNodes, or lower it" in told
    assert caplog.text.count("1 nodes are connected and 7 are needed") >= 3
