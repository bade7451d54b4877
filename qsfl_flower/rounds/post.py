"""The tasks under way between a strategy and its clients, by the strategy's clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from qsfl_flower.asynchrony import Clock, Latencies, Ledger, Task, Verdict, WallClock
from qsfl_flower.errors import RunInterrupted
from qsfl_flower.wire import content_bytes

_LOOK = 0.02  # seconds


@dataclass(frozen=True)
class Arrival:
    """A task that is over: answered, or given up if there is no message.

    Parameters
    ----------
    task : Task
        What was asked.
    at : float
        When it ended, in seconds of the clock.
    message : Message or None
        The answer, which may be one of Flower's errors.
    void : bool
        Whether the task had become too old to count before its answer came.
    """

    task: Task
    at: float
    message: Message | None = None
    void: bool = False


class Post:
    """Sends tasks and hands out every answer once, whatever the network does.

    Parameters
    ----------
    clock : Clock
        Decides when an answer counts as arrived.
    stop : Callable[[], bool]
        Asked between two looks at the grid; true ends the wait with `RunInterrupted`.
    """

    def __init__(self, clock: Clock, stop: Callable[[], bool] = lambda: False) -> None:
        self.clock = clock
        self.ledger = Ledger()
        self.latencies = Latencies()
        self._stop = stop
        self._numbers: dict[str, int] = {}
        self._ids: dict[int, str] = {}
        self._void: set[int] = set()
        self._here: dict[int, Message] = {}

    def send(
        self, grid: Grid, messages: Sequence[tuple[int, Message]], version: int, patience: float
    ) -> list[Task]:
        """Give each of some clients a task.

        Parameters
        ----------
        grid : Grid
            Flower's grid.
        messages : Sequence[tuple[int, Message]]
            Clients and what they are sent; none of them may be busy.
        version : int
            Version of the model that goes with it.
        patience : float
            Seconds after which a task is given up.

        Returns
        -------
        list[Task]
            The tasks that the grid has taken, in the same order. A node that is gone has none.
        """
        tasks = []
        for client, _ in messages:
            self.ledger, task = self.ledger.assign(client, version, self.clock.now, patience)
            tasks.append(task)
        taken = self.push(grid, [(t, m) for t, (_, m) in zip(tasks, messages, strict=True)])
        for task, message in taken:
            self.clock.send(task.number, task.client, content_bytes(message.content))
        return [task for task, _ in taken]

    def push(
        self, grid: Grid, messages: Sequence[tuple[Task, Message]]
    ) -> list[tuple[Task, Message]]:
        """Put messages of assigned tasks onto the grid; return those that it has taken.

        Used by `send`, and after a restart for tasks that were under way.
        """
        stored = {i for i in grid.push_messages([m for _, m in messages]) if i}
        taken = []
        for task, message in messages:
            name = message.metadata.message_id
            if name not in stored:
                self.ledger, _ = self.ledger.release([task.client])
                continue
            self._numbers[name], self._ids[task.number] = task.number, name
            taken.append((task, message))
        return taken

    def receive(self, grid: Grid, until: float) -> list[Arrival]:
        """Return the next tasks that ended, or none if `until` comes first.

        An answer to a task that was given up frees its client, and is dropped.
        """
        until = min(until, self.ledger.next_deadline)
        found = self.clock.receive(lambda tasks: self._fetch(grid, tasks), until, self._pause)
        arrivals = []
        for number in found:
            self.ledger, task, verdict = self.ledger.settle(number)
            self._numbers.pop(self._ids.pop(number, ""), None)
            answer, void = self._here.pop(number, None), number in self._void
            self._void.discard(number)
            if task is None:
                continue
            self.latencies = self.latencies.observe(task.client, self.clock.now - task.sent_at)
            if verdict is Verdict.COUNTS:
                arrivals.append(Arrival(task, self.clock.now, answer, void))
        if not found:
            self.ledger, missed = self.ledger.expire(self.clock.now)
            self.void([task.number for task in missed])
            arrivals += [Arrival(task, self.clock.now) for task in missed]
            self._forget_silent()
        return arrivals

    def exchange(
        self,
        grid: Grid,
        messages: Sequence[tuple[int, Message]],
        *,
        version: int,
        patience: float,
        enough: int,
        on_reply: Callable[[int, int], None],
    ) -> list[Arrival]:
        """Send messages and return what comes back until all, or enough good ones, are there.

        Parameters
        ----------
        grid, messages, version, patience
            As for `send`.
        enough : int
            Answers without error that end the exchange. Clients that are cut off are busy until
            they are heard of; those who have not answered in time may be asked again.
        on_reply : Callable[[int, int], None]
            Told how many answers are there, and how many are expected.

        Returns
        -------
        list[Arrival]
            The answers, in the order of their arrival.
        """
        waiting = {task.number: task for task in self.send(grid, messages, version, patience)}
        total, good = len(waiting), 0
        answers: list[Arrival] = []
        on_reply(0, total)
        while waiting and good < enough:
            for arrival in self.receive(grid, math.inf):
                del waiting[arrival.task.number]
                if arrival.message is None:
                    self.release([arrival.task.client])
                    continue
                answers.append(arrival)
                good += arrival.message.has_content()
            on_reply(len(answers), total)
        self.ledger, _ = self.ledger.give_up(waiting, self.clock.now)
        self.void(waiting)
        return answers

    def void(self, tasks: Collection[int]) -> None:
        """Expect nothing more from these tasks, whose answers cannot count any more.

        Their clients stay busy until they have answered. In simulated time nothing is uploaded for
        such a task, so that a restart, which does not ask for it again, changes nothing.
        """
        self._void.update(tasks)
        self.clock.void(tasks)

    def awaited(self) -> list[Task]:
        """Return the open tasks whose answers may count."""
        return [task for task in self.ledger.open.values() if task.number not in self._void]

    def quiet(self, grid: Grid, clients: Collection[int], patience: float) -> set[int]:
        """Wait until clients have nothing to do any more, and return those that have not.

        Their answers are held until the clock lets them arrive. In a simulation Flower would let a
        client that is asked twice at once work on both from the same state.

        Parameters
        ----------
        grid : Grid
            Flower's grid.
        clients : Collection[int]
            Who is going to be asked something beside its task.
        patience : float
            Seconds of real time to wait.
        """
        end = time.monotonic() + patience
        tasks = {**self.ledger.open, **self.ledger.overdue}
        at_work = {n: t.client for n, t in tasks.items() if t.client in clients and n in self._ids}
        while True:
            at_work = {n: client for n, client in at_work.items() if n not in self._here}
            if not at_work or time.monotonic() > end:
                return set(at_work.values())
            if not self._fetch(grid, list(at_work)):
                self._pause(_LOOK)

    def release(self, clients: Collection[int]) -> list[Arrival]:
        """Give up the tasks of clients that are gone."""
        self.ledger, lost = self.ledger.release(clients)
        self._forget_silent()
        return [Arrival(task, self.clock.now) for task in lost]

    def to_dict(self) -> dict[str, Any] | None:
        """Return the state as JSON values, or None if tasks under way do not survive a restart."""
        if (clock := self.clock.to_dict()) is None:
            return None
        latencies = [[client, list(seen)] for client, seen in self.latencies.seen.items()]
        return {
            "clock": clock,
            "ledger": self.ledger.to_dict(),
            "latencies": latencies,
            "void": sorted(self._void),
        }

    def restore(self, values: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Open tasks that are not void have to be pushed again before the next `receive`; the others
        end without content when their time has come.
        """
        self._void = {int(number) for number in values["void"]}
        self.clock.restore(values["clock"], self._void)
        self.ledger = Ledger.from_dict(values["ledger"])
        seen = {int(client): tuple(seconds) for client, seconds in values["latencies"]}
        self.latencies = Latencies(MappingProxyType(seen))

    def _forget_silent(self) -> None:
        known = self.ledger.open.keys() | self.ledger.overdue.keys()
        silent = [number for number in self._ids if number not in known]
        self.clock.forget(silent)
        for number in silent:
            self._numbers.pop(self._ids.pop(number), None)
            self._here.pop(number, None)

    def _fetch(self, grid: Grid, tasks: Sequence[int]) -> dict[int, int]:
        """Return which tasks are answered, and the size of what is uploaded for each."""
        awaited = [self._ids[t] for t in tasks if t in self._ids and t not in self._here]
        for message in grid.pull_messages(awaited):
            number = self._numbers.get(message.metadata.reply_to_message_id)
            if number is not None:
                self._here.setdefault(number, message)
        found = {t: 0 for t in self._void.intersection(tasks) if t not in self._ids}
        for number in [n for n in self._here if n in tasks]:
            message = self._here[number]
            counts = message.has_content() and number not in self._void
            found[number] = content_bytes(message.content) if counts else 0
        return found

    def check(self) -> None:
        """Raise `RunInterrupted` if the run is to stop."""
        if self._stop():
            raise RunInterrupted("the run was asked to stop")

    def _pause(self, seconds: float) -> None:
        self.check()
        time.sleep(seconds)


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
    if not (letters := list(enumerate(messages))):
        return []
    post = Post(WallClock(time.monotonic), stop)
    post.check()
    arrivals = post.exchange(
        grid, letters, version=0, patience=timeout, enough=len(letters) + 1, on_reply=on_reply
    )
    return [arrival.message for arrival in arrivals if arrival.message is not None]
