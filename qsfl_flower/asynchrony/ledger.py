"""Who was asked for what: every task is answered once, or given up, and never counted twice.

A ledger is a value. Tasks are numbered from 0 in the order in which they were given out; a number
is open, overdue, or over. Only the answer to an open task counts, and it closes the task. Whatever
comes besides (duplicates, answers to tasks that were given up and replaced, numbers that were never
given out) is recognized from the numbers alone, without a memory that grows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, TypeVar

from qsfl_flower.errors import CheckpointError, QSFLError

V = TypeVar("V")

_LONGEST_REST = 6  # a client that never answers is asked again after 2^6 deadlines at the latest


@dataclass(frozen=True)
class Task:
    """One request to one client.

    Parameters
    ----------
    number : int
        Counted from 0 over all tasks.
    client : int
        Who was asked.
    version : int
        Version of the model that it was sent.
    sent_at : float
        When, in seconds of the run's clock.
    deadline : float
        When it is given up; infinity: never.
    """

    number: int
    client: int
    version: int
    sent_at: float
    deadline: float = math.inf


class Verdict(StrEnum):
    """What an answer is worth."""

    COUNTS = "counts"
    LATE = "late-reply"
    DUPLICATE = "duplicate"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Ledger:
    """All tasks of a run.

    Parameters
    ----------
    given : int
        How many tasks were given out.
    open : Mapping[int, Task]
        Tasks whose answers count, by number.
    overdue : Mapping[int, Task]
        Tasks that were given up, whose clients have not been heard of since. Their `deadline` is
        now the time after which the client may be asked again all the same.
    misses : Mapping[int, int]
        How many deadlines in a row a client has missed.
    held : Mapping[int, int]
        The task of every client that must not be asked: one that has a task, or is still silent
        about one.
    next_deadline : float
        `expire` has nothing to do before this time; infinity: never.
    """

    given: int = 0
    open: MappingProxyType[int, Task] = field(default_factory=lambda: MappingProxyType({}))
    overdue: MappingProxyType[int, Task] = field(default_factory=lambda: MappingProxyType({}))
    misses: MappingProxyType[int, int] = field(default_factory=lambda: MappingProxyType({}))
    held: MappingProxyType[int, int] = field(default_factory=lambda: MappingProxyType({}))
    next_deadline: float = math.inf

    @property
    def busy(self) -> Set[int]:
        """Clients that must not be asked."""
        return self.held.keys()

    def versions(self) -> frozenset[int]:
        """Versions that open tasks started from."""
        return frozenset(task.version for task in self.open.values())

    def assign(
        self, client: int, version: int, now: float, patience: float = math.inf
    ) -> tuple[Ledger, Task]:
        """Give a client a task.

        Parameters
        ----------
        client, version, now : int, int, float
            See `Task`.
        patience : float
            Seconds until the task is given up, > 0.

        Raises
        ------
        QSFLError
            If the client has a task already: Flower's clients lose state when asked twice at once.
        """
        if client in self.busy:
            raise QSFLError(f"client {client} has a task already; ask it again when it is over")
        task = Task(self.given, client, version, now, now + patience)
        return replace(
            self,
            given=self.given + 1,
            open=_with(self.open, task.number, task),
            held=_with(self.held, client, task.number),
            next_deadline=min(self.next_deadline, task.deadline),
        ), task

    def settle(self, number: int) -> tuple[Ledger, Task | None, Verdict]:
        """Take in the answer to a task, error or not.

        Returns
        -------
        tuple[Ledger, Task or None, Verdict]
            The task if it was open or overdue. Only `Verdict.COUNTS` may be used.
        """
        if (task := self.open.get(number)) is not None:
            ledger = replace(self, open=_without(self.open, number))
            return ledger._heard(task), task, Verdict.COUNTS
        if (task := self.overdue.get(number)) is not None:
            ledger = replace(self, overdue=_without(self.overdue, number))
            return ledger._heard(task), task, Verdict.LATE
        return self, None, Verdict.DUPLICATE if 0 <= number < self.given else Verdict.UNKNOWN

    def expire(self, now: float) -> tuple[Ledger, tuple[Task, ...]]:
        """Give up the tasks whose deadline has passed.

        A client that missed one rests until it is heard of, or for twice as long as its task had,
        and for twice as long again with every further miss in a row.

        Returns
        -------
        tuple[Ledger, tuple[Task, ...]]
            The tasks that were given up just now, in the order in which they were given out.
        """
        if now < self.next_deadline:
            return self, ()
        rested = [task for task in self.overdue.values() if task.deadline <= now]
        ledger = replace(
            self,
            overdue=_without(self.overdue, *(task.number for task in rested)),
            held=_without(self.held, *(task.client for task in rested)),
        )
        late = [task.number for task in self.open.values() if task.deadline <= now]
        ledger, missed = ledger.give_up(late, now)
        tasks = (*ledger.open.values(), *ledger.overdue.values())
        soonest = min((task.deadline for task in tasks), default=math.inf)
        return replace(ledger, next_deadline=soonest), missed

    def give_up(self, numbers: Collection[int], now: float) -> tuple[Ledger, tuple[Task, ...]]:
        """Give up open tasks before their deadline; see `expire`."""
        missed = tuple(self.open[number] for number in numbers if number in self.open)
        overdue, misses = self.overdue.copy(), self.misses.copy()
        for task in missed:
            times = misses[task.client] = misses.get(task.client, 0) + 1
            rest = (task.deadline - task.sent_at) * 2 ** min(times, _LONGEST_REST)
            overdue[task.number] = replace(task, deadline=now + rest)
        return replace(
            self,
            open=_without(self.open, *(task.number for task in missed)),
            overdue=MappingProxyType(overdue),
            misses=MappingProxyType(misses),
            next_deadline=min(
                self.next_deadline, *(overdue[task.number].deadline for task in missed), math.inf
            ),
        ), missed

    def release(self, clients: Iterable[int]) -> tuple[Ledger, tuple[Task, ...]]:
        """Give up the tasks of clients that are gone, at once and without a rest.

        Returns
        -------
        tuple[Ledger, tuple[Task, ...]]
            The open tasks among them; nobody will answer those.
        """
        gone = frozenset(clients)
        lost = tuple(task for task in self.open.values() if task.client in gone)
        silent = (task.number for task in self.overdue.values() if task.client in gone)
        return replace(
            self,
            open=_without(self.open, *(task.number for task in lost)),
            overdue=_without(self.overdue, *silent),
            held=_without(self.held, *gone),
        ), lost

    def to_dict(self) -> dict[str, Any]:
        """Return the ledger as JSON values; infinity is written as null."""

        def row(task: Task) -> list[Any]:
            end = None if math.isinf(task.deadline) else task.deadline
            return [task.number, task.client, task.version, task.sent_at, end]

        return {
            "given": self.given,
            "open": [row(task) for task in self.open.values()],
            "overdue": [row(task) for task in self.overdue.values()],
            "misses": [[client, times] for client, times in self.misses.items()],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ledger:
        """Restore a ledger from JSON values.

        Raises
        ------
        CheckpointError
            If the values are not those of a ledger.
        """

        def tasks(key: str) -> MappingProxyType[int, Task]:
            rows = (
                Task(
                    int(n), int(client), int(v), float(at), math.inf if end is None else float(end)
                )
                for n, client, v, at, end in values[key]
            )
            return MappingProxyType({task.number: task for task in rows})

        try:
            misses = {int(client): int(times) for client, times in values["misses"]}
            given, open_, overdue = int(values["given"]), tasks("open"), tasks("overdue")
            every = [*open_.values(), *overdue.values()]
            held = MappingProxyType({task.client: task.number for task in every})
            soonest = min((task.deadline for task in every), default=math.inf)
            return cls(given, open_, overdue, MappingProxyType(misses), held, soonest)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"the ledger of tasks is damaged: {error!r}") from None

    def _heard(self, task: Task) -> Ledger:
        misses = _without(self.misses, task.client) if self.misses else self.misses
        return replace(self, held=_without(self.held, task.client), misses=misses)


# A copy by `copy` takes microseconds a thousand entries; unpacking a proxy takes 25 times as long.
def _with(held: MappingProxyType[int, V], key: int, value: V) -> MappingProxyType[int, V]:
    more = held.copy()
    more[key] = value
    return MappingProxyType(more)


def _without(held: MappingProxyType[int, V], *keys: int) -> MappingProxyType[int, V]:
    left = held.copy()
    for key in keys:
        left.pop(key, None)
    return MappingProxyType(left)
