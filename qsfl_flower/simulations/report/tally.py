"""What became of each client's updates over the whole run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from qsfl_flower.simulations.runs import Record, number

ACCEPTED = "accepted"


@dataclass
class Mean:
    """A running mean of the finite numbers."""

    total: float = 0.0
    amount: int = 0

    def add(self, value: float | None) -> None:
        """Count a value, unless it is unknown or not finite."""
        if value is not None and math.isfinite(value):
            self.total += value
            self.amount += 1

    @property
    def value(self) -> float | None:
        """The mean; None without values."""
        return self.total / self.amount if self.amount else None


@dataclass
class ClientTally:
    """One client's updates, counted while the records stream by.

    Parameters
    ----------
    asked : int
        Rounds in which the client was asked.
    statuses : Counter
        ``"accepted"`` or reason of rejection to number of rounds.
    weight, norm, seconds : Mean
        Over the rounds in which they are known.
    loss : float or None
        Last training loss told by the client.
    claimed : float or None
        Last number of examples told by the client.
    """

    asked: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    weight: Mean = field(default_factory=Mean)
    norm: Mean = field(default_factory=Mean)
    seconds: Mean = field(default_factory=Mean)
    loss: float | None = None
    claimed: float | None = None

    def add(self, record: Record) -> None:
        """Count one record."""
        self.asked += 1
        self.statuses[str(record.get("status"))] += 1
        self.weight.add(number(record.get("weight")))
        self.norm.add(number(record.get("norm")))
        self.seconds.add(number(record.get("seconds")))
        self.loss = _newer(record.get("train_loss"), self.loss)
        self.claimed = _newer(record.get("num_examples"), self.claimed)

    def include(self, other: ClientTally) -> None:
        """Count what was recorded under another name, before the client had said its own."""
        self.asked += other.asked
        self.statuses.update(other.statuses)
        for mine, more in (
            (self.weight, other.weight),
            (self.norm, other.norm),
            (self.seconds, other.seconds),
        ):
            mine.total += more.total
            mine.amount += more.amount
        self.loss = other.loss if self.loss is None else self.loss
        self.claimed = other.claimed if self.claimed is None else self.claimed

    @property
    def accepted(self) -> int:
        """Rounds in which the client's update was used."""
        return self.statuses[ACCEPTED]

    @property
    def rejected(self) -> dict[str, int]:
        """Rounds in which it was not, by reason, the most frequent first."""
        return {name: n for name, n in self.statuses.most_common() if name != ACCEPTED}


@dataclass
class ReasonTally:
    """All updates that were rejected for one reason.

    Parameters
    ----------
    amount : int
        Number of updates.
    clients : set of str
        Whose they were.
    nodes : set of str
        Whose they were, while a node's name is not known.
    example : str or None
        What was found in the first of them.
    """

    amount: int = 0
    clients: set[str] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    example: str | None = None


@dataclass
class Tally:
    """What became of the updates, by client and by reason of rejection."""

    clients: dict[str, ClientTally] = field(default_factory=dict)
    reasons: dict[str, ReasonTally] = field(default_factory=dict)
    nodes: dict[str, ClientTally] = field(default_factory=dict)
    """What was recorded under a node's number, before `name_nodes`."""
    names: dict[str, set[str]] = field(default_factory=dict)
    """The names that the replies of each node have given."""

    def add(self, record: Record) -> None:
        """Count the record of one client and round."""
        client, status = str(record.get("client")), str(record.get("status"))
        node = record.get("node")
        known = node is None or client != str(node)
        if known and node is not None:
            self.names.setdefault(str(node), set()).add(client)
        (self.clients if known else self.nodes).setdefault(client, ClientTally()).add(record)
        if status != ACCEPTED:
            reason = self.reasons.setdefault(status, ReasonTally())
            reason.amount += 1
            (reason.clients if known else reason.nodes).add(client)
            if reason.example is None and record.get("detail"):
                reason.example = f"round {record.get('round')}, client {client}: {record['detail']}"

    def name_nodes(self) -> None:
        """Count a node that was silent, and known by its number alone, under its only name."""
        for node, recorded in self.nodes.items():
            names = self.names.get(node, set())
            name = next(iter(names)) if len(names) == 1 else node
            self.clients.setdefault(name, ClientTally()).include(recorded)
            for found in self.reasons.values():
                if node in found.nodes:
                    found.clients.add(name)
                    if found.example is not None:
                        found.example = found.example.replace(f"client {node}:", f"client {name}:")
        self.nodes = {}


def tally(records: Iterable[Record]) -> Tally:
    """Count records as they stream by."""
    counted = Tally()
    for record in records:
        counted.add(record)
    counted.name_nodes()
    return counted


def _newer(value: object, old: float | None) -> float | None:
    new = number(value)
    return old if new is None else new
