"""Clouds of updates for the tests of robust rules."""

from __future__ import annotations

import numpy as np
import pytest


def distances_by_hand(rows: np.ndarray) -> np.ndarray:
    """Squared distances of all pairs in extended precision, pair by pair."""
    wide = np.asarray(rows, dtype=np.longdouble)
    return np.array([[((a - b) ** 2).sum() for b in wide] for a in wide], dtype=np.float64)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)
