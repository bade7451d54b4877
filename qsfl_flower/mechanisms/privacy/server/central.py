"""Noise that a trusted server adds to the combined update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from typing import Self

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.mechanisms.privacy.options import COHORT, ROUNDS
from qsfl_flower.moved import renamed
from qsfl_flower.numerics import Layout
from qsfl_flower.plugins import Options, option
from qsfl_flower.privacy.events import Event
from qsfl_flower.privacy.gaussian import add_noise, grid_slack
from qsfl_flower.privacy.policy import Protection
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.privacy.schedule import NoiseSchedule
from qsfl_flower.privacy.sensitivity import Release, Sensitivity, sensitivity
from qsfl_flower.rounds.composition import Trait
from qsfl_flower.rounds.context import Measurements, Phase, RoundContext, State, Steps
from qsfl_flower.rounds.facts import Facts, Sentences
from qsfl_flower.rounds.spending import PrivacyBudget, Spending
from qsfl_flower.rounds.stages import CombineStage, DecodeStage, Stage, VectorStage
from qsfl_flower.wire import ClientPhase, PlanItem
from qsfl_flower.wire.keys import PROTECTION


@dataclass(frozen=True)
class _CentralNoise(Options):
    noise_multiplier: float | NoiseSchedule = option("Noise over the sensitivity.", gt=0)
    expected_cohort: float = option(COHORT, gt=0)
    sampling_rate: float = option("Probability that a client takes part.", 1.0, gt=0, le=1)
    budget: PrivacyBudget | None = None
    _: KW_ONLY
    rounds: int = option(ROUNDS, 1, ge=1)
    accept_worst_case: bool = False
    seed: int | None = None


@renamed(noise="noise_multiplier")
class CentralDP(VectorStage, _CentralNoise):
    r"""Client-level privacy against everybody but the server.

    .. math:: \bar\Delta = \frac{1}{n} \Big( \sum_{i \in S} \Delta_i \Big) + \mathcal N(0, (z s)^2)

    with the fixed n = `expected_cohort`, clipped differences, and the sensitivity s of the chain at
    hand (`qsfl_flower.privacy.sensitivity`): C / n for the mean. With `sampling_rate` below 1 every
    client takes part with this probability, independently and secretly, which the accountant
    rewards; otherwise each round counts in full for everybody.

    Parameters
    ----------
    noise_multiplier : float or NoiseSchedule
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

    name = "central_dp"
    phase = Phase.PRIVATIZE
    declares = frozenset({Trait.PROTECTS_CLIENTS})
    spending: Spending

    def __post_init__(self) -> None:
        super().__post_init__()
        given, rate = self.noise_multiplier, self.sampling_rate
        self.schedule = given if isinstance(given, NoiseSchedule) else NoiseSchedule(given)
        self.denominator = self.expected_cohort
        self.poisson_rate = rate if rate < 1 else None
        planned = partial(self._planned, self.rounds)
        self.spending = Spending(self.budget or PrivacyBudget(), planned)
        self._bound = Facts()
        self._release = Release(clip_norm=None, denominator=self.expected_cohort)

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
            denominator=self.expected_cohort,
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
        return [
            Event(self.schedule.at(r), self.sampling_rate, 1, slack) for r in range(1, rounds + 1)
        ]

    def participants(self, clients: Sequence[int], server_round: int, run_id: int) -> list[int]:
        """Draw the clients of a round: each with probability `sampling_rate`."""
        source = Keystream.of(self.seed, "sampling", run_id, server_round)
        chosen = source.uniforms(len(clients)) < self.sampling_rate
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
            sampling_rate=self.sampling_rate,
            releases=self.spending.rounds(state, self.rounds, context.server_round),
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
        # The label is the old name of the stage: a seed keeps its noise.
        source = Keystream.of(self.seed, "central-dp", context.server_round)
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

    def noise_std(self, clients: int, context: RoundContext) -> float:
        """Return that of the sum, however many clients are in it."""
        bound = sensitivity(replace(self._release, clip_norm=self._norm(context.states)))
        return bound.l2 * self._multiplier(context.server_round) * self.expected_cohort

    def _worst_case(self, bound: Sensitivity, clip_norm: float) -> bool:
        return bound.l2 > clip_norm

    def _norm(self, states: Mapping[str, State]) -> float:
        return math.nan if self._bound.clip_norm is None else self._bound.clip_norm(states)

    def _multiplier(self, server_round: int) -> float:
        whole = self.schedule.at(server_round)
        return whole if self._bound.noise_left is None else self._bound.noise_left(whole)

    def _event(self, context: RoundContext) -> Event:
        slack = grid_slack(context.layout.size + 1)
        return Event(self.schedule.at(context.server_round), self.sampling_rate, 1, slack)
