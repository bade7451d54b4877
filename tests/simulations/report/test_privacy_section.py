from __future__ import annotations

import json
import re
from html import unescape

import pytest

from qsfl_flower.rounds.charges import Charge, Charges, write_charges
from qsfl_flower.simulations.report import text
from qsfl_flower.simulations.report.sections.privacy import privacy
from qsfl_flower.simulations.runs import CHECKPOINTS, Run

CONFIG = """
name: trial
strategy:
  name: fedavg
  stages: [{stage: validate}, {stage: STAGE, epsilon: 2.0, delta: 1.0e-05}]
"""


def section(tmp_path, stage, epsilons):
    (tmp_path / "config.yaml").write_text(CONFIG.replace("STAGE", stage))
    rows = [
        {"round": r, "epsilon": e, "eval_accuracy": 0.5 + 0.1 * r} for r, e in enumerate(epsilons)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return privacy(Run.open(tmp_path))


def words(found):
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", found.html())).split())


@pytest.mark.parametrize(
    ("stage", "unit", "adversary"),
    [
        ("central_dp", "one client with all of its data", "it has to be trusted"),
        ("record_dp", "one record of a client", "the server included"),
        ("local_dp", "one client with all of its data", "nobody but the client itself"),
        ("distributed_dp", "one client with all of its data", "all but 0 of those in a sum"),
        (
            "distributed_dp, non_contributors: 2, records: {count: 9}",
            "one record of a client",
            "the server included: it learns sums over the clients alone",
        ),
    ],
)
def test_unit_adversary_and_delta_are_named_in_plain_words(tmp_path, stage, unit, adversary):
    found = section(tmp_path, stage, [None, 0.6, 0.8, 1.0])
    told = words(found)
    for expected in (unit, adversary, "epsilon = 1.0", "of 2.0", "delta = 1e-05", "guess"):
        assert expected in told.replace("1 of", "1.0 of").replace("2,", "2.0,"), told
    assert "73" in told  # e / (1 + e): how often a guess can be right
    assert "2.7" in told  # e times the rate of false accusations
    spent, against = found.plots
    assert "after round 3" in spent.alt
    assert "80" in against.alt


def test_nothing_is_said_where_nothing_is_private(tmp_path):
    assert section(tmp_path, "clip", [None, None]) is None
    assert section(tmp_path, "central_dp", [None]) is None


def test_a_hopeless_epsilon_is_told_without_a_picture(tmp_path):
    found = section(tmp_path, "central_dp", [None, float("inf"), float("inf")])
    assert found is None or found.plots == ()


def test_a_spent_budget_that_ended_the_run_is_told(tmp_path):
    event = {"kind": "budget spent", "message": "Training ended before round 4: all is spent"}
    (tmp_path / "events.jsonl").write_text(json.dumps(event) + "\n")
    assert "Training ended before round 4" in words(section(tmp_path, "central_dp", [None, 1.0]))


def test_clients_without_a_budget_are_named(tmp_path):
    rows = [
        {"round": r, "client": name, "status": "no-budget" if name == "7" else "accepted"}
        for r in (1, 2)
        for name in ("7", "8")
    ]
    (tmp_path / "clients.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = words(section(tmp_path, "central_dp", [None, 0.5, 1.0]))
    assert "Excluded, since their accounts have no budget left: client 7." in told


@pytest.mark.parametrize(("status", "expected"), [(None, 2), ("interrupted", 2), ("finished", 1)])
def test_a_round_that_was_begun_counts_unless_the_run_finished(tmp_path, status, expected):
    event = {"noise_multiplier": 5.0, "sampling_rate": 1.0, "count": 2, "slack": 0.0}
    charge = Charge({"events": [event]}, 1e-5)
    write_charges(tmp_path / CHECKPOINTS, Charges(2, 2, "", {"central_dp": charge}))
    if status is not None:
        (tmp_path / "summary.json").write_text(json.dumps({"status": status}))
    once = Charge({"events": [{**event, "count": 1}]}, 1e-5).epsilon
    found = words(section(tmp_path, "central_dp", [None, once]))
    assert f"epsilon = {text.decimal({1: once, 2: charge.epsilon}[expected])}" in found
