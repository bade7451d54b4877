from __future__ import annotations

import numpy as np
import pytest

from qsfl_flower.numerics import Layout

LAYOUT = Layout(("w", "b", "v"), ((30, 20), (20,), (380,)), ("float32",) * 3)


@pytest.fixture
def layout() -> Layout:
    return LAYOUT


@pytest.fixture
def cohort():
    """Updates that share a direction, as those of clients with similar data do."""

    def make(clients: int = 20, seed: int = 0) -> np.ndarray:
        direction = np.random.default_rng(0).normal(size=LAYOUT.size)
        noise = np.random.default_rng([seed, 7]).normal(size=(clients, LAYOUT.size))
        return direction + noise

    return make
