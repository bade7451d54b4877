"""How much noise the shipped experiments need: before, now, and by dp-accounting."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from dp_accounting import NeighboringRelation
from dp_accounting.pld import privacy_loss_distribution as pld
from scipy.optimize import brentq

from qsfl_flower.mechanisms.privacy.options import PrivacyOptions
from qsfl_flower.privacy.calibration import epsilon_of_events
from qsfl_flower.privacy.events import Event
from qsfl_flower.privacy.rdp import epsilon_of, rdp_of
from qsfl_flower.simulations.config import load_experiment
from qsfl_flower.simulations.config.described import parameters_of
from qsfl_flower.simulations.privacy import size_of
from qsfl_flower.simulations.stages import planned_events

NAME = "multipliers"
DESCRIPTION = "noise multipliers of the shipped experiments, before, now, and by dp-accounting"

SHIPPED = ("quickstart", "dp_record", "dp_central", "dp_distributed")

Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    """Return one row per shipped experiment with differential privacy."""
    return [_row(name, 2e-3 if quick else 2e-4) for name in SHIPPED]


def before_and_now(name: str) -> tuple[float, Event, PrivacyOptions]:
    """Return the earlier multiplier, what the rounds cost now, and the stage's keys.

    Earlier was the Renyi bound, and a grid of 2^25 steps whose distance grew with the size.
    """
    experiment = load_experiment(name)
    spec = next(
        s for s in map(parameters_of, experiment.strategy.stages) if isinstance(s, PrivacyOptions)
    )
    (events,) = planned_events(experiment).values()  # all of them have the same noise
    event = replace(events[0], count=sum(one.count for one in events))
    delta, slack = spec.delta, event.count * size_of(experiment) / (40.0 * 2.0**50)

    def excess(multiplier: float) -> float:
        rdp = event.count * rdp_of(replace(event, noise_multiplier=multiplier))
        lost = (1 + math.exp(epsilon_of(rdp, delta / 2))) * slack * (event.sampling_rate < 1)
        return epsilon_of(rdp, max(delta - lost, 1e-30)) - spec.epsilon

    now = event.noise_multiplier
    return float(brentq(excess, 0.9 * now, 1.5 * now, xtol=1e-4)), event, spec


def _row(name: str, interval: float) -> Row:
    old, event, spec = before_and_now(name)
    delta = spec.delta

    def theirs(multiplier: float) -> float:
        return _dp_accounting(replace(event, noise_multiplier=multiplier), delta, interval)

    now = event.noise_multiplier
    best = float(brentq(lambda z: theirs(z) - spec.epsilon, 0.97 * now, 1.03 * now, xtol=1e-4))
    spent, known = epsilon_of_events([event], delta), theirs(now)
    return {
        "experiment": name,
        "epsilon": spec.epsilon,
        "delta": delta,
        "before": round(old, 4),
        "now": round(now, 4),
        "dp-accounting": round(best, 4),
        "less noise": f"{1 - now / old:.1%}",
        "epsilon over dp-accounting's": round(spent / known, 5),
        "limit": "<= 1.01",
        "ok": spent <= 1.01 * known,
    }


def _dp_accounting(event: Event, delta: float, interval: float) -> float:
    found = pld.from_gaussian_mechanism(
        event.noise_multiplier,
        value_discretization_interval=interval,
        sampling_prob=event.sampling_rate,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
    ).self_compose(event.count)
    return float(found.get_epsilon_for_delta(delta))
