"""Questions about tables: the one description of their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from qsfl_flower.errors import ConfigError
from qsfl_flower.plugins import Options, option

BRANCHES = 8
"""Children of a node in the tree of counts."""

CURRENT, CANDIDATE = "current", "candidate"
"""Records of an instruction that hold the models to compare."""

DIFFERENCE = "difference"
"""The column that a comparison of two models asks about: candidate less current."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_MOST_VALUES = 10_000
_LEAST_WIDTH = 1e-300
"""Half of the least width is a number > 0: division by zero would make NaN of some values alone,
and a client that then sends nothing tells that it has one of them."""


@dataclass(frozen=True, kw_only=True)
class Question(Options):
    """What all questions have."""

    kind: ClassVar[str]

    name: str | None = option("Name of the answer; null: kind and column.", None)
    weight: float = option(
        "Share of the privacy budget, relative to the weights of the other questions.",
        1.0,
        gt=0,
        le=1e6,
    )

    @property
    def needs(self) -> dict[str, type]:
        """Return the columns that are read, and whether they hold numbers or texts."""
        return {self.column: float}

    column: str = option("Name of the column.")

    @property
    def title(self) -> str:
        """Return the name of the answer."""
        return self.name or f"{self.kind} of {', '.join(self.needs)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the question as JSON values, its kind included."""
        return {"kind": self.kind, **super().to_dict()}


@dataclass(frozen=True, kw_only=True)
class Bounded(Question):
    """A question about numbers; those outside of the bounds count as the bound."""

    low: float = option("Least value, chosen without looking at the data.")
    high: float = option("Largest value, chosen without looking at the data.")

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_bounds(self.kind, self.column, self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Mean(Bounded):
    """The mean of a column."""

    kind = "mean"


@dataclass(frozen=True, kw_only=True)
class Variance(Bounded):
    """The mean, variance and standard deviation of a column."""

    kind = "variance"


@dataclass(frozen=True, kw_only=True)
class Histogram(Bounded):
    """How many rows have a number within each of so many bins of one width."""

    kind = "histogram"

    bins: int = option("Number of bins.", 10, ge=1, le=_MOST_VALUES)


@dataclass(frozen=True, kw_only=True)
class Counts(Question):
    """How many rows have each of some texts, and how many have another one."""

    kind = "counts"

    values: tuple[str, ...] = option("The texts, known beforehand.")

    @property
    def needs(self) -> dict[str, type]:
        """Return the column, of texts."""
        return {self.column: str}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= len(set(self.values)) == len(self.values) <= _MOST_VALUES:
            raise ConfigError(
                f"counts of {self.column!r}: values are {self.values!r:.60}; allowed are 1 to "
                f"{_MOST_VALUES} texts, each once"
            )


@dataclass(frozen=True, kw_only=True)
class Quantiles(Bounded):
    """Quantiles of a column, from a tree of counts."""

    kind = "quantiles"

    quantiles: tuple[float, ...] = option("Shares of the rows below, in (0, 1).", (0.25, 0.5, 0.75))
    depth: int = option(
        f"Levels of the tree: the bounds are cut into {BRANCHES}^depth intervals.", 4, ge=1, le=6
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.quantiles or not all(0 < q < 1 for q in self.quantiles):
            raise ConfigError(
                f"quantiles of {self.column!r}: quantiles are {self.quantiles}; allowed is a list "
                "of numbers > 0 and < 1"
            )


@dataclass(frozen=True, kw_only=True)
class HeavyHitters(Question):
    """The frequent texts of a column, found letter by letter; each letter is a round."""

    kind = "heavy_hitters"

    max_length: int = option(
        "Letters that are looked at; longer texts count by their first ones.", 10, ge=1, le=64
    )
    most: int = option("Beginnings that are followed in a round, at most.", 100, ge=1, le=10_000)
    letters: str = option("The alphabet; texts with another letter do not count.", _LETTERS)
    false_share: float = option(
        "Chance that a round follows a beginning that nobody has.", 0.01, gt=0, lt=1
    )

    @property
    def needs(self) -> dict[str, type]:
        """Return the column, of texts."""
        return {self.column: str}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= len(set(self.letters)) == len(self.letters) <= 1000:
            raise ConfigError(
                f"heavy_hitters of {self.column!r}: letters are {self.letters!r:.60}; allowed are "
                "1 to 1000, each once"
            )


@dataclass(frozen=True, kw_only=True)
class Correlation(Question):
    """The correlation of every two of some columns."""

    kind = "correlation"

    column: str = option("Not used.", "", schema={"x-hidden": True})
    columns: tuple[str, ...] = option("Names of the columns.")
    low: tuple[float, ...] = option("Least value of each column.")
    high: tuple[float, ...] = option("Largest value of each column.")

    @property
    def needs(self) -> dict[str, type]:
        """Return the columns, of numbers."""
        return dict.fromkeys(self.columns, float)

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = {len(set(self.columns)), len(self.columns), len(self.low), len(self.high)}
        if len(sizes) > 1 or not 2 <= len(self.columns) <= 100:
            raise ConfigError(
                f"correlation: found {len(self.columns)} columns, {len(self.low)} low and "
                f"{len(self.high)} high; there must be 2 to 100 different columns, and low and "
                "high for each"
            )
        for column, low, high in zip(self.columns, self.low, self.high, strict=True):
            _check_bounds(self.kind, column, low, high)


KINDS: dict[str, type[Question]] = {
    one.kind: one
    for one in (Mean, Variance, Histogram, Counts, Quantiles, HeavyHitters, Correlation)
}
"""The questions, by the name that a file uses."""


def question_of(values: Mapping[str, Any]) -> Question:
    """Read what `Question.to_dict` returned, strictly.

    Raises
    ------
    ConfigError
        If it is no question, or one that cannot be answered.
    """
    kind = values.get("kind")
    if kind not in KINDS:
        raise ConfigError(f"a question has kind {kind!r:.60}; allowed are {', '.join(KINDS)}")
    return KINDS[kind].from_dict({k: v for k, v in values.items() if k != "kind"})


def _check_bounds(kind: str, column: str, low: float, high: float) -> None:
    if not (low < high and _LEAST_WIDTH <= high - low < float("inf")):
        raise ConfigError(
            f"{kind} of {column!r}: low is {low:g} and high {high:g}; low must be less than high, "
            f"by {_LEAST_WIDTH:g} or more, and their distance a number"
        )
