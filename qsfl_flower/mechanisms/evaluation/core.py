r"""Declared metrics as vectors of bounded norm, and what their sums say.

Each metric has coordinates of its own. A client's part of them has a norm of at most `Metric.norm`,
whatever its app reports, so that one client moves a sum by no more than its bound; and sums that so
many clients cannot make together are refused. Counts are whole multiples of a power of two, so that
their sums are exact.

References
----------
E. C. Fieller, "Some problems in interval estimation", 1954. doi:10.1111/j.2517-6161.1954.tb00159.x.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.evaluation.options import MetricOptions
from qsfl_flower.privacy.record import RecordBatch

Floats = NDArray[np.float64]
Value = float | list[float]
ROUNDING = 1 + 1e-6
"""Room for rounding, so that clipping changes no vector of an honest app."""


class Metric(MetricOptions):
    """A number, or numbers, that every client reports, and how much of it may count.

    Examples
    --------
    >>> accuracy = Metric(name="accuracy")  # a mean over all examples, in [0, 1]
    >>> Metric(name="hits", kind="histogram", size=10, most=500.0).coordinates
    10
    """

    @property
    def coordinates(self) -> int:
        """How many coordinates one group has."""
        one = {"mean": 2, "count": 1, "sum": 1, "confusion": self.size**2}
        return one.get(self.kind, self.size)

    @property
    def total(self) -> int:
        """How many coordinates all groups have."""
        return self.coordinates * self.groups

    @property
    def norm(self) -> float:
        """Largest L2 norm of a client's part."""
        return math.sqrt(2) if self.kind == "mean" else 1.0

    @property
    def record_norm(self) -> float | None:
        """By how much one record can change a client's part, if its values are within low and high.

        None if a record can change all of it.
        """
        if self.by is not None or self.kind in ("sum", "spread"):
            return None
        return (1.0 if self.kind == "count" else math.sqrt(2)) / self.largest

    @property
    def largest(self) -> float:
        """The value for which a coordinate is 1."""
        most = max(abs(self.low), abs(self.high)) if self.kind == "sum" else self.most
        return 2.0 ** math.ceil(math.log2(most))

    def take(self, numbers: Mapping[str, object]) -> Floats:
        """Return a client's part, shape (total,); zeros where the app reports nothing usable."""
        found = np.zeros((self.groups, self.coordinates))
        group = 0.0 if self.by is None else _number(numbers.get(self.by))
        if group is not None and 0 <= group < self.groups:
            found[int(group)] = self._one(numbers)
        return found.reshape(-1)

    def _one(self, numbers: Mapping[str, object]) -> Floats:
        value, found = numbers.get(self.name), np.zeros(self.coordinates)
        if self.kind in ("histogram", "confusion"):
            if isinstance(value, list) and len(value) == found.size:
                parts = [_number(one) for one in value]
                counts = np.array([0.0 if n is None else max(n, 0.0) for n in parts])
                found = counts * min(1.0, self.most / max(float(counts.sum()), 1.0)) / self.largest
            return found
        number = _number(value)
        if number is None:
            return found
        if self.kind == "count":
            return np.array([min(max(number, 0.0), self.most) / self.largest])
        number = min(max(number, self.low), self.high)
        if self.kind == "sum":
            return np.array([number / self.largest])
        place = (number - self.low) / (self.high - self.low)
        if self.kind == "spread":
            found[min(int(place * self.size), self.size - 1)] = 1.0
            return found
        examples = _number(numbers.get(self.weighted_by)) or 0.0
        weight = min(max(examples, 0.0), self.most) / self.largest
        return np.array([place * weight, weight])

    def possible(self, sums: Floats, clients: int, slack: float) -> bool:
        """Return whether so many honest clients can have such sums; `slack` is that of each number.

        Parameters
        ----------
        sums : ndarray of float64, shape (total,)
            Sums of the clients' parts.
        clients : int
            How many clients are in them.
        slack : float
            By how much each number may be off, for noise and rounding.
        """
        rows = sums.reshape(self.groups, self.coordinates)
        share = 1.0 if self.kind == "spread" else self.most / self.largest
        if self.kind == "sum":
            return bool(np.abs(sums).max() <= clients + slack)
        first = rows[:, 0].sum() if self.kind in ("mean", "count") else sums.sum()
        under = bool((rows[:, 0] <= rows[:, -1] + 2 * slack).all()) if self.kind == "mean" else True
        counted = rows[:, -1].sum() if self.kind == "mean" else first
        most = clients * share + slack * sums.size
        return under and bool(sums.min() >= -slack) and bool(counted <= most)

    def read(self, sums: Floats, std: float, level: float) -> dict[str, Value]:
        """Return what the sums over clients say, by name.

        Parameters
        ----------
        sums : ndarray of float64, shape (total,)
            Sums of the clients' parts, with their noise.
        std : float
            Standard deviation of the noise of each coordinate; 0: none.
        level : float
            Probability with which an interval covers the sum without noise, in (0, 1).
        """
        z = NormalDist().inv_cdf((1 + level) / 2) * std
        rows = sums.reshape(self.groups, self.coordinates)
        if self.kind == "mean":
            return self._means(rows, z)
        if self.kind == "spread":
            return self._lie(rows) if self.groups == 1 else {self.name: _listed(sums)}
        scaled = sums * self.largest
        if self.kind in ("histogram", "confusion"):
            told: dict[str, Value] = {self.name: _listed(scaled)}
            if self.kind == "confusion" and self.groups == 1:
                matrix = np.maximum(scaled, 0.0).reshape(self.size, self.size)
                totals = matrix.sum(axis=1)
                told[f"{self.name}-recall"] = _listed(
                    np.divide(np.diag(matrix), totals, out=np.zeros(self.size), where=totals > 0)
                )
            return told
        reach = z * self.largest
        told = {self.name: _listed(scaled) if self.groups > 1 else float(scaled[0])}
        if std > 0:
            told[f"{self.name}-low"] = _same(scaled - reach, self.groups)
            told[f"{self.name}-high"] = _same(scaled + reach, self.groups)
        return told

    def _means(self, rows: Floats, z: float) -> dict[str, Value]:
        """Return the mean of each group with its interval, where any examples were counted."""
        width, found = self.high - self.low, []
        for value, weight in rows:
            # Less weight than the noise can make: no mean is known, the range is.
            if weight <= max(z, 0.0):
                found.append((math.nan, 0.0, 1.0))
                continue
            # Fieller: all ratios q with |value - q weight| <= z sqrt(1 + q^2).
            a, b, c = weight**2 - z**2, -value * weight, value**2 - z**2
            root = math.sqrt(max(b * b - a * c, 0.0))
            ends = sorted(min(max(end, 0.0), 1.0) for end in ((-b - root) / a, (-b + root) / a))
            found.append((min(max(value / weight, 0.0), 1.0), *ends))
        if self.groups == 1 and math.isnan(found[0][0]) and z == 0:
            return {}
        columns = [np.array(one) * width + self.low for one in zip(*found, strict=True)]
        told = {self.name: _same(columns[0], self.groups)}
        if z > 0:
            told[f"{self.name}-low"] = _same(columns[1], self.groups)
            told[f"{self.name}-high"] = _same(columns[2], self.groups)
        return told

    def _lie(self, rows: Floats) -> dict[str, Value]:
        """Return how the clients' values lie: counts, lowest decile, median, and their spread."""
        counts = rows[0]
        bins = np.maximum(counts, 0.0)
        told: dict[str, Value] = {f"{self.name}-clients": _listed(counts)}
        if (total := float(bins.sum())) <= 0:
            return told
        edges = np.linspace(self.low, self.high, self.size + 1)
        middles = (edges[:-1] + edges[1:]) / 2
        reached = np.concatenate([[0.0], np.cumsum(bins)]) / total
        for name, share in (("worst-decile", 0.1), ("median", 0.5), ("best-decile", 0.9)):
            told[f"{self.name}-{name}"] = float(np.interp(share, reached, edges))
        mean = float(middles @ bins) / total
        told[f"{self.name}-spread"] = math.sqrt(float((middles - mean) ** 2 @ bins) / total)
        return told


def norm_of(metrics: Sequence[Metric]) -> float:
    """Return the largest norm of a client's vector.

    Examples
    --------
    >>> norm_of([Metric(name="accuracy"), Metric(name="loss", high=10.0)])
    2.0
    """
    return math.sqrt(sum(round(m.norm**2) for m in metrics))


def record_norm_of(metrics: Sequence[Metric]) -> float:
    """Return by how much one record can change a client's vector.

    Raises
    ------
    ConfigError
        For a metric of which one record can change all.
    """
    norms = [metric.record_norm for metric in metrics]
    if None in norms:
        metric = metrics[norms.index(None)]
        raise ConfigError(
            f"evaluation: unit is record, and one record can change all of {metric.name!r} "
            f"({metric.kind}{' by group' if metric.by else ''}); take means, counts, histograms or "
            "confusions alone, or the unit client"
        )
    return math.sqrt(sum(norm**2 for norm in norms if norm is not None))


def batch_of(metrics: Sequence[Metric]) -> RecordBatch:
    """Return the bounds under which noise protects single records."""
    return RecordBatch(
        clip_norm=record_norm_of(metrics), sampling_rate=1.0, sum_norm=norm_of(metrics) * ROUNDING
    )


def size_of(metrics: Sequence[Metric]) -> int:
    """Return the length of a client's vector."""
    return sum(m.total for m in metrics)


def take(metrics: Sequence[Metric], numbers: Mapping[str, object]) -> Floats:
    """Return a client's vector, of norm at most `norm_of`."""
    return np.concatenate([m.take(numbers) for m in metrics])


def possible(metrics: Sequence[Metric], sums: Floats, clients: int, slack: float) -> str | None:
    """Return the first metric whose sums so many honest clients cannot have; None if there is none.

    Examples
    --------
    >>> right = Metric(name="right", kind="count", most=128.0)
    >>> possible([right], np.array([2.5]), 3, 1e-6), possible([right], np.array([3.5]), 3, 1e-6)
    (None, 'right')
    """
    start = 0
    for metric in metrics:
        stop = start + metric.total
        if not metric.possible(sums[start:stop], clients, slack):
            return metric.name
        start = stop
    return None


def read(
    metrics: Sequence[Metric], sums: Floats, std: float = 0.0, level: float = 0.95
) -> dict[str, Value]:
    """Return what the sums of all clients' vectors say; see `Metric.read`.

    Examples
    --------
    >>> accuracy = Metric(name="accuracy", most=100.0)
    >>> both = take([accuracy], {"accuracy": 0.5, "num-examples": 50})
    >>> both += take([accuracy], {"accuracy": 0.9, "num-examples": 100})
    >>> round(read([accuracy], both)["accuracy"], 6)  # a client counts 100 examples at most
    0.766667
    """
    told: dict[str, Value] = {}
    start = 0
    for metric in metrics:
        stop = start + metric.total
        told |= metric.read(sums[start:stop], std, level)
        start = stop
    return told


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return None
    return None if math.isnan(value) else float(value)


def _listed(values: Floats) -> list[float]:
    return [float(one) for one in values]


def _same(values: Floats, groups: int) -> Value:
    return _listed(values) if groups > 1 else float(values[0])
