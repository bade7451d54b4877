"""What every robust rule is: a parameter object with one pure function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError, QSFLError
from qsfl_flower.mechanisms.robust.core.distances import usable_squares
from qsfl_flower.mechanisms.robust.core.geometry import Geometry
from qsfl_flower.mechanisms.robust.core.updates import Updates
from qsfl_flower.numerics.blocks import Floats


class TooFewUpdates(QSFLError):
    """A rule cannot keep its promise for so many liars among so few updates."""


@dataclass(frozen=True, eq=False, repr=False)
class Choice:
    """Which updates count, and how much.

    Parameters
    ----------
    weights : ndarray of float64, shape (n,)
        The result is the sum of the updates times these factors.
    scores : ndarray of float64, shape (n,)
        How far each update is from what the rule trusts; lower is better.
    """

    weights: Floats
    scores: Floats


@dataclass(frozen=True, eq=False, repr=False)
class Aggregate:
    """What a rule makes of the updates of a round.

    Parameters
    ----------
    vector : ndarray of float64, shape (d,)
        The robust centre.
    num_byzantine : int
        How many liars were assumed.
    selected : ndarray of bool, shape (n,)
        Which updates the result is made of.
    weights : ndarray of float64, shape (n,), or None
        Their factors; None if every coordinate has its own.
    scores : ndarray of float64, shape (n,), or None
        Lower is better; infinite for what was excluded; None if the rule does not look at updates
        as a whole.
    excluded : tuple of int
        Rows that hold NaN, infinity or absurd numbers. Each counts as one of the liars.
    """

    vector: Floats
    num_byzantine: int
    selected: NDArray[np.bool_]
    weights: Floats | None = None
    scores: Floats | None = None
    excluded: tuple[int, ...] = ()


@dataclass(frozen=True)
class Rule(ABC):
    """A rule that turns n updates into one, although some of them lie.

    Parameters
    ----------
    num_byzantine : int, optional
        How many of the updates may lie, f >= 0. By default a third of them, but not more than the
        rule withstands.
    """

    num_byzantine: int | None = None

    name: ClassVar[str]
    needs: ClassVar[tuple[int, int]] = (2, 1)
    """The rule withstands f liars among at least ``a * f + b`` updates; these are a and b."""
    pairs: ClassVar[bool] = False
    """Whether the rule looks at pairs of updates."""
    anchored: ClassVar[bool] = False
    """Whether the result depends on the point from which updates are measured."""
    lazy: ClassVar[bool] = False
    """Whether the rule itself finds out, and raises `NotFinite`, if an update is not finite."""

    def __post_init__(self) -> None:
        f = self.num_byzantine
        if f is not None and (not isinstance(f, int) or isinstance(f, bool) or f < 0):
            raise ConfigError(f"num_byzantine is {f!r}; allowed is an integer >= 0, or null")

    def most(self, count: int) -> int:
        """Return the largest number of liars that the rule withstands among `count` updates."""
        slope, offset = self.needs
        return max(0, (count - offset) // slope)

    def liars(self, count: int, rows: int) -> int:
        """Return how many of `count` updates, mixed into `rows` ones, are assumed to lie.

        Raises
        ------
        TooFewUpdates
            If the rule does not withstand the configured number.
        """
        most = self.most(rows)
        if self.num_byzantine is None:
            return min(count // 3, most)
        if self.num_byzantine > most:
            raise TooFewUpdates(
                f"{self.name} withstands at most {most} malicious ones among {rows} updates; "
                f"num_byzantine is {self.num_byzantine}"
            )
        return self.num_byzantine

    @abstractmethod
    def aggregate(self, geometry: Geometry, f: int) -> Aggregate:
        """Combine usable updates, assuming f liars; called by `aggregate` of this module."""


class LinearRule(Rule):
    """A rule whose result is a weighted sum of updates, chosen by their geometry."""

    @abstractmethod
    def choose(self, geometry: Geometry, f: int) -> Choice:
        """Return factors and scores of usable updates."""

    def aggregate(self, geometry: Geometry, f: int) -> Aggregate:
        """Add up what was chosen."""
        choice = self.choose(geometry, f)
        vector = geometry.updates.sum(choice.weights, threads=geometry.threads)
        return Aggregate(vector, f, choice.weights != 0, choice.weights, choice.scores)


class NotFinite(QSFLError):
    """Some update holds NaN or infinity; found by a rule that had not looked before."""


@dataclass(frozen=True, eq=False, repr=False)
class Mixing:
    """Mixtures of updates that take the updates' place.

    Parameters
    ----------
    matrix : ndarray of float64, shape (m, n)
        Rows sum to 1.
    row_of : ndarray of int, shape (n,)
        The mixture whose score an update gets.
    """

    matrix: Floats
    row_of: NDArray[np.intp]


class Preparation(ABC):
    """Something that mixes updates before the rule sees them, so that honest ones look alike."""

    name: ClassVar[str]

    @abstractmethod
    def rows(self, count: int) -> int:
        """Return how many mixtures `count` updates give."""

    @abstractmethod
    def mixing(self, geometry: Geometry, f: int) -> Mixing:
        """Return the mixtures, assuming f liars."""


def aggregate(
    updates: Updates,
    rule: Rule,
    before: Preparation | None = None,
    *,
    threads: int | None = None,
) -> Aggregate:
    """Combine updates by a robust rule.

    Vectors that hold NaN or infinity, or have a norm above 1e100, are excluded, and each of them
    counts as one of the f liars: the rule goes on with f less their number among the others.

    Parameters
    ----------
    updates : Updates
        n updates of d coordinates, in canonical order: of equal scores the first ones win.
    rule : Rule
        The rule and its parameters.
    before : Preparation, optional
        How to mix the updates first.
    threads : int, optional
        Threads over coordinates; by default one per core, at most four. The bits of the result do
        not depend on it.

    Returns
    -------
    Aggregate
        Rows, factors and scores refer to the updates as they were given.

    Raises
    ------
    TooFewUpdates
        If the rule does not withstand the configured number of liars among so few updates, or if
        no update is usable.
    """
    count = updates.count
    f = rule.liars(count, count if before is None else before.rows(count))
    geometry = Geometry(updates, threads)
    if rule.lazy and before is None:
        try:
            return rule.aggregate(geometry, f)
        except NotFinite:
            pass
    if rule.pairs or before is not None:
        geometry.products  # noqa: B018  the norms are on its diagonal
    usable = usable_squares(geometry.squares)
    rows = np.flatnonzero(usable)
    if not rows.size:
        raise TooFewUpdates(f"none of {count} updates is usable: NaN, infinity or absurd numbers")
    if rows.size < count:
        geometry = geometry.keep(rows)
    left = max(0, f - (count - rows.size))
    if before is None:
        inner = rule.aggregate(geometry, left)
        weights, scores, selected = inner.weights, inner.scores, inner.selected
    else:
        mixing = before.mixing(geometry, left)
        inner = rule.aggregate(geometry.mixed(mixing.matrix), left)
        weights = None if inner.weights is None else inner.weights @ mixing.matrix
        scores = None if inner.scores is None else inner.scores[mixing.row_of]
        selected = (mixing.matrix[inner.selected] != 0).any(axis=0)
    return Aggregate(
        vector=inner.vector,
        num_byzantine=f,
        selected=_spread(selected, rows, count, False),
        weights=None if weights is None else _spread(weights, rows, count, 0.0),
        scores=None if scores is None else _spread(scores, rows, count, np.inf),
        excluded=tuple(int(row) for row in np.flatnonzero(~usable)),
    )


def _spread(values: NDArray[Any], rows: NDArray[np.intp], count: int, rest: Any) -> NDArray[Any]:
    out = np.full(count, rest, dtype=values.dtype)
    out[rows] = values
    return out
