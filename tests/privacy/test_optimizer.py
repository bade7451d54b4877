from __future__ import annotations

import math

import numpy as np
import pytest

from qsfl_flower.errors import ConfigError
from qsfl_flower.privacy.calibration import epsilon_of_events
from qsfl_flower.privacy.optimizer import Limits, Proxy, choose


def proxy(rounds=64, norm=2.0, agreement=0.5):
    scores = [0.9 * (1 - 0.9**r) for r in range(1, rounds + 1)]
    norms = [[norm * f for f in (0.5, 0.9, 1.0, 1.1, 3.0)]] * rounds
    return Proxy(norms=norms, agreement=[agreement] * rounds, scores=scores)


def limits(**changes):
    values = {"clients": 1000, "parameters": 1000, "epsilon": 1.0, "delta": 1e-5, "rounds": 64}
    return Limits(**{**values, **changes})


@pytest.mark.parametrize("changes", [{}, {"epsilon": 4.0}, {"sampling_rate": 0.1}])
def test_the_plan_keeps_the_budget_and_the_limits(changes):
    found, allowed = choose(proxy(), limits(**changes)), limits(**changes)
    events = found.schedule.events(found.sampling_rate)
    assert 0.95 * allowed.epsilon < epsilon_of_events(events, 1e-5) <= allowed.epsilon
    assert found.sampling_rate <= allowed.sampling_rate
    assert found.schedule.rounds <= allowed.rounds
    assert any("clip norm" in sentence for sentence in found.because)


def test_more_clients_and_more_budget_are_worth_more():
    few, many = (choose(proxy(), limits(clients=n)) for n in (100, 100_000))
    assert few.worth < many.worth
    assert few.score < many.score
    assert choose(proxy(), limits(epsilon=0.2)).worth < choose(proxy(), limits(epsilon=5)).worth
    assert many.worth > 0.9 * 64  # noise no longer matters
    assert any("records instead" in s for s in choose(proxy(), limits(clients=5)).because)


def test_one_long_update_does_not_set_the_clip_norm():
    # Under noise, room for the one that is three times as long costs more than it brings.
    assert choose(proxy(), limits()).clip_norm < 3.0 * 2.0


def test_the_unit_of_length_does_not_matter():
    one, other = (choose(proxy(norm=n), limits()) for n in (1.0, 1000.0))
    assert other.clip_norm == pytest.approx(1000 * one.clip_norm)
    assert other.worth == pytest.approx(one.worth)


def test_the_prediction_holds_on_a_quadratic():
    """Noisy steps on a quadratic gain about what the proxy had after `worth` rounds."""
    rng = np.random.default_rng(0)
    d, clients, rounds = 50, 2000, 40

    def descend(rounds, clip=math.inf, noise=0.0, shrink=1.0):
        x, norms, agreement, losses = np.ones(d), [], [], []
        for _ in range(rounds):
            updates = -0.1 * (x + rng.normal(size=(clients, d)) * 0.05)
            length = np.linalg.norm(updates, axis=1)
            norms.append(length[:50].tolist())
            agreement.append(np.linalg.norm(updates.mean(0)) / length.mean())
            mean = (updates * np.minimum(1, clip / length)[:, None]).mean(0)
            x = x + shrink * (mean + noise * rng.normal(size=d)) * length.mean() / min(
                clip, length.mean()
            )
            losses.append(float(x @ x))
        return norms, agreement, losses

    norms, agreement, losses = descend(rounds)
    known = Proxy(norms=norms, agreement=agreement, scores=[-loss for loss in losses])
    allowed = limits(clients=clients, parameters=d, rounds=rounds, epsilon=4.0)
    found = choose(known, allowed)
    assert found.sampling_rate == pytest.approx(1.0)
    planned = found.schedule.rounds
    noise = found.schedule.at(1) * found.clip_norm / clients
    _, _, private = descend(planned, found.clip_norm, noise, found.worth / planned)
    # Losses fall from 50 by orders of magnitude; the plan's comes within a factor of three.
    assert private[-1] < 3 * -found.score
    assert -found.score < 0.5 * losses[0]


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Proxy(norms=[[1.0]], agreement=[1.0, 1.0], scores=[1.0]),
        lambda: Proxy(norms=[[0.0]], agreement=[1.0], scores=[1.0]),
        lambda: Proxy(norms=[], agreement=[], scores=[]),
        lambda: Proxy(norms=[[1.0]], agreement=[1.5], scores=[1.0]),
        lambda: limits(clients=0),
        lambda: limits(sampling_rate=0.0),
    ],
)
def test_what_cannot_be_planned_with_is_refused(bad):
    with pytest.raises(ConfigError):
        bad()
