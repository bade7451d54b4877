"""Bytes that ``qsfl explain`` predicts are those that runs send, from the second round on."""

from __future__ import annotations

import json

import pytest

from qsfl_flower.errors import TooFewReplies
from qsfl_flower.rounds.record import RoundRecord
from qsfl_flower.simulations import explain as explanation
from qsfl_flower.simulations.config import load_experiment
from qsfl_flower.simulations.explain import explain_experiment
from qsfl_flower.simulations.rehearsal import Rehearsal, rehearse
from tests.golden.runs import CONFIGS, ROUNDS, golden, pictures, play

HONEST = ("attacks=[]", "faults=[]")
QUICK = ("compressed", "mobile", "personalized", "plain", "pq_auth")


def measured(name, folder, experiment):
    """Return bytes up and down for each client and round after the first."""
    kept = json.loads(golden(name).read_text())
    if experiment.attacks or experiment.faults:  # rejected and missing replies are smaller
        kept = play(name, folder, *HONEST)
    rounds = kept["metrics"][2:]
    clients = sum(one["selected"] for one in rounds)
    return [sum(one[way] for one in rounds) / clients for way in ("bytes_up", "bytes_down")]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in CONFIGS]
)
def test_a_rehearsal_sends_what_the_run_sends(name, tmp_path):
    experiment = load_experiment(name, [f"rounds={ROUNDS}", *pictures(name, tmp_path)])
    seen = rehearse(experiment)
    up, down = measured(name, tmp_path, experiment)
    assert seen.up.later == pytest.approx(up, rel=0.1)
    assert seen.down.later == pytest.approx(down, rel=0.1)


def test_rounds_that_were_not_rehearsed_are_like_the_last_period():
    sizes = (90, 40, 20, 10)
    records = [RoundRecord(n, bytes_up=size, selected=2) for n, size in enumerate(sizes, 1)]
    sent = Rehearsal(records, period=2, rounds=10).up
    assert (sent.first, sent.least, sent.most) == (45, 5, 20)
    assert sent.whole == 90 + 40 + 4 * (20 + 10)
    assert sent.later == (40 + 4 * (20 + 10)) / 18
    assert Rehearsal(records[:1], period=1, rounds=1).up.later == 45


def test_phones_are_watched_for_a_day():
    experiment = load_experiment("mobile", ["devices.round_minutes=360", "rounds=9"])
    assert len(rehearse(experiment).records) == 5


def test_what_a_rehearsal_cannot_show_is_said(monkeypatch):
    experiment = load_experiment("plain")

    def fail(_):
        raise TooFewReplies("nobody answered")

    monkeypatch.setattr(explanation, "rehearse", fail)
    assert "bytes: unknown, since" in explain_experiment(experiment)
    monkeypatch.setattr(explanation, "_REHEARSED", 1)
    told = " ".join(explain_experiment(experiment).split())
    assert "up: about 38.4 kB for each client and round, and some kB for the message" in told


@pytest.mark.parametrize("spends", ["strategy.stages", "evaluation"])
def test_a_rehearsal_charges_no_ledger(tmp_path, spends):
    """Whoever asks what a run would send has released nothing."""
    noise = f"epsilon: 8.0, ledger: {tmp_path / 'ledger'}"
    change = {
        "strategy.stages": f"[{{stage: local_dp, clip_norm: 1.0, {noise}}}]",
        "evaluation": f"{{{noise}}}",
    }
    data = ["data.test_fraction=0.2", "rounds=2"]
    experiment = load_experiment("plain", [f"{spends}={change[spends]}", *data])
    seen = rehearse(experiment).records
    assert len(seen) == 2
    assert any("epsilon" in told for told in seen[-1].stages.values())
    assert list(tmp_path.iterdir()) == []


def test_evaluation_is_rehearsed_up_to_its_first_round():
    experiment = load_experiment("evaluation", ["rounds=12", "evaluation.every=3"])
    seen = rehearse(experiment)
    assert ["evaluation" in record.stages for record in seen.records] == [False, False, True, False]
