from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy.accountant import METHODS, Accountant
from qsfl_flower.privacy.calibration import epsilon_of_events, noise_multiplier_for, rounds_for
from qsfl_flower.privacy.events import Event, PureEvent, event_from_dict
from qsfl_flower.privacy.gaussian import gaussian_epsilon
from qsfl_flower.privacy.rdp import ORDERS, rdp_of
from qsfl_flower.privacy.schedule import NoiseSchedule

DELTA = 1e-5
GRID = [
    (z, q, steps)
    for z in (0.5, 1.0, 5.0, 20.0)
    for q in (0.001, 0.01, 0.1, 1.0)
    for steps in (1, 100, 10_000)
]


@pytest.mark.parametrize(("z", "q"), [(0.5, 0.001), (0.7, 0.3), (1.0, 0.01), (4.0, 0.1), (20.0, 1)])
def test_renyi_divergences_are_those_of_opacus(z, q):
    from opacus.accountants.analysis.rdp import compute_rdp

    chosen = (ORDERS >= 1.1) & (ORDERS < 600)
    theirs = compute_rdp(q=q, noise_multiplier=z, steps=1, orders=list(ORDERS[chosen]))
    assert np.allclose(rdp_of(Event(z, q))[chosen], theirs, rtol=1e-6, atol=1e-12)


def _dp_accounting_rdp(z, q, steps):
    import dp_accounting as dpa
    from dp_accounting.rdp import RdpAccountant

    logging.disable(logging.WARNING)  # it warns once per order that it cannot compute
    accountant = RdpAccountant(orders=list(ORDERS[ORDERS >= 1.1]))
    accountant.compose(dpa.PoissonSampledDpEvent(q, dpa.GaussianDpEvent(z)), steps)
    epsilon = accountant.get_epsilon(DELTA)
    logging.disable(logging.NOTSET)
    return epsilon


@pytest.mark.slow
@pytest.mark.parametrize(("z", "q", "steps"), GRID)
def test_renyi_accounting_agrees_with_dp_accounting(z, q, steps):
    ours, theirs = epsilon_of_events([Event(z, q, steps)], DELTA), _dp_accounting_rdp(z, q, steps)
    # Theirs drops orders at which its series does not converge, so it may be larger.
    assert ours <= theirs * 1.01
    if theirs < 6:
        assert ours == pytest.approx(theirs, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("z", "q", "steps"), GRID)
def test_numerical_accounting_agrees_with_dp_accounting(z, q, steps):
    import dp_accounting as dpa
    from dp_accounting.pld import PLDAccountant

    ours = epsilon_of_events([Event(z, q, steps)], DELTA, "prv")
    if ours > 50:
        pytest.skip("beyond epsilon = 50 the bound of the Renyi accountant is returned")
    theirs = PLDAccountant(value_discretization_interval=1e-4)
    theirs.compose(dpa.PoissonSampledDpEvent(q, dpa.GaussianDpEvent(z)), steps)
    epsilon = theirs.get_epsilon(DELTA)
    # Either is an upper bound with its own discretisation error, ours 0.005 per unit, added.
    assert ours == pytest.approx(epsilon, rel=0.01, abs=0.0055)


def test_both_agree_with_dp_accounting_where_training_happens():
    import dp_accounting as dpa
    from dp_accounting.pld import PLDAccountant

    event = Event(1.5, 0.01, 1000)
    assert epsilon_of_events([event], DELTA) == pytest.approx(
        _dp_accounting_rdp(1.5, 0.01, 1000), rel=1e-4
    )
    theirs = PLDAccountant()
    theirs.compose(dpa.PoissonSampledDpEvent(0.01, dpa.GaussianDpEvent(1.5)), 1000)
    assert epsilon_of_events([event], DELTA, "prv") == pytest.approx(
        theirs.get_epsilon(DELTA), rel=0.01
    )


def test_the_numerical_accountant_is_never_below_opacus_lower_bound():
    from opacus.accountants import PRVAccountant

    opacus = PRVAccountant()
    opacus.history = [(1.0, 0.02, 200), (2.0, 0.05, 100)]
    events = [Event(1.0, 0.02, 200), Event(2.0, 0.05, 100)]
    ours = epsilon_of_events(events, DELTA, "prv")
    assert ours == pytest.approx(opacus.get_epsilon(DELTA), abs=0.02)


@pytest.mark.parametrize("method", METHODS)
def test_rounds_of_different_noise_add_up_one_by_one(method):
    events = [Event(1.0 + 0.1 * r, 0.02) for r in range(30)]
    one_by_one = Accountant(method, expected_releases=30)
    history = []
    for event in events:
        one_by_one.add(event)
        history.append(one_by_one.epsilon(DELTA))
    assert history == sorted(history)
    at_once = epsilon_of_events(events, DELTA, method)
    # The numerical accountant's grid depends on what it saw first; its error is below 0.005.
    assert history[-1] == pytest.approx(at_once, rel=1e-9 if method == "rdp" else 0.01)
    assert one_by_one.events == tuple(events)


@pytest.mark.parametrize("method", METHODS)
def test_asking_what_a_round_would_cost_changes_nothing(method):
    accountant = Accountant(method, [Event(2.0, 0.1, 5)])
    before = accountant.epsilon(DELTA)
    after = accountant.with_event(Event(1.0, 0.1))
    assert after.epsilon(DELTA) > before == accountant.epsilon(DELTA)
    assert accountant.events == (Event(2.0, 0.1, 5),)


def test_without_sampling_the_numerical_accountant_is_exact():
    events = [Event(10.0), Event(20.0, count=3), Event(7.0)]
    mu = math.sqrt(1 / 100 + 3 / 400 + 1 / 49)
    assert epsilon_of_events(events, DELTA, "prv") == gaussian_epsilon(mu, DELTA)


def test_sampled_and_unsampled_releases_compose():
    sampled, whole = Event(1.5, 0.05, 100), Event(8.0, count=4)
    together = epsilon_of_events([sampled, whole], DELTA, "prv")
    parts = [epsilon_of_events([event], DELTA, "prv") for event in (sampled, whole)]
    assert max(parts) < together < sum(parts)
    assert together <= epsilon_of_events([sampled, whole], DELTA, "rdp")


@pytest.mark.parametrize("method", METHODS)
def test_pure_privacy_is_never_reported_better_than_it_is(method):
    # Randomised response: delta(e) = p (1 - e^(e - eps)) for one release.
    epsilon, delta = 0.8, 1e-3
    p = 1 / (1 + math.exp(-epsilon))
    true = epsilon + math.log(1 - delta / p)
    reported = epsilon_of_events([PureEvent(epsilon)], delta, method)
    assert true <= reported <= epsilon * 1.01
    assert epsilon_of_events([PureEvent(0.05, 50)], 1e-5, method) < 50 * 0.05


def test_composition_is_tighter_than_adding_epsilons():
    single = epsilon_of_events([Event(20.0)], DELTA)
    assert epsilon_of_events([Event(20.0, count=100)], DELTA) < 100 * single / 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rate", [1.0, 0.1, 0.01])
def test_a_thousand_rounds_stay_within_epsilon_one(method, rate):
    multiplier = noise_multiplier_for(1.0, DELTA, 1000, rate, method=method)
    spent = epsilon_of_events([Event(multiplier, rate, 1000)], DELTA, method)
    assert 0.99 <= spent <= 1.0
    assert rounds_for(1.0, DELTA, multiplier, rate, method=method) >= 1000


def test_calibration_for_one_release_is_not_enough_for_a_thousand():
    assert noise_multiplier_for(1.0, DELTA, 1000) == pytest.approx(127.9, abs=0.1)
    assert noise_multiplier_for(1.0, DELTA, 1000, method="prv") == pytest.approx(118.0, abs=0.1)
    assert epsilon_of_events([Event(4.845, count=1000)], DELTA) > 50


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 8), st.integers(1, 500), st.sampled_from([1.0, 0.2, 0.02]))
def test_searches_invert_each_other(epsilon, rounds, rate):
    multiplier = noise_multiplier_for(epsilon, DELTA, rounds, rate)
    assert epsilon_of_events([Event(multiplier, rate, rounds)], DELTA) <= epsilon
    assert rounds <= rounds_for(epsilon, DELTA, multiplier, rate) <= rounds * 1.05 + 1


def test_no_round_is_allowed_where_one_is_too_many():
    assert rounds_for(0.1, DELTA, 1.0) == 0


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_a_schedule_stays_within_its_budget_and_changes_as_told(ratio):
    schedule = NoiseSchedule.within(1.0, DELTA, 50, sampling_rate=0.1, last_over_first=ratio)
    assert epsilon_of_events(schedule.events(0.1), DELTA) <= 1.0
    assert schedule.at(50) / schedule.at(1) == pytest.approx(ratio)
    assert schedule.at(51) == schedule.at(50)


def test_what_discretisation_loses_is_paid_for():
    exact, coarse = Event(1.5, 0.05, 100), Event(1.5, 0.05, 100, slack=1e-9)
    hopeless = Event(1.5, 0.05, 100, slack=1e-7)
    for method in METHODS:
        epsilons = [epsilon_of_events([e], DELTA, method) for e in (exact, coarse, hopeless)]
        assert epsilons[0] < epsilons[1] < 1.1 * epsilons[0]
        assert epsilons[2] == math.inf
    # Without sampling the discrete Gaussian is accounted for as such.
    assert epsilon_of_events([Event(5.0, slack=1e-3)], DELTA) < 1


def test_events_survive_json_and_bad_ones_do_not():
    for event in (Event(1.5, 0.1, 3, 1e-9), PureEvent(0.3, 2)):
        assert event_from_dict(event.to_dict()) == event
    for bad in ({"noise_multiplier": 0}, {"noise_multiplier": 1, "sampling_rate": 2}, {"z": 1}):
        with pytest.raises(ConfigError):
            event_from_dict(bad)


def test_nothing_costs_nothing_and_wrong_questions_are_refused():
    assert Accountant("prv").epsilon(DELTA) == 0
    for delta in (0, 1, math.nan):
        with pytest.raises(ConfigError, match="delta"):
            Accountant().epsilon(delta)
    with pytest.raises(ConfigError, match="rdp, prv"):
        Accountant("gdp")
