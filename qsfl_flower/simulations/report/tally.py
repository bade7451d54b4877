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

    @property
    def accepted(self) -> int:
        """Rounds in which the client's update was used."""
        return self.statuses[ACCEPTED]

    @property
    def rejected(self) -> dict[str, int]:
        """Rounds in which it was not, by reason, the most frequent first."""
        return {name: n for name, n in self.statuses.most_common() if name != ACCEPTED}


def tally(records: Iterable[Record]) -> dict[str, ClientTally]:
    """Count the records of every client."""
    clients: dict[str, ClientTally] = {}
    for record in records:
        clients.setdefault(str(record.get("client")), ClientTally()).add(record)
    return clients


def _newer(value: object, old: float | None) -> float | None:
    new = number(value)
    return old if new is None else new
