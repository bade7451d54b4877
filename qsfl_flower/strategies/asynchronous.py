"""Buffered asynchronous aggregation: nobody waits for the slowest client."""

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

from qsfl_flower.asynchrony import (
    Constant,
    Polynomial,
    StalenessLimit,
    StalenessWeight,
    Task,
    Versions,
    integer_weights,
    staleness_of,
)
from qsfl_flower.errors import CheckpointError, ConfigError, RejectedUpdate
from qsfl_flower.numerics import Vector
from qsfl_flower.rounds.admission import Asked, outcome_of
from qsfl_flower.rounds.assignment import Assignment
from qsfl_flower.rounds.checkpoint import Snapshot
from qsfl_flower.rounds.context import Exchange, Measurements, State
from qsfl_flower.rounds.exchange import Traffic, registered_nodes, wait_for_nodes
from qsfl_flower.rounds.guard import Guard
from qsfl_flower.rounds.loop import Job, Trained
from qsfl_flower.rounds.post import Arrival
from qsfl_flower.rounds.update import Cohort, Rejection, Sender, Update, catch
from qsfl_flower.strategies.stable import StableFedAvg
from qsfl_flower.strategies.stale_step import StaleStep
from qsfl_flower.wire import Form, to_record

_LOOK_FOR_NODES = 2.0  # seconds of real time between two looks at who is connected
_PATIENT_ROUNDS = 10  # a round of simulated time ends after so many deadlines in any case
_VERSIONS = "versions"

SECOND_PLACE = "second-place"
"""Reason of rejection: the client has a place in the buffer already."""


class BufferedAsync(StableFedAvg):
    r"""FedBuff: a new model after every K arrivals, while other clients train on.

    .. math:: x_{t+1} = x_t + U\!\left(\frac{1}{K} \sum_{i=1}^{K} v_i\, w(s_i)\, \Delta_i\right)

    A target number of clients is kept at work, each on the model that was the newest when it was
    asked. When K usable updates have arrived they go through the same chain of stages as a
    synchronous round. An update whose client started s versions ago counts with the weight
    :math:`w(s) \le 1`; :math:`v_i` is its share of the examples times K. The denominator K is
    fixed: neither staleness nor failures of others make an update count for more.

    A client holds at most one place in the buffer and has at most one task at a time; every task is
    counted once or given up. A client is a node, and with `Authenticate` an enrolled key as well: a
    key on several nodes holds one place, further answers are rejected (``second-place``). A "round"
    of the result, the checkpoints and the records is one aggregation, so that ``num_rounds`` times
    K updates are used.

    Parameters
    ----------
    *args
        Arguments of Flower's ``FedAvg``. Without `concurrency`, `fraction_train` and
        `min_train_nodes` say how many clients are kept at work. Evaluation asks only clients that
        are idle.
    buffer_size : int
        The number K of updates that make a new model, >= 1.
    concurrency : int, optional
        How many clients are kept at work, >= 1.
    staleness_weight : StalenessWeight, optional
        The rule w; by default `Polynomial`, and `Constant` where updates are hidden.
    max_staleness : int or StalenessLimit
        Older updates are rejected before anything in them is read. Clients so slow that all their
        updates are older are never heard: see docs/asynchrony.md for how to choose it.
    server_learning_rate, server_momentum, scale_by_staleness
        See `StaleStep`, which is added unless all three have their defaults.
    **options
        Further keyword arguments of `StableFedAvg`; `deadline` is the time for one task.

    Raises
    ------
    CompositionError
        If a stage needs all clients of a round to start together: it hides single updates under
        masks, counts on random participation, or restricts each round to coordinates of its own.
    ConfigError
        If an argument is out of range, or the buffer is too small for a stage.

    References
    ----------
    J. Nguyen et al., "Federated learning with buffered asynchronous aggregation", 2022.
    arXiv:2106.06639.

    Notes
    -----
    Who sees what: as in `StableFedAvg`; the server also learns how fast every client is. Staleness
    is reckoned from the server's own books, not from what clients say.

    Hidden updates (`SecureSum`, `SecureKrum`) are opened when the buffer is full. Nodes refuse sums
    over several rounds unless ``window`` in their policy is at least `max_staleness` and one: a
    lying server could send another model in each. Weights are multiples of 1/16, see
    `integer_weights`; nodes refuse those that differ unless their policy says ``weights = true``: a
    server can read residues of single updates out of such a sum. A committee member that is still
    training is asked after its reply has arrived; the server waits up to the task deadline.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> outcome = LocalFederation().run(kind=BufferedAsync, rounds=4, buffer_size=2)
    >>> [record.accepted for record in outcome.rounds]
    [0, 2, 2, 2, 2]
    """

    asynchronous = True

    def __init__(
        self,
        *args: Any,
        buffer_size: int = 10,
        concurrency: int | None = None,
        staleness_weight: StalenessWeight | None = None,
        max_staleness: int | StalenessLimit = 20,
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.0,
        scale_by_staleness: bool = False,
        **options: Any,
    ) -> None:
        step = (server_learning_rate, server_momentum, scale_by_staleness)
        if step != (1.0, 0.0, False):
            options["stages"] = (*options.get("stages", ()), StaleStep(*step))
        super().__init__(*args, **options)
        for name, value in (("buffer_size", buffer_size), ("concurrency", concurrency)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be >= 1")
        if self.over_selection:
            raise ConfigError("over_selection is for synchronous rounds; raise concurrency instead")
        if not isinstance(max_staleness, StalenessLimit):
            max_staleness = StalenessLimit(max_staleness)
        decoder = self.chain.decoder
        if decoder is not None and 1 < decoder.epoch <= max_staleness.maximum:
            raise ConfigError(
                f"{decoder.name}: epoch is {decoder.epoch}, but updates may be "
                f"{max_staleness.maximum} versions old (max_staleness), and those of the epoch "
                "before do not count; set epoch to more than max_staleness"
            )
        self.buffer_size, self.concurrency = buffer_size, concurrency
        self.weighting = replace(self.weighting, buffer_size=buffer_size)
        # Nodes refuse weights that differ in a sum unless their policy allows them.
        usual = Constant() if self.chain.hides else Polynomial()
        self.staleness_weight = staleness_weight or usual
        self.limit = max_staleness
        if self.chain.hides:
            weights = integer_weights(self.staleness_weight, max_staleness.maximum)
            self.weighting = replace(self.weighting, by_staleness=weights)
        if self.chain.combiner is not None:
            self.chain.combiner.check_buffer(self.weighting)
        self.window = max_staleness.maximum + 1
        self._assignments: Versions[Assignment] = Versions(self.window)
        self._connected: list[int] = []
        self._looked_at = -math.inf
        self._to_resend: Mapping[int, ArrayRecord] = {}
        self._left_over: list[Arrival] = []

    def train_round(
        self, job: Job, server_round: int, arrays: ArrayRecord, lap: Callable[[str], None]
    ) -> Trained:
        """Keep clients at work until the buffer is full, and combine it."""
        self.asked = Traffic()
        self._look_for_nodes(job.grid)
        version = server_round - 1
        sent = self._resend(job)
        training = self._open(job, version, arrays)
        lap("configure")
        if (why := self.chain.unready(self.states)) is not None:
            return self._skip(server_round, why)
        buffer = _Buffer()
        clock = self.post.clock
        patience = self.deadline or self.timeout
        end = clock.now + (_PATIENT_ROUNDS * patience if clock.simulated else self.timeout)
        tell = partial(self.observer.on_progress, server_round, "train")
        tell(0, self.buffer_size)
        self._take(self._left_over, version, buffer)
        while len(buffer.updates) < self.buffer_size and clock.now < end:
            if time.monotonic() - self._looked_at > _LOOK_FOR_NODES:
                self._look_for_nodes(job.grid)
            sent += self._fill(job.grid, training, buffer)
            until = self._next_change(buffer)
            enough = clock.simulated or len(buffer.updates) >= self.min_replies
            if enough and not self.post.ledger.open and math.isinf(until):
                break  # everybody who is there has had a turn
            if not clock.simulated:
                until = clock.now + _LOOK_FOR_NODES
            self._take(self.post.receive(job.grid, min(until, end)), version, buffer)
            tell(min(len(buffer.updates), self.buffer_size), self.buffer_size)
        lap("clients")
        model, metrics = self._combine(training, buffer.cohort(), buffer.admitted, buffer.contents)
        self._void_stale(server_round)
        lap("aggregate")
        return Trained(sent, buffer.replies, model, metrics, self.outcome)

    def to_save(self) -> tuple[dict[str, State], dict[str, Any] | None]:
        """Add the models of tasks under way, if these survive a restart."""
        states, under_way = super().to_save()
        if under_way is not None:
            needed = {task.version for task in self.post.awaited()}
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
                for version in sorted({task.version for task in self.post.awaited()})
            }
        except KeyError as error:
            raise CheckpointError(
                f"the checkpoint lacks {error.args[0]}, a model that a task under way started from"
            ) from None

    def _open(self, job: Job, version: int, arrays: ArrayRecord) -> Assignment:
        """Make what the clients are told that start from a version."""
        # Whoever is connected may be asked for this version, or to serve on a committee.
        ranks = {self.sampling.nodes[rank]: rank for rank in self._connected}
        training = self._assign("train", version + 1, arrays, job.train_config, job.grid, ranks)
        needed = self.post.ledger.versions() | {a.task.version for a in self._left_over}
        self._assignments = self._assignments.add(version, training, needed)
        return training

    def _void_stale(self, version: int) -> None:
        """In simulated time, expect nothing from tasks that are too old for the next version."""
        if self.post.clock.simulated:
            oldest = version - self.limit.maximum
            self.post.void([t.number for t in self.post.awaited() if t.version < oldest])

    def _resend(self, job: Job) -> list[Message]:
        """After a restart, ask again for the answers that are still to come."""
        sent = []
        for version, arrays in self._to_resend.items():
            training = self._open(job, version, arrays)
            tasks = [t for t in self.post.awaited() if t.version == version]
            messages = self._address(training, [self.sampling.nodes[t.client] for t in tasks])
            taken = self.post.push(job.grid, list(zip(tasks, messages, strict=True)))
            sent += [message for _, message in taken]
        self._to_resend = {}
        return sent

    def _fill(self, grid: Grid, training: Assignment, buffer: _Buffer) -> list[Message]:
        """Ask so many clients that the target number is at work."""
        slots = self._slots()
        if slots <= 0:
            return []
        free = self.post.clock.online(self._idle(buffer))
        number = self.post.ledger.given
        chosen = self.sampling.draw(
            f"train/{number}", free, min(slots, len(free)), self.post.latencies
        )
        server_round = training.context.server_round
        self.sampling.history = self.sampling.history.ask(server_round, chosen)
        messages = self._address(training, [self.sampling.nodes[rank] for rank in chosen])
        letters = list(zip(chosen, messages, strict=True))
        self.post.send(grid, letters, server_round - 1, self.deadline or self.timeout)
        return messages

    def _idle(self, buffer: _Buffer) -> list[int]:
        """Return the connected clients that have no task and no place in the buffer."""
        busy, heard = self.post.ledger.busy, buffer.heard
        return [rank for rank in self._connected if rank not in busy and rank not in heard]

    def _slots(self) -> int:
        """Return how many more clients should be at work."""
        connected = int(len(self._connected) * self.fraction_train)
        target = self.concurrency or max(connected, self.min_train_nodes)
        return target - len(self.post.ledger.open)

    def _next_change(self, buffer: _Buffer) -> float:
        """Return when one more client can be asked that is out of reach now; infinity if never."""
        clock = self.post.clock
        if self._slots() <= 0 or not clock.simulated:
            return math.inf
        idle = self._idle(buffer)
        return clock.next_online(set(idle).difference(clock.online(idle)))

    def _look_for_nodes(self, grid: Grid) -> None:
        """Find out who is connected; the tasks of clients that are gone are over."""
        if not self._connected:
            asked = {
                "min_available_nodes": self.min_available_nodes,
                "min_train_nodes": self.min_train_nodes,
            }
            nodes = wait_for_nodes(grid, asked, self.timeout, self.observer.should_stop)
        else:
            nodes = registered_nodes(grid)
        self.sampling.meet(nodes)
        self._connected = sorted(self.sampling.ranks[node] for node in nodes)
        self._looked_at = time.monotonic()
        if not self.post.clock.simulated:
            # A task that is lost in this way needs no record: the grid reports the node as well.
            self.post.release(self.post.ledger.busy - set(self._connected))

    def _take(self, arrivals: Sequence[Arrival], version: int, buffer: _Buffer) -> None:
        """Put answers into the buffer; what comes once it is full is for the next one."""
        left = list(arrivals)
        while left and len(buffer.updates) < self.buffer_size:
            self._take_one(left.pop(0), version, buffer)
        self._left_over = left

    def _take_one(self, arrival: Arrival, version: int, buffer: _Buffer) -> None:
        """Put an answer into the buffer, or the reason why it cannot be used."""
        task, node = arrival.task, self.sampling.nodes[arrival.task.client]
        asked = Asked({}, self.sampling.ranks, {task.client: (task.sent_at, arrival.at)})
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
        self.chain.check_origin(self.states, task.version + 1)
        training = self._assignments.held[task.version]
        ((sender, admitted),), self.states, buffer.admitted = self.chain.admit(
            [(sender, content)], self.states, training.exchange
        )
        if isinstance(admitted, Rejection):
            return admitted
        content = self._translate(training, admitted)
        update = self._read(training, sender, content)
        if staleness:
            update = _difference(update, training.model.vector)
        weight = self._weight(staleness, version)
        return replace(update, staleness=staleness, damping=weight), content

    def _weight(self, staleness: int, version: int) -> float:
        """Return how much an update counts."""
        if self.chain.hides:
            weights = self.weighting.by_staleness
            return weights[staleness] / weights[0]
        return self.staleness_weight.weight(staleness, version)

    def _ask(
        self, grid: Grid, exchange: Exchange, contents: Mapping[int, RecordDict]
    ) -> dict[int, tuple[Sender, RecordDict] | Rejection]:
        """Ask nodes that have answered whatever they were asked before."""
        # A simulated deadline says nothing about real time.
        patience = self.timeout if self.post.clock.simulated else self.deadline or self.timeout
        ranks = {self.sampling.ranks[node] for node in contents}
        busy = self.post.quiet(grid, ranks, patience)
        free = {n: c for n, c in contents.items() if self.sampling.ranks[n] not in busy}
        return super()._ask(grid, exchange, free)

    def _staleness(self, task: Task, version: int) -> int:
        """Return how stale an answer is, if it may be used."""
        guard = self.states.get(Guard.name, {})
        limit = self.limit.at(version, guard.get("tightened", 0))
        if task.version < guard.get("valid_from", 0):
            raise RejectedUpdate("rolled-back", f"version {task.version} has been taken back")
        return staleness_of(version, task.version, limit)

    def _wait_for_free(self, grid: Grid, ranks: Sequence[int], minimum: int) -> list[int]:
        """Evaluation asks whoever is idle, and waits for nobody."""
        del grid, minimum
        clock, busy = self.post.clock, self.post.ledger.busy
        return clock.online([rank for rank in ranks if rank not in busy])


FedBuff = BufferedAsync
"""The name by which the method is known."""


class FedAsync(BufferedAsync):
    r"""A new model after every arrival: `BufferedAsync` with a buffer of one.

    .. math:: x_{t+1} = x_t + \alpha\, w(s)\, (x_i - x_{t-s})

    For s = 0 this is the mixing :math:`(1 - \alpha) x_t + \alpha x_i` of the paper. A stale model
    is not mixed in itself, which would take back what others have contributed since: its difference
    to the model that it started from is added.

    Parameters
    ----------
    *args
        Arguments of Flower's ``FedAvg``.
    mixing : float
        The rate :math:`\alpha` in (0, 1].
    **options
        Further keyword arguments of `BufferedAsync`.

    References
    ----------
    C. Xie, O. Koyejo, I. Gupta, "Asynchronous federated optimization", 2019. arXiv:1903.03934.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> outcome = LocalFederation().run(kind=FedAsync, rounds=3, mixing=0.5)
    >>> [record.accepted for record in outcome.rounds]  # a new model after every arrival
    [0, 1, 1, 1]
    """

    def __init__(self, *args: Any, mixing: float = 0.6, **options: Any) -> None:
        if not 0 < mixing <= 1:
            raise ConfigError(f"mixing is {mixing!r}; it must be in (0, 1]")
        super().__init__(*args, buffer_size=1, server_learning_rate=mixing, **options)


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
