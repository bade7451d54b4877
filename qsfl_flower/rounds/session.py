"""Sums of what is no update: evaluation, queries and analytics through the stages of training.

    session = Session(strategy.engine, Purpose.ANALYTICS, [SecureSum(1.0, weighted=False)])
    released = session.ask(grid, 1, PlanItem("ages", {"size": 8}), size=8)
    released.sums  # of what the step "ages" makes on each device; None with a reason in `skipped`

A session is one chain for one purpose. It shares the engine's clients, keys and time, and has
states, accounts and terms of its own: nothing that was dealt, answered or charged for one purpose
serves another. On the devices a *source*, the first step of the plan, makes a vector
(`qsfl_flower.node.steps.SOURCES`); the stages' steps bound, noise and hide it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics import Layout
from qsfl_flower.rounds.admission import Asked, admit, check_willing, match
from qsfl_flower.rounds.aggregate import GlobalModel
from qsfl_flower.rounds.assignment import Opened
from qsfl_flower.rounds.chain import Chain
from qsfl_flower.rounds.context import Exchange
from qsfl_flower.rounds.engine import Engine
from qsfl_flower.rounds.exchange import Traffic, registered_nodes
from qsfl_flower.rounds.post import collect
from qsfl_flower.rounds.stages import Stage, VectorStage
from qsfl_flower.rounds.update import Rejection, Sender, Weighting, catch
from qsfl_flower.wire import PlanItem
from qsfl_flower.wire.keys import COUNTED
from qsfl_flower.wire.kinds import ANALYTICS_TYPE, Purpose

log = logging.getLogger("qsfl_flower")

_TYPES = {Purpose.EVALUATE: "evaluate", Purpose.QUERY: "query", Purpose.ANALYTICS: ANALYTICS_TYPE}


@dataclass(frozen=True)
class Released:
    """What became of one question.

    Parameters
    ----------
    sums : numpy.ndarray or None
        Sum of the clients' vectors, float64, shape (size,), its noise included; None if nothing was
        opened.
    clients : int
        How many clients are in it.
    std : float
        Standard deviation of the noise of each coordinate, if all clients added theirs; 0: exact.
    epsilon : float or None
        What the session has spent so far, whatever became of its rounds; None: it charges nothing.
    skipped : str or None
        Why nothing was opened.
    rejected : Mapping[str, int]
        Replies that were rejected, by reason.
    """

    sums: NDArray[np.float64] | None
    clients: int = 0
    std: float = 0.0
    epsilon: float | None = None
    skipped: str | None = None
    rejected: Mapping[str, int] = field(default_factory=dict)


class Session:
    """Asks for sums for one purpose, once a round.

    Parameters
    ----------
    engine : Engine
        That of a strategy: its clients, keys, clock, and where its charges are kept.
    purpose : Purpose
        Any but training.
    stages : Sequence[Stage]
        What hides, bounds and noises the vectors. The engine's `Authenticate` is added.

    Raises
    ------
    CompositionError
        If they do not go together.

    Notes
    -----
    Who sees what: as the stages say. Without noise a sum is exact, and devices take part in sums of
    a run over one and the same set of clients only (`Terms.fixed`): the difference of two sums
    would tell about few. One question has one answer for each round and purpose.
    """

    def __init__(self, engine: Engine, purpose: Purpose, stages: Sequence[Stage]) -> None:
        if purpose not in _TYPES:
            raise ConfigError(f"session: purpose is {purpose}; it must be {', '.join(_TYPES)}")
        chain = Chain([*engine.chain.gates, *stages])
        self.engine, self.purpose = engine, purpose
        self.inner = replace(
            engine,
            chain=chain,
            weighting=Weighting(denominator=chain.denominator),
            checkpoints=None,
            roles=None,
            fewest=1,
            states={},
            outcome=None,
            traffic=Traffic(),
            opened={},
            instructions={},
            purpose=purpose,
            others=[],
        )
        engine.others.append(self.inner)
        self._cohort: frozenset[int] | None = None

    @property
    def exact(self) -> bool:
        """Whether sums come without noise, and the clients in them stay the same."""
        return not any(isinstance(s, VectorStage) and s.spending for s in self.inner.chain.stages)

    def ask(
        self,
        grid: Grid,
        server_round: int,
        source: PlanItem,
        size: int,
        content: RecordDict | None = None,
        fraction: float = 1.0,
    ) -> Released:
        """Ask the clients for one sum, and wait for it.

        Parameters
        ----------
        grid : Grid
            Flower's grid.
        server_round : int
            Larger than in the last question of this purpose, and no smaller than the last round of
            training of the run.
        source : PlanItem
            The step that makes a client's vector, with its parameters; ``size`` among them.
        size : int
            Length of the vectors, >= 1.
        content : RecordDict, optional
            What the device's app, or the step, needs besides.
        fraction : float
            Share of the connected clients that are asked, in (0, 1].

        Raises
        ------
        BudgetExceeded
            If the sum would overspend; nobody was asked then.
        """
        messages = self.open(grid, server_round, source, size, content, {}, fraction)
        stop = self.engine.observer.should_stop
        replies = collect(grid, messages, timeout=self.engine.timeout, stop=stop)
        self.inner.traffic = self.inner.traffic.plus(messages, replies)
        return self.close(server_round, replies)

    def open(
        self,
        grid: Grid,
        server_round: int,
        source: PlanItem,
        size: int,
        content: RecordDict | None,
        told: Mapping[str, str],
        fraction: float = 1.0,
    ) -> list[Message]:
        """Return the instructions of a question; none if it cannot be asked, see `close`.

        Parameters
        ----------
        grid, server_round, source, size, content, fraction
            As for `ask`.
        told : Mapping[str, str]
            What the suite's own record tells besides the plan.
        """
        engine, inner = self.engine, self.inner
        inner.timeout, inner.window, inner.traffic = engine.timeout, engine.window, Traffic()
        self._take_gates(engine, inner)
        zeros = {COUNTED: np.zeros(size)}
        model = GlobalModel.of(zeros, Layout.of(zeros))
        kind = _TYPES[self.purpose]
        exchange = Exchange(kind, server_round, grid.run.run_id, inner.timeout, inner.window)
        ranks = self._sample(grid, server_round, fraction)
        assignment = inner.begin(
            exchange, content or RecordDict(), dict(told), model, grid, ranks, source
        )
        engine.charge(server_round)
        messages: list[Message] = []
        if inner.chain.unready(inner.states) is None:
            messages = inner.address(assignment, ranks)
        inner.opened[kind] = Opened(assignment, messages, max(1, len(messages)))
        self._take_gates(inner, engine)
        return messages

    def close(self, server_round: int, replies: Iterable[Message]) -> Released:
        """Add up the replies to the question that was opened last."""
        engine, inner = self.engine, self.inner
        opened = inner.opened.pop(_TYPES[self.purpose], None)
        if opened is None:
            return Released(None, skipped="nothing was asked")
        why = inner.chain.unready(inner.states)
        if not opened.messages:
            why = why or "no client was asked"
            log.warning("round %d: %s: nothing was opened: %s", server_round, self.purpose, why)
            return Released(None, epsilon=self.epsilon, skipped=why)
        self._take_gates(engine, inner)
        asked, training = opened.asked(inner.sampling.ranks), opened.assignment
        matched = match(replies, asked)
        entries, inner.states, admitted = inner.chain.admit(
            matched, inner.states, training.exchange
        )
        outcome = inner.aggregate(training, admit(entries, partial(inner.read, training)), admitted)
        self._take_gates(inner, engine)
        for rejection in outcome.cohort.rejections:
            log.warning(
                "round %d: %s: %s from %s: %s",
                server_round,
                self.purpose,
                rejection.reason,
                rejection.sender.label,
                rejection.detail,
            )
        count, rejected = outcome.cohort.accepted, outcome.cohort.reasons()
        if outcome.arrays is None:
            why = outcome.skipped or "nothing was opened"
            log.warning("round %d: %s: nothing was opened: %s", server_round, self.purpose, why)
            return Released(None, 0, 0.0, self.epsilon, why, rejected)
        if self.exact:  # devices refuse sums over others from now on
            self._cohort = frozenset(u.sender.rank for u in outcome.cohort.updates)
        vectors = [s for s in inner.chain.stages if isinstance(s, VectorStage)]
        std = max((s.noise_std(count, training.context) for s in vectors), default=0.0)
        sums = outcome.arrays[COUNTED] * (inner.weighting.denominator or count)
        return Released(sums, count, std, self.epsilon, None, rejected)

    @property
    def epsilon(self) -> float | None:
        """What was spent so far."""
        return self.inner.chain.epsilon(self.inner.states) if self.inner.states else None

    def _sample(self, grid: Grid, server_round: int, fraction: float) -> dict[int, int]:
        """Return the nodes to ask and their ranks.

        Clients that train meanwhile are waited for: exact sums are over all of them.
        """
        engine = self.engine
        engine.sampling.meet(registered_nodes(grid))
        connected = set(registered_nodes(grid))
        ranks = sorted(engine.sampling.ranks[node] for node in connected)
        if self._cohort is not None:
            ranks = [rank for rank in ranks if rank in self._cohort]
        if engine.overlapping:
            patience = engine.timeout if engine.post.clock.simulated else engine.patience
            busy = engine.post.quiet(grid, set(ranks), patience)
            ranks = [rank for rank in ranks if rank not in busy]
        if fraction < 1 and not self.exact:
            least = self.inner.chain.least_clients(self.inner.weighting)
            size = min(len(ranks), max(round(fraction * len(ranks)), least))
            label = f"{self.purpose}/{server_round}"
            ranks = engine.sampling.draw(label, ranks, size, engine.post.latencies)
        return {engine.sampling.nodes[rank]: rank for rank in ranks}

    @staticmethod
    def _take_gates(source: Engine, target: Engine) -> None:
        """Let both engines know what the one has last heard of clients: sessions, and replays."""
        gates = {
            g.name: source.states[g.name] for g in source.chain.gates if g.name in source.states
        }
        target.states = {**target.states, **gates}


def query(
    engine: Engine, grid: Grid, server_round: int, content: RecordDict, action: str = ""
) -> list[tuple[Sender, RecordDict | Rejection]]:
    """Ask the app's ``query`` handlers of all connected clients, in the clear, and wait.

    Parameters
    ----------
    engine : Engine
        That of a strategy; its `Authenticate` signs the question and checks the answers.
    grid : Grid
        Flower's grid.
    server_round : int
        No smaller than the last round of training of the run.
    content : RecordDict
        What the handler is told.
    action : str
        ``"version"`` asks ``@app.query("version")``; by default ``@app.query()``.

    Returns
    -------
    list of (Sender, RecordDict or Rejection)
        Every client's answer, or why there is none: nodes say in their policy which ``queries`` may
        be answered in the clear.

    Notes
    -----
    Who sees what: the server sees each answer.
    """
    engine.sampling.meet(nodes := registered_nodes(grid))
    gates = Chain(engine.chain.gates)
    kind = f"query.{action}" if action else "query"
    exchange = Exchange(kind, server_round, grid.run.run_id, engine.timeout, engine.window)
    states = gates.init(Layout.of({}), engine.states)
    told, states = gates.instruct(dict.fromkeys(nodes, content), states, exchange)
    messages = [Message(told[node], node, kind, ttl=max(engine.timeout, 1.0)) for node in nodes]
    stop = engine.observer.should_stop
    replies = collect(grid, messages, timeout=engine.timeout, stop=stop)
    asked = Asked(
        {m.metadata.message_id: m.metadata.dst_node_id for m in messages}, engine.sampling.ranks
    )
    entries, states, _ = gates.admit(match(replies, asked), states, exchange)
    engine.states = {**engine.states, **states}
    return [_willing(sender, answer) for sender, answer in entries]


def _willing(
    sender: Sender, answer: RecordDict | Rejection
) -> tuple[Sender, RecordDict | Rejection]:
    """Turn a refusal into the rejection of that name."""
    if isinstance(answer, Rejection):
        return sender, answer
    found = catch(sender, partial(check_willing, answer), answer)
    return sender, answer if found is None else found
