"""The base strategy: Flower's FedAvg, made stable, validating and reproducible."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result
from numpy.typing import NDArray

from qsfl_flower.asynchrony import Clock, Selection, WallClock
from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.bounds.server import Validate
from qsfl_flower.mechanisms.evaluation.server import Evaluation, Evaluator
from qsfl_flower.numerics import Layout, Monitor, Reaction
from qsfl_flower.rounds.aggregate import Outcome
from qsfl_flower.rounds.chain import Chain
from qsfl_flower.rounds.checkpoint import CheckpointStore, Snapshot
from qsfl_flower.rounds.context import State
from qsfl_flower.rounds.engine import Engine, Names
from qsfl_flower.rounds.evaluation import MetricsFunction
from qsfl_flower.rounds.guard import Guard
from qsfl_flower.rounds.loop import run_rounds
from qsfl_flower.rounds.post import Post
from qsfl_flower.rounds.record import RoundLog, RunObserver
from qsfl_flower.rounds.record import log as flower_log
from qsfl_flower.rounds.sampling import Sampling, Wanted
from qsfl_flower.rounds.stages import Stage
from qsfl_flower.rounds.synchronous import SynchronousRounds
from qsfl_flower.rounds.training import Job, Rounds
from qsfl_flower.rounds.update import Weighting
from qsfl_flower.strategies.checks import (
    arguments_of,
    check_numbers,
    refuse_unknown,
    refuse_wrapper,
)


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
    evaluation : Evaluation, optional
        Sum declared metrics of the clients' evaluation unseen, instead of averaging what single
        clients report.
    roles : Mapping[str, str], optional
        What becomes of single arrays of the model, by name: ``"trained"``, ``"frozen"``,
        ``"buffer"``, ``"local"`` or ``"tied:NAME"``; `qsfl_flower.clients.roles_of` finds them for
        a torch module. By default floats are trained and integers are buffers, and floats with
        the names of normalization statistics (``running_mean``, ``running_var``) are buffers too.
    **unknown
        Refused: with where it belongs, if it is an argument of a stage that hides updates.

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
        evaluation: Evaluation | None = None,
        roles: Mapping[str, str] | None = None,
        **unknown: object,
    ) -> None:
        refuse_unknown(self, unknown)
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
        monitor = monitor or Monitor()
        if monitor.reactions:
            stages = (*stages, Guard())
        if Reaction.TIGHTEN_STALENESS in monitor.reactions and not self.asynchronous:
            raise ConfigError(
                "monitor: synchronous rounds have no staleness to tighten; allowed reactions: "
                + ", ".join(r for r in Reaction if r is not Reaction.TIGHTEN_STALENESS)
            )
        arguments = arguments_of(
            selection,
            own_metrics=train_metrics_aggr_fn is not None,
            legacy=client_api == "legacy",
            fraction_evaluate=0.0 if evaluation else fraction_evaluate,
            over_selection=over_selection,
            asynchronous=self.asynchronous,
        )
        chain, observer = Chain(stages, arguments), observer or RoundLog()
        weighting = Weighting(max_num_examples, max_weight_ratio, denominator=chain.denominator)
        if chain.drawer is None and not self.asynchronous:
            self.min_train_nodes = max(self.min_train_nodes, chain.least_clients(weighting))
        self.engine = Engine(
            chain,
            weighting,
            Names(arrayrecord_key, configrecord_key, weighted_by_key, client_api),
            Sampling(selection, seed),
            Post(clock or WallClock(), observer.should_stop),
            observer,
            monitor,
            checkpoints,
            roles,
            train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn,
            proximal_mu=proximal_mu,
            over_selection=over_selection,
            deadline=deadline,
            # Whether a round counts must not depend on who was drawn, or amplification does not
            # hold.
            fewest=min_replies if chain.drawer is None else 0,
            max_failed_rounds=max_failed_rounds,
            overlapping=self.asynchronous,
        )
        self.rounds: Rounds = SynchronousRounds(self.engine, self)
        self.evaluator: Evaluator | None = None
        if evaluation is not None:
            self.evaluator = Evaluator(evaluation, self.engine, evaluate_metrics_aggr_fn)

    @property
    def chain(self) -> Chain:
        """The stages, bound to each other."""
        return self.engine.chain

    @property
    def weighting(self) -> Weighting:
        """How claimed sample counts become weights."""
        return self.engine.weighting

    @property
    def observer(self) -> RunObserver:
        """Who is told about the run."""
        return self.engine.observer

    @property
    def checkpoints(self) -> CheckpointStore | None:
        """Where the run's checkpoints are."""
        return self.engine.checkpoints

    @property
    def states(self) -> Mapping[str, State]:
        """The states of the stages, by name."""
        return self.engine.states

    @property
    def outcome(self) -> Outcome | None:
        """What the last round of training led to."""
        return self.engine.outcome

    def layout_of(self, arrays: Mapping[str, NDArray[Any]]) -> Layout:
        """Return the layout of a model in this strategy, see `Engine.layout_of`."""
        return self.engine.layout_of(arrays)

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
        if self.fraction_train == 0.0:
            return []
        wanted = self._wanted(self.fraction_train, self.min_train_nodes)
        return self.engine.open("train", server_round, arrays, config, grid, wanted).messages

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample nodes and build their instructions; see Flower's ``Strategy``."""
        if self.evaluator is not None:
            return self.evaluator.open(server_round, arrays, config, grid)
        if self.fraction_evaluate == 0.0:
            return []
        wanted = self._wanted(self.fraction_evaluate, self.min_evaluate_nodes)
        return self.engine.open("evaluate", server_round, arrays, config, grid, wanted).messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine the replies; the details are in `outcome` afterwards.

        Returns
        -------
        tuple[ArrayRecord or None, MetricRecord or None]
            The next model and the mean metrics, or None and None if the round is skipped.
        """
        return self.engine.close_training(server_round, replies)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the clients' evaluation metrics with bounded weights, or read their sums."""
        if self.evaluator is not None:
            return self.evaluator.close(server_round, [*replies])
        return self.engine.close_evaluation(server_round, replies)

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
        self.engine.timeout = timeout
        self.summary()
        job = Job(
            grid,
            num_rounds,
            train_config or ConfigRecord(),
            evaluate_config or ConfigRecord(),
            evaluate_fn,
        )
        return run_rounds(self.rounds, job, initial_arrays, resume)

    def _wanted(self, fraction: float, minimum: int) -> Wanted:
        return Wanted(fraction, minimum, self.min_available_nodes)
