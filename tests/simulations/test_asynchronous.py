"""Asynchronous strategies and simulated time from YAML, and on Flower's Ray backend."""

from __future__ import annotations

import json

import numpy as np
import pytest

from qsfl_flower.asynchrony import (
    Adaptive,
    Constant,
    Device,
    Hinge,
    Polynomial,
    StalenessLimit,
    VirtualClock,
    WallClock,
)
from qsfl_flower.numerics import Monitor, Reaction
from qsfl_flower.simulations.asynchronous import clock_of, kind_of, monitor_of
from qsfl_flower.simulations.build import strategy_of
from qsfl_flower.simulations.config import experiment_from_dict, load_experiment
from qsfl_flower.simulations.runner import run_experiment
from qsfl_flower.strategies import BufferedAsync, CheckpointStore, FedAsync, RunObserver

HOUR = 3600.0


def experiment(**sections):
    return experiment_from_dict({"clients": {"count": 20}, **sections})


def test_classes_of_devices_become_profiles():
    clock = clock_of(load_experiment("async"))
    assert isinstance(clock, VirtualClock)
    slow = [d for d in clock.devices if d.seconds == 600.0]
    assert len(clock.devices) == 20
    assert len(slow) == 4
    assert slow[0] == Device(600.0, 0.2, 1e6, 2.5e5)
    assert isinstance(clock_of(experiment()), WallClock)


@pytest.mark.parametrize(
    ("start", "hours", "online"),
    [
        (0, 24, [True] * 24),
        (8, 4, [8 <= h < 12 for h in range(24)]),
        (22, 8, [h >= 22 or h < 6 for h in range(24)]),
        (0, 6, [h < 6 for h in range(24)]),
    ],
)
def test_devices_come_and_go_by_the_time_of_day(start, hours, online):
    timing = {"classes": [{"online_from": start, "online_for": hours}]}
    trace = clock_of(experiment(timing=timing)).devices[0].available
    assert [trace.next_online(h * HOUR) == h * HOUR for h in range(24)] == online


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ({"rule": "constant"}, Constant()),
        ({"rule": "polynomial", "exponent": 1.5}, Polynomial(1.5)),
        ({"rule": "hinge", "slope": 2.0, "tolerance": 3}, Hinge(2.0, 3)),
        ({"rule": "adaptive", "horizon": 50}, Adaptive(50)),
    ],
)
def test_rules_of_staleness(spec, rule):
    strategy = {"name": "fedbuff", "staleness": spec, "max_staleness": 9, "tighten_to": 3}
    kind, options = kind_of(experiment(strategy=strategy))
    assert kind is BufferedAsync
    assert options["staleness_weight"] == rule
    assert options["max_staleness"] == StalenessLimit(9, 3, 100)


def test_the_strategy_is_built_as_it_is_described(tmp_path):
    store, observer = CheckpointStore(tmp_path), RunObserver()
    built = strategy_of(load_experiment("async"), store, observer)
    assert isinstance(built, BufferedAsync)
    assert (built.buffer_size, built.concurrency, built.engine.deadline) == (10, 16, 3600.0)
    one = strategy_of(experiment(strategy={"name": "fedasync", "mixing": 0.3}), store, observer)
    assert isinstance(one, FedAsync)
    assert one.engine.fewest == 1
    over = strategy_of(
        experiment(strategy={"name": "fedavg", "over_selection": 0.5}), store, observer
    )
    assert over.engine.over_selection == 0.5


def test_reactions_to_divergence():
    strategy = {"name": "fedavg", "monitor": {"window": 3, "reactions": ["lower-rate", "halt"]}}
    monitor = monitor_of(experiment(strategy=strategy).strategy.monitor)
    assert monitor == Monitor(window=3, reactions=(Reaction.LOWER_RATE, Reaction.HALT))


def short(folder, **overrides):
    values = {"rounds": 6, "clients.count": 8, "strategy.buffer_size": 3,
              "strategy.concurrency": 6, "clients.epochs": 1, "output.folder": str(folder),
              **overrides}  # fmt: skip
    return load_experiment("async", [f"{key}={json.dumps(v)}" for key, v in values.items()])


def rounds_of(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    # Not bytes_down: a resumed run sends again what was under way.
    keys = ("round", "clock_s", "eval_loss", "update_norm", "rejected", "bytes_up")
    return [{key: json.loads(line)[key] for key in keys} for line in lines]


def clients_of(folder):
    lines = (folder / "clients.jsonl").read_text().splitlines()
    keys = ("round", "client", "status", "weight", "staleness", "sent_s", "arrived_s")
    return [{key: json.loads(line)[key] for key in keys} for line in lines]


def model_of(folder):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_simulations_and_a_resumed_one_are_bit_identical(tmp_path):
    """Ray computes answers in whatever order; simulated time alone decides what they do."""
    from pathlib import Path

    whole = Path(run_experiment(short(tmp_path / "a"))["folder"])
    again = Path(run_experiment(short(tmp_path / "b"))["folder"])
    part = Path(run_experiment(short(tmp_path / "c", rounds=3))["folder"])
    rest = Path(run_experiment(short(tmp_path / "c"), resume=part)["folder"])
    for other in (again, rest):
        assert rounds_of(other) == rounds_of(whole)
        assert clients_of(other) == clients_of(whole)
        for name, value in model_of(whole).items():
            np.testing.assert_array_equal(model_of(other)[name], value)
    assert any(row["staleness"] for row in clients_of(whole))
