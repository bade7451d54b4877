"""Clipping to a norm that follows the clients', learnt privately."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from qsfl_flower.mechanisms.privacy.options import COHORT
from qsfl_flower.numerics import Layout, clip_scales
from qsfl_flower.plugins import Options, option
from qsfl_flower.privacy.clipping import AdaptiveClip as AdaptiveParameters
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.rounds.composition import Trait
from qsfl_flower.rounds.context import Measurements, Phase, RoundContext, State, Steps
from qsfl_flower.rounds.facts import Facts
from qsfl_flower.rounds.stages import CohortStage
from qsfl_flower.rounds.update import Cohort
from qsfl_flower.wire import ClientPhase, PlanItem


@dataclass(frozen=True)
class _Learnt(Options):
    parameters: AdaptiveParameters
    expected_cohort: float = option(COHORT, gt=0)
    seed: int | None = None


class AdaptiveClip(CohortStage, _Learnt):
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

    name = "adaptive_clip"
    phase = Phase.BOUND
    declares = frozenset({Trait.SPENDS_ON_CLIENTS})

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
        # The label is the old name of the stage: a seed keeps its noise.
        source = Keystream.of(self.seed, "adaptive-clip", context.server_round)
        following, share = self.parameters.next_clip(
            current, within, len(clipped.updates), self.expected_cohort, source
        )
        told = {"clip_norm": current, "noisy_share_within": share}
        return clipped, {"clip_norm": following, "used": current}, told
