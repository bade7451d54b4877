"""Which of two models is better on the clients' records, without seeing one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flwr.app import RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.analytics.core.intervals import Estimate, deviations
from qsfl_flower.mechanisms.analytics.options import CANDIDATE, CURRENT, DIFFERENCE, Variance
from qsfl_flower.mechanisms.analytics.server import Guarantee, Inquiry
from qsfl_flower.strategies.analytics import FederatedAnalytics, Findings
from qsfl_flower.wire import to_record

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Verdict:
    """What a comparison says.

    Parameters
    ----------
    decision : str
        ``"promote"``: the candidate is better by more than the margin, ``"keep"``: it is not,
        ``"undecided"``: the records and the noise leave it open.
    difference : Estimate
        Mean score of the candidate less that of the current model, on the clients' records; the
        interval is about the noise alone.
    expected : Estimate
        The same for records like these that nobody has seen yet; the decision follows from it.
    rows : float
        Number of records, about.
    epsilon : float
        What was spent.
    """

    decision: Literal["promote", "keep", "undecided"]
    difference: Estimate
    expected: Estimate
    rows: float
    epsilon: float


def comparison_inquiry(
    guarantee: Guarantee, *, largest: float = 1.0, level: float = 0.95
) -> Inquiry:
    """Return the question whose answer compares two models.

    Parameters
    ----------
    guarantee : Guarantee
        Unit, epsilon, cohort.
    largest : float
        Largest difference of two scores of one record, > 0: 1 for correctness (0 or 1). Larger ones
        count as this.
    level : float
        Probability with which the interval of `Verdict.expected` holds.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """
    if not 0 < largest < math.inf:
        raise ConfigError(f"comparison: largest is {largest!r}; it must be a number > 0")
    question = Variance(column=DIFFERENCE, low=-largest, high=largest, name=DIFFERENCE)
    return Inquiry((question,), guarantee, 1 - (1 - level) / 2)  # half for noise, half for sampling


def compare_models(
    strategy: FederatedAnalytics,
    grid: Grid,
    current: Arrays,
    candidate: Arrays,
    *,
    margin: float = 0.0,
    timeout: float = 3600.0,
) -> Verdict:
    """Have every client score both models on its records, and decide.

    The clients need `qsfl_flower.clients.analytics.comparison_mod`.

    Parameters
    ----------
    strategy : FederatedAnalytics
        For an inquiry of `comparison_inquiry`.
    grid : Grid
        Flower's grid.
    current, candidate : Mapping[str, ndarray]
        The models; every client sees both.
    margin : float
        By how much the candidate has to be better.
    timeout : float
        Seconds for the round.

    Raises
    ------
    RunError, BudgetExceeded
        As `FederatedAnalytics.ask`.

    Notes
    -----
    Who sees what: the server learns the noisy sums of the differences, of their squares and of the
    records, over at least `Guarantee.fewest` clients; no score of a record or of a client.
    """
    content = RecordDict({CURRENT: to_record(current), CANDIDATE: to_record(candidate)})
    return verdict_of(strategy.ask(grid, timeout, content), margin)


def verdict_of(found: Findings, margin: float = 0.0) -> Verdict:
    """Return what the answers to a `comparison_inquiry` say."""
    told, rows = found[DIFFERENCE], found["rows"]["rows"]
    difference = Estimate(**told["mean"])
    sampling = math.inf
    if rows["low"] > 0:
        sampling = deviations(found.level) * math.sqrt(told["variance"]["high"] / rows["low"])
    low, high = difference.low - sampling, difference.high + sampling
    decision: Literal["promote", "keep", "undecided"] = "undecided"
    if low > margin:
        decision = "promote"
    elif high < margin:
        decision = "keep"
    expected = Estimate(difference.value, low, high)
    return Verdict(decision, difference, expected, float(rows["value"]), found.epsilon)
