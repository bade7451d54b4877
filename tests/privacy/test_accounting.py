from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy import accountant
from qsfl_flower.privacy.accountant import Accountant
from qsfl_flower.privacy.calibration import epsilon_of_events, noise_multiplier_for, rounds_for
from qsfl_flower.privacy.events import Event, PureEvent, event_from_dict
from qsfl_flower.privacy.gaussian import gaussian_epsilon
from qsfl_flower.privacy.pld import LossDistribution
from qsfl_flower.privacy.rdp import ORDERS, epsilon_of, rdp_of
from qsfl_flower.privacy.schedule import NoiseSchedule
from qsfl_flower.rounds.spending import PrivacyBudget, Spending
from qsfl_flower.simulations.config import load_experiment
from qsfl_flower.simulations.stages import planned_events

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


def renyi(*events):
    return epsilon_of(sum(e.count * rdp_of(e) for e in events), DELTA)


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
    ours, theirs = renyi(Event(z, q, steps)), _dp_accounting_rdp(z, q, steps)
    # Theirs drops orders at which its series does not converge, so it may be larger.
    assert ours <= theirs * 1.01
    if theirs < 6:
        assert ours == pytest.approx(theirs, rel=0.01)


def _dp_accounting_pld(events, interval=1e-4, delta=DELTA):
    """Their upper and lower bound."""
    import dp_accounting as dpa
    from dp_accounting.pld import privacy_loss_distribution as pld

    found = []
    for pessimistic in (True, False):
        whole = None
        for event in events:
            one = pld.from_gaussian_mechanism(
                event.noise_multiplier,
                value_discretization_interval=interval,
                sampling_prob=event.sampling_rate,
                use_connect_dots=pessimistic,
                pessimistic_estimate=pessimistic,
                neighboring_relation=dpa.NeighboringRelation.ADD_OR_REMOVE_ONE,
            ).self_compose(event.count)
            whole = one if whole is None else whole.compose(one)
        found.append(whole.get_epsilon_for_delta(delta))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("z", "q", "steps"), GRID)
def test_accounting_agrees_with_dp_accounting(z, q, steps):
    ours = epsilon_of_events([Event(z, q, steps)], DELTA)
    if ours > 50:
        pytest.skip("beyond epsilon = 50 the bound of the Renyi accountant is returned")
    theirs, least = _dp_accounting_pld([Event(z, q, steps)])
    # One per cent, or a hundred-thousandth of epsilon where it is next to nothing.
    assert least <= ours <= max(1.01 * theirs, theirs + 1e-5)


@pytest.mark.parametrize(
    "events",
    [
        [Event(1.5, 0.01, 1000)],
        [Event(0.6, 0.001, 50)],
        [Event(2.0, 0.3, 20), Event(1.0, 0.1, 5)],
        [Event(3.0, 0.2, 20), Event(8.0, 1.0, 3)],
    ],
    ids=str,
)
def test_epsilon_is_within_a_tenth_of_a_percent_of_what_is_known(events):
    ours = epsilon_of_events(events, DELTA)
    theirs, least = _dp_accounting_pld(events, 3e-4)
    assert least <= ours <= 1.001 * theirs
    assert ours < 0.99 * renyi(*events)


@pytest.mark.parametrize("name", ["dp_central", "dp_record", "dp_distributed", "quickstart"])
def test_shipped_experiments_cost_no_more_than_dp_accounting_says(name):
    experiment = load_experiment(name)
    (events,) = planned_events(experiment).values()
    (spec,) = (spec for spec in experiment.strategy.stages if hasattr(spec, "epsilon"))
    spent = epsilon_of_events(events, spec.delta)
    assert 0.999 * spec.epsilon < spent <= spec.epsilon
    theirs, least = _dp_accounting_pld(events, 1e-3, spec.delta)
    assert least <= spent <= 1.01 * theirs


def test_a_release_moves_both_ways():
    """The unit may leave or join: the larger epsilon counts, and which it is depends on delta."""
    sigma, rate, epsilon = 0.5, 0.3, 0.2
    x = np.linspace(-12, 13, 2_000_001)
    without = np.exp(-(x**2) / (2 * sigma**2)) / math.sqrt(2 * math.pi * sigma**2)
    mixed = (1 - rate) * without + rate * np.roll(without, round(1 / (x[1] - x[0])))
    for p, q in ((mixed, without), (without, mixed)):
        delta = float(np.maximum(p - math.exp(epsilon) * q, 0).sum() * (x[1] - x[0]))
        assert epsilon_of_events([Event(sigma, rate)], delta) >= epsilon * (1 - 1e-4)


def test_renyi_accounting_agrees_where_training_happens():
    assert renyi(Event(1.5, 0.01, 1000)) == pytest.approx(
        _dp_accounting_rdp(1.5, 0.01, 1000), rel=1e-4
    )


def test_the_numerical_accountant_is_never_below_opacus_lower_bound():
    from opacus.accountants import PRVAccountant

    opacus = PRVAccountant()
    opacus.history = [(1.0, 0.02, 200), (2.0, 0.05, 100)]
    events = [Event(1.0, 0.02, 200), Event(2.0, 0.05, 100)]
    ours = epsilon_of_events(events, DELTA)
    assert ours == pytest.approx(opacus.get_epsilon(DELTA), abs=0.02)


@pytest.mark.parametrize("planned", [0, 10, 30])
def test_rounds_of_different_noise_add_up_one_by_one(planned):
    events = [Event(1.0 + 0.1 * r, 0.02) for r in range(30)]
    one_by_one = Accountant(planned=events[:planned])
    history = []
    for event in events:
        one_by_one.add(event)
        history.append(one_by_one.epsilon(DELTA))
    assert history == sorted(history)
    # The grid depends on what was seen first.
    assert history[-1] == pytest.approx(epsilon_of_events(events, DELTA), rel=1e-3)
    assert one_by_one.events == tuple(events)


@pytest.mark.parametrize("ratio", [1.0, 2.0, 0.5])
def test_planned_rounds_are_composed_once_each_on_one_grid(ratio, monkeypatch):
    """Without a plan the grid is made anew, and all rounds with it, whenever they have doubled."""
    made, composed = [], []
    events = NoiseSchedule(1.5, ratio, 200).events(0.05)
    events = [Event(1.5, 0.05)] * 200 if ratio == 1 else events

    class Counted(LossDistribution):
        def __init__(self, *arguments):
            made.append(self)
            super().__init__(*arguments)

        def add(self, event):
            composed.append(event)
            super().add(event)

    monkeypatch.setattr(accountant, "LossDistribution", Counted)
    spending, state = Spending(PrivacyBudget(epsilon=50.0), lambda: events), {}
    for event in events:
        state = spending.commit(spending.reserve(state, event, None), event)
        spending.epsilon(state)
    assert len(made) == 1
    assert len(composed) == 200


@pytest.mark.parametrize("rounds", [1, 2, 3, 5, 12])
def test_the_least_noise_for_a_plan_lasts_for_all_of_its_rounds(rounds):
    """The grid of the rounds is that of the plan, or rounding ends a run one round early."""
    event = Event(noise_multiplier_for(4.0, DELTA, 5 * rounds, 0.3), 0.3, 5)
    planned = [replace(event, count=5 * rounds)]
    spending, state = Spending(PrivacyBudget(epsilon=4.0), lambda: planned), {}
    for _ in range(rounds):
        state = spending.commit(spending.reserve(state, event, None), event)
    assert 3.999 < spending.epsilon(state) <= 4.0


def test_asking_what_a_round_would_cost_changes_nothing():
    accountant = Accountant([Event(2.0, 0.1, 5)])
    before = accountant.epsilon(DELTA)
    after = accountant.with_event(Event(1.0, 0.1))
    assert after.epsilon(DELTA) > before == accountant.epsilon(DELTA)
    assert accountant.events == (Event(2.0, 0.1, 5),)


def test_without_sampling_the_accountant_is_exact():
    events = [Event(10.0), Event(20.0, count=3), Event(7.0)]
    mu = math.sqrt(1 / 100 + 3 / 400 + 1 / 49)
    assert epsilon_of_events(events, DELTA) == pytest.approx(gaussian_epsilon(mu, DELTA), rel=1e-9)


def test_sampled_and_unsampled_releases_compose():
    sampled, whole = Event(1.5, 0.05, 100), Event(8.0, count=4)
    together = epsilon_of_events([sampled, whole], DELTA)
    parts = [epsilon_of_events([event], DELTA) for event in (sampled, whole)]
    assert max(parts) < together < sum(parts)
    assert together <= renyi(sampled, whole)


def test_pure_privacy_is_never_reported_better_than_it_is():
    # Randomized response: delta(e) = p (1 - e^(e - eps)) for one release.
    epsilon, delta = 0.8, 1e-3
    p = 1 / (1 + math.exp(-epsilon))
    true = epsilon + math.log(1 - delta / p)
    reported = epsilon_of_events([PureEvent(epsilon)], delta)
    assert true <= reported <= min(epsilon, 1.001 * true)
    assert epsilon_of_events([PureEvent(0.05, 50)], 1e-5) < 50 * 0.05


@pytest.mark.parametrize(("epsilon", "count"), [(5.0, 2), (0.3, 3), (1e-3, 10), (20.0, 4)])
def test_pure_privacy_costs_at_most_its_plain_sum(epsilon, count):
    assert epsilon_of_events([PureEvent(epsilon, count)], DELTA) <= epsilon * count


def test_pure_and_noisy_releases_compose():
    noisy, pure = Event(2.0, 0.1, 50), PureEvent(0.5)
    assert epsilon_of_events([noisy], DELTA) < epsilon_of_events([noisy, pure], DELTA)
    assert epsilon_of_events([noisy, pure], DELTA) < epsilon_of_events([noisy], DELTA) + 0.5


def test_composition_is_tighter_than_adding_epsilons():
    single = epsilon_of_events([Event(20.0)], DELTA)
    assert epsilon_of_events([Event(20.0, count=100)], DELTA) < 100 * single / 4


@pytest.mark.parametrize("rate", [1.0, 0.1, 0.01])
def test_a_thousand_rounds_stay_within_epsilon_one(rate):
    multiplier = noise_multiplier_for(1.0, DELTA, 1000, rate)
    spent = epsilon_of_events([Event(multiplier, rate, 1000)], DELTA)
    assert 0.9999 <= spent <= 1.0
    assert 1000 <= rounds_for(1.0, DELTA, multiplier, rate) <= 1001


def test_calibration_for_one_release_is_not_enough_for_a_thousand():
    assert noise_multiplier_for(1.0, DELTA, 1000) == pytest.approx(118.0, abs=0.1)
    assert epsilon_of_events([Event(4.845, count=1000)], DELTA) > 50


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 8), st.integers(1, 500), st.sampled_from([1.0, 0.2, 0.02]))
def test_searches_invert_each_other(epsilon, rounds, rate):
    multiplier = noise_multiplier_for(epsilon, DELTA, rounds, rate)
    assert epsilon_of_events([Event(multiplier, rate, rounds)], DELTA) <= epsilon
    assert epsilon_of_events([Event(0.999 * multiplier, rate, rounds)], DELTA) > epsilon
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
    epsilons = [epsilon_of_events([e], DELTA) for e in (exact, coarse, hopeless)]
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
    assert Accountant().epsilon(DELTA) == 0
    for delta in (0, 1, math.nan):
        with pytest.raises(ConfigError, match="delta"):
            Accountant().epsilon(delta)


EXTREMES = [5e-324, 1e-20, 0.049, 0.3, 1e4, 1e15, 1e300]


@pytest.mark.parametrize("rate", [5e-324, 1e-9, 0.5, 1 - 1e-16, 1.0])
@pytest.mark.parametrize("noise", EXTREMES)
def test_numbers_from_outside_get_an_answer_or_a_refusal_at_once(noise, rate):
    """A client asks what a server's offer comes to: the numbers are the server's."""
    for count in (1, 10**15):
        for delta in (1e-320, 1e-12, 1e-5, 1 - 1e-16):
            assert 0 <= epsilon_of_events([Event(noise, rate, count)], delta) <= math.inf
