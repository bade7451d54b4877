"""The base strategy: Flower's FedAvg, made stable, validating and reproducible."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result
from numpy.typing import NDArray

from qsfl_flower.asynchrony import Clock, Selection, WallClock
from qsfl_flower.errors import INTERNAL, ConfigError, QSFLError, RejectedUpdate, TooFewReplies
from qsfl_flower.numerics import Layout, Monitor, Reaction
from qsfl_flower.rounds.admission import (
    Asked,
    ReplyReader,
    admit,
    check_willing,
    match,
)
from qsfl_flower.rounds.aggregate import GlobalModel, Outcome, aggregate
from qsfl_flower.rounds.assignment import Assignment
from qsfl_flower.rounds.chain import Chain
from qsfl_flower.rounds.checkpoint import CheckpointStore, Snapshot
from qsfl_flower.rounds.combine import mean_metrics
from qsfl_flower.rounds.context import Exchange, Measurements, RoundContext, State
from qsfl_flower.rounds.evaluation import MetricsFunction, mean_evaluation, own_metrics
from qsfl_flower.rounds.exchange import Traffic, collect, wait_for_nodes
from qsfl_flower.rounds.guard import Guard
from qsfl_flower.rounds.loop import Job, Trained, run_rounds
from qsfl_flower.rounds.post import Post
from qsfl_flower.rounds.record import RoundLog, RunObserver
from qsfl_flower.rounds.record import log as flower_log
from qsfl_flower.rounds.roles import fit_roles
from qsfl_flower.rounds.sampling import Sampling
from qsfl_flower.rounds.stages import MessageStage, Stage
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
from qsfl_flower.strategies.bounds import Validate
from qsfl_flower.strategies.checks import arguments_of, check_numbers, refuse_wrapper
from qsfl_flower.wire import (
    PLAN_KEY,
    QSFL_RECORD,
    ROLES_KEY,
    content_bytes,
    from_record,
    to_record,
)
from qsfl_flower.wire.content import instruction_digest
from qsfl_flower.wire.legacy import from_legacy_reply, to_legacy_instruction

log = logging.getLogger("qsfl_flower")


class StableFedAvg(FedAvg):
    r"""Federated averaging that a bad reply cannot spoil.

    .. math:: x_{t+1} = x_t + U\!\left(\sum_i w_i s_i (x_i - x_t)\right)

    The weighted mean is computed in float64 with compensation and rounded once, in an order that
    does not depend on when replies arrive; :math:`s_i` is set by clipping, U by a server optimizer.
    A reply that is malformed, not finite, or missing is rejected with a named reason and the round
    goes on with the others.

    It takes the arguments of Flower's ``FedAvg`` and works with the same apps: Message-API apps,
    `numpy_client_app`, and unmodified ``ClientApp(client_fn=...)`` with ``client_api="legacy"``.

    Parameters
    ----------
    fraction_train, fraction_evaluate : float
        Share of the connected nodes that train and evaluate, in [0, 1].
    min_train_nodes, min_evaluate_nodes, min_available_nodes : int
        As in Flower. A round waits for this many nodes before it samples.
    weighted_by_key, arrayrecord_key, configrecord_key : str
        As in Flower: names of a metric and of two records.
    train_metrics_aggr_fn, evaluate_metrics_aggr_fn : Callable, optional
        As in Flower, called with the accepted replies in canonical order. By default metrics are
        averaged with the same bounded weights as the model; numbers that are not finite are left
        out.
    stages : Sequence[Stage]
        What is done to the updates, in any order. `Validate` is added if it is not there.
    proximal_mu : float
        FedProx: sent to the clients as ``proximal-mu`` if it is not zero, >= 0.
    seed : int, optional
        Makes the sampling of nodes reproducible.
    max_num_examples : float, optional
        No client counts for more examples than this.
    max_weight_ratio : float
        No client counts for more than this many times the median client, >= 1. Sample counts are
        claims. Among three or more clients, none ever holds more than half of the mean.
    min_replies : int
        A round with fewer usable replies leaves the model as it is, >= 1.
    max_failed_rounds : int
        After this many such rounds in a row the run ends with `TooFewReplies`, >= 1.
    client_api : str
        ``"message"``, or ``"legacy"`` for unmodified ``ClientApp(client_fn=...)`` apps.
    monitor : Monitor, optional
        Watches loss and update norm, reports divergence, and reacts to it as it is told to.
    checkpoints : CheckpointStore, optional
        Written after every round; what a round costs in privacy is written before it begins.
    observer : RunObserver, optional
        Told about progress and every finished round; may ask the run to stop. By default a
        `RoundLog`.
    selection : Selection, optional
        How clients are drawn, for example `FasterFirst` or one of `POLICIES`; by default everybody
        alike.
    over_selection : float
        So many more clients are asked, as a share of those needed, >= 0; the round ends when the
        number needed have answered, and does not wait for the slowest.
    deadline : float, optional
        Seconds after which an answer is waited for no longer; by default the `timeout` of `start`.
    clock : Clock, optional
        The wall clock, or a `VirtualClock` in simulations of devices.
    roles : Mapping[str, str], optional
        What becomes of single arrays of the model, by name: ``"trained"``, ``"frozen"``,
        ``"buffer"``, ``"local"`` or ``"tied:NAME"``; `qsfl_flower.clients.roles_of` finds them for
        a torch module. By default floats are trained and integers are buffers, and floats with
        the names of normalization statistics (``running_mean``, ``running_var``) are buffers too.

    Raises
    ------
    ConfigError
        If an argument is out of range; `CompositionError` if stages do not go together.

    References
    ----------
    H. B. McMahan et al., "Communication-efficient learning of deep networks from decentralized
    data", 2017. arXiv:1602.05629.
    T. Li et al., "Federated optimization in heterogeneous networks", 2020. arXiv:1812.06127.

    Notes
    -----
    Who sees what: the server sees every update in the clear. It trusts no reply, but it is trusted.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> federation = LocalFederation(clients=3)
    >>> outcome = federation.run(kind=StableFedAvg, rounds=2)
    >>> np.allclose(outcome.model, 2 * federation.updates.mean(axis=0))
    True
    """

    asynchronous: ClassVar[bool] = False
    """Whether clients that started from different versions of the model come together."""

    def __init__(
        self,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsFunction | None = None,
        evaluate_metrics_aggr_fn: MetricsFunction | None = None,
        *,
        stages: Sequence[Stage] = (),
        proximal_mu: float = 0.0,
        seed: int | None = None,
        max_num_examples: float | None = None,
        max_weight_ratio: float = 10.0,
        min_replies: int = 1,
        max_failed_rounds: int = 3,
        client_api: Literal["message", "legacy"] = "message",
        monitor: Monitor | None = None,
        checkpoints: CheckpointStore | None = None,
        observer: RunObserver | None = None,
        selection: Selection | None = None,
        over_selection: float = 0.0,
        deadline: float | None = None,
        clock: Clock | None = None,
        roles: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            fraction_train,
            fraction_evaluate,
            min_train_nodes,
            min_evaluate_nodes,
            min_available_nodes,
            weighted_by_key,
            arrayrecord_key,
            configrecord_key,
        )
        check_numbers(
            shares={"fraction_train": fraction_train, "fraction_evaluate": fraction_evaluate},
            at_least={
                "proximal_mu": (proximal_mu, 0),
                "over_selection": (over_selection, 0),
                "max_weight_ratio": (max_weight_ratio, 1),
                "min_replies": (min_replies, 1),
                "max_failed_rounds": (max_failed_rounds, 1),
            },
            positive={"deadline": deadline, "max_num_examples": max_num_examples},
        )
        if client_api not in ("message", "legacy"):
            raise ConfigError(f"client_api is {client_api!r}; it must be message or legacy")
        if not any(isinstance(stage, Validate) for stage in stages):
            stages = (*stages, Validate())
        self.monitor = monitor or Monitor()
        if self.monitor.reactions:
            stages = (*stages, Guard())
        if Reaction.TIGHTEN_STALENESS in self.monitor.reactions and not self.asynchronous:
            raise ConfigError(
                "monitor: synchronous rounds have no staleness to tighten; allowed reactions: "
                + ", ".join(r for r in Reaction if r is not Reaction.TIGHTEN_STALENESS)
            )
        arguments = arguments_of(
            selection,
            own_metrics=train_metrics_aggr_fn is not None,
            legacy=client_api == "legacy",
            fraction_evaluate=fraction_evaluate,
            over_selection=over_selection,
            asynchronous=self.asynchronous,
        )
        self.chain = Chain(stages, arguments)
        self.proximal_mu = proximal_mu
        self.weighting = Weighting(
            max_num_examples, max_weight_ratio, denominator=self.chain.denominator
        )
        if self.chain.drawer is None and not self.asynchronous:
            least = self.chain.least_clients(self.weighting)
            self.min_train_nodes = max(self.min_train_nodes, least)
        self.min_replies = min_replies
        # Whether a round counts must not depend on who was drawn, or amplification does not hold.
        self._fewest = min_replies if self.chain.drawer is None else 0
        self.max_failed_rounds = max_failed_rounds
        self.client_api = client_api
        self.checkpoints = checkpoints
        self.observer = observer or RoundLog()
        self.sampling = Sampling(selection, seed)
        self.over_selection = over_selection
        self.deadline = deadline
        self.post = Post(clock or WallClock(), self.observer.should_stop)
        self.roles = roles
        self.timeout = 3600.0
        self.window = 1
        self.states: Mapping[str, State] = {}
        self.outcome: Outcome | None = None
        self.asked = Traffic()
        self.charges = 0
        self._train_metrics = train_metrics_aggr_fn
        self._evaluate_metrics = evaluate_metrics_aggr_fn
        self._training: Assignment | None = None
        self._evaluation: Assignment | None = None
        self._sent: list[Message] = []
        self._instructions: dict[int, bytes] = {}
        self._enough = 0
        self._spans: Mapping[int, tuple[float, float]] = {}
        self._cut = False
        self._warned = False

    def summary(self) -> None:
        """Log the configuration."""
        refuse_wrapper(self, sys._getframe(1).f_locals.get("self"))
        super().summary()
        stages = " -> ".join(stage.name for stage in self.chain.stages)
        flower_log.info("\tStages: %s", stages)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes and build their instructions; see Flower's ``Strategy``."""
        self.asked = Traffic()
        if self.fraction_train == 0.0:
            return []
        ranks = self._sample("train", server_round, grid, self.fraction_train, self.min_train_nodes)
        self.sampling.history = self.sampling.history.ask(server_round, ranks.values())
        self._training = self._assign("train", server_round, arrays, config, grid, ranks)
        ready = self.chain.unready(self.states) is None
        self._sent = self._address(self._training, ranks) if ready else []
        return self._sent

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes and build their instructions; see Flower's ``Strategy``."""
        if self.fraction_evaluate == 0.0:
            return []
        fraction, minimum = self.fraction_evaluate, self.min_evaluate_nodes
        ranks = self._sample("evaluate", server_round, grid, fraction, minimum)
        self._evaluation = self._assign("evaluate", server_round, arrays, config, grid, ranks)
        self._sent = self._address(self._evaluation, ranks)
        return self._sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the replies; the details are in `outcome` afterwards.

        Returns
        -------
        tuple[ArrayRecord or None, MetricRecord or None]
            The next model and the mean metrics, or None and None if the round is skipped.
        """
        if (training := self._training) is None:
            needing = [stage.name for stage in self.chain.stages if stage.needs_start]
            refuse_alone("aggregate_train", needing, self.client_api, "configure_train")
            matched = replies_alone(replies)
            training = assignment_alone(
                matched, server_round, self.arrayrecord_key, self.weighting, self.layout_of
            )
            self.states = self.chain.init(training.model.layout, self.states)
        else:
            matched = match(replies, self._asked())
        entries, self.states, admitted = self.chain.admit(matched, self.states, training.exchange)
        contents: dict[int, RecordDict] = {}

        def read(sender: Sender, content: RecordDict) -> Update:
            contents[sender.node_id] = content = self._translate(training, content)
            return self._read(training, sender, content)

        return self._combine(training, admit(entries, read), admitted, contents)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the clients' evaluation metrics with bounded weights."""
        if (evaluation := self._evaluation) is None:
            gates = [s.name for s in self.chain.stages if isinstance(s, MessageStage)]
            refuse_alone("aggregate_evaluate", gates, self.client_api, "configure_evaluate")
            entries = replies_alone(replies)
        else:
            entries, self.states, _ = self.chain.admit(
                match(replies, self._asked()), self.states, evaluation.exchange
            )
        return mean_evaluation(
            server_round,
            [
                (sender, content)
                if isinstance(content, Rejection)
                else (sender, partial(self._translate, evaluation, content))
                for sender, content in entries
            ],
            self.weighted_by_key,
            self.weighting,
            self._evaluate_metrics,
        )

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
        *,
        resume: Snapshot | None = None,
    ) -> Result:
        """Run the federation, as Flower's ``Strategy.start`` does.

        Parameters
        ----------
        grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
            As in Flower. `timeout` bounds every wait: for nodes, and for the replies of a round.
        resume : Snapshot, optional
            Go on after this checkpoint instead of beginning with `initial_arrays`.

        Returns
        -------
        Result
            Flower's result: final arrays and the metrics of every round.

        Raises
        ------
        TooFewReplies
            If nodes do not appear, or too many rounds in a row fail.
        RunInterrupted
            If the observer asks to stop. The last finished round is in the checkpoint.
        """
        self.timeout = timeout
        self.summary()
        job = Job(
            grid,
            num_rounds,
            train_config or ConfigRecord(),
            evaluate_config or ConfigRecord(),
            evaluate_fn,
        )
        return run_rounds(self, job, initial_arrays, resume)

    def layout_of(self, arrays: Mapping[str, NDArray[Any]]) -> Layout:
        """Return the layout of a model in this strategy: its roles, as they fit the chain.

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
            self.states = charged.over(self.states)
            log.warning(
                "privacy: what was charged until round %d counts, also where the checkpoint is "
                "older or there is none",
                charged.server_round,
            )
        if charged or resume:
            self.charges = max(charged.number if charged else 0, resume.charges if resume else 0)
            self.states = self.chain.recover(self.states)

    def _charge(self, server_round: int) -> None:
        """Make the round's charges last, before its instructions leave."""
        stages = self.chain.charged(self.states)
        if stages and self.checkpoints is not None:
            self.charges = self.checkpoints.charge(server_round, stages)

    def to_save(self) -> tuple[dict[str, State], dict[str, Any] | None]:
        """Return what a checkpoint holds besides model and history: states, and tasks under way."""
        return self.chain.saved(self.states), self.post.to_dict()

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from what `to_save` returned."""
        self.states = snapshot.states
        if (under_way := snapshot.progress["under_way"]) is not None:
            self.post.restore(under_way)

    def train_round(
        self, job: Job, server_round: int, arrays: ArrayRecord, lap: Callable[[str], None]
    ) -> Trained:
        """Train once: ask, wait, combine.

        Parameters
        ----------
        job : Job
            What the run was started with.
        server_round : int
            Counted from 1.
        arrays : ArrayRecord
            The model to train.
        lap : Callable[[str], None]
            Told the name of each part of the round when it is over.
        """
        messages = list(self.configure_train(server_round, arrays, job.train_config, job.grid))
        lap("configure")
        if self.fraction_train > 0 and (why := self.chain.unready(self.states)) is not None:
            return self._skip(server_round, why)
        if not messages and self.chain.drawer is None:
            return Trained((), ())
        ranks = self.sampling.ranks
        arrivals = self.post.exchange(
            job.grid,
            [(ranks[m.metadata.dst_node_id], m) for m in messages],
            version=server_round - 1,
            patience=self.deadline or self.timeout,
            enough=self._enough,
            on_reply=partial(self.observer.on_progress, server_round, "train"),
        )
        lap("clients")
        replies = [a.message for a in arrivals if a.message is not None]
        self._spans = {a.task.client: (a.task.sent_at, a.at) for a in arrivals}
        self._cut = sum(reply.has_content() for reply in replies) >= self._enough
        model, metrics = self.aggregate_train(server_round, replies)
        lap("aggregate")
        return Trained(messages, replies, model, metrics, self.outcome)

    def _skip(self, server_round: int, why: str) -> Trained:
        """Leave the model as it is without asking anybody to train."""
        self.outcome = Outcome(Cohort((), ()), self.states, skipped=why)
        log.warning("round %d: nobody is asked to train: %s", server_round, why)
        return Trained((), (), outcome=self.outcome)

    def _sample(
        self, kind: str, server_round: int, grid: Grid, fraction: float, minimum: int
    ) -> dict[int, int]:
        """Return the nodes to ask and their ranks, in canonical order; none of them is busy."""
        asked = {"min_available_nodes": self.min_available_nodes, f"min_{kind}_nodes": minimum}
        nodes = wait_for_nodes(grid, asked, self.timeout, self.observer.should_stop)
        self.sampling.meet(nodes)
        ranks = sorted(self.sampling.ranks[node] for node in nodes)
        if kind == "train" and (drawer := self.chain.drawer) is not None:
            drawn = drawer.participants(ranks, server_round, grid.run.run_id)
            chosen = [rank for rank in drawn if rank not in self.post.ledger.busy]
            self._enough = max(1, len(chosen))
            return {self.sampling.nodes[rank]: rank for rank in chosen}
        free = self._wait_for_free(grid, ranks, minimum)
        needed = min(max(int(len(nodes) * fraction), minimum), len(free))
        size = min(math.ceil(needed * (1 + self.over_selection)), len(free))
        self._enough = needed
        chosen = self.sampling.draw(f"{kind}/{server_round}", free, size, self.post.latencies)
        return {self.sampling.nodes[rank]: rank for rank in chosen}

    def _wait_for_free(self, grid: Grid, ranks: Sequence[int], minimum: int) -> list[int]:
        """Wait until at least `minimum` clients have no task left over from an earlier round."""
        clock = self.post.clock
        end = clock.now + self.timeout
        while True:
            busy = self.post.ledger.busy
            idle = [rank for rank in ranks if rank not in busy]
            free = clock.online(idle)
            if len(free) >= minimum:
                return free
            if clock.now >= end:
                raise TooFewReplies(
                    f"after {self.timeout:g} s {len(free)} of {len(ranks)} clients are free; at "
                    f"least {minimum} are needed (min_train_nodes, min_evaluate_nodes)"
                )
            away = set(idle) - set(free)
            self.post.receive(grid, min(end, clock.next_online(away)))

    def _assign(
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
        if self.client_api == "legacy":
            content = to_legacy_instruction(kind, arrays, config)
        else:
            content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        exchange = Exchange(kind, server_round, grid.run.run_id, self.timeout, self.window)
        told = {ROLES_KEY: model.layout.told} if model.layout.declared else {}
        self.states = self.chain.init(model.layout, self.states)
        context = RoundContext(
            server_round,
            model.layout,
            model.vector,
            grid.run.run_id,
            tuple(Sender(n, rank, f"node {rank}") for n, rank in ranks.items()),
            self.weighting,
            partial(self._ask, grid, exchange),
            carried=model.carried,
            instructions=self._instructions,
        )
        if kind == "train":
            self.states = self._with_gates(self.chain.prepare(self.states, context))
            self._charge(server_round)
            plan = self.chain.plan(self.states, context)
            context = replace(context, support=self.chain.support(self.states, context))
            if plan.items:
                told[PLAN_KEY] = plan.encode()
        if told and self.client_api == "message":
            content[QSFL_RECORD] = ConfigRecord({**told})
        return Assignment(exchange, content, model, context)

    def _address(self, assignment: Assignment, nodes: Iterable[int]) -> list[Message]:
        """Make the messages to some nodes."""
        contents, exchange = dict.fromkeys(nodes, assignment.content), assignment.exchange
        if self.client_api == "message":
            contents, self.states = self.chain.address(contents, self.states, exchange)
        if self.chain.hides and exchange.kind == "train" and contents:
            self._remember_instruction(assignment, next(iter(contents.values())))
        contents, self.states = self.chain.instruct(contents, self.states, exchange)
        ttl = max(self.timeout, 1.0)
        return [Message(c, node, exchange.kind, ttl=ttl) for node, c in contents.items()]

    def _ask(
        self, grid: Grid, exchange: Exchange, contents: Mapping[int, RecordDict]
    ) -> dict[int, tuple[Sender, RecordDict] | Rejection]:
        """Send a task to each of some nodes and wait for their answers; see `RoundContext.ask`."""
        exchange = replace(exchange, inside=True)
        told, self.states = self.chain.instruct(contents, self.states, exchange)
        ttl = max(self.timeout, 1.0)
        messages = [Message(content, node, "train", ttl=ttl) for node, content in told.items()]
        replies = collect(grid, messages, timeout=self.timeout, stop=self.observer.should_stop)
        self.asked = self.asked.plus(messages, replies)
        nodes = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        ranks = self.sampling.ranks
        ranks = {n: ranks.get(n, len(ranks) + i) for i, n in enumerate(told)}
        entries, self.states, _ = self.chain.admit(
            match(replies, Asked(nodes, ranks)), self.states, exchange
        )
        return {sender.node_id: _answer(sender, content) for sender, content in entries}

    def _remember_instruction(self, assignment: Assignment, addressed: RecordDict) -> None:
        """Keep the digest of what the clients of a round are asked, as long as it may be needed."""
        key, server_round = self.arrayrecord_key, assignment.exchange.server_round
        whole = RecordDict({**addressed, key: assignment.content[key]})
        self._instructions[server_round] = instruction_digest(whole)
        for old in [r for r in self._instructions if r < server_round - self.window]:
            del self._instructions[old]

    def _with_gates(self, states: Mapping[str, State]) -> dict[str, State]:
        """Return the states, keeping what `ask` has meanwhile done to those of the gates."""
        gates = [s.name for s in self.chain.stages if isinstance(s, MessageStage)]
        return {**states, **{name: self.states[name] for name in gates}}

    def _asked(self) -> Asked:
        nodes = {m.metadata.message_id: m.metadata.dst_node_id for m in self._sent}
        return Asked(nodes, self.sampling.ranks, self._spans, self._cut)

    def _translate(self, assignment: Assignment | None, content: RecordDict) -> RecordDict:
        if assignment is None or self.client_api == "message":
            return content
        kind, arrays = assignment.exchange.kind, assignment.model.arrays
        return from_legacy_reply(kind, content, arrays, self.arrayrecord_key)

    def _read(self, training: Assignment, sender: Sender, content: RecordDict) -> Update:
        """Read a reply to an assignment, as its client was told to make it."""
        check_willing(content)
        chain, context = self.chain, training.context
        if chain.combiner is not None and chain.hides:
            with chain.timed(chain.combiner):
                return chain.combiner.read(sender, content, context)
        own = training.model.carried
        reader = ReplyReader(context.layout, self.arrayrecord_key, self.weighted_by_key, own=own)
        if (decoder := chain.decoder) is None:
            return reader.read(sender, content)
        decode = partial(decoder.decode, context=context)
        with chain.timed(decoder):
            return replace(reader, encoding=decoder.encoding, decode=decode).read(sender, content)

    def _combine(
        self,
        training: Assignment,
        cohort: Cohort,
        admitted: Mapping[str, Measurements],
        contents: Mapping[int, RecordDict],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Run a cohort through the chain; see `aggregate_train`."""
        chain, server_round = self.chain, training.context.server_round
        try:
            outcome = aggregate(
                cohort, training.model, chain, self.states, training.context, self._fewest
            )
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
        self.states = self._with_gates(outcome.states)
        self.sampling.history = self.sampling.history.hear(self.outcome.cohort)
        for rejection in self.outcome.cohort.rejections:
            log.warning(
                "round %d: %s from %s: %s",
                server_round,
                rejection.reason,
                rejection.sender.label,
                rejection.detail,
            )
        if self.outcome.arrays is None:
            log.warning("round %d: model unchanged: %s", server_round, self.outcome.skipped)
            return None, None
        updates = self.outcome.cohort.updates
        if self.outcome.metrics is not None:
            metrics = MetricRecord({**self.outcome.metrics})
        elif self._train_metrics is not None:
            accepted = [contents[u.sender.node_id] for u in updates if u.status == "accepted"]
            metrics = own_metrics(self._train_metrics, accepted, self.weighted_by_key, server_round)
        else:
            metrics = MetricRecord({**mean_metrics([(u.weight, u.metrics) for u in updates])})
        return to_record(self.outcome.arrays), metrics


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
