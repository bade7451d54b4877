"""Decide whether a measured update and a claimed sample count can be used."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError, RejectedUpdate
from qsfl_flower.numerics.blocks import blocks
from qsfl_flower.numerics.layout import Layout
from qsfl_flower.numerics.norms import Measure
from qsfl_flower.numerics.vector import Vector

MAX_EXAMPLES = 2**53
"""Largest believable number of examples: up to here float64 counts exactly."""


def check_finite_and_size(measure: Measure, max_norm: float) -> None:
    """Refuse an update that is not finite or absurdly large.

    Parameters
    ----------
    measure : Measure
        What `norms.measure` found.
    max_norm : float
        Largest acceptable Euclidean norm; infinity accepts every finite update.

    Raises
    ------
    RejectedUpdate
        With reason ``"not-finite"`` or ``"too-large"``.
    """
    if not measure.finite:
        raise RejectedUpdate("not-finite", "the update holds NaN or infinity")
    if measure.norm > max_norm:
        raise RejectedUpdate(
            "too-large",
            f"the update has norm {measure.norm:.6g}, at most {max_norm:.6g} is allowed",
        )


def not_finite(vector: Vector, layout: Layout) -> RejectedUpdate:
    """Return the rejection of an update that is not finite, with the name of its first such array.

    Parameters
    ----------
    vector : Vector
        The update or the model that was sent, in whichever form.
    layout : Layout
        Its layout; an update on few coordinates of it has no names.
    """
    if vector.size == layout.size:
        for name, span in layout.slices.items():
            for lo, hi in blocks(span.start, span.stop):
                if not np.isfinite(vector.view(lo, hi, np.empty(hi - lo))).all():
                    return RejectedUpdate("not-finite", f"array {name!r} holds NaN or infinity")
    return RejectedUpdate("not-finite", "the update holds NaN, infinity or absurd numbers")


def example_count(value: object) -> float:
    """Read a claimed number of training examples.

    Parameters
    ----------
    value : object
        What the client sent: an integer or float from 0 to 2**53. Zero means no weight.

    Returns
    -------
    float
        The claim, not yet bounded by what others claim; see `bounded_weights`.

    Raises
    ------
    RejectedUpdate
        With reason ``"bad-num-examples"``.
    """
    number = isinstance(value, int | float | np.integer | np.floating)
    if not number or isinstance(value, bool) or not 0 <= value <= MAX_EXAMPLES:  # type: ignore[operator]
        raise RejectedUpdate(
            "bad-num-examples",
            f"the number of examples is {value!r:.40}; allowed is a number from 0 to 2**53",
        )
    return float(value)  # type: ignore[arg-type]


def bounded_weights(
    claims: Sequence[float], *, max_num_examples: float | None, max_weight_ratio: float = 10.0
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    r"""Turn claimed numbers of examples into weights that no single claim can dominate.

    Nobody can check how many examples a client has, so a claim :math:`m_i` is believed only
    within bounds, in this order:

    .. math::

        w_i = \min(m_i,\ M,\ r \cdot \operatorname{median}\{\min(m_j, M) : m_j > 0\}),
        \qquad w_i \le \sum_{j \ne i} w_j

    with M = `max_num_examples` and r = `max_weight_ratio`. The last bound, nobody owns more than
    half of the mean, holds where three or more clients claim examples; of two clients the larger
    one always leads. Where no bound acts the weights are the claims, so that their ratios are
    exact. The result does not depend on the order of the clients.

    Parameters
    ----------
    claims : sequence of float
        Numbers of examples as `example_count` returns them.
    max_num_examples : float or None
        Largest believable claim, above 0; None for no such bound.
    max_weight_ratio : float
        Largest weight in units of the median claim, at least 1.

    Returns
    -------
    weights : ndarray of float64
        One weight per claim; all zero if all claims are.
    capped : ndarray of bool
        Which claims were reduced.

    Raises
    ------
    ConfigError
        If a bound is out of range.
    """
    if max_num_examples is not None and not max_num_examples > 0:
        raise ConfigError(f"max_num_examples is {max_num_examples!r}; it must be above 0 or null")
    if not max_weight_ratio >= 1:
        raise ConfigError(f"max_weight_ratio is {max_weight_ratio!r}; it must be at least 1")
    claimed = np.array(claims, dtype=np.float64)
    weights = np.minimum(claimed, math.inf if max_num_examples is None else max_num_examples)
    positive = weights[weights > 0]
    if positive.size:
        weights = np.minimum(weights, max_weight_ratio * float(np.median(positive)))
    if positive.size >= 3:
        top = int(np.argmax(weights))
        weights[top] = min(weights[top], math.fsum(np.delete(weights, top)))
    return weights, weights < claimed
