"""A virtual fleet: many devices on few SuperNodes, invisible to strategy and app.

Flower's dispatcher looks at every node for every message, so that its cost grows with the square of
their number. Here a few SuperNodes host all devices: `FleetGrid` shows a strategy one node per
device and sends each SuperNode one bundle; `fleet_mod` runs the devices of a bundle one after the
other, each with its own node id, partition, memory and (with authentication) keys and signature.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import partial

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from qsfl_flower.errors import QSFLError
from qsfl_flower.rounds.exchange import registered_nodes
from qsfl_flower.rounds.update import Rejection, Sender, catch
from qsfl_flower.simulations.config import Experiment
from qsfl_flower.wire.bundle import is_bundle, pack, unpack

FIRST_DEVICE = 1 << 40
"""Node id of the first device; SuperNodes draw theirs from 64 bits at random."""

_CLIENT_ERROR = 2


@dataclass
class _Host:
    """A SuperNode: what it is working on, and what waits for it."""

    node_id: int
    waiting: deque[list[Message]] = field(default_factory=deque)
    sent: str = ""
    under_way: dict[int, Message] = field(default_factory=dict)


def hosts_of(experiment: Experiment) -> int:
    """Return the number of SuperNodes of an experiment."""
    return experiment.simulation.supernodes or experiment.clients.count


class FleetGrid(Grid):
    """A grid with one node per device, on top of a grid with fewer nodes.

    Device i is hosted by node i modulo the number of hosts, in order of registration. A host gets
    one message at a time, since its devices share its memory.

    Parameters
    ----------
    grid : Grid
        Flower's grid.
    devices : int
        Number of devices, >= `hosts`.
    hosts : int
        Number of SuperNodes that host them; until so many are there, no device is.
    """

    def __init__(self, grid: Grid, devices: int, hosts: int) -> None:
        self._grid, self._devices, self._count = grid, devices, hosts
        self._hosts: list[_Host] = []
        self._ready: dict[str, Message] = {}
        self._made = 0

    def set_run(self, run: Run) -> None:
        """Pass on."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """Flower's run."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Pass on."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all devices."""
        if not self._hosts:
            nodes = registered_nodes(self._grid)
            if len(nodes) >= self._count:
                self._hosts = [_Host(n) for n in nodes[: self._count]]
        return [FIRST_DEVICE + i for i in range(self._devices)] if self._hosts else []

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return all devices, registered in the order of their numbers."""
        return [
            NodeInfo(node_id=node, registered_at=f"{node - FIRST_DEVICE:012d}")
            for node in self.get_node_ids()
        ]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send each host one bundle, now or when it has finished the one before."""
        bundles: dict[int, list[Message]] = {}
        ids = []
        for message in messages:
            device = message.metadata.dst_node_id - FIRST_DEVICE
            if not self._hosts or not 0 <= device < self._devices:
                ids.append("")
                continue
            self._made += 1
            message.metadata.__dict__["_message_id"] = f"device-{self._made}"
            ids.append(message.metadata.message_id)
            bundles.setdefault(device % len(self._hosts), []).append(message)
        for index, bundle in bundles.items():
            self._hosts[index].waiting.append(bundle)
        self._send()
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there."""
        busy = {host.sent: host for host in self._hosts if host.sent}
        for reply in self._grid.pull_messages(list(busy)) if busy else ():
            host = busy.get(reply.metadata.reply_to_message_id)
            if host is not None:
                self._unpack(host, reply)
        self._send()
        return [self._ready.pop(i) for i in message_ids if i in self._ready]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Refuse: strategies of this suite push and pull."""
        raise QSFLError("a virtual fleet has no send_and_receive; use push and pull_messages")

    def _send(self) -> None:
        batch = []
        for host in self._hosts:
            if host.sent or not host.waiting:
                continue
            bundle = host.waiting.popleft()
            host.under_way = {m.metadata.dst_node_id - FIRST_DEVICE: m for m in bundle}
            content = pack({device: m.content for device, m in host.under_way.items()})
            first = bundle[0].metadata
            batch.append((host, Message(content, host.node_id, first.message_type, ttl=first.ttl)))
        ids = self._grid.push_messages([m for _, m in batch]) if batch else ()
        for (host, _), sent in zip(batch, ids, strict=True):
            host.sent = sent
            if not sent:
                self._answer(host, {}, Error(5, "the host of this device is gone"))

    def _unpack(self, host: _Host, reply: Message) -> None:
        if reply.has_error():
            self._answer(host, {}, reply.error)
            return
        sender = Sender(host.node_id, self._hosts.index(host), f"node {self._hosts.index(host)}")
        parts = catch(sender, partial(unpack, reply.content))
        if isinstance(parts, Rejection):
            self._answer(host, {}, Error(_CLIENT_ERROR, f"{parts.reason}: {parts.detail}"))
            return
        self._answer(host, parts, Error(_CLIENT_ERROR, "the host did not answer for this device"))

    def _answer(
        self, host: _Host, parts: Mapping[int, RecordDict | Error], otherwise: Error
    ) -> None:
        for device, message in host.under_way.items():
            reply = _reply(parts.get(device, otherwise), message)
            self._ready[message.metadata.message_id] = reply
        host.sent, host.under_way = "", {}


def _reply(part: RecordDict | Error, message: Message) -> Message:
    if isinstance(part, RecordDict):
        return Message(part, reply_to=message)
    return Message(part, reply_to=message)


def fleet_mod(devices: int) -> Mod:
    """Make the mod that runs the devices of a bundle; put it first.

    Parameters
    ----------
    devices : int
        Number of devices of the whole fleet: every device's ``num-partitions``.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if not is_bundle(message.content):
            return call_next(message, context)
        answers: dict[int, RecordDict | Error] = {}
        for device, content in unpack(message.content).items():
            if isinstance(content, Error):
                continue
            answers[device] = _run_device(message, context, device, devices, content, call_next)
        return Message(pack(answers), reply_to=message)

    return mod


def _run_device(
    message: Message,
    context: Context,
    device: int,
    devices: int,
    content: RecordDict,
    call_next: ClientAppCallable,
) -> RecordDict | Error:
    """Let one device handle its message, with a memory of its own inside the host's."""
    prefix = f"device-{device}/"
    own = Context(
        run_id=context.run_id,
        node_id=FIRST_DEVICE + device,
        node_config={
            **context.node_config,
            "partition-id": device,
            "num-partitions": devices,
        },
        state=RecordDict(
            {k.removeprefix(prefix): v for k, v in context.state.items() if k.startswith(prefix)}
        ),
        run_config={**context.run_config},
    )
    metadata = copy(message.metadata)
    metadata.dst_node_id = own.node_id
    try:
        reply = call_next(make_message(metadata, content), own)
    except Exception as error:
        return Error(_CLIENT_ERROR, f"{type(error).__name__}: {error!s:.500}")
    for name in [k for k in context.state if k.startswith(prefix)]:
        del context.state[name]
    for name, record in own.state.items():
        context.state[prefix + name] = record
    return reply.error if reply.has_error() else reply.content
