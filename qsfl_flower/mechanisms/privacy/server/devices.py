"""Noise that clients add on their devices: to their gradients, or to their updates."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import ClassVar

from qsfl_flower.errors import RejectedUpdate
from qsfl_flower.mechanisms.privacy.options import ROUNDS, LocalNoise
from qsfl_flower.numerics import Layout
from qsfl_flower.plugins import Options, option
from qsfl_flower.privacy.events import REPLACE, Event
from qsfl_flower.privacy.gaussian import grid_slack
from qsfl_flower.privacy.policy import Placement, Protection
from qsfl_flower.privacy.record import RecordPrivacy
from qsfl_flower.rounds.composition import Trait
from qsfl_flower.rounds.context import Measurements, Phase, RoundContext, State, Steps
from qsfl_flower.rounds.facts import Facts, Sentences
from qsfl_flower.rounds.spending import PrivacyBudget, Spending, on_devices
from qsfl_flower.rounds.stages import CohortStage
from qsfl_flower.rounds.update import Cohort, Update
from qsfl_flower.wire import ClientPhase, PlanItem
from qsfl_flower.wire.keys import LOCAL_DP, PROTECTION, RECORD_DP


class ClientSideDP(CohortStage):
    """Common part of the placements in which noise is added on the devices.

    Every instruction counts in full for the client that gets it, whether or not it answers: what it
    sends may be seen. The reported epsilon is that of the client asked most often.
    """

    phase = Phase.ADMIT
    needs_norms = False
    blind = True
    spending: Spending
    budget: PrivacyBudget | None
    rounds: int
    placement: ClassVar[Placement]
    unit: ClassVar[str]
    """What is protected, in words."""

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # that of the parameters
        budget = on_devices(self.name, self.budget)
        self.spending = Spending(budget, partial(self._planned, self.rounds, 1))

    @abstractmethod
    def event(self, size: int) -> Event:
        """Return what one round of a model with `size` parameters costs."""

    def size(self, layout: Layout) -> int:
        """Return how many values get noise in a step."""
        return layout.size

    @abstractmethod
    def step(self, context: RoundContext) -> tuple[ClientPhase, PlanItem]:
        """Return what the mod has to do."""

    def explain(self, layout: Layout, rounds: int) -> Sentences:
        """Say what is promised to a client that trains in every round."""
        noise = self.event(self.size(layout)).noise_multiplier
        return self.spending.promise(
            self.planned(layout, rounds),
            self.unit,
            "everybody but the client itself, the server included",
            f"noise multiplier {noise:.3g} on the device, trains every round",
        )

    def planned(self, layout: Layout, rounds: int) -> list[Event]:
        """Return what so many rounds cost a client that trains in all of them."""
        return self._planned(rounds, self.size(layout))

    def _planned(self, rounds: int, size: int) -> list[Event]:
        event = self.event(size)
        return [replace(event, count=event.count * rounds)]

    def init(self, layout: Layout) -> State:
        """Start with nobody asked."""
        del layout
        return {"asked": {}, "events": []}

    def prepare(self, state: State, context: RoundContext) -> State:
        """Charge the round to those who are asked, or end the run."""
        event = self.event(self.size(context.layout))
        return self.spending.charge_asked(state, event, context)

    def client_steps(self, state: State, context: RoundContext) -> Steps:
        """Tell the clients what is promised and what they have to do for it."""
        event = self.event(self.size(context.layout))
        rounds = self.spending.rounds(state, self.rounds, context.server_round, event.count)
        offered = Protection(
            placement=self.placement,
            clip_norm=self.clip_norm,
            noise_multiplier=event.noise_multiplier,
            sampling_rate=event.sampling_rate,
            releases=event.count * rounds,
            delta=self.spending.budget.delta,
        )
        return [
            (ClientPhase.CORRECT, PlanItem(PROTECTION, offered.to_dict())),
            self.step(context),
        ]

    clip_norm: float

    def apply(
        self, cohort: Cohort, state: State, context: RoundContext
    ) -> tuple[Cohort, State, Measurements]:
        """Tell what has been spent."""
        return cohort, state, {"epsilon": self.spending.epsilon(state)}


@dataclass(frozen=True)
class _RecordNoise(Options):
    privacy: RecordPrivacy
    budget: PrivacyBudget | None = None
    _: KW_ONLY
    rounds: int = option(ROUNDS, 1, ge=1)
    public_metrics: tuple[str, ...] = ("num-examples",)


class RecordDP(ClientSideDP, _RecordNoise):
    """Record-level privacy: clients train with DP-SGD, whatever else the chain does.

    Parameters
    ----------
    privacy : RecordPrivacy
        What every client has to do at least; see `qsfl_flower.clients.PrivateTrainingClient`.
    budget : PrivacyBudget, optional
        Delta, limit, accountant, ledger.
    rounds : int
        Rounds that are planned, >= 1; told to the clients.
    public_metrics : Sequence[str]
        Metrics that clients may send besides those about their training: nothing that depends on
        what is in a record. The mod keeps all others on the device.

    Notes
    -----
    Guarantee: (epsilon, delta)-DP for adding or removing one record of a client, where the
    client's number of records is public. Against: everybody but the client itself, the server
    included; all other stages are post-processing. Trusted: the client, for its own records.

    Examples
    --------
    >>> from qsfl_flower.privacy.record import RecordPrivacy
    >>> rules = {"clip_norm": 1.0, "sampling_rate": 0.1, "steps": 10}
    >>> privacy = RecordPrivacy.within(2.0, 1e-5, rounds=50, **rules)
    >>> stage = RecordDP(privacy, PrivacyBudget(epsilon=2.0), rounds=50)
    >>> strategy = StableFedAvg(fraction_evaluate=0.0, stages=[stage])
    """

    name = RECORD_DP
    placement = "record"
    unit = "one record of a client"
    declares = frozenset({Trait.TELLS_TRAINING, Trait.COVERS_METRICS})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.clip_norm = self.privacy.clip_norm

    @property
    def facts(self) -> Facts:
        """Metrics of records stay on the device."""
        return replace(super().facts, metrics=self.public_metrics)

    def event(self, size: int) -> Event:
        """Return what the steps of one round cost a record."""
        return self.privacy.event(size)

    def size(self, layout: Layout) -> int:
        """Count layers that stay on the device too: later steps depend on them."""
        return layout.moved

    def step(self, context: RoundContext) -> tuple[ClientPhase, PlanItem]:
        """Have the mod compare what the app did with what is required."""
        required = {"public_metrics": list(self.public_metrics), **self.privacy.to_dict()}
        return ClientPhase.CORRECT, PlanItem(self.name, required)

    def apply(
        self, cohort: Cohort, state: State, context: RoundContext
    ) -> tuple[Cohort, State, Measurements]:
        """Reject replies whose client says that it did less."""

        def compare(update: Update) -> Update:
            if (difference := self.privacy.weaker(update.metrics)) is not None:
                raise RejectedUpdate("privacy-weaker-than-required", difference)
            return update

        return super().apply(cohort.each(compare), state, context)


@dataclass(frozen=True)
class _LocalNoise(LocalNoise):
    budget: PrivacyBudget | None = None
    _: KW_ONLY
    rounds: int = option(ROUNDS, 1, ge=1)


class LocalDP(ClientSideDP, _LocalNoise):
    """Local privacy: every client adds all of the noise to its own update.

    Parameters
    ----------
    clip_norm : float
        Bound C on the L2 norm of an update, > 0.
    noise_multiplier : float
        Standard deviation of the noise over the sensitivity 2 C, > 0: any two updates may have to
        look alike.
    budget : PrivacyBudget, optional
        Delta, limit, accountant, ledger.
    rounds : int
        Rounds that are planned, >= 1; told to the clients.

    Notes
    -----
    Guarantee: (epsilon, delta)-DP for replacing all of a client's data. Against: everybody, the
    server included, without secure aggregation. Cost: the mean over n clients carries noise of
    2 C z / sqrt(n) per coordinate, sqrt(n) times more than central noise; at epsilon = 1 only very
    large federations learn anything.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> noisy = LocalDP(clip_norm=1.0, noise_multiplier=2.0, budget=PrivacyBudget(), rounds=1)
    >>> outcome = LocalFederation().run([noisy])
    >>> outcome.rounds[-1].epsilon > 0
    True
    """

    name = LOCAL_DP
    placement = "local"
    unit = "one client with all its data"
    declares = frozenset({Trait.NOISES_UPDATES, Trait.OUTGROWS_BOUND, Trait.COVERS_METRICS})

    def event(self, size: int) -> Event:
        """Return what one noisy update costs its client."""
        return Event(self.noise_multiplier, 1.0, 1, grid_slack(size), REPLACE)

    def step(self, context: RoundContext) -> tuple[ClientPhase, PlanItem]:
        """Have the mod clip and add noise."""
        noise = LocalNoise(self.clip_norm, self.noise_multiplier)
        return ClientPhase.NOISE, PlanItem(self.name, noise.to_dict())
