"""From many updates to one: weights, weighted mean, counters and metrics.

Everything here is independent of the order in which the replies arrived: updates come in
canonical order, and single numbers are summed exactly (`math.fsum`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.numerics import (
    Layout,
    Vector,
    bounded_weights,
    combine_carried,
    median_carried,
    rough_norms,
    sum_and_measure,
    weighted_sum,
)
from qsfl_flower.rounds.update import Cohort, Update, Weighting

Floats = NDArray[np.float64]

_ROUNDING = 1e-9
"""Weights that miss 1 by less than this have been rounded."""


def weigh(cohort: Cohort, weighting: Weighting) -> tuple[Cohort, int]:
    r"""Turn claimed sample counts into shares of the step.

    .. math:: w_i = d_i \frac{n_i}{\sum_j n_j} \min(1, |S| / K)

    with the bounded claims n, the damping d of stale updates, and, if there is a buffer size K, the
    number :math:`|S|` of updates.

    Parameters
    ----------
    cohort : Cohort
        Updates whose `num_examples` are claims.
    weighting : Weighting
        Bounds, and the buffer size.

    Returns
    -------
    tuple[Cohort, int]
        The cohort with `weight` set (all zero if nobody claims an example; else they sum to 1, or
        to less with damping and a buffer size; to anything with a fixed denominator), and how many
        claims were reduced.
    """
    if weighting.denominator is not None:
        fixed = tuple(replace(u, weight=u.damping / weighting.denominator) for u in cohort.updates)
        return replace(cohort, updates=fixed), 0
    claims = [u.num_examples for u in cohort.updates]
    weights, capped = bounded_weights(
        claims,
        max_num_examples=weighting.max_num_examples,
        max_weight_ratio=weighting.max_weight_ratio,
    )
    total = math.fsum(weights)
    if total <= 0:
        return cohort, 0
    full = 1.0
    if weighting.buffer_size is not None:
        full = min(1.0, len(claims) / weighting.buffer_size)
    updates = tuple(
        replace(u, weight=float(w / total) * full * u.damping)
        for u, w in zip(cohort.updates, weights, strict=True)
    )
    return replace(cohort, updates=updates), int(np.sum(capped))


def mean_difference(updates: Sequence[Update], layout: Layout, model: Vector) -> Floats:
    r"""Return the weighted mean of the scaled differences to the model, in float64.

    .. math:: \sum_i w_i s_i \Delta_i, \quad \Delta_i = x_i - g \text{ or as sent}

    Computed as :math:`\sum_i w_i s_i x_i - (\sum_i w_i s_i) g` in one compensated pass: subtracting
    the model once costs less than n times, and what it costs in precision, a few
    :math:`10^{-16}` of the model, is far below the rounding of the result.

    Parameters
    ----------
    updates : Sequence[Update]
        In canonical order, with their weights.
    layout : Layout
        The model's layout, of d floating-point coordinates.
    model : Vector
        The model g of this round, shape (d,).

    Returns
    -------
    numpy.ndarray
        Shape (d,), float64.
    """
    if all(np.ndim(u.scale) == 0 for u in updates):
        return weighted_sum(*_terms(updates, model, [float(u.scale) for u in updates]))
    out = np.empty(layout.size)
    scales = [np.broadcast_to(u.scale, (len(layout.slices),)) for u in updates]
    for index, part in enumerate(layout.slices.values()):
        terms = _terms(updates, model, [float(s[index]) for s in scales])
        weighted_sum(*terms, lo=part.start, hi=part.stop, out=out[part.start : part.stop])
    return out


def plausible_sum(updates: Sequence[Update], model: Vector, largest: float) -> Floats | None:
    """Return the mean difference unscaled, or None if some update may be absurd.

    A cheap look at each vector as it was sent tells that nobody sent anything absurd. The sum
    itself does not: two updates that cancel each other would take the others' digits with them.

    Parameters
    ----------
    updates, model
        As for `mean_difference`.
    largest : float
        No vector may have a larger norm, nor hold NaN or infinity.
    """
    if not all(norm <= largest for norm in rough_norms([u.vector for u in updates])):
        return None
    return weighted_sum(*_terms(updates, model, [1.0] * len(updates)))


def _terms(
    updates: Sequence[Update], model: Vector, scales: Sequence[float]
) -> tuple[list[Vector], list[float]]:
    """Return the vectors to add up and their factors; the model comes last."""
    factors = [u.weight * scale for u, scale in zip(updates, scales, strict=True)]
    whole = [f for f, u in zip(factors, updates, strict=True) if u.base(model) is not None]
    return [*(u.vector for u in updates), model], [*factors, -math.fsum(whole)]


def measure_and_sum(updates: Sequence[Update], model: Vector) -> tuple[tuple[Update, ...], Floats]:
    """Measure every update, and return the mean difference if all of them count unscaled.

    Adding up while measuring costs little; the sum is thrown away if a stage rejects or scales an
    update, which is rare, or usual only where clipping is tight.
    """
    bases = [u.base(model) for u in updates]
    total, sizes = sum_and_measure([u.vector for u in updates], [u.weight for u in updates], bases)
    return tuple(replace(u, measure=m) for u, m in zip(updates, sizes, strict=True)), total


def carry(
    updates: Sequence[Update], own: Mapping[str, NDArray[Any]], bounded: bool = False
) -> dict[str, NDArray[Any]]:
    """Combine the buffers, which travel as values in either form.

    Parameters
    ----------
    updates : Sequence[Update]
        With their weights.
    own : Mapping[str, numpy.ndarray]
        The buffers of this round's model. Floats keep the share of them that the weights leave,
        and their values that are not finite (masks) stay.
    bounded : bool
        Whether one client must not set them: their median over all updates that were let in, the
        selected and the others alike, since a rule selects by the rest of an update.
    """
    if bounded:
        combined = {name: median_carried([u.carried[name] for u in updates]) for name in own}
        return {name: _with_masks(combined[name], array) for name, array in own.items()}
    weights = [u.weight for u in updates]
    rest = 1.0 - math.fsum(weights)
    kept = rest if rest > _ROUNDING else 0.0
    combined = {}
    for name, array in own.items():
        arrays, shares = [u.carried[name] for u in updates], weights
        if array.dtype.kind == "f":
            arrays, shares = [*arrays, array], [*weights, kept]
        combined[name] = _with_masks(combine_carried(arrays, shares), array)
    return combined


def _with_masks(combined: NDArray[Any], own: NDArray[Any]) -> NDArray[Any]:
    """Keep the model's own values where they are not finite."""
    if own.dtype.kind != "f":
        return combined
    return np.where(np.isfinite(own), combined, own)


Metric = float | tuple[float, ...]


def mean_metrics(
    rows: Sequence[tuple[float, Mapping[str, Metric]]],
) -> dict[str, float | list[float]]:
    """Weighted mean of every metric over the clients that report it, summed exactly.

    Lists are averaged number by number, over the clients whose list is as long as that of most:
    a single list of another length changes nothing.

    Parameters
    ----------
    rows : Sequence[tuple[float, Mapping[str, float or tuple of float]]]
        Weight (>= 0) and finite metrics of each client.

    Returns
    -------
    dict[str, float or list of float]
        One mean per metric name, in alphabetical order; names whose weights are all zero are left
        out.
    """
    means: dict[str, float | list[float]] = {}
    for name in sorted({name for _, metrics in rows for name in metrics}):
        known = [(w, metrics[name]) for w, metrics in rows if name in metrics]
        sizes = Counter(len(v) if isinstance(v, tuple) else None for _, v in known)
        size = min(sizes, key=lambda one: (-sizes[one], one or 0))
        alike = [(w, v) for w, v in known if (len(v) if isinstance(v, tuple) else None) == size]
        total = math.fsum(w for w, _ in alike)
        if total <= 0:
            continue
        columns = zip(*(v if isinstance(v, tuple) else (v,) for _, v in alike), strict=True)
        weights = [w for w, _ in alike]
        mean = [math.fsum(w * v for w, v in zip(weights, c, strict=True)) / total for c in columns]
        means[name] = mean[0] if size is None else mean
    return means
