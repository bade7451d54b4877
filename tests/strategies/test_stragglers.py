"""Synchronous rounds that do not wait for the slowest, in simulated time."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from qsfl_flower.asynchrony import Availability, Device, FasterFirst, Latencies, VirtualClock
from qsfl_flower.errors import ConfigError
from qsfl_flower.strategies import RunObserver, StableFedAvg

SLOW = (3, 7)


class Recorder(RunObserver):
    def __init__(self):
        self.rounds, self.rows = [], []

    def on_round(self, record, clients):
        self.rounds.append(record)
        self.rows.append(clients)


def run(grid, devices, rounds=1, **arguments):
    recorder = Recorder()
    arguments = {"min_train_nodes": 1, "seed": 5, **arguments}
    strategy = StableFedAvg(
        fraction_evaluate=0.0,
        min_available_nodes=len(devices),
        clock=VirtualClock(devices),
        observer=recorder,
        **arguments,
    )
    start = ArrayRecord({"w": Array(np.zeros(3, np.float32))})
    result = strategy.start(grid, start, num_rounds=rounds, timeout=1000.0)
    return result.arrays["w"].numpy(), recorder, strategy


def ten(slow=10.0):
    return [Device(seconds=slow if rank in SLOW else 1.0) for rank in range(10)]


def test_a_round_takes_as_long_as_its_slowest_client(fake_grid, trained):
    grid = fake_grid({n: trained(1.0) for n in range(10)})
    _, recorder, _ = run(grid, ten(), rounds=3)
    assert [r.clock_s for r in recorder.rounds] == [None, 10.0, 20.0, 30.0]
    first = recorder.rows[1]
    assert [(row.sent_s, row.arrived_s) for row in first[:4]] == [(0.0, 1.0)] * 3 + [(0.0, 10.0)]


def test_over_selection_does_not_wait_for_the_slowest(fake_grid, trained):
    """8 needed, 10 asked: the two slow ones are cut off, and busy until they are heard of."""
    grid = fake_grid({n: trained(float(n)) for n in range(10)})
    model, recorder, strategy = run(grid, ten(), fraction_train=0.8, over_selection=0.25)
    assert recorder.rounds[-1].clock_s == 1.0
    assert recorder.rounds[-1].rejected == {"cut-off": 2}
    fast = [n for n in range(10) if n not in SLOW]
    assert model.tolist() == [np.float32(np.mean(fast))] * 3
    assert strategy.engine.post.ledger.busy == set(SLOW)


def test_the_reply_of_a_client_that_was_cut_off_never_counts(fake_grid, trained):
    """In rounds 2 to 10 only eight are free; after 10 s the slow ones may be asked again."""
    grid = fake_grid({n: trained(1.0) for n in range(10)})
    model, recorder, _ = run(grid, ten(9.5), rounds=12, fraction_train=0.8, over_selection=0.25)
    assert [r.selected for r in recorder.rounds[1:]] == [10, *[8] * 9, 10, 8]
    assert [r.accepted for r in recorder.rounds[1:]] == [8] * 12
    assert [r.clock_s for r in recorder.rounds[1:]] == [float(n) for n in range(1, 13)]
    assert model.tolist() == [12.0] * 3  # one for each round, whatever came late
    nodes = [m.metadata.dst_node_id for m in grid.pushed]
    assert len(nodes) == sum(r.selected for r in recorder.rounds)


def test_faster_clients_are_asked_more_often_by_the_strategy(fake_grid, trained):
    """The source's scenario: ten clients, two with ten times the latency, fifty rounds."""
    grid = fake_grid({n: trained(1.0) for n in range(10)})
    _, _, strategy = run(
        grid, ten(), rounds=50, fraction_train=0.5, selection=FasterFirst(1.0, fairness=0.2)
    )
    asked = np.bincount([m.metadata.dst_node_id for m in grid.pushed], minlength=10)
    fast = np.delete(asked, SLOW)
    assert asked[list(SLOW)].max() < fast.min()
    # A draw has one of them with probability at least 0.02: 4.8 of 50 rounds are expected at least.
    assert asked[list(SLOW)].min() >= 4
    assert isinstance(strategy.engine.post.latencies, Latencies)
    assert strategy.engine.post.latencies.typical([0, 3]).tolist() == [1.0, 10.0]


def test_a_client_that_never_answers_ends_the_round_at_the_deadline(fake_grid, trained):
    devices = [Device(), Device(), Device(dropout=1.0)]
    grid = fake_grid({n: trained(1.0) for n in range(3)})
    _, recorder, _ = run(grid, devices, rounds=2, deadline=60.0)
    assert [r.clock_s for r in recorder.rounds[1:]] == [60.0, 120.0]
    assert [r.rejected for r in recorder.rounds[1:]] == [{"no-reply": 1}] * 2


def test_only_devices_within_reach_are_asked(fake_grid, trained):
    """Two devices are online by day, one by night; a round takes three hours."""
    hours = 3600.0
    day = Device(3 * hours, available=Availability(((6 * hours, 18 * hours),)))
    night = Device(3 * hours, available=Availability(((0.0, 6 * hours), (18 * hours, 24 * hours))))
    grid = fake_grid({n: trained(1.0) for n in range(3)})
    _, recorder, _ = run(grid, [day, day, night], rounds=8, deadline=1e6)
    assert [r.selected for r in recorder.rounds[1:]] == [1, 1, 2, 2, 2, 2, 1, 1]
    assert recorder.rounds[-1].clock_s == 24 * hours


@pytest.mark.parametrize("bad", [{"over_selection": -0.1}, {"deadline": 0.0}])
def test_impossible_arguments_are_named(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        StableFedAvg(**bad)
