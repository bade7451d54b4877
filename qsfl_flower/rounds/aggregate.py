"""One round's arithmetic: from an admitted cohort to the next global model, without Flower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import QSFLError
from qsfl_flower.numerics import Layout, Vector, measure
from qsfl_flower.rounds.chain import Chain
from qsfl_flower.rounds.combine import (
    carry,
    mean_difference,
    measure_and_sum,
    plausible_sum,
    weigh,
)
from qsfl_flower.rounds.context import Measurements, RoundContext, State
from qsfl_flower.rounds.stages import Combined
from qsfl_flower.rounds.update import ABSURD_NORM, Cohort, Update


@dataclass(frozen=True)
class GlobalModel:
    """The model of a round: named arrays, their layout, and the flat vector over them."""

    arrays: Mapping[str, NDArray[Any]]
    layout: Layout
    vector: Vector

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], layout: Layout) -> GlobalModel:
        """Describe named arrays; nothing is copied."""
        return cls(arrays, layout, Vector.of(arrays, layout))

    @property
    def carried(self) -> dict[str, NDArray[Any]]:
        """The buffers, which are not part of the vector."""
        return {name: self.arrays[name] for name in self.layout.carried}

    @property
    def beside(self) -> dict[str, NDArray[Any]]:
        """Buffers and frozen arrays."""
        return {name: self.arrays[name] for name in self.layout.beside}


@dataclass(frozen=True)
class Outcome:
    """What a round led to.

    Parameters
    ----------
    cohort : Cohort
        All nodes of the round: updates with their weights, rejections with their reasons.
    arrays : Mapping[str, numpy.ndarray] or None
        The next model, or None if the model stays as it is.
    states : Mapping[str, State]
        The stages' states after the round; unchanged if the model is.
    skipped : str or None
        Why the model stays as it is.
    capped : int
        How many claims of sample counts were reduced.
    update_norm : float or None
        L2 norm of the step that the global model makes.
    measured : Mapping[str, Measurements]
        What the stages measured.
    metrics : Mapping[str, float] or None
        The clients' mean metrics, if a stage has computed them.
    """

    cohort: Cohort
    states: Mapping[str, State]
    arrays: Mapping[str, NDArray[Any]] | None = None
    skipped: str | None = None
    capped: int = 0
    update_norm: float | None = None
    measured: Mapping[str, Measurements] = field(default_factory=dict)
    metrics: Mapping[str, float] | None = None


def aggregate(
    cohort: Cohort,
    model: GlobalModel,
    chain: Chain,
    states: Mapping[str, State],
    context: RoundContext,
    min_replies: int,
) -> Outcome:
    """Run a cohort through the chain and return the next model.

    A round with fewer than `min_replies` usable updates, or without a single training example,
    leaves the model and every state as they were, except that of a `CombineStage` that gave up.
    """
    cohort, capped = weigh(cohort, context.weighting)
    admitted, total = _look(cohort.updates, model, chain)
    cohort, new_states, measured = chain.on_cohort(
        replace(cohort, updates=admitted), states, context
    )
    if (usable := len(cohort.updates)) < min_replies:
        return Outcome(
            cohort, states, skipped=f"{usable} usable replies, at least {min_replies} needed"
        )
    if usable < len(admitted):
        cohort, capped = weigh(cohort, context.weighting)
        total = None
    if (combiner := chain.combiner) is None:
        combined = _mean(cohort, total, context)
    else:
        with chain.timed(combiner):
            combined = combiner.combine(cohort, new_states[combiner.name], context)
        new_states[combiner.name] = combined.state
        measured[combiner.name] = combined.measured
    cohort = combined.cohort
    if combined.step is not None:
        why = chain.too_long(combined.step, len(cohort.updates), context)
        if why is not None:
            combined = replace(combined, step=None, skipped=why)
    if combined.step is None:
        if combiner is not None:
            states = {**states, combiner.name: combined.state}
        return Outcome(cohort, states, skipped=combined.skipped, measured=measured)
    if cohort.updates:
        staleness = sum(u.staleness for u in cohort.updates) / len(cohort.updates)
        context = replace(context, staleness=staleness)
    step, new_states, after = chain.on_vector(_whole(combined.step, context), new_states, context)
    norm = measure(Vector.dense(step)).norm
    try:
        # Counters of hidden updates stay on the devices, and no noise covers them elsewhere: the
        # model keeps its own. Hidden sums bring statistics of their own.
        seen = bool(cohort.updates) and not chain.hides and not chain.keeps_carried
        beside = {**model.beside, **combined.statistics}
        if seen:
            beside |= carry(cohort.updates, model.carried, chain.bounds_clients)
        arrays = model.layout.unpack(step, beside, base=model.vector)
    except QSFLError as error:
        return Outcome(cohort, states, skipped=str(error), capped=capped)
    measured |= after
    return Outcome(cohort, new_states, arrays, None, capped, norm, measured, combined.metrics)


def _mean(cohort: Cohort, total: NDArray[np.float64] | None, context: RoundContext) -> Combined:
    """Return the weighted mean; `total` is that of the updates unscaled, if it is known."""
    fixed = context.weighting.denominator is not None
    if not fixed and not any(u.weight > 0 for u in cohort.updates):
        return Combined(cohort, None, {}, skipped="no client trained on any example")
    if total is None or not all(np.ndim(u.scale) == 0 and u.scale == 1.0 for u in cohort.updates):
        total = mean_difference(cohort.updates, context.layout, context.model)
    return Combined(cohort, total, {})


def _whole(step: NDArray[np.float64], context: RoundContext) -> NDArray[np.float64]:
    """Put a step on the round's public coordinates into the whole vector."""
    if context.support is None or step.size == context.layout.size:
        return step
    whole = np.zeros(context.layout.size)
    whole[context.support] = step
    return whole


def _look(
    updates: tuple[Update, ...], model: GlobalModel, chain: Chain
) -> tuple[tuple[Update, ...], NDArray[np.float64] | None]:
    """Return the updates, measured if that is needed, and their mean difference unscaled."""
    if not updates or chain.hides:
        return updates, None
    if chain.combiner is not None:
        if not chain.needs_norms:
            return updates, None
        sizes = [measure(u.vector, u.base(model.vector)) for u in updates]
        return tuple(replace(u, measure=m) for u, m in zip(updates, sizes, strict=True)), None
    if not chain.needs_norms:
        total = plausible_sum(updates, model.vector, ABSURD_NORM / 2)
        if total is not None:
            return updates, total
    return measure_and_sum(updates, model.vector)
