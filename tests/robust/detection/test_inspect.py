from __future__ import annotations

import json

import numpy as np
import pytest

from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.detection.core import (
    DETECTORS,
    Detection,
    Detector,
    Judgement,
    Memory,
    counted,
    extract,
    inspect,
)
from qsfl_flower.mechanisms.detection.core.features import NAMES
from qsfl_flower.mechanisms.detection.core.inspect import standardize
from qsfl_flower.mechanisms.robust.core import Updates

FAST = Detection("robust-z")


def rounds(make, layout, count, how=FAST, change=None, memory=None, first=1):
    """Inspect rounds of a cohort and return the findings of each, and the memory."""
    memory, found = memory or Memory.new(0), []
    for server_round in range(first, first + count):
        x = make(20, seed=server_round)
        if change is not None:
            change(x)
        names = [f"c{i}" for i in range(len(x))]
        trusted = memory.trusted(names, server_round)
        table = extract(Updates.of(x), layout, trusted=trusted)
        findings, memory = inspect(table, names, memory, how, server_round)
        found.append((findings, np.linalg.norm(x, axis=1), server_round))
    return found, memory


@pytest.mark.parametrize("detector", ["isolation-forest", "robust-z"])
def test_attackers_are_flagged_told_why_and_put_into_quarantine(cohort, layout, detector):
    def attack(x):
        x[:6] *= -8

    found, _ = rounds(cohort, layout, 5, Detection(detector), attack)
    for findings, _, _ in found:
        assert all(f.flagged for f in findings[:6])
        assert sum(f.flagged for f in findings[6:]) <= 2
    last = found[-1][0]
    assert all(f.before.quarantined(5) for f in last[:6])
    assert "times the median" in last[0].why
    assert not any(f.before.quarantined(5) for f in last[6:])


def test_honest_rounds_raise_few_false_alarms(cohort, layout):
    """About one row in a hundred; 600 rows, so that over 18 has probability below 1e-4."""
    found, memory = rounds(cohort, layout, 30)
    assert sum(f.flagged for findings, _, _ in found for f in findings) <= 18
    assert not any(s.quarantined(31) for s in memory.standings.values())


def test_memory_survives_a_checkpoint_bit_for_bit(cohort, layout):
    def attack(x):
        x[:3] *= 20

    _, memory = rounds(cohort, layout, 4, change=attack)
    state = memory.state
    values = json.loads(json.dumps({k: v for k, v in state.items() if isinstance(v, list)}))
    arrays = {k: v.copy() for k, v in state.items() if isinstance(v, np.ndarray)}
    restored = Memory.of({**values, **arrays})
    on, _ = rounds(cohort, layout, 3, change=attack, memory=memory, first=5)
    again, _ = rounds(cohort, layout, 3, change=attack, memory=restored, first=5)
    assert [f for findings, _, _ in on for f in findings] == [
        f for findings, _, _ in again for f in findings
    ]


def test_colluders_are_flagged_together_even_if_each_looks_usual(cohort, layout):
    def attack(x):
        x[1] = x[2] = x[0]

    (last, _, _), *_ = rounds(cohort, layout, 1, change=attack)[0]
    assert [f.group for f in last[:4]] == [0, 0, 0, None]
    assert last[0].why.startswith("moves together with 2 others")


def test_an_honest_client_with_rare_classes_is_not_shut_out_for_ever(cohort, layout):
    """Its updates point elsewhere in every round and are flagged; it is heard again and again,
    with a bounded norm, and an honest neighbour never suffers."""
    rare = np.random.default_rng(5).normal(size=layout.size)

    def change(x):
        x[0] = 2.0 * rare + 0.5 * (x[0] - x[0].mean())

    found, _ = rounds(cohort, layout, 80, change=change)
    limits = [counted(*one) for one in found]
    heard = [r for r, limit in enumerate(limits, 1) if limit[0] > 0]
    assert sum(findings[0].flagged for findings, _, _ in found) > 60
    assert len(heard) >= 4
    assert heard[-1] > 55
    for limit, (_, norms, _) in zip(limits, found, strict=True):
        assert limit[0] * norms[0] <= np.median(norms[1:]) * 1.2
    assert np.mean([limit[1:] for limit in limits]) > 0.97


def test_a_client_that_becomes_honest_returns(cohort, layout):
    def attack(x):
        x[0] *= -9

    _, memory = rounds(cohort, layout, 4, change=attack)
    found, memory = rounds(cohort, layout, 16, memory=memory, first=5)
    assert not memory.standings["c0"].quarantined(21)
    assert counted(*found[-1])[0] == 1.0


def test_detectors_of_third_parties_are_used_by_name(cohort, layout):
    class Always(Detector):
        def judge(self, rows, reference, seed):
            assert reference.shape[1] == rows.shape[1]
            return Judgement(np.ones(len(rows)), np.abs(rows))

    DETECTORS["always"] = Always()
    try:
        (findings, _, _), *_ = rounds(cohort, layout, 1, Detection("always"))[0]
        assert all(f.flagged and f.why for f in findings)
    finally:
        del DETECTORS["always"]


def test_wrong_settings_are_told():
    with pytest.raises(ConfigError, match="isolation-forest"):
        Detection("forest")
    with pytest.raises(ConfigError, match="threshold"):
        Detection(threshold=1.5)


@pytest.mark.parametrize("detector", ["isolation-forest", "robust-z"])
@pytest.mark.parametrize("clients", [20, 21])
def test_a_cohort_on_a_line_is_not_suspicious_as_a_whole(layout, detector, clients):
    """Collinear updates, as of a model with one direction: all differences point one of two ways.

    A detector may flag about one row in a hundred; of 100 rows, more than six with probability
    below 1e-4.
    """
    direction = np.random.default_rng(1).normal(size=layout.size)
    names = [str(client) for client in range(clients)]
    memory, flagged = Memory.new(0), 0
    for server_round in range(1, 6):
        lengths = np.random.default_rng(server_round).uniform(0.5, 1.5, clients)
        x = lengths[:, None] * direction
        trusted = memory.trusted(names, server_round)
        table = extract(Updates.of(x), layout, direction, trusted)
        findings, memory = inspect(table, names, memory, Detection(detector), server_round)
        assert all(f.group is None for f in findings)
        flagged += sum(f.flagged for f in findings)
    assert flagged <= 6
    assert not any(s.quarantined(6) for s in memory.standings.values())


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_updates_are_not_suspicious(layout, value):
    names = [str(client) for client in range(10)]
    table = extract(Updates.of(np.full((10, layout.size), value)), layout)
    findings, _ = inspect(table, names, Memory.new(0), Detection(), 1)
    assert not any(f.flagged for f in findings)


def test_small_differences_are_not_unusual_where_clients_are_nearly_alike(layout):
    x = np.tile(np.random.default_rng(0).standard_normal(layout.size), (20, 1))
    x[7] *= 1.05
    x[9] *= 3
    deviations = standardize(extract(Updates.of(x), layout))
    norms = deviations[:, NAMES.index("norm")]
    assert norms[7] == pytest.approx(np.log(1.05) / 0.1)
    assert norms[9] == pytest.approx(np.log(3) / 0.1)
