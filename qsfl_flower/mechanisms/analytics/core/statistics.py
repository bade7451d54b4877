r"""What a client adds up for a question, and what the noisy sum says.

A statistic is a vector that each row adds to, of L2 norm at most its sensitivity; a number x of a
bounded column enters as :math:`u = (x - m) / h` in [-1, 1], with the middle m and half the width h
of the bounds.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.mechanisms.analytics.core.intervals import Estimate, around, deviations, ratio
from qsfl_flower.mechanisms.analytics.core.tree import Tree
from qsfl_flower.mechanisms.analytics.options import (
    BRANCHES,
    Bounded,
    Correlation,
    Counts,
    HeavyHitters,
    Histogram,
    Mean,
    Quantiles,
    Question,
    Variance,
)

Floats = NDArray[np.float64]
Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Noisy:
    """A sum over the rows of all clients with Gaussian noise.

    Parameters
    ----------
    values : ndarray, shape (d,)
        The sum.
    std : float
        Standard deviation of the noise of each number, >= 0.
    """

    values: Floats
    std: float

    @staticmethod
    def mean(parts: Sequence[Noisy]) -> Noisy:
        """Average measurements of one sum, by their variances."""
        weights = [1 / max(part.std, 1e-12) ** 2 for part in parts]
        whole = sum(weights)
        values = sum(w / whole * part.values for w, part in zip(weights, parts, strict=True))
        return Noisy(np.asarray(values), whole**-0.5)


class Statistic(ABC):
    """One question as a vector."""

    size: int
    sensitivity: float

    @abstractmethod
    def sum(self, columns: Columns) -> Floats:
        """Return the sum over the rows of one client, shape (size,)."""

    @abstractmethod
    def answer(self, found: Noisy, rows: Noisy, level: float) -> dict[str, Any]:
        """Return the answer as JSON values."""

    @abstractmethod
    def error(self, std: float, rows: float, rows_std: float, level: float) -> tuple[float, str]:
        """Return half the width of an interval to expect, and its unit."""


class Rows(Statistic):
    """The number of rows."""

    size, sensitivity = 1, 1.0

    def sum(self, columns: Columns) -> Floats:
        """Count the rows."""
        return np.array([float(len(next(iter(columns.values()), ())))])

    def answer(self, found: Noisy, rows: Noisy, level: float) -> dict[str, Any]:
        """Return the number of rows."""
        del rows
        return {"rows": _told(around(float(found.values[0]), found.std, level), 0.0)}

    def error(self, std: float, rows: float, rows_std: float, level: float) -> tuple[float, str]:
        """Return the error of the number."""
        del rows, rows_std
        return deviations(level) * std, "rows"


@dataclass(frozen=True)
class _Scale:
    """The way from a bounded column to [-1, 1] and back."""

    low: float
    high: float

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    @property
    def middle(self) -> float:
        return self.low + self.half

    def of(self, values: NDArray[Any]) -> Floats:
        scaled = (np.clip(values.astype(np.float64), self.low, self.high) - self.middle) / self.half
        return np.clip(scaled, -1.0, 1.0)

    def back(self, found: Estimate) -> Estimate:
        return found.scaled(self.half, self.middle).within(self.low, self.high)


class MeanOf(Statistic):
    """The sum of u."""

    size, sensitivity = 1, 1.0

    def __init__(self, question: Bounded) -> None:
        self.column, self.scale = question.column, _Scale(question.low, question.high)

    def sum(self, columns: Columns) -> Floats:
        """Add up the column."""
        return np.array([self.scale.of(columns[self.column]).sum()])

    def answer(self, found: Noisy, rows: Noisy, level: float) -> dict[str, Any]:
        """Return the mean."""
        return {"mean": _told(self.scale.back(_share(found, 0, rows, level)))}

    def error(self, std: float, rows: float, rows_std: float, level: float) -> tuple[float, str]:
        """Return the error of a mean in the quarter of the range."""
        spread = math.hypot(std, rows_std / 2)
        return deviations(level) * spread * self.scale.half / rows, f"in {self.column}"


class VarianceOf(Statistic):
    r"""The sums of u and :math:`u^2 - 1/2`; together :math:`u^2 + (u^2 - 1/2)^2 \le 5/4`."""

    size, sensitivity = 2, math.sqrt(1.25)

    def __init__(self, question: Bounded) -> None:
        self.column, self.scale = question.column, _Scale(question.low, question.high)

    def sum(self, columns: Columns) -> Floats:
        """Add up the column and its squares."""
        u = self.scale.of(columns[self.column])
        return np.array([u.sum(), (u * u - 0.5).sum()])

    def answer(self, found: Noisy, rows: Noisy, level: float) -> dict[str, Any]:
        """Return mean, variance and standard deviation."""
        mean = _share(found, 0, rows, level)
        spread = _spread(found, (0, 1), rows, _split(level, 2))
        variance = spread.scaled(self.scale.half**2)
        return {
            "mean": _told(self.scale.back(mean)),
            "variance": _told(variance),
            "std": _told(variance.root()),
        }

    def error(self, std: float, rows: float, rows_std: float, level: float) -> tuple[float, str]:
        """Return the error of the mean."""
        spread = math.hypot(std, rows_std / 2)
        return deviations(level) * spread * self.scale.half / rows, f"in the mean of {self.column}"


class HistogramOf(Statistic):
    """One number for each bin."""

    sensitivity = 1.0

    def __init__(self, question: Histogram) -> None:
        self.column, self.low, self.high = question.column, question.low, question.high
        self.size = question.bins

    @property
    def edges(self) -> Floats:
        """Return where the bins begin and end."""
        return np.linspace(self.low, self.high, self.size + 1)

    def sum(self, columns: Columns) -> Floats:
        """Count the rows of each bin."""
        where = _leaf(columns[self.column], self.edges)
        return np.bincount(where, minlength=self.size).astype(np.float64)

    def answer(self, found: Noisy, rows: Noisy, level: float) -> dict[str, Any]:
        """Return the bins."""
        ends = itertools.pairwise(self.edges.tolist())
        return {
            "bins": [
                {"from": a, "to": b, **_told(around(float(v), found.std, level), 0.0)}
                for (a, b), v in zip(ends, found.values, strict=True)
            ]
        }

    def error(self, std: float, rows: float, rows_std: float, level: float) -> tuple[float, str]:
        """Return the error of a bin."""
        del rows, rows_std
        return deviations(level) * std, "rows a bin"


class CountsOf(Statistic):
    """One number for each text, and one for all others."""

    sensitivity = 1.0

    def __init__(self, question: Counts) -> None:
        self.column, self.values = question.column, question.values
        self.size = len(self.values) + 1

    def sum(self, columns: Columns) -> Floats:
        """Count the rows of each text."""
        place = {text: i for i, text in enumerate(self.values)}
        texts, counts = np.unique(columns[self.column].astype(str), return_counts=True)
        found = np.zeros(self.size)
        for text, count in zip(texts.tolist(), counts.tolist(), strict=True):
            found[place.get(text, self.size - 1)] += count
        return found

    def answer(self, found: Noisy, rows: Noisy, level: float) -> dict[str, Any]:
        """Return the texts; null stands for all others."""
        return {
            "values": [
                {"text": text, **_told(around(float(v), found.std, level), 0.0)}
                for text, v in zip((*self.values, None), found.values, strict=True)
            ]
        }

    def error(self, std: float, rows: float, rows_std: float, level: float) -> tuple[float, str]:
        """Return the error of a count."""
        del rows, rows_std
        return deviations(level) * std, "rows a text"


class QuantilesOf(Statistic):
    """A tree of counts: one number for each node below the root."""

    def __init__(self, question: Quantiles) -> None:
        self.column, self.quantiles = question.column, question.quantiles
        self.low, self.high, self.depth = question.low, question.high, question.depth
        self.sizes = [BRANCHES**i for i in range(1, self.depth + 1)]
        self.size, self.sensitivity = sum(self.sizes), math.sqrt(self.depth)

    @property
    def edges(self) -> Floats:
        """Return where the leaves begin and end."""
        return np.linspace(self.low, self.high, self.sizes[-1] + 1)

    def sum(self, columns: Columns) -> Floats:
        """Count the rows of each node."""
        where = _leaf(columns[self.column], self.edges)
        levels = [np.bincount(where, minlength=self.sizes[-1]).astype(np.float64)]
        while len(levels) < self.depth:
            levels.insert(0, levels[0].reshape(-1, BRANCHES).sum(axis=1))
        return np.concatenate(levels)

    def tree(self, found: Noisy, rows: Noisy) -> Tree:
        """Return the counts, made to agree."""
        levels = np.split(found.values, np.cumsum(self.sizes)[:-1])
        return Tree([rows.values, *levels], [rows.std, *[found.std] * self.depth], BRANCHES)

    def answer(self, found: Noisy, rows: Noisy, level: float) -> dict[str, Any]:
        """Return the quantiles."""
        tree, edges = self.tree(found, rows), self.edges
        return {
            "quantiles": [
                {"quantile": q, **_told(tree.quantile(q, edges, level))} for q in self.quantiles
            ]
        }

    def error(self, std: float, rows: float, rows_std: float, level: float) -> tuple[float, str]:
        """Return the error of the rank of the median."""
        zeros = [np.zeros(size) for size in (1, *self.sizes)]
        noise = Tree(zeros, [rows_std, *[std] * self.depth], BRANCHES).deviations(0.5)
        return 100 * deviations(level) * float(noise.max()) / rows, "% of the rows in rank"


class WordsOf(Statistic):
    """One number for each beginning that is followed and each letter behind it, or its end.

    Parameters
    ----------
    question : HeavyHitters
        The question.
    beginnings : sequence of str
        Which beginnings are followed, all of one length.
    """

    sensitivity = 1.0

    def __init__(self, question: HeavyHitters, beginnings: Sequence[str] = ("",)) -> None:
        self.question, self.column = question, question.column
        self.beginnings = tuple(beginnings)
        self.size = len(self.beginnings) * (len(question.letters) + 1)

    def sum(self, columns: Columns) -> Floats:
        """Count what comes behind each beginning."""
        letters = {letter: i for i, letter in enumerate(self.question.letters)}
        place = {start: i for i, start in enumerate(self.beginnings)}
        length, width = len(self.beginnings[0]), len(letters) + 1
        found = np.zeros(self.size)
        texts, counts = np.unique(columns[self.column].astype(str), return_counts=True)
        for text, count in zip(texts.tolist(), counts.tolist(), strict=True):
            start = place.get(text[:length])
            if start is None or not set(text) <= letters.keys():
                continue
            last = letters[text[length]] if len(text) > length else width - 1
            found[start * width + last] += count
        return found

    def answer(self, found: Noisy, rows: Noisy, level: float) -> dict[str, Any]:
        """Return the texts that end here, and those that go on where no round follows.

        The intervals hold for all candidates of this round at once.
        """
        del rows
        length = len(self.beginnings[0])
        last = length + 1 == self.question.max_length
        return {
            "words": [
                {
                    "text": start + letter,
                    "whole": not letter,
                    **_told(around(count, found.std, level, self.size), 0.0),
                }
                for start, letter, count in self._frequent(found)
                if last or not letter
            ]
        }

    def next(self, found: Noisy) -> tuple[str, ...]:
        """Return the beginnings that are followed in the next round, the most frequent first."""
        kept = [(start + letter, c) for start, letter, c in self._frequent(found) if letter]
        kept.sort(key=lambda one: -one[1])
        return tuple(text for text, _ in kept[: self.question.most])

    def _frequent(self, found: Noisy) -> list[tuple[str, str, float]]:
        """Return beginning, letter (none: the end) and count of what noise does not explain."""
        # One-sided: none of so many counts of nobody passes, but with the probability given.
        least = found.std * deviations(1 - 2 * self.question.false_share, self.size)
        width, letters = len(self.question.letters) + 1, (*self.question.letters, "")
        return [
            (self.beginnings[i // width], letters[i % width], float(found.values[i]))
            for i in np.flatnonzero(found.values > least).tolist()
        ]

    def error(self, std: float, rows: float, rows_std: float, level: float) -> tuple[float, str]:
        """Return the number of rows from which on a text is found."""
        del rows, rows_std, level
        width = len(self.question.letters) + 1
        worst = deviations(1 - 2 * self.question.false_share, self.question.most * width)
        return std * worst, "rows, below which a text is not found"


class CorrelationOf(Statistic):
    r"""The sums of all u, of all products of two, and of all :math:`u^2 - 1/2`."""

    def __init__(self, question: Correlation) -> None:
        self.columns = question.columns
        ends = zip(question.low, question.high, strict=True)
        self.scales = [_Scale(low, high) for low, high in ends]
        k = len(self.columns)
        self.pairs = list(itertools.combinations(range(k), 2))
        self.size = 2 * k + len(self.pairs)
        self.sensitivity = math.sqrt(1.25 * k + len(self.pairs))

    def sum(self, columns: Columns) -> Floats:
        """Add up the columns and their products."""
        u = np.array([s.of(columns[c]) for s, c in zip(self.scales, self.columns, strict=True)])
        products = u @ u.T
        squares = np.diag(products) - 0.5 * u.shape[1]
        return np.concatenate([u.sum(axis=1), squares, [products[i, j] for i, j in self.pairs]])

    def answer(self, found: Noisy, rows: Noisy, level: float) -> dict[str, Any]:
        """Return the correlation of every pair; null where a column may be constant."""
        k, told = len(self.columns), []
        each = _split(level, 5)
        means = [_share(found, i, rows, each) for i in range(k)]
        spreads = [_spread(found, (i, k + i), rows, each) for i in range(k)]
        for at, (i, j) in enumerate(self.pairs):
            product = _share(found, 2 * k + at, rows, each)
            together = product.minus(means[i].times(means[j]))
            told.append(
                {
                    "columns": [self.columns[i], self.columns[j]],
                    **_told(_quotient(together, spreads[i].times(spreads[j]).root())),
                }
            )
        return {"pairs": told}

    def error(self, std: float, rows: float, rows_std: float, level: float) -> tuple[float, str]:
        """Return the error of a covariance in units of a third of the product of the ranges."""
        spread = math.hypot(std, rows_std / 2)
        return 3 * deviations(level) * spread / rows, "in a correlation of even columns"


_STATISTICS: dict[type[Question], Any] = {
    Mean: MeanOf,
    Variance: VarianceOf,
    Histogram: HistogramOf,
    Counts: CountsOf,
    Quantiles: QuantilesOf,
    HeavyHitters: WordsOf,
    Correlation: CorrelationOf,
}


def statistic_of(question: Question, beginnings: Sequence[str] = ("",)) -> Statistic:
    """Return the statistic of a question; `beginnings` count for heavy hitters alone."""
    if isinstance(question, HeavyHitters):
        return WordsOf(question, beginnings)
    made: Statistic = _STATISTICS[type(question)](question)
    return made


def _leaf(values: NDArray[Any], edges: Floats) -> NDArray[np.int64]:
    """Return which interval each value is in; what lies outside counts as the bound."""
    where = np.searchsorted(edges, values.astype(np.float64), side="right") - 1
    return np.clip(where, 0, len(edges) - 2)


def _split(level: float, numbers: int) -> float:
    """Return the level at which so many intervals hold together."""
    return 1 - (1 - level) / numbers


def _share(found: Noisy, at: int, rows: Noisy, level: float) -> Estimate:
    """Return a sum over the number of rows, in [-1, 1]."""
    top, bottom = float(found.values[at]), float(rows.values[0])
    return ratio(top, found.std, bottom, rows.std, level, -1.0, 1.0)


def _spread(found: Noisy, at: tuple[int, int], rows: Noisy, level: float) -> Estimate:
    """Return the variance of u from the places of its sum and of that of its squares."""
    mean = _share(found, at[0], rows, level)
    square = _share(found, at[1], rows, level).scaled(1.0, 0.5).within(0.0, 1.0)
    return square.minus(mean.squared()).within(0.0, 1.0)


def _quotient(top: Estimate, bottom: Estimate) -> Estimate:
    """Return a correlation from a covariance and a product of deviations."""
    value = top.value / bottom.value if bottom.value > 0 else math.nan
    if bottom.low <= 0:
        return Estimate(value if abs(value) <= 1 else math.nan, -1.0, 1.0)
    ends = [end / part for end in (top.low, top.high) for part in (bottom.low, bottom.high)]
    return Estimate(value, min(ends), max(ends)).within(-1.0, 1.0)


def _told(found: Estimate, least: float | None = None) -> dict[str, float | None]:
    values = vars(found if least is None else found.within(least, math.inf))
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
