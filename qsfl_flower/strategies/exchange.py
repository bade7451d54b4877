"""One exchange with the clients: push, wait, and an explicit outcome for every node."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from qsfl_flower.errors import RunInterrupted, TooFewReplies
from qsfl_flower.wire import content_bytes

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5


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


def wait_for_nodes(grid: Grid, minimum: int, timeout: float, stop: Callable[[], bool]) -> list[int]:
    """Wait until `minimum` nodes are online and return all of them in order of registration.

    Raises
    ------
    TooFewReplies
        After `timeout` seconds, with the number of nodes that are there.
    RunInterrupted
        As soon as `stop()` is true.
    """
    end = time.monotonic() + timeout
    while len(nodes := registered_nodes(grid)) < minimum:
        _check(stop)
        if time.monotonic() > end:
            raise TooFewReplies(
                f"{len(nodes)} nodes are connected after {timeout:g} s; at least {minimum} are "
                "needed (min_available_nodes, min_train_nodes)"
            )
        time.sleep(0.1)
    return nodes


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
