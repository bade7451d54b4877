"""The two stages that bound single updates: what is refused, and what is shortened."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qsfl_flower.mechanisms.bounds.options import ClipOptions, ValidateOptions
from qsfl_flower.numerics import Layout, check_finite_and_size, clip_scales, measure, not_finite
from qsfl_flower.rounds.composition import Trait
from qsfl_flower.rounds.context import Measurements, Phase, RoundContext, State, Steps
from qsfl_flower.rounds.facts import Facts, Sentences, Topic
from qsfl_flower.rounds.stages import CohortStage
from qsfl_flower.rounds.update import ABSURD_NORM, Cohort, Update
from qsfl_flower.wire import ClientPhase, PlanItem


class Validate(ValidateOptions, CohortStage):
    """Reject updates with NaN or Inf, or whose size cannot be honest.

    Parameters
    ----------
    max_norm : float, optional
        Largest accepted L2 norm of the difference to the round's model; set it near the norms that
        your clients really have. Without it only absurd updates are stopped, with norms above
        1e15, and differences are measured only if some reply looks absurd as it was sent; a robust
        rule rejects absurd ones itself. With hidden updates, a limit is refused: give their stage
        a `clip_norm`.

    Notes
    -----
    Who sees what: works on each update in the clear, for itself; it needs no other client's data.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> def train(client, server_round, model):
    ...     return model * (np.nan if client == 0 else 1)
    >>> federation = LocalFederation(clients=3, train=train)
    >>> federation.run([Validate()]).rounds[-1].rejected
    {'not-finite': 1}
    """

    name = "validate"
    phase = Phase.ADMIT
    blind = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.needs_norms = self.max_norm is not None

    @property
    def traits(self) -> frozenset[Trait]:
        """A limit on norms has to see them."""
        return frozenset({Trait.SEES_UPDATES} if self.needs_norms else ())

    @property
    def needs_start(self) -> bool:
        """A limit on norms does."""
        return self.needs_norms

    def explain(self, layout: Layout, rounds: int) -> Sentences:
        """Say what cannot harm the model."""
        return {
            Topic.LIARS: [
                "NaN, infinity, wrong shapes and absurd sizes are rejected; claimed numbers of "
                "examples are bounded"
            ]
        }

    def apply(
        self, cohort: Cohort, state: State, context: RoundContext
    ) -> tuple[Cohort, State, Measurements]:
        """Drop what is not finite or larger than `max_norm`."""

        def check(update: Update) -> Update:
            if update.measure is not None:
                if not update.measure.finite:
                    raise not_finite(update.vector, context.layout)
                check_finite_and_size(update.measure, self.max_norm or ABSURD_NORM)
            return update

        return cohort.each(check), state, {}


class Clip(ClipOptions, CohortStage):
    r"""Bound the influence of every client on the mean.

    .. math:: \Delta_i \leftarrow \Delta_i \cdot \min(1, C / \lVert \Delta_i \rVert_2)

    The mod clips on the device; the strategy does it again, since a client is not trusted to have
    done so. Clipping twice changes nothing.

    Parameters
    ----------
    clip_norm : float
        The bound C on the L2 norm over all floating-point arrays together, > 0.
    per_layer : bool
        Bound each of the L arrays by C / sqrt(L) instead; the bound on the whole is still C.

    Notes
    -----
    Who sees what: the server sees single updates and their norms.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> outcome = LocalFederation().run([Clip(0.1)])
    >>> bool(abs(outcome.model).max() < 0.1)
    True
    """

    name = "clip"
    phase = Phase.BOUND
    blind = True

    @property
    def traits(self) -> frozenset[Trait]:
        """It may need layers."""
        return frozenset({Trait.PER_LAYER} if self.per_layer else ())

    @property
    def facts(self) -> Facts:
        """The bound."""
        return Facts(clip_norm=lambda states: self.clip_norm)

    def explain(self, layout: Layout, rounds: int) -> Sentences:
        """Say how far one client can go."""
        norm = self.clip_norm
        return {
            Topic.LIARS: [f"no update is longer than {norm:g} (L2 norm), whatever a client sends"]
        }

    def client_steps(self, state: State, context: RoundContext) -> Steps:
        """Ask the mod to clip with the same parameters."""
        return [(ClientPhase.CLIP, PlanItem(self.name, self.to_dict()))]

    def apply(
        self, cohort: Cohort, state: State, context: RoundContext
    ) -> tuple[Cohort, State, Measurements]:
        """Set the scale of every update."""

        def clip(update: Update) -> Update:
            size = update.measured()
            if self.per_layer:
                size = measure(update.vector, update.base(context.model), context.layout)
            return replace(update, scale=clip_scales(size, self.clip_norm, self.per_layer))

        clipped = cohort.each(clip)
        changed = sum(bool(np.any(np.asarray(u.scale) < 1.0)) for u in clipped.updates)
        share = changed / len(clipped.updates) if clipped.updates else 0.0
        return clipped, state, {"clipped_share": share}
