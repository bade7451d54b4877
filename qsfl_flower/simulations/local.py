"""A federation in one process: the real strategy, mods and messages, without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flwr.app import Context, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from qsfl_flower.errors import QSFLError

_RUN_ID = 1
_CLIENT_ERROR = 2


class LocalGrid(Grid):
    """Runs every client as soon as it is asked, one after the other.

    Flower makes messages only inside a run; from the first grid on the process counts as one.

    Parameters
    ----------
    app : Callable[[Message, Context], Message]
        The ClientApp.
    clients : int
        Number of nodes; node i has partition i, and a client state of its own.
    """

    def __init__(self, app: Callable[[Message, Context], Message], clients: int) -> None:
        self._app = app
        self._ready: dict[str, Message] = {}
        self._made = 0
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = _RUN_ID
        self.contexts = [
            Context(
                run_id=_RUN_ID,
                node_id=node + 1,
                node_config={"partition-id": node, "num-partitions": clients},
                state=RecordDict(),
                run_config={},
            )
            for node in range(clients)
        ]

    def set_run(self, run: Run) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Run:
        """Return the run."""
        return Run.create_empty(_RUN_ID)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return [context.node_id for context in self.contexts]

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return all nodes, registered in the order of their partitions."""
        return [NodeInfo(node_id=n, registered_at=f"{n:012d}") for n in self.get_node_ids()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the clients answer."""
        ids = []
        for message in messages:
            self._made += 1
            message.metadata.__dict__["_message_id"] = f"local-{self._made}"
            ids.append(message.metadata.message_id)
            context = self.contexts[message.metadata.dst_node_id - 1]
            try:
                reply = self._app(message, context)
            except Exception as error:
                reply = Message(Error(_CLIENT_ERROR, str(error)), reply_to=message)
            self._ready[message.metadata.message_id] = reply
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there."""
        return [self._ready.pop(i) for i in message_ids if i in self._ready]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Refuse: strategies of this suite push and pull."""
        raise QSFLError("a local grid has no send_and_receive; use push and pull_messages")

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
