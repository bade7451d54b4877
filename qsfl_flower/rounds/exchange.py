"""One exchange with the clients: push, wait, and an explicit outcome for every node."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from qsfl_flower.errors import RunInterrupted, TooFewReplies
from qsfl_flower.wire import content_bytes

log = logging.getLogger("flwr")  # the one that `flwr run` shows

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5
_CLOSED = ("InMemoryGrid", "NodeGrid")  # grids of simulations: all nodes are there at once
_SIMULATED_PATIENCE = 30.0  # seconds without a new node, all of which register within seconds
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
    registers all its nodes when it starts, so that waiting for more ends soon there.

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
        After `timeout` seconds, in a simulation after 30 s without a new node, with what is
        missing.
    RunInterrupted
        As soon as `stop()` is true.
    """
    simulated = any(kind.__name__ in _CLOSED for kind in type(grid).__mro__)
    patience = min(timeout, _SIMULATED_PATIENCE) if simulated else timeout
    minimum = max(needed.values())
    started = since = time.monotonic()
    told, count = -math.inf, 0
    while len(nodes := registered_nodes(grid)) < minimum:
        _check(stop)
        now = time.monotonic()
        if simulated and len(nodes) > count:
            count, since = len(nodes), now
        missing = _missing(len(nodes), needed, simulated)
        if now - since > patience:
            raise TooFewReplies(f"after {now - started:.3g} s {missing}")
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


def collect(
    grid: Grid,
    messages: Iterable[Message],
    *,
    timeout: float,
    stop: Callable[[], bool] = lambda: False,
    on_reply: Callable[[int, int], None] = lambda done, total: None,
) -> list[Message]:
    """Send the messages and return the replies that arrive within `timeout` seconds.

    Nothing hangs: a node that is gone, or that the grid refuses to address, is simply not among
    the replies. Replies come in any order.

    Parameters
    ----------
    grid : Grid
        Flower's grid.
    messages : Iterable[Message]
        At most one message per node.
    timeout : float
        Seconds to wait for the last reply.
    stop : Callable[[], bool]
        Asked between two looks at the grid; true ends the exchange.
    on_reply : Callable[[int, int], None]
        Told how many replies are there, and how many are expected.

    Raises
    ------
    RunInterrupted
        As soon as `stop()` is true.
    """
    messages = list(messages)
    if not messages:
        return []
    stored = {i for i in grid.push_messages(messages) if i}
    open_ids = stored & {m.metadata.message_id for m in messages}
    replies: list[Message] = []
    total, pause, end = len(open_ids), _FIRST_PAUSE, time.monotonic() + timeout
    on_reply(0, total)
    while open_ids:
        _check(stop)
        arrived = _pull(grid, sorted(open_ids))
        replies += arrived
        open_ids -= {m.metadata.reply_to_message_id for m in arrived}
        if arrived:
            pause = _FIRST_PAUSE
            on_reply(len(replies), total)
        elif time.monotonic() > end:
            break
        else:
            time.sleep(pause)
            pause = min(pause * 1.3, _LONGEST_PAUSE)
    return replies


def _pull(grid: Grid, ids: Sequence[str]) -> list[Message]:
    return [m for m in grid.pull_messages(ids) if m.metadata.reply_to_message_id in ids]


def _payload(messages: Iterable[Message]) -> int:
    return sum(content_bytes(m.content) for m in messages if m.has_content())


def _check(stop: Callable[[], bool]) -> None:
    if stop():
        raise RunInterrupted("the run was asked to stop")
