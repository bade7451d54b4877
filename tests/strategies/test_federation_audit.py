"""Whole federations are attacked with canaries: no claim is broken, and broken noise is noticed."""

from __future__ import annotations

import pytest

from benchmarks.audit_leaks import CASES, leak
from benchmarks.audited import DELTA, PLACEMENTS, audited
from qsfl_flower.privacy.gaussian import gaussian_noise_multiplier

pytestmark = pytest.mark.slow

EPSILON = 1.0
NOISE = gaussian_noise_multiplier(EPSILON, DELTA)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_no_claim_is_broken(placement):
    assert audited(placement, NOISE).epsilon <= EPSILON


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_noise_that_is_as_good_as_off_is_noticed(placement):
    assert audited(placement, NOISE / 2000).epsilon > EPSILON


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_clipping_that_is_off_is_noticed(placement):
    """The noise is that for a clip norm of 1, and nothing is as long as the norm in force."""
    assert audited(placement, NOISE / 1e4, clip=1e4).epsilon > EPSILON


@pytest.mark.parametrize("case", CASES)
def test_nothing_leaves_beside_the_noise(case):
    """Each of these was above its claim in the first release (docs/privacy.md)."""
    assert leak(case)["audited at least"] <= EPSILON
