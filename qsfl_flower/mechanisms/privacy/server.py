"""Differential privacy in the chain: stages for noise on the server, on clients and on records."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError, RejectedUpdate
from qsfl_flower.numerics import Layout, clip_scales
from qsfl_flower.privacy.clipping import AdaptiveClip as AdaptiveParameters
from qsfl_flower.privacy.events import REPLACE, Event
from qsfl_flower.privacy.gaussian import add_noise, grid_slack
from qsfl_flower.privacy.policy import Protection
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.privacy.record import RecordPrivacy
from qsfl_flower.privacy.schedule import NoiseSchedule
from qsfl_flower.privacy.sensitivity import Release, Sensitivity, sensitivity
from qsfl_flower.rounds.composition import Trait
from qsfl_flower.rounds.context import Measurements, Phase, RoundContext, State, Steps
from qsfl_flower.rounds.facts import Facts, Sentences
from qsfl_flower.rounds.spending import PrivacyBudget, Spending, on_devices
from qsfl_flower.rounds.stages import CohortStage, CombineStage, DecodeStage, Stage, VectorStage
from qsfl_flower.rounds.update import Cohort, Update
from qsfl_flower.wire import ClientPhase, PlanItem
from qsfl_flower.wire.keys import PROTECTION


class AdaptiveClip(CohortStage):
    """Clip to a norm that follows a quantile of the clients' norms, learnt privately.

    For use with `CentralDP`, which pays for it out of its own noise multiplier.

    Parameters
    ----------
    parameters : qsfl_flower.privacy.clipping.AdaptiveClip
        Start, quantile, rate, and noise on the bits.
    expected_cohort : float
        What the noisy count is divided by, > 0.
    seed : int, optional
        Public seed of the noise, for tests and marked simulations only: it protects nobody.

    Notes
    -----
    Who sees what: the server sees single updates and their norms; only noisy counts move the norm.

    Examples
    --------
    >>> from qsfl_flower.privacy import clipping
    >>> median = clipping.AdaptiveClip(initial=1.0, quantile=0.5, bit_noise=5.0)
    >>> stages = [AdaptiveClip(median, expected_cohort=100), CentralDP(1.0, expected_cohort=100)]
    >>> strategy = StableFedAvg(fraction_evaluate=0.0, stages=stages)
    """

    name = "adaptive-clip"
    phase = Phase.BOUND
    declares = frozenset({Trait.SPENDS_ON_CLIENTS})

    def __init__(
        self, parameters: AdaptiveParameters, expected_cohort: float, seed: int | None = None
    ) -> None:
        self.parameters, self.expected_cohort, self._seed = parameters, expected_cohort, seed

    @property
    def facts(self) -> Facts:
        """The norm of a round, and the noise that learning it leaves."""
        return Facts(clip_norm=self._used, noise_left=self.parameters.update_noise_multiplier)

    def _used(self, states: Mapping[str, State]) -> float:
        known = states.get(self.name)
        return float(self.parameters.initial if known is None else known["used"])

    def init(self, layout: Layout) -> State:
        """Start from the first clip norm."""
        del layout
        return {"clip_norm": self.parameters.initial, "used": self.parameters.initial}

    def client_steps(self, state: State, context: RoundContext) -> Steps:
        """Ask the mod to clip with the current norm."""
        item = PlanItem("clip", {"clip_norm": state["clip_norm"], "per_layer": False})
        return [(ClientPhase.CLIP, item)]

    def apply(
        self, cohort: Cohort, state: State, context: RoundContext
    ) -> tuple[Cohort, State, Measurements]:
        """Clip every update and move the norm by a noisy count."""
        current = float(state["clip_norm"])
        clipped = cohort.each(lambda u: replace(u, scale=clip_scales(u.measured(), current)))
        # What was clipped on the device has the norm itself, up to rounding.
        within = sum(u.measured().norm < current * (1 - 1e-6) for u in clipped.updates)
        source = _source(self._seed, self.name, context)
        following, share = self.parameters.next_clip(
            current, within, len(clipped.updates), self.expected_cohort, source
        )
        told = {"clip_norm": current, "noisy_share_within": share}
        return clipped, {"clip_norm": following, "used": current}, told


class CentralDP(VectorStage):
    r"""Client-level privacy against everybody but the server.

    .. math:: \bar\Delta = \frac{1}{n} \Big( \sum_{i \in S} \Delta_i \Big) + \mathcal N(0, (z s)^2)

    with the fixed n = `expected_cohort`, clipped differences, and the sensitivity s of the chain at
    hand (`qsfl_flower.privacy.sensitivity`): C / n for the mean. With `sampling_rate` below 1 every
    client takes part with this probability, independently and secretly, which the accountant
    rewards; otherwise each round counts in full for everybody.

    Parameters
    ----------
    noise : float or NoiseSchedule
        Noise multiplier z of all rounds or of each.
    expected_cohort : float
        Clients that a round is expected to have, > 0: a constant, never what was counted.
    sampling_rate : float
        Probability q with which a client takes part, in (0, 1].
    budget : PrivacyBudget, optional
        Delta, limit, accountant, ledger.
    rounds : int
        Rounds that are planned, >= 1; told to the clients.
    accept_worst_case : bool
        Allow rules and filters that look at several clients, for noise sized to 2 C.
    seed : int, optional
        Public seed of noise and sampling, for tests and marked simulations only: it protects
        nobody.

    Notes
    -----
    Guarantee: (epsilon, delta)-DP for adding or removing one client with all its data, for the
    sequence of released models. Against: whoever sees these models, the other clients included.
    Trusted: the server, its memory and its logs; the means of training metrics and the rows about
    single clients in its run folder are not protected.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> private = CentralDP(1.0, expected_cohort=6, budget=PrivacyBudget(delta=1e-5), rounds=1)
    >>> outcome = LocalFederation(clients=6).run([Clip(1.0), private])
    >>> round(outcome.rounds[-1].epsilon, 1)
    4.4
    """

    name = "central-dp"
    phase = Phase.PRIVATIZE
    declares = frozenset({Trait.PROTECTS_CLIENTS})
    spending: Spending

    def __init__(
        self,
        noise: float | NoiseSchedule,
        expected_cohort: float,
        sampling_rate: float = 1.0,
        budget: PrivacyBudget | None = None,
        *,
        rounds: int = 1,
        accept_worst_case: bool = False,
        seed: int | None = None,
    ) -> None:
        self.schedule = noise if isinstance(noise, NoiseSchedule) else NoiseSchedule(noise)
        if not 0 < expected_cohort < math.inf or not 0 < sampling_rate <= 1:
            raise ConfigError(
                "central-dp: expected_cohort must be positive and sampling_rate in (0, 1], found "
                f"{expected_cohort!r} and {sampling_rate!r}"
            )
        self.denominator: float = expected_cohort
        self.poisson_rate = sampling_rate if sampling_rate < 1 else None
        self.rate, self.rounds = sampling_rate, rounds
        self.accept_worst_case = accept_worst_case
        self._seed = seed
        self.spending = Spending(budget or PrivacyBudget(), partial(self._planned, rounds))
        self._bound = Facts()
        self._release = Release(clip_norm=None, denominator=expected_cohort)

    @property
    def traits(self) -> frozenset[Trait]:
        """Whether clients without a budget are excluded is a choice."""
        if not self.spending.budget.excludes:
            return super().traits
        return super().traits | {Trait.EXCLUDES, Trait.CHARGES_ROUNDS}

    def bind(self, stages: Sequence[Stage]) -> Self:
        """Find the sensitivity of this chain, or refuse it."""
        known = (stage.facts for stage in stages)
        bound = super().bind(stages)
        bound._bound = next((facts for facts in known if facts.clip_norm is not None), Facts())
        combiner = next((s for s in stages if isinstance(s, CombineStage)), None)
        decoder = next((s for s in stages if isinstance(s, DecodeStage)), None)
        bound._release = Release(
            clip_norm=None if bound._bound.clip_norm is None else bound._norm({}),
            rule="mean" if combiner is None else combiner.name,
            denominator=self.denominator,
            compression="none" if decoder is None else decoder.name,
            filters=tuple(s.name for s in stages if s.phase is Phase.DETECT),
            accept_worst_case=self.accept_worst_case,
        )
        sensitivity(bound._release)
        bound._multiplier(1)
        return bound

    def explain(self, layout: Layout, rounds: int) -> Sentences:
        """Say what is promised after all rounds."""
        return self.spending.promise(
            self.planned(layout, rounds),
            "one client with all its data",
            "everybody who sees the models; the server is trusted, and sees the updates",
            f"central noise, multiplier {self.schedule.at(1):.3g}, sensitivity "
            f"{sensitivity(replace(self._release, clip_norm=self._norm({}))).l2:.3g}",
        )

    def planned(self, layout: Layout, rounds: int) -> list[Event]:
        """Return what so many rounds cost."""
        return self._planned(rounds, grid_slack(layout.size + 1))

    def _planned(self, rounds: int, slack: float = 0.0) -> list[Event]:
        return [Event(self.schedule.at(r), self.rate, 1, slack) for r in range(1, rounds + 1)]

    def participants(self, clients: Sequence[int], server_round: int, run_id: int) -> list[int]:
        """Draw the clients of a round: each with probability `sampling_rate`."""
        source = (
            Keystream.secure()
            if self._seed is None
            else Keystream.seeded(self._seed, "sampling", run_id, server_round)
        )
        chosen = source.uniforms(len(clients)) < self.rate
        return [client for client, one in zip(clients, chosen, strict=True) if one]

    def prepare(self, state: State, context: RoundContext) -> State:
        """Reserve the round's share of the budget, or end the run."""
        return self.spending.reserve(state, self._event(context), context)

    def client_steps(self, state: State, context: RoundContext) -> Steps:
        """Tell the clients what is promised."""
        offered = Protection(
            placement="central",
            clip_norm=self._norm({}),
            noise_multiplier=min(self.schedule.at(1), self.schedule.at(self.rounds)),
            sampling_rate=self.rate,
            releases=max(self.rounds, context.server_round),
            delta=self.spending.budget.delta,
        )
        return [(ClientPhase.CORRECT, PlanItem(PROTECTION, offered.to_dict()))]

    def apply(
        self, vector: NDArray[np.float64], state: State, context: RoundContext
    ) -> tuple[NDArray[np.float64], State, Measurements]:
        """Add the round's noise and account for it."""
        clip_norm = self._norm(context.states)
        bound = sensitivity(replace(self._release, clip_norm=clip_norm))
        if self._worst_case(bound, clip_norm):
            # The proof of 2 C needs every result in the ball; coordinate-wise rules leave it.
            vector *= min(1.0, clip_norm / max(float(np.linalg.norm(vector)), 1e-300))
        multiplier = self._multiplier(context.server_round)
        source = _source(self._seed, self.name, context)
        # Off the round's public coordinates the step is zero whatever the data are.
        part = vector if context.support is None else vector[context.support]
        noisy, std = add_noise(part, bound.l2, multiplier, source)
        if context.support is not None:
            vector[context.support] = noisy
            noisy = vector
        state = self.spending.commit(state, self._event(context))
        epsilon = self.spending.epsilon(state)
        told = {
            "epsilon": epsilon,
            "noise_multiplier": multiplier,
            "noise_std": std,
            "expected_noise_norm": std * math.sqrt(part.size),
            "sensitivity": bound.l2,
        }
        if self.spending.budget.excludes:
            told["excluded_clients"] = len(state["excluded"])
        return noisy, state, told

    def _worst_case(self, bound: Sensitivity, clip_norm: float) -> bool:
        return bound.l2 > clip_norm

    def _norm(self, states: Mapping[str, State]) -> float:
        return math.nan if self._bound.clip_norm is None else self._bound.clip_norm(states)

    def _multiplier(self, server_round: int) -> float:
        whole = self.schedule.at(server_round)
        return whole if self._bound.noise_left is None else self._bound.noise_left(whole)

    def _event(self, context: RoundContext) -> Event:
        slack = grid_slack(context.layout.size + 1)
        return Event(self.schedule.at(context.server_round), self.rate, 1, slack)


class ClientSideDP(CohortStage):
    """Common part of the placements in which noise is added on the devices.

    Every instruction counts in full for the client that gets it, whether or not it answers: what it
    sends may be seen. The reported epsilon is that of the client asked most often.
    """

    phase = Phase.ADMIT
    needs_norms = False
    blind = True
    spending: Spending
    placement: ClassVar[str]
    unit: ClassVar[str]
    """What is protected, in words."""

    def __init__(self, budget: PrivacyBudget | None, rounds: int) -> None:
        self.rounds = rounds
        self.spending = Spending(on_devices(self.name, budget), partial(self._planned, rounds, 1))

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
        offered = Protection(
            placement=self.placement,
            clip_norm=self.clip_norm,
            noise_multiplier=event.noise_multiplier,
            sampling_rate=event.sampling_rate,
            releases=event.count * max(self.rounds, context.server_round),
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


class RecordDP(ClientSideDP):
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

    name = "record-dp"
    placement = "record"
    unit = "one record of a client"
    declares = frozenset({Trait.TELLS_TRAINING, Trait.COVERS_METRICS})

    def __init__(
        self,
        privacy: RecordPrivacy,
        budget: PrivacyBudget | None = None,
        *,
        rounds: int = 1,
        public_metrics: Sequence[str] = ("num-examples",),
    ) -> None:
        super().__init__(budget, rounds)
        self.privacy, self.clip_norm = privacy, privacy.clip_norm
        self.public_metrics = tuple(public_metrics)

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
        p = self.privacy
        required: dict[str, Any] = {
            "public_metrics": list(self.public_metrics),
            "clip_norm": p.clip_norm,
            "noise_multiplier": p.noise_multiplier,
            "sampling_rate": p.sampling_rate,
            "steps": p.steps,
        }
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


class LocalDP(ClientSideDP):
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

    name = "local-dp"
    placement = "local"
    unit = "one client with all its data"
    declares = frozenset({Trait.NOISES_UPDATES, Trait.OUTGROWS_BOUND, Trait.COVERS_METRICS})

    def __init__(
        self,
        clip_norm: float,
        noise_multiplier: float,
        budget: PrivacyBudget | None = None,
        *,
        rounds: int = 1,
    ) -> None:
        super().__init__(budget, rounds)
        if not (0 < clip_norm < math.inf and 0 < noise_multiplier < math.inf):
            raise ConfigError("local-dp: clip_norm and noise_multiplier must be positive")
        self.clip_norm, self.noise_multiplier = clip_norm, noise_multiplier

    def event(self, size: int) -> Event:
        """Return what one noisy update costs its client."""
        return Event(self.noise_multiplier, 1.0, 1, grid_slack(size), REPLACE)

    def step(self, context: RoundContext) -> tuple[ClientPhase, PlanItem]:
        """Have the mod clip and add noise."""
        return ClientPhase.NOISE, PlanItem(
            self.name, {"clip_norm": self.clip_norm, "noise_multiplier": self.noise_multiplier}
        )


def _source(seed: int | None, name: str, context: RoundContext) -> Keystream:
    if seed is None:
        return Keystream.secure()
    return Keystream.seeded(seed, name, context.server_round)
