"""A Flower grid in one process, with a clock of its own and a place to interfere on every way.

Every node is a function. A message goes through the tap of its node on the way down, the answer on
the way up; what a tap returns is delivered, each after so many virtual seconds. Without taps a node
answers as soon as it is asked.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from qsfl_flower.testing.clock import VirtualTime

App = Callable[[Message, Context], Message]
"""A ClientApp, or a mod with the app inside it."""

Answer = Callable[[Message], Message | None]
"""What a node does with a message; None is silence."""

Parcels = Iterable[tuple[float, Message]]
"""Messages to deliver, each after so many virtual seconds, >= 0."""

_CLIENT_ERROR = 2


def inside_run(run: int = 1) -> None:
    """Make this process count as one of the run: Flower makes messages only inside a run.

    Examples
    --------
    >>> from flwr.app import Message, RecordDict
    >>> inside_run(3)
    >>> Message(RecordDict(), 1, "train").metadata.run_id
    3
    """
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = run


def context_of(node: int, partition: int, partitions: int, run: int = 1) -> Context:
    """Return the context of a node that has not been asked yet.

    Examples
    --------
    >>> context_of(node=7, partition=0, partitions=3).node_config
    {'partition-id': 0, 'num-partitions': 3}
    """
    config: UserConfig = {"partition-id": partition, "num-partitions": partitions}
    return Context(run, node, config, RecordDict(), {})


class AppNode:
    """A node that runs an app; what the app raises becomes an error reply, as in Flower.

    Parameters
    ----------
    app : App
        The ClientApp.
    context : Context
        Its configuration and state, which stay here between messages.

    Examples
    --------
    >>> from flwr.app import Message, RecordDict
    >>> node = AppNode(lambda message, context: 1 / 0, context_of(1, 0, 1))
    >>> inside_run()
    >>> node(Message(RecordDict(), 1, "train")).error.reason
    'division by zero'
    """

    def __init__(self, app: App, context: Context) -> None:
        self.app, self.context = app, context

    def __call__(self, message: Message) -> Message:
        """Let the app answer."""
        try:
            return self.app(message, self.context)
        except Exception as error:
            return Message(Error(_CLIENT_ERROR, str(error)), reply_to=message)


@dataclass(frozen=True)
class Tap:
    """Programs between the server and a node; see `qsfl_flower.testing.taps` for ready ones.

    Parameters
    ----------
    down : Callable[[Message], Parcels], optional
        Takes what the server sends and returns what reaches the node.
    up : Callable[[Message], Parcels], optional
        Takes what the node answers and returns what reaches the server.

    Examples
    --------
    >>> federation = LocalFederation(clients=4)
    >>> federation.grid.taps[100] = Tap(up=drop)  # client 0 never answers
    >>> federation.run().rounds[-1].accepted
    3
    """

    down: Callable[[Message], Parcels] | None = None
    up: Callable[[Message], Parcels] | None = None


class NodeGrid(Grid):
    """Hands every message to the function of its node.

    Parameters
    ----------
    clients : Mapping[int, Answer]
        The nodes by id.
    seed : int, optional
        Of the order in which replies arrive; None keeps the order in which they were asked for.
    ranks : Sequence[int], optional
        The node ids in order of registration; that of `clients` by default.
    run : int
        Run id, >= 1.

    Examples
    --------
    >>> from flwr.app import Message, RecordDict
    >>> grid = NodeGrid({7: lambda message: None, 8: lambda m: Message(RecordDict(), reply_to=m)})
    >>> ids = grid.push_messages([Message(RecordDict(), node, "train") for node in (7, 8)])
    >>> [reply.metadata.src_node_id for reply in grid.pull_messages(ids)]  # node 7 is silent
    [8]
    """

    def __init__(
        self,
        clients: Mapping[int, Answer],
        seed: int | None = None,
        ranks: Sequence[int] | None = None,
        run: int = 1,
    ) -> None:
        inside_run(run)
        self.clients = dict(clients)
        self.seed, self.ranks, self._run = seed, ranks, Run.create_empty(run)
        self.pushed: list[Message] = []
        self.ready: dict[str, Message] = {}
        self.taps: dict[int, Tap] = {}
        self.time = VirtualTime()
        self._way: list[tuple[float, int, bool, Message]] = []
        self._sent = 0

    def set_run(self, run: Run) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Run:
        """Return the run."""
        return self._run

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return list(self.clients)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return all nodes with their order of registration."""
        order = {node: rank for rank, node in enumerate(self.ranks or self.clients)}
        return [NodeInfo(node_id=n, registered_at=f"{order[n]:012d}") for n in self.clients]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the nodes answer."""
        ids = []
        for message in messages:
            self.pushed.append(message)
            name = f"local-{len(self.pushed)}"
            message.metadata.__dict__["_message_id"] = name
            tap = self.taps.get(message.metadata.dst_node_id, Tap())
            self._send([(0.0, message)] if tap.down is None else tap.down(message), up=False)
            ids.append(name)
        self._deliver()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there."""
        self._deliver()
        found = [i for i in message_ids if i in self.ready]
        if self.seed is not None:
            random.Random(self.seed).shuffle(found)
        return [self.ready.pop(i) for i in found]

    def _send(self, parcels: Parcels, up: bool) -> None:
        for seconds, message in parcels:
            self._sent += 1
            heapq.heappush(self._way, (self.time.now + seconds, self._sent, up, message))

    def _deliver(self) -> None:
        """Hand over what is due by now, in the order in which it is due."""
        while self._way and self._way[0][0] <= self.time.now:
            *_, up, message = heapq.heappop(self._way)
            if up:
                self.ready[message.metadata.reply_to_message_id] = message
                continue
            node = message.metadata.dst_node_id
            reply = self.clients[node](message)
            if reply is not None:
                tap = self.taps.get(node, Tap())
                self._send([(0.0, reply)] if tap.up is None else tap.up(reply), up=True)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Wait for the replies as a loop of an app's own does, until nothing is on its way."""
        ids = list(self.push_messages(messages))
        end = math.inf if timeout is None else self.time.now + timeout
        replies = list(self.pull_messages(ids))
        while self._way and self._way[0][0] <= end and len(replies) < len(ids):
            self.time.now = self._way[0][0]
            replies += self.pull_messages(ids)
        return replies

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message as Flower's grids do."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


class LocalGrid(NodeGrid):
    """Runs one ClientApp on every node, one after the other.

    Parameters
    ----------
    app : App
        The ClientApp.
    clients : int
        Number of nodes; node i + 1 has partition i, and a client state of its own.

    Examples
    --------
    >>> from flwr.app import Message, RecordDict
    >>> def app(message, context):
    ...     return Message(RecordDict(), reply_to=message)
    >>> grid = LocalGrid(app, clients=2)
    >>> ids = grid.push_messages([Message(RecordDict(), node, "train") for node in (1, 2)])
    >>> [reply.metadata.src_node_id for reply in grid.pull_messages(ids)]
    [1, 2]
    """

    def __init__(self, app: App, clients: int) -> None:
        self.contexts = [context_of(n + 1, n, clients) for n in range(clients)]
        super().__init__({c.node_id: AppNode(app, c) for c in self.contexts})
