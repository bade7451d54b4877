"""Errors of ways to add up, against exact arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qsfl_flower.numerics import CompensatedSum, Vector, weighted_sum

NAME = "accuracy"
DESCRIPTION = "largest error of a weighted sum, relative to the sum of the magnitudes"

LIMIT = 14 * 2.0**-53

Array = NDArray[Any]
Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    """Return one row per way of adding up and set of updates."""
    cases = {
        "1,000 clients, 1e-8 to 1e8, mixed signs": _wide(1000, 20 if quick else 200),
        "1 and 20,000 times 2**-54": (
            np.concatenate([np.ones((1, 1)), np.full((20_000, 1), 2.0**-54)]),
            np.ones(20_001),
        ),
    }
    ways: dict[str, Callable[[Array, Array], Array]] = {
        "float32, one after the other": _plain(np.float32),
        "float32, Kahan": _kahan,
        "float64, one after the other": _plain(np.float64),
        "weighted_sum": lambda rows, c: weighted_sum([Vector.dense(row) for row in rows], c),
        "weighted_sum, rounded to float32": lambda rows, c: weighted_sum(
            [Vector.dense(row) for row in rows], c
        ).astype(np.float32),
        "CompensatedSum": _running,
    }
    results = []
    for case, (rows, coefficients) in cases.items():
        exact, sizes = _oracle(rows, coefficients)
        for way, add_up in ways.items():
            error = max(
                float(abs(Fraction(float(value)) - truth) / size)
                for value, truth, size in zip(add_up(rows, coefficients), exact, sizes, strict=True)
            )
            row: Row = {"updates": case, "way": way, "largest error": error}
            if way in ("weighted_sum", "CompensatedSum"):
                row |= {"limit": f"<= {LIMIT:.2g}", "ok": error <= LIMIT}
            results.append(row)
    return results


def _wide(clients: int, size: int) -> tuple[Array, Array]:
    generator = np.random.default_rng(0)
    rows = 10 ** generator.uniform(-8, 8, (clients, size))
    rows *= generator.choice([-1, 1], (clients, size))
    weights = generator.integers(1, 1000, clients)
    return rows.astype(np.float32), weights / weights.sum()


def _oracle(rows: Array, coefficients: Array) -> tuple[list[Fraction], list[Fraction]]:
    exact, sizes = [], []
    for column in rows.T:
        terms = [
            Fraction(float(c)) * Fraction(float(x))
            for c, x in zip(coefficients, column, strict=True)
        ]
        exact.append(sum(terms, Fraction(0)))
        sizes.append(sum(map(abs, terms), Fraction(0)))
    return exact, sizes


def _plain(dtype: type[np.floating]) -> Callable[[Array, Array], Array]:
    def add_up(rows: Array, coefficients: Array) -> Array:
        total = np.zeros(rows.shape[1], dtype)
        for row, coefficient in zip(rows.astype(dtype), coefficients, strict=True):
            total += row * dtype(coefficient)
        return total

    return add_up


def _kahan(rows: Array, coefficients: Array) -> Array:
    total = np.zeros(rows.shape[1], np.float32)
    carry = np.zeros_like(total)
    for row, coefficient in zip(rows.astype(np.float32), coefficients, strict=True):
        term = row * np.float32(coefficient) - carry
        bigger = total + term
        carry = (bigger - total) - term
        total = bigger
    return total


def _running(rows: Array, coefficients: Array) -> Array:
    total = CompensatedSum(rows.shape[1])
    for row, coefficient in zip(rows, coefficients, strict=True):
        total.add(Vector.dense(row), float(coefficient))
    return total.value()
