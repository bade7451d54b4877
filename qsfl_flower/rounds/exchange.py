"""Who is connected, and how many bytes go to and fro."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from qsfl_flower.errors import RunInterrupted, TooFewReplies
from qsfl_flower.wire import content_bytes

log = logging.getLogger("flwr")  # the one that `flwr run` shows

_CLOSED = {"InMemoryGrid": 5.0, "NodeGrid": 0.0}
"""Grids of simulations, which register all nodes when they start: seconds without another one after
which none is to come."""
_SIMULATED_PATIENCE = 30.0  # seconds until a simulation has registered its first node
_FIRST_WORD = 1.0  # seconds until a shortage is worth a line
_TELL_AGAIN = 30.0  # seconds between two such lines


@dataclass(frozen=True)
class Traffic:
    """Payload bytes that went to the clients and came back."""

    down: int = 0
    up: int = 0

    def plus(self, messages: Iterable[Message], replies: Iterable[Message]) -> Traffic:
        """Add one exchange."""
        return Traffic(self.down + _payload(messages), self.up + _payload(replies))


def registered_nodes(grid: Grid) -> list[int]:
    """Node ids in order of registration.

    Flower draws node ids at random, so their own order changes from run to run; the order of
    registration is the same in every simulation and stays the same in a deployment.
    """
    nodes = sorted(grid.get_nodes(), key=lambda n: n.registered_at)
    return [n.node_id for n in nodes]


def wait_for_nodes(
    grid: Grid, needed: Mapping[str, int], timeout: float, stop: Callable[[], bool]
) -> list[int]:
    """Wait until enough nodes are online and return all of them in order of registration.

    What is missing is logged at once, and again while nothing changes. Flower's simulation
    registers all its nodes when it starts: once they are there, nobody waits for more.

    Parameters
    ----------
    grid : Grid
        Flower's grid.
    needed : Mapping[str, int]
        Numbers of nodes by the name of the setting that asks for them.
    timeout : float
        Seconds to wait in a deployment.
    stop : Callable[[], bool]
        Asked between two looks at the grid; true ends the wait.

    Raises
    ------
    TooFewReplies
        With what is missing: after `timeout` seconds, in a simulation as soon as all of its nodes
        are there.
    RunInterrupted
        As soon as `stop()` is true.
    """
    closed = [_CLOSED[k.__name__] for k in type(grid).__mro__ if k.__name__ in _CLOSED]
    simulated = bool(closed)
    minimum = max(needed.values())
    started = since = time.monotonic()
    told, count = -math.inf, 0
    while len(nodes := registered_nodes(grid)) < minimum:
        if stop():
            raise RunInterrupted("the run was asked to stop")
        now = time.monotonic()
        if simulated and len(nodes) > count:
            count, since = len(nodes), now
        missing = _missing(len(nodes), needed, simulated)
        patience = timeout
        if simulated:
            patience = min(timeout, closed[0] if nodes else _SIMULATED_PATIENCE)
        if now - since >= patience:
            raise TooFewReplies(missing if simulated else f"after {now - started:.3g} s {missing}")
        if now - told > _TELL_AGAIN and now - started >= _FIRST_WORD:
            log.warning("waiting for nodes: %s", missing)
            told = now
        time.sleep(0.1)
    return nodes


def _missing(count: int, needed: Mapping[str, int], simulated: bool) -> str:
    minimum = max(needed.values())
    why = ", ".join(f"{name} = {value}" for name, value in needed.items() if value == minimum)
    more = (
        f"start the simulation with flwr run . --federation-config 'num-supernodes={minimum}'"
        if simulated
        else "start more SuperNodes, or lower it"
    )
    return f"{count} nodes are connected and {minimum} are needed ({why}); {more}"


def _payload(messages: Iterable[Message]) -> int:
    return sum(content_bytes(m.content) for m in messages if m.has_content())
