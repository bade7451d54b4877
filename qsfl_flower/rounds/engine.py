"""The engine of a strategy: what it knows of its run, and the steps of a round."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from qsfl_flower.errors import INTERNAL, QSFLError, RejectedUpdate, TooFewReplies
from qsfl_flower.numerics import Layout, Monitor
from qsfl_flower.rounds.admission import Asked, ReplyReader, admit, check_willing, match
from qsfl_flower.rounds.aggregate import GlobalModel, Outcome, aggregate
from qsfl_flower.rounds.assignment import Answers, Assignment, Inquiry, Opened, States
from qsfl_flower.rounds.chain import Chain
from qsfl_flower.rounds.checkpoint import CheckpointStore, Snapshot
from qsfl_flower.rounds.combine import Metric, mean_metrics
from qsfl_flower.rounds.context import Exchange, Measurements, RoundContext, State
from qsfl_flower.rounds.evaluation import MetricsFunction, mean_evaluation, own_metrics
from qsfl_flower.rounds.exchange import Traffic, wait_for_nodes
from qsfl_flower.rounds.post import Post, collect
from qsfl_flower.rounds.record import RunObserver
from qsfl_flower.rounds.roles import fit_roles
from qsfl_flower.rounds.sampling import Sampling, Wanted
from qsfl_flower.rounds.spending import NO_BUDGET
from qsfl_flower.rounds.standalone import assignment_alone, refuse_alone, replies_alone
from qsfl_flower.rounds.update import (
    Cohort,
    Rejection,
    Sender,
    Update,
    Weighting,
    internal_log,
    told_with_frames,
)
from qsfl_flower.wire import (
    PLAN_KEY,
    QSFL_RECORD,
    ROLES_KEY,
    Plan,
    PlanItem,
    content_bytes,
    from_record,
    to_record,
)
from qsfl_flower.wire.content import instruction_digest
from qsfl_flower.wire.kinds import Purpose, purpose_of
from qsfl_flower.wire.legacy import from_legacy_reply, to_legacy_instruction

log = logging.getLogger("qsfl_flower")

Combination = tuple[ArrayRecord | None, MetricRecord | None]


@dataclass(frozen=True)
class Names:
    """What records and metrics are called, and which clients read them.

    Parameters
    ----------
    arrays, config, weighted_by : str
        Flower's `arrayrecord_key`, `configrecord_key` and `weighted_by_key`.
    client_api : str
        ``"message"``, or ``"legacy"`` for apps without mods.
    """

    arrays: str
    config: str
    weighted_by: str
    client_api: str


@dataclass
class Engine:
    """State, sampling, tasks and time of a run; hooks of strategies call its methods.

    Parameters
    ----------
    chain : Chain
        What is done to the updates.
    weighting : Weighting
        How claims become weights.
    names : Names
        What is called what in messages.
    sampling : Sampling
        Who is asked.
    post : Post
        The tasks under way, and the clock.
    observer : RunObserver
        Told about the run.
    monitor : Monitor
        Watches loss and update norm.
    checkpoints : CheckpointStore or None
        Where charges and snapshots are written.
    roles : Mapping[str, str] or None
        Roles of the model's arrays.
    train_metrics, evaluate_metrics : Callable or None
        The user's functions.
    proximal_mu, over_selection : float
        See `StableFedAvg`.
    deadline : float or None
        Seconds for one task; None: `timeout`.
    fewest : int
        A round with fewer usable replies leaves the model as it is.
    max_failed_rounds : int
        So many in a row end the run.
    overlapping : bool
        Whether clients work on different versions of the model at once.
    window : int
        How many rounds may be under way at once.
    timeout : float
        Bounds every wait, in seconds.
    states : Mapping[str, State]
        States of the stages.
    outcome : Outcome or None
        What the last round led to.
    traffic : Traffic
        Of further exchanges inside this round.
    charges : int
        Number of the newest privacy charges.
    opened : dict[str, Opened]
        The last round of each kind whose instructions were made.
    instructions : dict[int, bytes]
        See `RoundContext.instructions`.
    purpose : Purpose
        What the chain's sums are for; messages of this purpose carry a plan.
    others : list[Engine]
        Those of the sessions for other purposes, whose charges and states are kept with these.
    beside : dict[str, Measurements]
        What sessions have measured in this round.
    """

    chain: Chain
    weighting: Weighting
    names: Names
    sampling: Sampling
    post: Post
    observer: RunObserver
    monitor: Monitor
    checkpoints: CheckpointStore | None = None
    roles: Mapping[str, str] | None = None
    train_metrics: MetricsFunction | None = None
    evaluate_metrics: MetricsFunction | None = None
    proximal_mu: float = 0.0
    over_selection: float = 0.0
    deadline: float | None = None
    fewest: int = 1
    max_failed_rounds: int = 3
    overlapping: bool = False
    window: int = 1
    timeout: float = 3600.0
    states: States = field(default_factory=dict)
    outcome: Outcome | None = None
    traffic: Traffic = field(default_factory=Traffic)
    charges: int = 0
    opened: dict[str, Opened] = field(default_factory=dict)
    instructions: dict[int, bytes] = field(default_factory=dict)
    purpose: Purpose = Purpose.TRAIN
    others: list[Engine] = field(default_factory=list)
    beside: dict[str, Measurements] = field(default_factory=dict)
    _warned: bool = False

    @property
    def patience(self) -> float:
        """Seconds for one task."""
        return self.deadline or self.timeout

    def take_beside(self) -> tuple[dict[str, Measurements], Traffic]:
        """Return what the sessions have measured and sent since the last call."""
        measured, self.beside = self.beside, {}
        traffic = Traffic()
        for other in self.others:
            found, other.traffic = other.traffic, Traffic()
            traffic = Traffic(traffic.down + found.down, traffic.up + found.up)
        return measured, traffic

    def reset(self) -> None:
        """Begin another round of training."""
        self.traffic, self.outcome = Traffic(), None
        self.opened.pop("train", None)

    def layout_of(self, arrays: Mapping[str, NDArray[Any]]) -> Layout:
        """Return the layout of a model: its roles, as they fit the chain.

        Raises
        ------
        ConfigError
            If the roles do not fit the model.
        """
        layout, guessed = fit_roles(self.roles, arrays, self.chain)
        if guessed and not self._warned:
            self._warned = True
            log.warning("%s", guessed)
        return layout

    def recover(self, resume: Snapshot | None) -> None:
        """Take up the privacy charges of a run that is resumed, and of any run in its folder."""
        charged = self.checkpoints and self.checkpoints.charged()
        if charged and charged.number > (resume.charges if resume else 0):
            self.states = self._spread(charged.over(self.states))
            log.warning(
                "privacy: what was charged until round %d counts, also where the checkpoint is "
                "older or there is none",
                charged.server_round,
            )
        if charged or resume:
            self.charges = max(charged.number if charged else 0, resume.charges if resume else 0)
            for engine in (self, *self.others):
                engine.states = engine.chain.recover(engine.states)

    def _spread(self, states: States) -> States:
        """Give each session the states that are kept under its purpose; return the rest."""
        for other in self.others:
            known = {n.partition(":")[2]: s for n, s in states.items() if other.keeps(n)}
            other.states = {**other.states, **known}
        return {n: s for n, s in states.items() if not any(o.keeps(n) for o in self.others)}

    def keeps(self, name: str) -> bool:
        """Return whether this is the name of a state of a session, as it is kept."""
        return name.startswith(f"{self.purpose}:")

    def to_save(self) -> tuple[dict[str, State], dict[str, Any] | None]:
        """Return what a checkpoint holds besides model and history: states, and tasks under way."""
        saved = self.chain.saved(self.states)
        for other in self.others:
            own = other.chain.saved(other.states).items()
            saved |= {f"{other.purpose}:{name}": state for name, state in own}
        return saved, self.post.to_dict()

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from what `to_save` returned."""
        self.states = self._spread(snapshot.states)
        if (under_way := snapshot.progress["under_way"]) is not None:
            self.post.restore(under_way)

    def open(
        self,
        kind: str,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
        wanted: Wanted,
    ) -> Opened:
        """Sample nodes and make their instructions."""
        ranks, enough = self._sample(kind, server_round, grid, wanted)
        if kind == "train":
            self.sampling.history = self.sampling.history.ask(server_round, ranks.values())
        assignment = self.assign(kind, server_round, arrays, config, grid, ranks)
        ready = kind != "train" or self.chain.unready(self.states) is None
        withheld = self.chain.withheld(assignment.context.senders, self.states)
        left_out = {rejection.sender.node_id for rejection in withheld}
        asked = [node for node in ranks if node not in left_out]
        messages = self.address(assignment, asked) if ready else []
        self.opened[kind] = Opened(assignment, messages, enough, withheld=withheld)
        return self.opened[kind]

    def close_training(self, server_round: int, replies: Iterable[Message]) -> Combination:
        """Combine the replies to the round that was opened last."""
        if (opened := self.opened.get("train")) is None:
            needing = [stage.name for stage in self.chain.stages if stage.needs_start]
            api, key = self.names.client_api, self.names.arrays
            refuse_alone("aggregate_train", needing, api, "configure_train")
            matched = replies_alone(replies)
            training = assignment_alone(matched, server_round, key, self.weighting, self.layout_of)
            self.states = self.chain.init(training.model.layout, self.states)
        else:
            matched, training = match(replies, opened.asked(self.sampling.ranks)), opened.assignment
        entries, self.states, admitted = self.chain.admit(matched, self.states, training.exchange)
        withheld = () if opened is None else opened.withheld
        entries += [(rejection.sender, rejection) for rejection in withheld]
        entries.sort(key=lambda entry: entry[0].rank)
        contents: dict[int, RecordDict] = {}

        def read(sender: Sender, content: RecordDict) -> Update:
            contents[sender.node_id] = content = self.translate(training, content)
            return self.read(training, sender, content)

        return self.combine(training, admit(entries, read), admitted, contents)

    def close_evaluation(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the metrics in the replies to the evaluation that was opened last."""
        if (opened := self.opened.get("evaluate")) is None:
            gates, api = [gate.name for gate in self.chain.gates], self.names.client_api
            refuse_alone("aggregate_evaluate", gates, api, "configure_evaluate")
            evaluation, entries = None, replies_alone(replies)
        else:
            evaluation = opened.assignment
            entries, self.states, _ = self.chain.admit(
                match(replies, opened.asked(self.sampling.ranks)), self.states, evaluation.exchange
            )
        return mean_evaluation(
            server_round,
            [
                (sender, content)
                if isinstance(content, Rejection)
                else (sender, partial(self.translate, evaluation, content))
                for sender, content in entries
            ],
            self.names.weighted_by,
            self.weighting,
            self.evaluate_metrics,
        )

    def assign(
        self,
        kind: str,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
        ranks: Mapping[int, int],
    ) -> Assignment:
        """Make what every client of a round is told."""
        named = from_record(arrays)
        model = GlobalModel.of(named, self.layout_of(named))
        # A record of one's own for every round: Flower's simulation passes records by reference.
        config = ConfigRecord({**config, "server-round": server_round})
        if kind == "train" and self.proximal_mu > 0:
            config["proximal-mu"] = self.proximal_mu
        legacy = self.names.client_api == "legacy"
        if legacy:
            content = to_legacy_instruction(kind, arrays, config)
        else:
            content = RecordDict({self.names.arrays: arrays, self.names.config: config})
        told = {ROLES_KEY: model.layout.told} if model.layout.declared else {}
        exchange = Exchange(kind, server_round, grid.run.run_id, self.timeout, self.window)
        return self.begin(exchange, content, told, model, grid, ranks)

    def begin(
        self,
        exchange: Exchange,
        content: RecordDict,
        told: dict[str, str],
        model: GlobalModel,
        grid: Grid,
        ranks: Mapping[int, int],
        source: PlanItem | None = None,
    ) -> Assignment:
        """Let the stages prepare for an exchange, and put the plan into what clients are told.

        Parameters
        ----------
        exchange : Exchange
            Round, type of the messages, run.
        content : RecordDict
            What each client is told.
        told : dict[str, str]
            What the suite's own record holds beside the plan.
        model : GlobalModel
            What the vectors that come together are relative to, and their layout.
        grid, ranks
            Flower's grid, and the nodes that are asked with their ranks.
        source : PlanItem, optional
            The step that makes the vectors, where they are no updates.
        """
        kind, server_round = exchange.kind, exchange.server_round
        self.states = self.chain.init(model.layout, self.states)
        ask = partial(self.ask, grid, replace(exchange, inside=True))
        context = RoundContext(
            server_round,
            model.layout,
            model.vector,
            grid.run.run_id,
            tuple(Sender(n, rank, f"node {rank}") for n, rank in ranks.items()),
            self.weighting,
            carried=model.carried,
            purpose=purpose_of(kind),
        )
        if context.purpose is self.purpose:
            inquiry = Inquiry(ask, self.states)
            prepared = self.chain.prepare(self.states, replace(context, ask=inquiry))
            self.states = self.chain.after(prepared, inquiry.states)
            self.charge(server_round)
            plan = self.chain.plan(self.states, context)
            if source is not None:
                plan = Plan((source, *plan.items))
            context = replace(context, support=self.chain.support(self.states, context))
            if plan.items:
                told[PLAN_KEY] = plan.encode()
        if told and self.names.client_api != "legacy":
            content[QSFL_RECORD] = ConfigRecord({**told})
        return Assignment(exchange, content, model, context, ask)

    def address(self, assignment: Assignment, nodes: Iterable[int]) -> list[Message]:
        """Make the messages to some nodes."""
        contents, exchange = dict.fromkeys(nodes, assignment.content), assignment.exchange
        if self.names.client_api == "message":
            contents, self.states = self.chain.address(contents, self.states, exchange)
        if self.chain.hides and purpose_of(exchange.kind) is self.purpose and contents:
            self._remember_instruction(assignment, next(iter(contents.values())))
        contents, self.states = self.chain.instruct(contents, self.states, exchange)
        ttl = max(self.timeout, 1.0)
        return [Message(c, node, exchange.kind, ttl=ttl) for node, c in contents.items()]

    def ask(
        self,
        grid: Grid,
        exchange: Exchange,
        contents: Mapping[int, RecordDict],
        states: States,
    ) -> tuple[Answers, States]:
        """Send a task to each of some nodes; return their answers and the next states."""
        ranks = self.sampling.ranks
        if self.overlapping:
            # Nodes first answer whatever they were asked before. A simulated deadline says nothing
            # about real time.
            patience = self.timeout if self.post.clock.simulated else self.patience
            busy = self.post.quiet(grid, {ranks[node] for node in contents}, patience)
            contents = {n: c for n, c in contents.items() if ranks[n] not in busy}
        told, states = self.chain.instruct(contents, states, exchange)
        ttl = max(self.timeout, 1.0)
        kind = exchange.kind
        messages = [Message(content, node, kind, ttl=ttl) for node, content in told.items()]
        replies = collect(grid, messages, timeout=self.timeout, stop=self.observer.should_stop)
        self.traffic = self.traffic.plus(messages, replies)
        nodes = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        places = {n: ranks.get(n, len(ranks) + i) for i, n in enumerate(told)}
        entries, states, _ = self.chain.admit(
            match(replies, Asked(nodes, places)), states, exchange
        )
        return {sender.node_id: _answer(sender, content) for sender, content in entries}, states

    def translate(self, assignment: Assignment | None, content: RecordDict) -> RecordDict:
        """Return a reply as an app with mods would have made it."""
        if assignment is None or self.names.client_api == "message":
            return content
        kind, arrays = assignment.exchange.kind, assignment.model.arrays
        return from_legacy_reply(kind, content, arrays, self.names.arrays)

    def read(self, training: Assignment, sender: Sender, content: RecordDict) -> Update:
        """Read a reply to an assignment, as its client was told to make it."""
        check_willing(content)
        chain, context = self.chain, training.context
        if chain.combiner is not None and chain.hides:
            with chain.timed(chain.combiner):
                return chain.combiner.read(sender, content, context)
        own = training.model.carried
        reader = ReplyReader(context.layout, self.names.arrays, self.names.weighted_by, own=own)
        if (decoder := chain.decoder) is None:
            return reader.read(sender, content)
        decode = partial(decoder.decode, context=context)
        with chain.timed(decoder):
            return replace(reader, encoding=decoder.encoding, decode=decode).read(sender, content)

    def combine(
        self,
        training: Assignment,
        cohort: Cohort,
        admitted: Mapping[str, Measurements],
        contents: Mapping[int, RecordDict],
    ) -> Combination:
        """Run a cohort through the chain; the details are in `outcome` afterwards."""
        server_round = training.context.server_round
        outcome = self.aggregate(training, cohort, admitted)
        self.sampling.history = self.sampling.history.hear(outcome.cohort)
        for rejection in outcome.cohort.rejections:
            if rejection.reason == NO_BUDGET and not rejection.bytes_up:
                continue  # it was not asked, which was logged when its budget ended
            log.warning(
                "round %d: %s from %s: %s",
                server_round,
                rejection.reason,
                rejection.sender.label,
                rejection.detail,
            )
        if outcome.arrays is None:
            log.warning("round %d: model unchanged: %s", server_round, outcome.skipped)
            return None, None
        updates, named = outcome.cohort.updates, self.names.weighted_by
        if outcome.metrics is not None:
            metrics = MetricRecord({**outcome.metrics})
        elif self.train_metrics is not None:
            accepted = [contents[u.sender.node_id] for u in updates if u.status == "accepted"]
            metrics = own_metrics(self.train_metrics, accepted, named, server_round)
        else:
            rows: list[tuple[float, Mapping[str, Metric]]] = [
                (u.weight, {**u.metrics, **u.listed}) for u in updates
            ]
            metrics = MetricRecord({**mean_metrics(rows)})
        return to_record(outcome.arrays), metrics

    def aggregate(
        self, training: Assignment, cohort: Cohort, admitted: Mapping[str, Measurements]
    ) -> Outcome:
        """Run a cohort through the chain; keep the states that follow, and return the outcome."""
        chain, server_round = self.chain, training.context.server_round
        inquiry = Inquiry(training.ask, self.states)
        context = replace(training.context, ask=inquiry, instructions=self.instructions)
        try:
            outcome = aggregate(cohort, training.model, chain, self.states, context, self.fewest)
        except QSFLError:
            raise
        except Exception as error:
            # Every single reply was in order: what they are together must not end the run either.
            told = told_with_frames(error)
            internal_log.error(
                "round %d: combining the updates failed by a fault of the suite or of a stage of "
                "yours: %s",
                server_round,
                told,
            )
            outcome = Outcome(cohort, self.states, skipped=f"{INTERNAL}: {told.splitlines()[0]}")
        self.outcome = replace(outcome, measured={**admitted, **outcome.measured})
        self.states = chain.after(outcome.states, inquiry.states)
        return self.outcome

    def _sample(
        self, kind: str, server_round: int, grid: Grid, wanted: Wanted
    ) -> tuple[dict[int, int], int]:
        """Return the nodes to ask and their ranks, in canonical order, and how many are enough."""
        needs = {"min_available_nodes": wanted.available, f"min_{kind}_nodes": wanted.minimum}
        needs |= self.chain.needs(self.weighting)
        nodes = wait_for_nodes(grid, needs, self.timeout, self.observer.should_stop)
        self.sampling.meet(nodes)
        ranks = sorted(self.sampling.ranks[node] for node in nodes)
        if kind == "train" and (drawer := self.chain.drawer) is not None:
            drawn = drawer.participants(ranks, server_round, grid.run.run_id)
            chosen = [rank for rank in drawn if rank not in self.post.ledger.busy]
            return {self.sampling.nodes[rank]: rank for rank in chosen}, max(1, len(chosen))
        free = self._free(grid, ranks, wanted.minimum)
        needed = min(max(int(len(nodes) * wanted.fraction), wanted.minimum), len(free))
        size = min(math.ceil(needed * (1 + self.over_selection)), len(free))
        chosen = self.sampling.draw(f"{kind}/{server_round}", free, size, self.post.latencies)
        return {self.sampling.nodes[rank]: rank for rank in chosen}, needed

    def _free(self, grid: Grid, ranks: Sequence[int], minimum: int) -> list[int]:
        """Return the clients that have no task; where versions do not overlap, wait for enough."""
        clock = self.post.clock
        end = clock.now + self.timeout
        while True:
            busy = self.post.ledger.busy
            idle = [rank for rank in ranks if rank not in busy]
            free = clock.online(idle)
            if self.overlapping or len(free) >= minimum:
                return free
            if clock.now >= end:
                raise TooFewReplies(
                    f"after {self.timeout:g} s {len(free)} of {len(ranks)} clients are free; at "
                    f"least {minimum} are needed (min_train_nodes, min_evaluate_nodes)"
                )
            away = set(idle) - set(free)
            self.post.receive(grid, min(end, clock.next_online(away)))

    def charge(self, server_round: int) -> None:
        """Make the round's charges last, before its instructions leave."""
        stages = self.chain.charged(self.states)
        for other in (o for o in self.others if o.states):
            own = other.chain.charged(other.states).items()
            stages |= {f"{other.purpose}:{name}": charge for name, charge in own}
        if stages and self.checkpoints is not None:
            self.charges = self.checkpoints.charge(server_round, stages)

    def _remember_instruction(self, assignment: Assignment, addressed: RecordDict) -> None:
        """Keep the digest of what the clients of a round are asked, as long as it may be needed."""
        key, server_round = self.names.arrays, assignment.exchange.server_round
        arrays = {k: v for k, v in assignment.content.items() if k == key}
        whole = RecordDict({**addressed, **arrays})
        self.instructions[server_round] = instruction_digest(whole, assignment.exchange.kind)
        for old in [r for r in self.instructions if r < server_round - self.window]:
            del self.instructions[old]


def _answer(
    sender: Sender, content: RecordDict | Rejection
) -> tuple[Sender, RecordDict] | Rejection:
    """Return an answer to a further question, or why there is none."""
    if isinstance(content, Rejection):
        return content
    try:
        check_willing(content)
    except RejectedUpdate as error:
        return Rejection(sender, error.reason, error.detail, content_bytes(content))
    return sender, content
