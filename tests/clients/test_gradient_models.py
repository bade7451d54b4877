"""The small ones of the models in docs/models.md; `python -m benchmarks gradients` has all."""

from __future__ import annotations

import pytest

from benchmarks.bench_gradients import row_of
from benchmarks.gradient_models import CASES


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if c.slow else ()) for n, c in CASES.items()]
)
def test_gradients_are_exact_or_refused_by_the_layers_name(name):
    row = row_of(name)
    assert row["ok"], row
