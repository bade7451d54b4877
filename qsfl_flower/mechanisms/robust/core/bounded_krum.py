r"""Krum's choice among many updates without the distances of all pairs.

Comparing all pairs costs :math:`n^2 d`. Here a few passes over the data, each :math:`O(nd)`, give a
lower bound of every score; then scores are computed exactly in the order of the bounds, until no
bound is below the best score found. What is left cannot win, so the choice is that of Krum.

The bound. Project the updates on the span of s random mixtures of them (the directions in which
liars or a common drift stretch the cloud), :math:`x_i = p_i + r_i`. Then the squared distance of
two updates is :math:`\|p_i - p_j\|^2 + \|r_i\|^2 + \|r_j\|^2 - 2\langle r_i, r_j\rangle`, and
for any set N of neighbours
:math:`\sum_N \langle r_i, r_j\rangle \le \|r_i\| \sqrt{\lambda \sum_N \|r_j\|^2}`, where
:math:`\lambda` is the largest eigenvalue of the inner products of the residuals divided by their
lengths. It is bounded by random vectors, which fails with probability :math:`10^{-9}` whatever the
updates are (the vectors are drawn afterwards).

References
----------
N. Halko, P. G. Martinsson, J. A. Tropp, "Finding structure with randomness", 2011. arXiv:0909.4061
(lemma 4.1: the bound of a norm by random vectors).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.crypto.sources import random_bytes
from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.robust.core.distances import dots, squared_distances
from qsfl_flower.mechanisms.robust.core.geometry import Geometry
from qsfl_flower.mechanisms.robust.core.krum import krum_scores, multi_krum_select
from qsfl_flower.mechanisms.robust.core.rule import Choice, LinearRule
from qsfl_flower.mechanisms.robust.core.selection import mean_of
from qsfl_flower.mechanisms.robust.core.updates import Updates, each_part
from qsfl_flower.numerics.blas import one_blas_thread
from qsfl_flower.numerics.blocks import Floats

MIXTURES = 8
"""Directions that are taken out before the rest is bounded."""

VECTORS = 9
"""Random vectors of the bound, which fails with probability 10 to the minus this number."""

POWER = 3
"""How often the residuals' inner products are applied to them."""

FEW = 1000
"""Below this number of updates comparing all pairs is faster anyway."""

BATCH = 32
"""Scores that are computed exactly at a time."""

_ROUNDING = 1e-11
_SMALL = 1e-10
_TIE = 1e-9


@dataclass(frozen=True, eq=False, repr=False)
class Found:
    """What `fast_krum` found.

    Parameters
    ----------
    rows : ndarray of int, shape (m,)
        The selected updates, ascending.
    scores : ndarray of float64, shape (n,)
        Krum's scores where they were computed, else lower bounds of them.
    measured : int
        How many scores were computed; n if all pairs had to be compared.
    """

    rows: NDArray[np.intp]
    scores: Floats
    measured: int


def fast_krum(
    updates: Updates, f: int, m: int = 1, *, seed: int | None = None, threads: int | None = None
) -> Found:
    """Select the m updates with Krum's lowest scores.

    All pairs are compared after all where the bounds do not tell most updates from the winners (as
    where all are equally noisy), or where scores are so close that rounding decides.

    Parameters
    ----------
    updates : Updates
        n updates of d coordinates, finite and of norms below 1e100.
    f : int
        How many of them may lie, >= 0.
    m : int
        How many to select, 1 <= m <= n.
    seed : int, optional
        Of the random vectors; by default secret and new. It decides the time, not the result.
    threads : int, optional
        As everywhere.
    """
    count = updates.count
    if not 1 <= m <= count or f < 0:
        raise ConfigError(f"{m} of {count} cannot be selected with f = {f}")
    exact = None if count < FEW else _best_first(updates, f, m, seed, threads)
    if exact is not None:
        return exact
    scores = krum_scores(squared_distances(updates, threads=threads), f)
    return Found(multi_krum_select(scores, m), scores, count)


def _best_first(
    updates: Updates, f: int, m: int, seed: int | None, threads: int | None
) -> Found | None:
    """Compute scores in the order of their bounds; None if too many are needed."""
    count = updates.count
    neighbours = min(count - 1, max(1, count - f - 2))
    seed = int.from_bytes(random_bytes(8, "krum directions"), "big") if seed is None else seed
    scores = _lower_bounds(updates, neighbours, seed, threads)
    order = np.argsort(scores, kind="stable")
    exact = np.zeros(count, np.bool_)
    limit = np.inf
    while exact.sum() < m or scores.min(where=~exact, initial=np.inf) <= limit:
        batch = order[exact.sum() :][:BATCH]
        found = _scores(updates, batch, neighbours, threads)
        if found is None:
            return None
        scores[batch], exact[batch] = found, True
        known = np.sort(scores[exact])
        if known.size >= m:
            limit = known[m - 1] * (1 + _TIE)
            if (scores <= limit).sum() > count // 8:
                return None
    known = np.sort(scores[exact])
    if known.size > m and known[m] <= limit:
        return None
    return Found(multi_krum_select(np.where(exact, scores, np.inf), m), scores, int(exact.sum()))


def _lower_bounds(updates: Updates, m: int, seed: int, threads: int | None) -> Floats:
    """Return a lower bound of the sum of the m smallest distances of each row to others."""
    count = updates.count
    generator = np.random.default_rng(seed)
    squares = dots(updates, threads=threads)
    # Rows are divided by their lengths, so that long ones do not hide what the others have in
    # common, and later by the lengths of their residuals.
    lengths = np.where(squares > 0, np.sqrt(squares), 1.0)

    def apply(vectors: Floats) -> Floats:
        return _apply(updates, vectors / lengths[:, np.newaxis], threads) / lengths[:, np.newaxis]

    mixtures = generator.standard_normal((count, min(MIXTURES, count)))
    for _ in range(2):
        mixtures, _ = np.linalg.qr(apply(mixtures))
    along = apply(mixtures)  # products of the rows with the mixtures
    values, turn = np.linalg.eigh(mixtures.T @ along)
    inverse = turn[:, values > _SMALL] / np.sqrt(values[values > _SMALL])
    projected = along @ inverse
    share = squares / lengths**2 - np.vecdot(projected, projected)  # of the residual: up to 1
    rest = np.sqrt(np.maximum(share, 0.0) + _SMALL)
    vectors, scale = generator.standard_normal((count, VECTORS)), 0.0
    for _ in range(POWER):
        vectors = vectors / rest[:, np.newaxis]
        vectors = vectors - mixtures @ (inverse @ (inverse.T @ (along.T @ vectors)))
        vectors = apply(vectors) / rest[:, np.newaxis]
        size = float(np.sqrt(np.vecdot(vectors.T, vectors.T).max())) or 1.0
        vectors, scale = vectors / size, scale + math.log(size)
    largest = math.exp((math.log(10 * math.sqrt(2 / math.pi)) + scale) / POWER)
    projected, rest = projected * lengths[:, np.newaxis], np.maximum(share - _SMALL, 0.0) * squares
    least = np.sort(rest)[:m].sum()
    bounds = np.empty(count)
    for start in range(0, count, 256):
        own = np.arange(start, min(start + 256, count))
        apart = _apart(projected[own], projected)
        apart[own - start, own] = np.inf
        bounds[own] = _smallest(apart + (np.sqrt(rest[own, np.newaxis]) - np.sqrt(rest)) ** 2, m)
        if least > 0:
            # For every set N, the root of the sum over N of `rest` lies below its tangent at
            # `least`; the residuals' lengths are taken a little too long in what is subtracted.
            pull = np.sqrt((rest[own] + 2 * _SMALL * squares[own]) * largest / least)
            longer = rest + 2 * _SMALL * squares
            near = apart + rest[own, np.newaxis] + rest - pull[:, np.newaxis] * longer
            bounds[own] = np.maximum(_smallest(near, m) - pull * least, bounds[own])
    return np.maximum(bounds - _ROUNDING * m * squares, 0.0)


def _apart(some: Floats, all_rows: Floats) -> Floats:
    sizes = np.vecdot(all_rows, all_rows)
    found = np.vecdot(some, some)[:, np.newaxis] + sizes - 2 * some @ all_rows.T
    return np.asarray(np.maximum(found, 0.0))


def _smallest(values: Floats, m: int) -> Floats:
    """Add up the m smallest of each row."""
    return np.asarray(np.partition(values, m - 1, axis=1)[:, :m].sum(axis=1))


def _apply(updates: Updates, vectors: Floats, threads: int | None) -> Floats:
    """Multiply the inner products of all pairs with a few vectors, without computing them."""
    parts: dict[int, Floats] = {}

    def work(part: int, lo: int, hi: int) -> None:
        total = np.zeros(vectors.shape)
        for _, _, block in updates.blocks(lo, hi):
            total += block @ (block.T @ vectors)
        parts[part] = total

    with one_blas_thread():
        each_part(updates, threads, work)
    return np.asarray(sum(parts[part] for part in sorted(parts)))


def _scores(
    updates: Updates, chosen: NDArray[np.intp], m: int, threads: int | None
) -> Floats | None:
    """Return the scores of some rows, or None if their distances cancel."""
    parts: dict[int, Floats] = {}

    def work(part: int, lo: int, hi: int) -> None:
        total = np.zeros((len(chosen), updates.count))
        for _, _, block in updates.blocks(lo, hi):
            total += block[chosen] @ block.T
        parts[part] = total

    with one_blas_thread():
        each_part(updates, threads, work)
    products = np.asarray(sum(parts[part] for part in sorted(parts)))
    squares = dots(updates, threads=threads)
    sums = squares[chosen, np.newaxis] + squares
    found = sums - 2 * products
    own = np.arange(len(chosen)), chosen
    found[own] = np.inf
    if (found < 2.0**-13 * sums).any():
        return None
    return _smallest(found, m)


@dataclass(frozen=True)
class FastKrum(LinearRule):
    """Krum for a thousand updates and more, by `fast_krum`.

    The scores are Krum's where they had to be computed, and lower bounds of them elsewhere.
    """

    name = "fast_krum"
    needs = (2, 3)

    def choose(self, geometry: Geometry, f: int) -> Choice:
        """Select the update with the lowest score."""
        found = fast_krum(geometry.updates, f, threads=geometry.threads)
        return Choice(mean_of(found.rows, geometry.updates.count), found.scores)
