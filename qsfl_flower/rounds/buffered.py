"""Rounds that nobody waits for: a new model whenever a buffer of updates is full."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from qsfl_flower.asynchrony import StalenessLimit, StalenessWeight, Task, Versions, staleness_of
from qsfl_flower.errors import CheckpointError, RejectedUpdate
from qsfl_flower.numerics import Vector
from qsfl_flower.rounds.admission import Asked, outcome_of
from qsfl_flower.rounds.assignment import Assignment
from qsfl_flower.rounds.checkpoint import Snapshot
from qsfl_flower.rounds.context import Measurements, State
from qsfl_flower.rounds.engine import Engine
from qsfl_flower.rounds.exchange import registered_nodes, wait_for_nodes
from qsfl_flower.rounds.guard import Guard
from qsfl_flower.rounds.post import Arrival
from qsfl_flower.rounds.sampling import Wanted
from qsfl_flower.rounds.training import Hooks, Job, Rounds, Trained
from qsfl_flower.rounds.update import Cohort, Rejection, Sender, Update, catch
from qsfl_flower.wire import Form, to_record

_LOOK_FOR_NODES = 2.0  # seconds of real time between two looks at who is connected
_PATIENT_ROUNDS = 10  # a round of simulated time ends after so many deadlines in any case
_VERSIONS = "versions"

SECOND_PLACE = "second-place"
"""Reason of rejection: the client has a place in the buffer already."""


@dataclass(frozen=True)
class Buffering:
    """When a buffer is full, and how much its updates count.

    Parameters
    ----------
    size : int
        Updates that make a new model, >= 1.
    concurrency : int or None
        How many clients are kept at work.
    weight : StalenessWeight
        How much an update counts by its staleness.
    limit : StalenessLimit
        How stale it may be.
    """

    size: int
    concurrency: int | None
    weight: StalenessWeight
    limit: StalenessLimit


class BufferedRounds(Rounds):
    """Keep clients at work and combine what arrives; see `BufferedAsync`.

    Parameters
    ----------
    engine, hooks
        See `Rounds`; nothing is asked of the hooks for training.
    buffering : Buffering
        The buffer.
    wanted : Callable[[], Wanted]
        Returns who is asked to train, where there is no `concurrency`.
    """

    def __init__(
        self, engine: Engine, hooks: Hooks, buffering: Buffering, wanted: Callable[[], Wanted]
    ) -> None:
        super().__init__(engine, hooks)
        self.buffering, self._wanted = buffering, wanted
        self._post, self._sampling = engine.post, engine.sampling
        self._assignments: Versions[Assignment] = Versions(engine.window)
        self._connected: list[int] = []
        self._looked_at = -math.inf
        self._to_resend: Mapping[int, ArrayRecord] = {}
        self._left_over: list[Arrival] = []

    def train(
        self, job: Job, server_round: int, arrays: ArrayRecord, lap: Callable[[str], None]
    ) -> Trained:
        """Keep clients at work until the buffer is full, and combine it."""
        self.engine.reset()
        self._look_for_nodes(job.grid)
        version = server_round - 1
        sent = self._resend(job)
        training = self._open(job, version, arrays)
        lap("configure")
        if (why := self.engine.chain.unready(self.engine.states)) is not None:
            return self.skip(server_round, why)
        buffer = _Buffer()
        clock = self._post.clock
        patience = self.engine.patience
        end = clock.now + (_PATIENT_ROUNDS * patience if clock.simulated else self.engine.timeout)
        tell = partial(self.engine.observer.on_progress, server_round, "train")
        tell(0, self.buffering.size)
        self._take(self._left_over, version, buffer)
        while len(buffer.updates) < self.buffering.size and clock.now < end:
            if time.monotonic() - self._looked_at > _LOOK_FOR_NODES:
                self._look_for_nodes(job.grid)
            sent += self._fill(job.grid, training, buffer)
            until = self._next_change(buffer)
            enough = clock.simulated or len(buffer.updates) >= self.engine.fewest
            if enough and not self._post.ledger.open and math.isinf(until):
                break  # everybody who is there has had a turn
            if not clock.simulated:
                until = clock.now + _LOOK_FOR_NODES
            self._take(self._post.receive(job.grid, min(until, end)), version, buffer)
            tell(min(len(buffer.updates), self.buffering.size), self.buffering.size)
        lap("clients")
        model, metrics = self.engine.combine(
            training, buffer.cohort(), buffer.admitted, buffer.contents
        )
        self._void_stale(server_round)
        lap("aggregate")
        return Trained(sent, buffer.replies, model, metrics, self.engine.outcome)

    def to_save(self) -> tuple[dict[str, State], dict[str, Any] | None]:
        """Add the models of tasks under way, if these survive a restart."""
        states, under_way = super().to_save()
        if under_way is not None:
            needed = {task.version for task in self._post.awaited()}
            states[_VERSIONS] = {
                f"{version}/{name}": array
                for version, assignment in self._assignments.held.items()
                if version in needed
                for name, array in assignment.model.arrays.items()
            }
        return states, under_way

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from what `to_save` returned."""
        states = dict(snapshot.states)
        held = states.pop(_VERSIONS, {})
        super().restore(replace(snapshot, states=states))
        try:
            self._to_resend = {
                version: to_record({name: held[f"{version}/{name}"] for name in snapshot.arrays})
                for version in sorted({task.version for task in self._post.awaited()})
            }
        except KeyError as error:
            raise CheckpointError(
                f"the checkpoint lacks {error.args[0]}, a model that a task under way started from"
            ) from None

    def _open(self, job: Job, version: int, arrays: ArrayRecord) -> Assignment:
        """Make what the clients are told that start from a version."""
        # Whoever is connected may be asked for this version, or to serve on a committee.
        ranks = {self._sampling.nodes[rank]: rank for rank in self._connected}
        training = self.engine.assign(
            "train", version + 1, arrays, job.train_config, job.grid, ranks
        )
        needed = self._post.ledger.versions() | {a.task.version for a in self._left_over}
        self._assignments = self._assignments.add(version, training, needed)
        return training

    def _void_stale(self, version: int) -> None:
        """In simulated time, expect nothing from tasks that are too old for the next version."""
        if self._post.clock.simulated:
            oldest = version - self.buffering.limit.maximum
            self._post.void([t.number for t in self._post.awaited() if t.version < oldest])

    def _resend(self, job: Job) -> list[Message]:
        """After a restart, ask again for the answers that are still to come."""
        sent = []
        for version, arrays in self._to_resend.items():
            training = self._open(job, version, arrays)
            tasks = [t for t in self._post.awaited() if t.version == version]
            messages = self.engine.address(
                training, [self._sampling.nodes[t.client] for t in tasks]
            )
            taken = self._post.push(job.grid, list(zip(tasks, messages, strict=True)))
            sent += [message for _, message in taken]
        self._to_resend = {}
        return sent

    def _fill(self, grid: Grid, training: Assignment, buffer: _Buffer) -> list[Message]:
        """Ask so many clients that the target number is at work."""
        slots = self._slots()
        if slots <= 0:
            return []
        free = self._post.clock.online(self._idle(buffer))
        number = self._post.ledger.given
        chosen = self._sampling.draw(
            f"train/{number}", free, min(slots, len(free)), self._post.latencies
        )
        server_round = training.context.server_round
        self._sampling.history = self._sampling.history.ask(server_round, chosen)
        messages = self.engine.address(training, [self._sampling.nodes[rank] for rank in chosen])
        letters = list(zip(chosen, messages, strict=True))
        self._post.send(grid, letters, server_round - 1, self.engine.patience)
        return messages

    def _idle(self, buffer: _Buffer) -> list[int]:
        """Return the connected clients that have no task and no place in the buffer."""
        busy, heard = self._post.ledger.busy, buffer.heard
        return [rank for rank in self._connected if rank not in busy and rank not in heard]

    def _slots(self) -> int:
        """Return how many more clients should be at work."""
        wanted = self._wanted()
        connected = int(len(self._connected) * wanted.fraction)
        target = self.buffering.concurrency or max(connected, wanted.minimum)
        return target - len(self._post.ledger.open)

    def _next_change(self, buffer: _Buffer) -> float:
        """Return when one more client can be asked that is out of reach now; infinity if never."""
        clock = self._post.clock
        if self._slots() <= 0 or not clock.simulated:
            return math.inf
        idle = self._idle(buffer)
        return clock.next_online(set(idle).difference(clock.online(idle)))

    def _look_for_nodes(self, grid: Grid) -> None:
        """Find out who is connected; the tasks of clients that are gone are over."""
        if not self._connected:
            wanted = self._wanted()
            needs = {"min_available_nodes": wanted.available, "min_train_nodes": wanted.minimum}
            needs |= self.engine.chain.needs(self.engine.weighting)
            nodes = wait_for_nodes(
                grid, needs, self.engine.timeout, self.engine.observer.should_stop
            )
        else:
            nodes = registered_nodes(grid)
        self._sampling.meet(nodes)
        self._connected = sorted(self._sampling.ranks[node] for node in nodes)
        self._looked_at = time.monotonic()
        if not self._post.clock.simulated:
            # A task that is lost in this way needs no record: the grid reports the node as well.
            self._post.release(self._post.ledger.busy - set(self._connected))

    def _take(self, arrivals: Sequence[Arrival], version: int, buffer: _Buffer) -> None:
        """Put answers into the buffer; what comes once it is full is for the next one."""
        left = list(arrivals)
        while left and len(buffer.updates) < self.buffering.size:
            self._take_one(left.pop(0), version, buffer)
        self._left_over = left

    def _take_one(self, arrival: Arrival, version: int, buffer: _Buffer) -> None:
        """Put an answer into the buffer, or the reason why it cannot be used."""
        task, node = arrival.task, self._sampling.nodes[arrival.task.client]
        asked = Asked({}, self._sampling.ranks, {task.client: (task.sent_at, arrival.at)})
        answer = catch(asked.sender(node), partial(outcome_of, asked, node, arrival.message))
        sender, content = (answer.sender, answer) if isinstance(answer, Rejection) else answer
        if arrival.message is not None and not arrival.void:
            buffer.replies.append(arrival.message)
        buffer.heard.add(task.client)
        if isinstance(content, Rejection) and not arrival.void:
            buffer.rejections.append(content)
            return
        read = partial(self._admit, task, sender, content, version, buffer)
        sent = None if arrival.void or isinstance(content, Rejection) else content
        found = catch(sender, read, sent)
        if isinstance(found, Rejection):
            buffer.rejections.append(found)
        elif (refused := buffer.put(found[0])) is not None:
            buffer.rejections.append(refused)
        else:
            buffer.contents[node] = found[1]

    def _admit(
        self,
        task: Task,
        sender: Sender,
        content: RecordDict | Rejection,
        version: int,
        buffer: _Buffer,
    ) -> tuple[Update, RecordDict] | Rejection:
        """Read an answer, as its client was told to make it."""
        staleness = self._staleness(task, version)
        self.engine.chain.check_origin(self.engine.states, task.version + 1)
        training = self._assignments.held[task.version]
        ((sender, admitted),), self.engine.states, buffer.admitted = self.engine.chain.admit(
            [(sender, content)], self.engine.states, training.exchange
        )
        if isinstance(admitted, Rejection):
            return admitted
        content = self.engine.translate(training, admitted)
        update = self.engine.read(training, sender, content)
        if staleness:
            update = _difference(update, training.model.vector)
        weight = self._weight(staleness, version)
        return replace(update, staleness=staleness, damping=weight), content

    def _weight(self, staleness: int, version: int) -> float:
        """Return how much an update counts."""
        if self.engine.chain.hides:
            weights = self.engine.weighting.by_staleness
            return weights[staleness] / weights[0]
        return self.buffering.weight.weight(staleness, version)

    def _staleness(self, task: Task, version: int) -> int:
        """Return how stale an answer is, if it may be used."""
        guard = self.engine.states.get(Guard.name, {})
        limit = self.buffering.limit.at(version, guard.get("tightened", 0))
        if task.version < guard.get("valid_from", 0):
            raise RejectedUpdate("rolled-back", f"version {task.version} has been taken back")
        return staleness_of(version, task.version, limit)


@dataclass
class _Buffer:
    """What has arrived since the last aggregation."""

    updates: list[Update] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    contents: dict[int, RecordDict] = field(default_factory=dict)
    replies: list[Message] = field(default_factory=list)
    admitted: Mapping[str, Measurements] = field(default_factory=dict)
    heard: set[int] = field(default_factory=set)

    def put(self, update: Update) -> Rejection | None:
        """Take an update in, or return why its client has no place left.

        One enrolled client may answer from several nodes, in several rounds; what counts is who it
        is, or it would hold as many places as it has nodes.
        """
        sender = update.sender
        for other in self.updates:
            if sender.identity is not None and sender.identity == other.sender.identity:
                return Rejection(
                    sender,
                    SECOND_PLACE,
                    f"{sender.label} has a place in this buffer already, from another node; run "
                    "one SuperNode per key",
                    update.bytes_up,
                )
        self.updates.append(update)
        return None

    def cohort(self) -> Cohort:
        """Return the buffer in canonical order, whatever the order of arrival."""
        updates = sorted(self.updates, key=lambda u: u.sender.rank)
        return Cohort(tuple(updates), tuple(self.rejections))


def _difference(update: Update, origin: Vector) -> Update:
    """Return a whole model as its difference to the model that its client started from."""
    if update.form is not Form.PARAMETERS:
        return update
    delta, base = np.empty(origin.size), np.empty(origin.size)
    update.vector.read(0, origin.size, delta)
    origin.read(0, origin.size, base)
    delta -= base
    return replace(update, vector=Vector.dense(delta), form=Form.DELTA)
