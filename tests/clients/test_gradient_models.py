"""The small ones of the models in docs/models.md; `python -m benchmarks gradients` has all."""

from __future__ import annotations

import pytest

from benchmarks.bench_gradients import BEGIN, END, PAGE, row_of
from benchmarks.gradient_models import CASES


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if c.slow else ()) for n, c in CASES.items()]
)
def test_gradients_are_exact_or_refused_by_the_layers_name(name):
    row = row_of(name)
    assert row["ok"], row


def test_the_page_has_a_verdict_for_every_model():
    lines = PAGE.read_text().split(BEGIN)[1].split(END)[0].splitlines()
    told = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    assert set(told) == {"model", *CASES}
    for name, case in CASES.items():
        assert ("| exact |" in told[name]) == (case.refused is None)
    assert sum(case.refused is None for case in CASES.values()) >= 36
