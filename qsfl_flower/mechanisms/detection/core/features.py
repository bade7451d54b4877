"""What tells an unusual update from the others of its round: a few numbers for each.

All of them compare a client with the cohort, so that they mean the same in every round and for
every model, and a detector can learn from past rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.robust.core.updates import Updates
from qsfl_flower.numerics import Layout
from qsfl_flower.numerics.blocks import blocks

Floats = NDArray[np.float64]

NAMES = (
    "norm",
    "distance",
    "centre_cosine",
    "last_cosine",
    "sign_agreement",
    "neighbours",
    "twin",
    "layer_high",
    "layer_low",
    "layer_cosine",
    "density",
)
"""The features in order; see `Table`."""

_WORDS = {
    "norm": "norm {ratio:.3g} times the median",
    "distance": "distance to the centre {ratio:.3g} times the median",
    "centre_cosine": "cosine to the centre {value:.2f}",
    "last_cosine": "cosine to the last step {value:.2f}",
    "sign_agreement": "agrees with the centre's signs by {value:.0%}",
    "neighbours": "distance to its neighbours {ratio:.3g} times the median",
    "twin": "distance to the nearest update {ratio:.3g} times the median",
    "layer_high": "a layer {ratio:.3g} times the median",
    "layer_low": "its smallest layer {ratio:.3g} times the median",
    "layer_cosine": "cosine of a layer to the centre {value:.2f}",
    "density": "density {value:.2f}",
}

_BLOCK = 1 << 14
_TINY = 1e-300
_NEAR = 0.05
"""Distances count as at least this share of their median: where updates lie on a line, one of them
is the centre, which makes it no stranger."""


@dataclass(frozen=True, eq=False)
class Table:
    """The features of a round's updates.

    Parameters
    ----------
    values : ndarray of float64, shape (n, len(NAMES))
        One row per update, in the order given. Sizes are natural logarithms of their ratio to the
        cohort's median, within -20 to 20.

        - ``norm``: size of the update; ``distance``: its distance to the robust centre, the
          coordinate-wise median;
        - ``centre_cosine``, ``last_cosine``: cosine to the centre, and to the last step of the
          global model (0 in the first round);
        - ``sign_agreement``: share of the centre's absolute mass on coordinates where the signs
          agree;
        - ``neighbours``: mean distance to the nearer half of the others; ``twin``: distance to the
          nearest one; all distances count as at least a twentieth of their median;
        - ``layer_high``, ``layer_low``: largest and smallest size of a layer; ``layer_cosine``:
          smallest cosine of a layer to the centre's;
        - ``density``: L1 norm by L2 norm, by the root of d; small if few coordinates hold all.
    likeness : ndarray of float64, shape (n, n)
        Cosines between the updates' differences to the centre; 1 on the diagonal.
    cosines : ndarray of float64, shape (n, n)
        Cosines between the updates themselves; 0 for updates whose square is 0 or overflows.
    trusted : ndarray of bool, shape (n,)
        The rows that the medians are taken over.
    """

    values: Floats
    likeness: Floats
    cosines: Floats
    trusted: NDArray[np.bool_]


def extract(
    updates: Updates,
    layout: Layout,
    last_step: NDArray[Any] | None = None,
    trusted: NDArray[np.bool_] | None = None,
) -> Table:
    """Compute the features of a cohort in one pass over blocks of coordinates.

    Memory is a few blocks of n x 16,384 values beside n x n and n x L numbers.

    Parameters
    ----------
    updates : Updates
        The round's n updates, finite.
    layout : Layout
        Where the L layers lie.
    last_step : ndarray of float, shape (d,), optional
        The global model's last step.
    trusted : ndarray of bool, shape (n,), optional
        Take centre and medians over these only, such as those that are not in quarantine; over all
        if this is less than half of the updates.

    Raises
    ------
    ConfigError
        If sizes differ.
    """
    if updates.size != layout.size:
        raise ConfigError(
            f"features: updates of {updates.size} coordinates do not fit a model of {layout.size}"
        )
    count = updates.count
    if trusted is None or 2 * trusted.sum() < count:
        trusted = np.ones(count, dtype=np.bool_)
    sums = _Sums(trusted, len(layout.slices))
    for layer, span in enumerate(layout.slices.values()):
        for lo, hi in blocks(span.start, span.stop, _BLOCK):
            rows = np.empty((count, hi - lo))
            updates.read(lo, hi, rows)
            sums.add(layer, rows, None if last_step is None else last_step[lo:hi])
    return sums.table(layout.size)


def describe(name: str, value: float) -> str:
    """Return a feature in words."""
    return _WORDS[name].format(value=value, ratio=math.exp(value))


class _Sums:
    """What is added up over the blocks."""

    def __init__(self, trusted: NDArray[np.bool_], layers: int) -> None:
        count = len(trusted)
        self.trusted = trusted
        self.squares = np.zeros((layers, count))
        self.with_centre = np.zeros((layers, count))
        self.centre = np.zeros(layers)
        self.gram = np.zeros((count, count))
        self.products = np.zeros((count, count))
        self.with_last = np.zeros(count)
        self.last = 0.0
        self.agree = np.zeros(count)
        self.mass = 0.0
        self.absolute = np.zeros(count)

    def add(self, layer: int, block: Floats, last: NDArray[Any] | None) -> None:
        centre = np.median(block[self.trusted], axis=0)
        self.squares[layer] += np.vecdot(block, block)
        self.with_centre[layer] += block @ centre
        self.centre[layer] += centre @ centre
        if last is not None:
            self.with_last += block @ last
            self.last += float(last @ last)
        weight = np.abs(centre)
        self.agree += ((block > 0) == (centre > 0)) @ weight
        self.mass += float(weight.sum())
        self.absolute += np.abs(block).sum(axis=1)
        away = block - centre  # so that the Gram matrix does not cancel
        self.gram += away @ away.T
        self.products += block @ block.T  # from `gram`, those of short updates would cancel

    def table(self, size: int) -> Table:
        squares = self.squares.sum(axis=0)
        norms = np.sqrt(squares)
        apart = self.gram.diagonal()
        between = np.maximum(apart[:, None] + apart[None, :] - 2 * self.gram, 0.0)
        others = np.sort(np.sqrt(between), axis=1)[:, 1:]
        half = max(1, others.shape[1] // 2)
        layer_sizes = np.array([self._relative(np.sqrt(row)) for row in self.squares])
        lengths = np.sqrt(self.squares * self.centre[:, None])
        layer_cosines = _ratio(self.with_centre, lengths)
        centre = float(self.centre.sum())
        columns = {
            "norm": self._relative(norms),
            "distance": self._relative(np.sqrt(apart), _NEAR),
            "centre_cosine": _ratio(self.with_centre.sum(axis=0), norms * centre**0.5),
            "last_cosine": _ratio(self.with_last, norms * self.last**0.5),
            "sign_agreement": _ratio(self.agree, np.full(len(norms), self.mass)),
            "neighbours": self._relative(
                others[:, :half].mean(axis=1) if others.size else norms * 0, _NEAR
            ),
            "twin": self._relative(others[:, 0] if others.size else norms * 0, _NEAR),
            "layer_high": layer_sizes.max(axis=0),
            "layer_low": layer_sizes.min(axis=0),
            "layer_cosine": layer_cosines.min(axis=0),
            "density": _ratio(self.absolute, norms * size**0.5),
        }
        lengths = np.sqrt(apart)
        likeness = _ratio(self.gram, np.outer(lengths, lengths))
        np.fill_diagonal(likeness, 1.0)
        values = np.stack([columns[name] for name in NAMES], axis=1)
        cosines = _ratio(self.products, np.outer(norms, norms))
        cosines = np.nan_to_num(cosines, posinf=0.0, neginf=0.0)  # where squares overflow
        return Table(values, likeness, cosines, self.trusted)

    def _relative(self, sizes: Floats, least: float = 0.0) -> Floats:
        """Return logarithms of the ratio to the median; equal sizes give 0, also if all are 0."""
        middle = max(float(np.median(sizes[self.trusted])), _TINY)
        logs: Floats = np.log(np.maximum(sizes, max(least * middle, _TINY))) - np.log(middle)
        return np.clip(logs, -20.0, 20.0)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Divide; 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
