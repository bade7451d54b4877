r"""An empirical lower bound on epsilon from one run with canaries.

Each of m canaries takes part with probability 1/2, decided by a coin of its own. Afterwards the
auditor guesses some of the coins from what was released. A mechanism with (epsilon, delta)-DP lets
nobody guess better than a known bound, so many right guesses refute a claim.

References
----------
T. Steinke, M. Nasr, M. Jagielski, "Privacy auditing with one (1) training run", 2023.
arXiv:2305.08846.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from qsfl_flower.errors import ConfigError


@dataclass(frozen=True)
class AuditResult:
    """What an audit found.

    Parameters
    ----------
    epsilon : float
        With the given confidence the true epsilon is at least this; 0 says nothing.
    guesses, correct : int
        How many coins were guessed and how many rightly.
    canaries : int
        Number of canaries.
    """

    epsilon: float
    guesses: int
    correct: int
    canaries: int


def audit(
    scores: NDArray[np.float64],
    included: NDArray[np.bool_],
    *,
    delta: float,
    guesses: int,
    confidence: float = 0.95,
) -> AuditResult:
    """Guess the canaries with the highest scores in and those with the lowest out.

    Parameters
    ----------
    scores : ndarray of float64, shape (m,)
        Larger where a canary looks like a member.
    included : ndarray of bool, shape (m,)
        The coins.
    delta : float
        Delta of the claim, 0 <= delta < 1.
    guesses : int
        How many to guess, even, 2 <= guesses <= m; fixed before looking.
    confidence : float
        Probability with which the bound is right, in (0, 1).
    """
    count = scores.size
    if included.shape != (count,) or guesses % 2 or not 2 <= guesses <= count:
        raise ConfigError(
            f"an audit needs one coin per score and an even number of guesses from 2 to {count}, "
            f"found {included.shape} coins and {guesses} guesses"
        )
    order = np.argsort(scores, kind="stable")
    half = guesses // 2
    correct = int(included[order[count - half :]].sum() + (~included[order[:half]]).sum())
    bound = epsilon_lower_bound(count, guesses, correct, delta, confidence)
    return AuditResult(bound, guesses, correct, count)


def epsilon_lower_bound(
    canaries: int, guesses: int, correct: int, delta: float, confidence: float = 0.95
) -> float:
    """Return the largest epsilon that so many right guesses refute."""
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence must be between 0 and 1, found {confidence!r}")
    limit = 1 - confidence
    if p_value(canaries, guesses, correct, 0.0, delta) > limit:
        return 0.0
    low, high = 0.0, 1.0
    while high < 64 and p_value(canaries, guesses, correct, high, delta) <= limit:
        low, high = high, 2 * high
    while high - low > 1e-4:
        middle = (low + high) / 2
        if p_value(canaries, guesses, correct, middle, delta) <= limit:
            low = middle
        else:
            high = middle
    return low


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Bound the probability of at least `correct` right guesses under (epsilon, delta)-DP."""
    rate = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(correct - 1, guesses, rate))
    below = np.cumsum(binom.pmf(np.arange(correct - 1, -1, -1), guesses, rate))
    worst = float((below / np.arange(1, correct + 1)).max(initial=0.0))
    return min(1.0, tail + 2 * canaries * delta * worst)
