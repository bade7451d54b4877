from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.asynchrony import (
    Adaptive,
    Constant,
    Hinge,
    Polynomial,
    StalenessLimit,
    staleness_of,
)
from qsfl_flower.errors import ConfigError, RejectedUpdate


@pytest.mark.parametrize(
    ("rule", "staleness", "version", "weight"),
    [
        (Constant(), 9, 0, 1.0),
        (Polynomial(0.5), 5, 0, 1 / math.sqrt(6)),  # 0.408, the value of the source
        (Polynomial(1.0), 3, 0, 0.25),
        (Hinge(slope=2.0, tolerance=4), 4, 0, 1.0),
        (Hinge(slope=2.0, tolerance=4), 6, 0, 0.2),
        (Adaptive(horizon=100), 3, 0, 0.5),
        (Adaptive(horizon=100), 3, 50, 4**-1.25),
        (Adaptive(horizon=100), 3, 100, 4**-2.0),
        (Adaptive(horizon=100), 3, 10_000, 4**-2.0),
    ],
)
def test_weights_have_the_published_values(rule, staleness, version, weight):
    assert rule.weight(staleness, version) == pytest.approx(weight, rel=1e-15)


@given(
    rule=st.one_of(
        st.just(Constant()),
        st.builds(Polynomial, st.floats(0.01, 5)),
        st.builds(Hinge, st.floats(0.01, 10), st.integers(0, 20)),
        st.builds(Adaptive, st.integers(1, 1000), st.floats(0.01, 5), st.floats(0.01, 5)),
    ),
    staleness=st.integers(0, 1000),
    version=st.integers(0, 10**6),
)
def test_weights_are_at_most_one_and_fall(rule, staleness, version):
    """At most 1: with the fixed denominator K, the influence of an update is at most C/K."""
    here, later = rule.weight(staleness, version), rule.weight(staleness + 1, version)
    assert 0 < later <= here <= 1
    assert rule.weight(0, version) == 1


def test_the_limit_tightens_to_its_final_value():
    limit = StalenessLimit(10, final=2, horizon=100)
    assert [limit.at(v) for v in (0, 50, 99, 100, 500)] == [10, 6, 2, 2, 2]
    assert StalenessLimit(10).at(500) == 10
    assert [StalenessLimit(10).at(0, halved) for halved in range(5)] == [10, 5, 2, 1, 0]


def test_the_boundary_of_what_is_too_stale():
    assert staleness_of(20, 10, 10) == 10
    with pytest.raises(RejectedUpdate, match=r"too-stale: .* 11 versions old; at most 10"):
        staleness_of(21, 10, 10)


def test_a_version_that_does_not_exist_yet_is_refused():
    """A negative staleness would pass the check above and give a complex weight."""
    with pytest.raises(RejectedUpdate, match="future-version"):
        staleness_of(3, 4, 10)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Polynomial(0), "exponent"),
        (lambda: Polynomial(math.nan), "exponent"),
        (lambda: Hinge(slope=0), "slope"),
        (lambda: Hinge(tolerance=-1), "tolerance"),
        (lambda: Adaptive(horizon=0), "horizon"),
        (lambda: StalenessLimit(-1), "maximum"),
        (lambda: StalenessLimit(3, final=4), "final"),
        (lambda: StalenessLimit(3, horizon=0), "horizon"),
    ],
)
def test_impossible_parameters_are_named(make, named):
    with pytest.raises(ConfigError, match=named):
        make()
