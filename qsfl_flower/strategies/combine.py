"""From many updates to one: weights, weighted mean, counters and metrics.

Everything here is independent of the order in which the replies arrived: updates come in
canonical order, and single numbers are summed exactly (`math.fsum`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.numerics import Layout, Vector, bounded_weights, combine_carried, weighted_sum
from qsfl_flower.strategies.update import Cohort, Update
from qsfl_flower.wire import Form


def weigh(
    cohort: Cohort, *, max_num_examples: float | None, max_weight_ratio: float
) -> tuple[Cohort, int]:
    """Turn claimed sample counts into shares of the mean.

    Parameters
    ----------
    cohort : Cohort
        Updates whose `num_examples` are claims.
    max_num_examples : float or None
        No claim counts for more than this.
    max_weight_ratio : float
        No claim counts for more than this many times the median claim, >= 1.

    Returns
    -------
    tuple[Cohort, int]
        The cohort with `weight` set (summing to 1, or all zero if nobody claims an example), and
        how many claims were reduced.
    """
    claims = [u.num_examples for u in cohort.updates]
    weights, capped = bounded_weights(
        claims, max_num_examples=max_num_examples, max_weight_ratio=max_weight_ratio
    )
    total = math.fsum(weights)
    if total <= 0:
        return cohort, 0
    updates = tuple(
        replace(u, weight=float(w / total)) for u, w in zip(cohort.updates, weights, strict=True)
    )
    return replace(cohort, updates=updates), int(np.sum(capped))


def mean_difference(
    updates: Sequence[Update], layout: Layout, model: Vector
) -> NDArray[np.float64]:
    r"""Return the weighted mean of the (scaled) differences to the model, in float64.

    .. math:: \sum_i w_i s_i \Delta_i, \quad \Delta_i = x_i - g \text{ or as sent}

    It is computed as :math:`\sum_i w_i s_i x_i - (\sum_i w_i s_i) g` in one compensated pass, so
    that no difference of a single client is ever stored.

    Parameters
    ----------
    updates : Sequence[Update]
        In canonical order, with weights that sum to 1.
    layout : Layout
        The model's layout, of d floating-point coordinates.
    model : Vector
        The model g of this round, shape (d,).

    Returns
    -------
    numpy.ndarray
        Shape (d,), float64.
    """
    vectors = [u.vector for u in updates] + [model]
    whole = [u.form is Form.PARAMETERS for u in updates]

    def coefficients(scales: Sequence[float]) -> list[float]:
        c = [u.weight * s for u, s in zip(updates, scales, strict=True)]
        return [*c, -math.fsum(ci for ci, is_whole in zip(c, whole, strict=True) if is_whole)]

    if all(np.ndim(u.scale) == 0 for u in updates):
        return weighted_sum(vectors, coefficients([float(u.scale) for u in updates]))
    out = np.empty(layout.size)
    for index, part in enumerate(layout.slices.values()):
        scales = [float(np.broadcast_to(u.scale, (len(layout.slices),))[index]) for u in updates]
        weighted_sum(
            vectors,
            coefficients(scales),
            lo=part.start,
            hi=part.stop,
            out=out[part.start : part.stop],
        )
    return out


def carry(updates: Sequence[Update], layout: Layout) -> dict[str, NDArray[Any]]:
    """Combine the integer and boolean arrays, which travel as values in either form."""
    weights = [u.weight for u in updates]
    return {
        name: combine_carried([u.carried[name] for u in updates], weights)
        for name in layout.carried
    }


def mean_metrics(rows: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Weighted mean of every metric over the clients that report it, summed exactly.

    Parameters
    ----------
    rows : Sequence[tuple[float, Mapping[str, float]]]
        Weight (>= 0) and finite metrics of each client.

    Returns
    -------
    dict[str, float]
        One mean per metric name, in alphabetical order; names whose weights are all zero are left
        out.
    """
    means: dict[str, float] = {}
    for name in sorted({name for _, metrics in rows for name in metrics}):
        known = [(w, metrics[name]) for w, metrics in rows if name in metrics]
        total = math.fsum(w for w, _ in known)
        if total > 0:
            means[name] = math.fsum(w * value for w, value in known) / total
    return means
