"""The strategy's half of private evaluation: which stages sum, and what their sums say."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from qsfl_flower.errors import BudgetExceeded, CompositionError, ConfigError
from qsfl_flower.mechanisms.bounds.server import Clip
from qsfl_flower.mechanisms.evaluation.core import (
    ROUNDING,
    Metric,
    Value,
    batch_of,
    norm_of,
    possible,
    read,
    size_of,
)
from qsfl_flower.mechanisms.evaluation.options import AskedOptions
from qsfl_flower.mechanisms.masked_sum.server import MaskedSum
from qsfl_flower.mechanisms.privacy.server import CentralDP, DistributedDP
from qsfl_flower.mechanisms.secure_sum.options import SharingOptions
from qsfl_flower.mechanisms.secure_sum.server import Committee, SecureSum
from qsfl_flower.numerics import Layout
from qsfl_flower.plugins import option
from qsfl_flower.rounds.chain import Chain
from qsfl_flower.rounds.engine import Engine
from qsfl_flower.rounds.facts import Sentences, Topic
from qsfl_flower.rounds.session import Released, Session
from qsfl_flower.rounds.spending import PrivacyBudget
from qsfl_flower.rounds.stages import Stage
from qsfl_flower.traits import Trait
from qsfl_flower.wire import ROLES_KEY, PlanItem, from_record
from qsfl_flower.wire.keys import COUNTED, MEASURE_STEP
from qsfl_flower.wire.kinds import Purpose

log = logging.getLogger("qsfl_flower")

_BITS = 24
NOISY = frozenset({Trait.COVERS_METRICS, Trait.SHARES_NOISE, Trait.PROTECTS_CLIENTS})
"""Traits of stages beside which exact sums of metrics are refused."""
MetricsFunction = Callable[[list[RecordDict], str], MetricRecord]

COMMON = tuple(
    Metric(name=name, high=high)
    for names, high in (
        (("loss", "eval_loss", "eval-loss", "test_loss"), 10.0),
        (("accuracy", "acc", "eval_accuracy", "eval-accuracy", "eval_acc", "test_accuracy"), 1.0),
    )
    for name in names
)
"""Means by the names that apps commonly give them; those that no client reports are left out."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(AskedOptions):
    """Evaluate on the clients without seeing one: declared metrics, bounded, summed unseen.

    Parameters
    ----------
    metrics : sequence of Metric
        What is summed of what the app's ``evaluate`` reports; all else stays on the devices. By
        default `COMMON`.
    noise_multiplier : float, optional
        Standard deviation of the noise of each sum over what one client can add; None: exact sums,
        over the same clients in every round.
    budget : PrivacyBudget, optional
        Delta, limit and ledger of the evaluation: an account of its own in the run. When it is
        spent, evaluation ends and training goes on.
    rounds : int
        Evaluations that are planned, >= 1; the devices are told.
    every : int
        Evaluate after every so many rounds, >= 1.
    fraction : float
        Share of the connected clients that evaluate, in (0, 1]; exact hidden sums need all. The
        strategy's `fraction_evaluate` is not looked at.
    min_clients : int, optional
        Fewest clients in a sum, >= 2; by default as many as in sums of training.
    unit : str
        ``"client"``: a client with all its data is protected. ``"record"``: one record, with far
        less noise; the app is believed that a record counts at most once, and has values from
        `Metric.low` to `Metric.high` in means. For noise in shares.
    non_contributors : int
        As for `DistributedDP`.
    level : float
        Probability with which each interval covers the number without noise, in (0, 1).

    Notes
    -----
    Who sees what: the server learns, for at least `min_clients` clients together, the sums of the
    declared metrics, and who took part. Without noise two sums over different clients would tell
    about their difference, so devices refuse that. What stays: a made-up model shows in a sum what
    it was made to show; only noise bounds that.

    Examples
    --------
    >>> told = Evaluation(metrics=[Metric(name="accuracy"), Metric(name="loss", high=10.0)])
    >>> strategy = StableFedAvg(stages=[Clip(1.0)], evaluation=told)
    """

    metrics: tuple[Metric, ...] = COMMON
    noise_multiplier: float | None = option("Noise of a sum over a client's part.", None, gt=0)
    budget: PrivacyBudget | None = None
    rounds: int = option("Evaluations that are planned; told to the clients.", 1, ge=1)

    def __post_init__(self) -> None:
        if strangers := [one for one in self.metrics if not isinstance(one, Metric)]:
            raise ConfigError(
                f"evaluation: metrics hold {strangers[0]!r:.60}; each must be a Metric(name=...)"
            )
        super().__post_init__()
        names = [metric.name for metric in self.metrics]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"evaluation: metrics {names} must be distinct, and at least one")
        if self.budget is not None and self.noise_multiplier is None:
            raise ConfigError("evaluation: a budget needs noise; set noise_multiplier")
        if self.unit == "record":
            batch_of(self.metrics)
        grouped = [metric.name for metric in self.metrics if metric.by is not None]
        if grouped and self.noise_multiplier is None:
            raise ConfigError(
                f"evaluation: {grouped[0]!r} is summed by group, and a group may be one client; "
                "set noise_multiplier, or leave by and groups out"
            )

    @property
    def bound(self) -> float:
        """Largest norm of a client's vector: one client moves a sum by no more."""
        return norm_of(self.metrics)

    def stages(self, chain: Chain) -> list[Stage]:
        """Return the stages that sum, as they fit a chain of training.

        Raises
        ------
        CompositionError
            If the chain promises that nothing leaves the devices without noise, and there is none.
        """
        self._check(chain)
        noisy = next((s.name for s in chain.stages if s.traits & NOISY), None)
        if noisy is not None and self.noise_multiplier is None:
            raise CompositionError(
                f"evaluation: {noisy} promises that what the clients' data show is noisy, and "
                "exact sums of metrics are not; set evaluation's noise_multiplier, or leave it out "
                "and evaluate on the server (evaluate_fn)"
            )
        combiner, noise = chain.combiner, []
        hides = combiner is not None and combiner.hides
        roster = any(stage.facts.roster for stage in chain.stages)
        if not hides and self.unit == "client" and (noisy is None or noisy == CentralDP.name):
            if self.noise_multiplier is None:
                return [Clip(self._clip_norm)]
            central = CentralDP(self.noise_multiplier, 1.0, budget=self.budget, rounds=self.rounds)
            return [Clip(self._clip_norm), central]
        if not roster:
            raise CompositionError(
                "evaluation: its sums are hidden by keys; add stage authenticate: "
                "Authenticate(credentials)"
            )
        if self.noise_multiplier is not None:
            noise = [
                DistributedDP(
                    self.noise_multiplier,
                    1.0,
                    self.budget,
                    batch=batch_of(self.metrics) if self.unit == "record" else None,
                    non_contributors=self.non_contributors,
                    rounds=self.rounds,
                )
            ]
        if isinstance(combiner, MaskedSum):
            return [Clip(self._clip_norm), self._masked(combiner), *noise]
        return [self._shared(combiner), *noise]

    def _masked(self, like: MaskedSum) -> MaskedSum:
        own = {f.name: getattr(like, f.name) for f in fields(like)}
        least = self.min_clients or like.min_clients
        own |= {"bound": self._room(least), "min_clients": least, "metrics": ()}
        return MaskedSum(**own)

    def _shared(self, like: object) -> SecureSum:
        sizes, known = Committee(), {}
        if isinstance(like, SharingOptions):
            sizes, known = like.committee, {"clock": like.clock, "weighted_by": like.weighted_by}  # type: ignore[attr-defined]
        least = self.min_clients or sizes.min_clients
        own = {f.name: getattr(sizes, f.name) for f in fields(sizes)}
        return SecureSum(
            self._clip_norm,
            Committee(**{**own, "min_clients": least}),
            bound=None if self.noise_multiplier is None else self._room(least),
            bits=_BITS,
            weighted=False,
            metrics=(),
            **known,
        )

    @property
    def _clip_norm(self) -> float:
        return self.bound * ROUNDING

    def _room(self, least: int) -> float:
        """Return the largest coordinate with the noise of one client."""
        honest = max(1, least - self.non_contributors)
        moved = batch_of(self.metrics).clip_norm if self.unit == "record" else self._clip_norm
        noise = (self.noise_multiplier or 0.0) * moved / math.sqrt(honest)
        return self._clip_norm if not noise else 1.05 * (self._clip_norm + 40 * noise)

    def _check(self, chain: Chain) -> None:
        """Refuse exact sums over clients that change from round to round."""
        if self.noise_multiplier is None and self.fraction < 1 and chain.hides:
            raise CompositionError(
                f"evaluation: fraction is {self.fraction:g}, so that other clients are summed in "
                "every round, and the difference of two exact sums tells about few; set it to 1, "
                "or set noise_multiplier"
            )


class Evaluator:
    """One evaluation after another, through a session of a strategy's engine.

    Parameters
    ----------
    evaluation : Evaluation
        What is asked.
    engine : Engine
        Of the strategy.
    own : Callable, optional
        The user's function of the replies; it has to be linear where these are hidden.
    """

    def __init__(
        self, evaluation: Evaluation, engine: Engine, own: MetricsFunction | None = None
    ) -> None:
        self.evaluation = evaluation
        stages = evaluation.stages(engine.chain)
        self.session = Session(engine, Purpose.EVALUATE, stages)
        self._own, self._over = own, False
        names = [m.name for m in evaluation.metrics if m.kind == "mean" and m.by is None]
        if own is not None and not is_linear(own, names, engine.names.weighted_by):
            raise CompositionError(
                "evaluate_metrics_aggr_fn: it must be a weighted mean of the declared metrics "
                f"({', '.join(names) or 'there is no mean'}), since the server sees sums of them "
                "alone; leave it out, or compute what it computes from the released numbers"
            )

    def open(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return the instructions to evaluate; none if this is no round for it."""
        asked, engine = self.evaluation, self.session.engine
        if self._over or server_round % asked.every:
            return []
        layout = engine.layout_of(from_record(arrays))
        told = {ROLES_KEY: layout.told} if layout.declared else {}
        config = ConfigRecord({**config, "server-round": server_round})
        content = RecordDict({engine.names.arrays: arrays, engine.names.config: config})
        chain, size = self.session.inner.chain, size_of(asked.metrics)
        source = PlanItem(
            MEASURE_STEP,
            {
                "metrics": [metric.to_dict() for metric in asked.metrics],
                "size": size,
                "unit": asked.unit,
                "weighted_by": getattr(chain.combiner, "weighted_by", engine.names.weighted_by),
            },
        )
        try:
            messages = self.session.open(
                grid, server_round, source, size, content, told, asked.fraction
            )
            if not messages:
                self.close(server_round, [])
            return messages
        except BudgetExceeded as error:
            self._over = True
            log.warning(
                "round %d: the clients evaluate no more: %s; training goes on", server_round, error
            )
            return []

    def close(self, server_round: int, replies: Sequence[Message]) -> MetricRecord | None:
        """Return what the sums say; None if nothing was opened."""
        asked, names = self.evaluation, self.session.engine.names
        released = self.session.close(server_round, replies)
        self.session.engine.beside["evaluation"] = _measured(released)
        if released.sums is None:
            if released.rejected and {*released.rejected} <= {"client-error"}:
                self._over = True
                log.warning(
                    "round %d: no client can evaluate, and none is asked again: does the app have "
                    "@app.evaluate(), and what it needs? (evaluation=None asks nobody)",
                    server_round,
                )
            return None
        sums = released.sums
        if released.std == 0:
            grid = math.ldexp(1.0, _BITS)
            sums = (sums * grid).round() / grid
        # Noise is beyond eight standard deviations with probability below 1e-15.
        slack = 8 * released.std + released.clients * math.ldexp(1.0, -16)
        if (name := possible(asked.metrics, sums, released.clients, slack)) is not None:
            log.warning(
                "round %d: evaluation: %d clients within their bounds cannot have such sums of "
                "%r: one went beyond, and nothing is told; who it is stays hidden",
                server_round,
                released.clients,
                name,
            )
            return None
        told: dict[str, Value] = read(asked.metrics, sums, released.std, asked.level)
        if self._own is not None:
            known = MetricRecord({**told, names.weighted_by: float(released.clients)})
            return self._own([RecordDict({"metrics": known})], names.weighted_by)
        return MetricRecord({**told})

    def explain(self, rounds: int) -> Sentences:
        """Say what is opened of evaluation, and what it costs."""
        asked = self.evaluation
        count = max(1, rounds // asked.every)
        names = ", ".join(f"{m.name} ({m.kind})" for m in asked.metrics)
        size = size_of(asked.metrics)
        layout = Layout.of({COUNTED: np.zeros(size)})
        told: dict[Topic, list[str]] = {
            Topic.SERVER: [
                f"of evaluation on the clients, {count} times: sums of {names}, {size} numbers"
                + ("" if asked.noise_multiplier else ", exact, over the same clients each time")
            ],
            Topic.LIARS: [
                "evaluation: a client counts for no more than the declared bounds: its own mods "
                "see to that; sums that so many clients cannot have are not used"
            ],
        }
        for stage in self.session.inner.chain.stages:
            if stage.spending is not None:
                for sentence in stage.explain(layout, count).get(Topic.PRIVACY, ()):
                    told.setdefault(Topic.PRIVACY, []).append(f"evaluation, besides: {sentence}")
        return told


def _measured(released: Released) -> Mapping[str, float]:
    """Return how many clients were in a sum, and what was spent."""
    told = {"clients": float(released.clients)}
    if released.epsilon is not None:
        told |= {"epsilon": released.epsilon, "noise_std": released.std}
    return told


def is_linear(function: MetricsFunction, names: Sequence[str], weighted_by: str) -> bool:
    """Return whether a function of replies is a weighted mean: the same of their mean alone.

    Examples
    --------
    >>> from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
    >>> is_linear(aggregate_metricrecords, ["accuracy"], "num-examples")
    True
    """
    rows = [(10.0, 0.25), (30.0, 0.5), (60.0, 1.0)]
    total = sum(weight for weight, _ in rows)

    def reply(weight: float, value: float) -> RecordDict:
        told: dict[str, Any] = {name: value / (i + 1) for i, name in enumerate(names)}
        return RecordDict({"metrics": MetricRecord({**told, weighted_by: weight})})

    try:
        apart = function([reply(*row) for row in rows], weighted_by)
        mean = sum(weight * value for weight, value in rows) / total
        together = function([reply(total, mean)], weighted_by)
        return apart.keys() == together.keys() and all(
            isinstance(one, int | float) and math.isclose(one, float(together[name]), rel_tol=1e-9)  # type: ignore[arg-type]
            for name, one in apart.items()
            if name != weighted_by
        )
    except Exception:
        return False
