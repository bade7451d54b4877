"""Differential privacy without a trusted server: noise in shares, added before the secure sum."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import CompositionError, ConfigError
from qsfl_flower.mechanisms.privacy.options import COHORT, ROUNDS
from qsfl_flower.moved import renamed
from qsfl_flower.numerics import Layout, measure
from qsfl_flower.plugins import Options, option
from qsfl_flower.privacy.distributed import NoiseShare
from qsfl_flower.privacy.events import ZERO, Event
from qsfl_flower.privacy.policy import Protection
from qsfl_flower.privacy.record import RecordBatch
from qsfl_flower.rounds.composition import Trait
from qsfl_flower.rounds.context import Measurements, Phase, RoundContext, State, Steps
from qsfl_flower.rounds.facts import HiddenSum, Sentences
from qsfl_flower.rounds.spending import PrivacyBudget, Spending, on_devices
from qsfl_flower.rounds.stages import Stage, VectorStage
from qsfl_flower.wire import ClientPhase, PlanItem
from qsfl_flower.wire.keys import DISTRIBUTED_DP, PROTECTION

_EXACT = 1 << 53
"""Integers below it survive the way through float64."""


@dataclass(frozen=True)
class _SharedNoise(Options):
    noise_multiplier: float = option("Noise of the sum over the sensitivity.", gt=0)
    expected_cohort: float = option(COHORT, gt=0)
    budget: PrivacyBudget | None = None
    _: KW_ONLY
    batch: RecordBatch | None = None
    non_contributors: int = option("Clients that may add no noise.", 0, ge=0)
    rounds: int = option(ROUNDS, 1, ge=1)


@renamed(denominator="expected_cohort")
class DistributedDP(VectorStage, _SharedNoise):
    r"""Client-level or record-level privacy against the server too.

    .. math:: \bar\Delta = \frac{1}{n} \sum_{i \in S} (\Delta_i + \xi_i), \qquad
              \xi_i \sim \mathcal N_{\mathbb Z}\Big(0, \frac{(z C)^2}{h - f}\Big)

    Every client adds its share of discrete Gaussian noise to its clipped update on the integer grid
    of the secure sum. A share is sized for the fewest contributions h that the sum may have (its
    `min_clients`), f of which may come without noise, so that whatever is opened carries at
    least the noise multiplier z. All clients count alike, and n is a constant.

    Parameters
    ----------
    noise_multiplier : float
        Promised standard deviation z of the noise of the sum over the sensitivity C, > 0.
    expected_cohort : float
        n, > 0: clients that a round is expected to have; with `batch` records that all of their
        batches are expected to have. A constant, never what was counted.
    budget : PrivacyBudget, optional
        Delta, limit, accountant, ledger.
    batch : RecordBatch, optional
        Protect single records: clients send sums of clipped gradients of a Poisson batch
        (`qsfl_flower.clients.GradientSumClient`), and one round is one step of DP-SGD over all
        records. Without it whole clients are protected, and C is their clip norm.
    non_contributors : int
        f, >= 0: clients that may leave the noise out, or tell the server theirs.
    rounds : int
        Rounds that are planned, >= 1; told to the clients.

    Notes
    -----
    Guarantee: (epsilon, delta)-DP for a client's data (its update becoming zero), or for adding or
    removing one record, for everything that leaves the clients. Against: the server, up to
    f clients in league with it, and whoever sees the models. Trusted: the secure sum, and the other
    h - f clients to add what they are asked for. The server has to ask everybody for the same
    noise; clients that insist on a minimum with `privacy_mod` refuse less, whatever it asks. How
    many records a client has counts as public; metrics of training are not sent. Every round counts
    in full for the clients that are asked, since the server knows them. Only the sum is protected:
    a rule that opens more, as `SecureKrum` opens distances, is refused.

    A client cannot move the step further than its bound and the room for the noise: a sum longer
    than honest clients make it (with probability below 1e-12, see `NoiseShare.reach`) leaves the
    model as it is. Who made it long stays hidden.

    References
    ----------
    P. Kairouz, Z. Liu, T. Steinke, "The distributed discrete Gaussian mechanism for federated
    learning with secure aggregation", 2021. arXiv:2102.06387.

    Examples
    --------
    >>> hidden = SecureSum(
    ...     clip_norm=1.0,
    ...     committee=Committee(5, 3, min_clients=80),
    ...     bound=30.0,  # room for the noise
    ...     weighted=False,
    ...     metrics=(),
    ... )
    >>> noise = DistributedDP(8.0, expected_cohort=100, non_contributors=10, rounds=100)
    """

    name = DISTRIBUTED_DP
    phase = Phase.PRIVATIZE
    declares = frozenset({Trait.SHARES_NOISE})
    spending: Spending

    def __post_init__(self) -> None:
        super().__post_init__()
        self.denominator = self.expected_cohort
        rate = 1.0 if self.batch is None else self.batch.sampling_rate
        planned = [Event(self.noise_multiplier, rate, self.rounds)]
        self.spending = Spending(on_devices(self.name, self.budget), lambda: planned)
        self._sum: HiddenSum | None = None
        self._summed_by = ""
        self._coordinates: Callable[[int], int] = int
        self._bound = math.nan

    def check(self, stages: Sequence[Stage]) -> None:
        """Refuse chains in which more than a noisy sum of bounded vectors would be seen."""
        name, opened = _sum_of(stages)
        if opened is None:
            raise CompositionError(
                "distributed_dp: a share of the noise alone protects no client, only the sum of "
                "the shares does; add secure_sum or masked_sum, which show nothing but the sum, or "
                "use central_dp"
            )
        if opened.metrics:
            raise CompositionError(
                f"distributed_dp: {name} would open sums of {opened.metrics[0]} "
                "without noise; set its metrics to [] and evaluate on the server (evaluate_fn)"
            )
        if not opened.alike:
            raise CompositionError(
                "distributed_dp: all clients must count alike, or their noise does not, and norms "
                f"must stay closed; set weighted and enforce_norm of {name} to false"
            )
        for stage in stages:
            if self.batch and Trait.TELLS_TRAINING in stage.traits:
                raise CompositionError(
                    f"distributed_dp: {stage.name} has the clients add all of the noise to their "
                    "records already; choose one"
                )
            if self.batch and stage.facts.coordinates is not None:
                raise CompositionError(
                    f"distributed_dp: {stage.name} scales or keeps what it does not send, so that "
                    "one record would count for more than its clip norm; leave it out, or protect "
                    "whole clients"
                )
        if not _bounds(stages):
            raise CompositionError(
                "distributed_dp: without a bound on one client's norm no amount of noise is "
                "enough; add clip"
            )

    def bind(self, stages: Sequence[Stage]) -> Self:
        """Take the bounds and the sum from the other stages."""
        bound = super().bind(stages)
        bound._summed_by, bound._sum = _sum_of(stages)
        bound._bound = min(_bounds(stages))
        masks = (stage.facts.coordinates for stage in stages)
        bound._coordinates = next((count for count in masks if count is not None), int)
        bound._check_room(bound._share(1, 0.0, 2))
        return bound

    def explain(self, layout: Layout, rounds: int) -> Sentences:
        """Say what is promised to a client that is asked in every round."""
        share = self._planned_share(layout)
        return self.spending.promise(
            self.planned(layout, rounds),
            "one client with all its data" if self.batch is None else "one record of a client",
            "everybody but the client itself, the server included",
            f"noise multiplier {self.noise_multiplier:.3g} in shares beneath the secure sum, "
            f"as long as {share.honest} of the clients in a sum add theirs",
        )

    def planned(self, layout: Layout, rounds: int) -> list[Event]:
        """Return what so many rounds cost a client that is asked in all of them."""
        return [replace(self._event(self._planned_share(layout)), count=rounds)]

    def _planned_share(self, layout: Layout) -> NoiseShare:
        return self._share(self._coordinates(layout.size), 0.0, 2)

    def _event(self, share: NoiseShare) -> Event:
        if self.batch is None:
            return share.event(relation=ZERO)
        return share.event(self.batch.sampling_rate)

    def init(self, layout: Layout) -> State:
        """Start with nobody asked; see `RecordBatch.check_layout`."""
        if self.batch is not None:
            self.batch.check_layout(layout)
        return {"asked": {}, "events": []}

    def prepare(self, state: State, context: RoundContext) -> State:
        """Charge the round to those who are asked, or end the run."""
        share = self._share_of(context)
        self._check_room(share)
        return self.spending.charge_asked(state, self._event(share), context)

    def client_steps(self, state: State, context: RoundContext) -> Steps:
        """Tell the clients what is promised, and which share of the noise they have to add."""
        offered = Protection(
            placement="distributed" if self.batch is None else "distributed-record",
            clip_norm=self._bound if self.batch is None else self.batch.clip_norm,
            noise_multiplier=self.noise_multiplier,
            sampling_rate=1.0 if self.batch is None else self.batch.sampling_rate,
            releases=self.spending.rounds(state, self.rounds, context.server_round),
            delta=self.spending.budget.delta,
        )
        told = {
            "share": self._share_of(context).to_dict(),
            "bound": self._bound,
            "batch": None if self.batch is None else self.batch.to_dict(),
        }
        return [
            (ClientPhase.CORRECT, PlanItem(PROTECTION, offered.to_dict())),
            (ClientPhase.NOISE, PlanItem(self.name, told)),
        ]

    def apply(
        self, vector: NDArray[np.float64], state: State, context: RoundContext
    ) -> tuple[NDArray[np.float64], State, Measurements]:
        """Tell what has been spent; the noise is in the sum already."""
        share = self._share_of(context)
        std = share.std(share.honest) / self.expected_cohort
        told = {
            "epsilon": self.spending.epsilon(state),
            "noise_multiplier": self.noise_multiplier,
            "noise_std": std,
            "expected_noise_norm": std * math.sqrt(share.size),
            "sensitivity": share.clip_norm / self.expected_cohort,
        }
        return vector, state, told

    def limit(self, clients: int, context: RoundContext) -> float:
        """Return what clients within their bound stay below, with the noise of all of them."""
        return self._share_of(context).reach(self._bound, clients) / self.expected_cohort

    def noise_std(self, clients: int, context: RoundContext) -> float:
        """Return that of all shares."""
        return self._share_of(context).std(clients)

    @property
    def _known_sum(self) -> HiddenSum:
        if self._sum is None:
            raise ConfigError("distributed_dp is used outside a chain")
        return self._sum

    def _share_of(self, context: RoundContext) -> NoiseShare:
        size = self._coordinates(context.layout.size)
        rounding = 0.0
        if self.batch is not None:
            # The app returns model minus sum, rounded to the model's type: an error of at most half
            # a unit in the last place on either side of two neighbours.
            layout = context.layout
            rows = zip(layout.names, layout.dtypes, strict=True)
            unit = max(float(np.finfo(t).eps) for name, t in rows if name in layout.slices)
            rounding = 1.01 * unit * (measure(context.model).norm + self.batch.sum_norm)
        return self._share(size, rounding, len(context.senders))

    def _share(self, size: int, rounding: float, clients: int) -> NoiseShare:
        summed = self._known_sum
        return NoiseShare(
            clip_norm=(self._bound if self.batch is None else self.batch.clip_norm) + rounding,
            noise_multiplier=self.noise_multiplier,
            fewest=summed.min_clients,
            non_contributors=self.non_contributors,
            size=size,
            resolution=2.0 ** -summed.bits(clients),
        )

    def _check_room(self, share: NoiseShare) -> None:
        """Refuse sums in which an update with its noise has no room."""
        summed, largest = self._known_sum, share.largest(self._bound)
        if (least := largest * share.resolution) > summed.bound:
            raise CompositionError(
                f"distributed_dp: a coordinate with its noise may reach {least:.4g}, the bound of "
                f"{self._summed_by} is {summed.bound:g}; set bound to {1.01 * least:.4g} or more, "
                "or lower the clip norm or the noise"
            )
        if largest >> share.shift >= _EXACT:
            raise CompositionError(
                f"distributed_dp: updates of norm {self._bound:g} in steps of {share.grid:.3g} do "
                "not pass through float64 exactly; use fewer bits or a smaller clip norm"
            )


def _sum_of(stages: Sequence[Stage]) -> tuple[str, HiddenSum | None]:
    """Return what is opened of hidden updates, and the stage that opens it."""
    opened = ((stage.name, stage.facts.sum) for stage in stages)
    return next(((name, one) for name, one in opened if one is not None), ("", None))


def _bounds(stages: Sequence[Stage]) -> list[float]:
    """Return all bounds on the norm of an update."""
    norms = (stage.facts.clip_norm for stage in stages)
    return [norm({}) for norm in norms if norm is not None]
