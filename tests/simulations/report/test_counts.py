"""What became of the updates is the same number wherever it is told."""

from __future__ import annotations

import re
from html import unescape

import numpy as np
from flwr.app import Array, ArrayRecord

from qsfl_flower.rounds.record import describe_measured
from qsfl_flower.simulations.config import experiment_from_dict
from qsfl_flower.simulations.folder import RunFolder, new_folder
from qsfl_flower.simulations.progress import describe
from qsfl_flower.simulations.report import compare
from qsfl_flower.simulations.report.outcome import outcome
from qsfl_flower.simulations.report.sections.headline import headline
from qsfl_flower.simulations.report.tally import tally
from qsfl_flower.simulations.runs import Run
from qsfl_flower.stages import Robust
from qsfl_flower.strategies import RunObserver, StableFedAvg


def words(section):
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", section.html())).split())


def test_updates_that_a_rule_leaves_out_are_counted_alike_everywhere(fake_grid, trained, tmp_path):
    """Nine clients, one sends NaN, Multi-Krum leaves another out: four in two rounds."""
    settings = {"name": "demo", "output": {"folder": str(tmp_path)}}
    experiment = experiment_from_dict(settings)
    folder = RunFolder(new_folder(experiment, 1000), experiment, [])
    folder.begin({})
    seen = []

    class Write(RunObserver):
        def on_round(self, record, clients):
            folder.add_round(record, clients)
            seen.append(record)

    clients = {n: trained(1.0 + n / 100) for n in range(7)} | {7: trained(-50.0)}
    clients[8] = trained(1.0, change=lambda a: {"w": a["w"] * np.float32(np.nan)})
    strategy = StableFedAvg(
        fraction_evaluate=0.0, stages=[Robust("multi_krum", 2)], observer=Write()
    )
    start = ArrayRecord({"w": Array(np.zeros(3, np.float32))})
    strategy.start(fake_grid(clients), start, num_rounds=2, timeout=5)
    summary = folder.finish("finished", 1.0, None, None)

    unused = {"not-finite": 2, "not-selected": 2}
    run = Run(folder.path)
    assert [r.accepted for r in seen[1:]] == [7, 7]
    assert "not used: 1 x not-finite, 1 x not-selected" in describe(seen[1], 2)
    assert summary["unused"] == unused == dict(outcome(run).unused)
    assert {n: r.amount for n, r in tally(run.clients()).reasons.items()} == unused
    assert sum(c.accepted for c in tally(run.clients()).clients.values()) == 14
    assert "4 of 18 updates were not used" in words(headline(run))
    _, rows = compare([folder.path, folder.path])
    assert [row["unused"] for row in rows] == [4, 4]


def test_a_silent_client_is_named_by_its_other_replies():
    """A node that never said its name keeps its number; one with several devices does too."""
    rows = [
        {"client": "111", "node": "111", "round": 1, "status": "no-reply", "detail": "none"},
        {"client": "hospital", "node": "111", "round": 2, "status": "accepted"},
        {"client": "222", "node": "222", "round": 1, "status": "no-reply"},
        {"client": "333", "node": "333", "round": 1, "status": "no-reply"},
        {"client": "a", "node": "333", "round": 2, "status": "accepted"},
        {"client": "b", "node": "333", "round": 2, "status": "accepted"},
    ]
    counted = tally(rows)
    assert set(counted.clients) == {"hospital", "222", "333", "a", "b"}
    assert (counted.clients["hospital"].asked, counted.clients["hospital"].accepted) == (2, 1)
    assert counted.reasons["no-reply"].clients == {"hospital", "222", "333"}
    assert counted.reasons["no-reply"].example == "round 1, client hospital: none"


def test_the_log_says_what_became_of_committee_members():
    measured = {"clients": 8.0, "member client-0": 1.0, "member b": 0.0, "member c": 1.0}
    assert describe_measured({**measured, "member d": -1.0}) == (
        "clients 8, committee members: answered client-0, c; lost b; lied d"
    )
    assert describe_measured({}) == ""


def test_numbers_of_nodes_and_names_of_clients_may_be_alike():
    """In one process nodes are 1, 2, ... and clients 0, 1, ...: node 2 is client 1."""
    rows = [
        {"client": str(n - 1), "node": str(n), "round": 1, "status": "accepted"} for n in (1, 2, 3)
    ]
    rows += [{"client": "2", "node": "2", "round": 2, "status": "no-reply"}]
    counted = tally(rows)
    asked = {name: (c.asked, c.accepted) for name, c in counted.clients.items()}
    assert asked == {"0": (1, 1), "1": (2, 1), "2": (1, 1)}
    assert counted.reasons["no-reply"].clients == {"1"}
