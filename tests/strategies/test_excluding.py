"""A client whose account has no budget is left out, and the run goes on as it is accounted for."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from qsfl_flower.errors import CompositionError, ConfigError
from qsfl_flower.numerics import Layout
from qsfl_flower.privacy.calibration import epsilon_of_events
from qsfl_flower.privacy.events import Event
from qsfl_flower.privacy.ledger import Budget, Ledger
from qsfl_flower.privacy.record import RecordPrivacy
from qsfl_flower.rounds.facts import Topic
from qsfl_flower.simulations.config import experiment_from_dict
from qsfl_flower.simulations.privacy import central_dp
from qsfl_flower.stages import CentralDP, Clip, DistributedDP, LocalDP, RecordDP
from qsfl_flower.strategies import BufferedAsync, PrivacyBudget, StableFedAvg
from qsfl_flower.testing import LocalFederation
from qsfl_flower.testing.federation import FIRST_NODE

CLIENTS, SIZE, NOISE = 4, 32, 2.0
ACCOUNTS = {f"client-{n}": f"fed/{n}" for n in range(CLIENTS)}


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


def budget(ledger, exhausted="exclude", accounts=ACCOUNTS):
    return PrivacyBudget(ledger=ledger, accounts=accounts, exhausted=exhausted)


def central(ledger, rate=1.0, **options):
    return CentralDP(NOISE, CLIENTS, rate, budget(ledger, **options), rounds=8, seed=1)


def allow(ledger, client, releases):
    """Give a client a budget for so many rounds of the stage above, and half of another."""
    costs = [Event(NOISE, 1.0, n) for n in (releases, releases + 1)]
    ledger.grant(f"fed/{client}", Budget(sum(map(epsilon, costs)) / 2))


def epsilon(event):
    return epsilon_of_events([event], 1e-5)


def federation(bad=0.0):
    """Each client moves its own coordinate by 1/2; client 1 moves all of them by `bad` besides."""

    def train(client, server_round, model):
        step = np.zeros(SIZE)
        step[client] = 0.5
        return model + step + (bad if client == 1 else 0.0)

    return LocalFederation(CLIENTS, SIZE, train=train)


def run(made, stage, rounds=8, **options):
    return made.run([Clip(1.0), stage], rounds, min_train_nodes=1, max_failed_rounds=9, **options)


def asked(made):
    """Return who was sent a task, by round."""
    found = {}
    for message in made.grid.pushed:
        configs = message.content.config_records.values()
        (number,) = {c["server-round"] for c in configs if "server-round" in c}
        found.setdefault(number, []).append(message.metadata.dst_node_id - FIRST_NODE)
    return found


def test_the_run_goes_on_without_the_client_whose_budget_is_spent(ledger, caplog):
    allow(ledger, 1, 3)
    assert ledger.releases_left("fed/1", [Event(NOISE)]) == 3
    made = federation()
    with caplog.at_level(logging.WARNING, "qsfl_flower"):
        outcome = run(made, central(ledger))
    assert asked(made) == {r: [0, 1, 2, 3] if r <= 3 else [0, 2, 3] for r in range(1, 9)}
    assert [record.rejected for record in outcome.rounds[1:]] == [{}] * 3 + [{"no-budget": 1}] * 5
    assert [r.stages["central_dp"]["excluded_clients"] for r in outcome.rounds[1:]] == (
        [0] * 3 + [1] * 5
    )
    (row,) = [row for row in outcome.clients[-1] if row.status == "no-budget"]
    assert (row.client, row.bytes_up) == ("client-1", 0)
    assert "account 'fed/1' would reach epsilon" in row.detail
    told = [record.message for record in caplog.records if "is excluded" in record.message]
    assert len(told) == 1
    assert "client client-1 is excluded from round 4 on" in told[0]
    statuses = [row["status"] for row in ledger.history("fed/1")]
    assert statuses == ["committed"] * 3 + ["excluded"] * 5
    assert ledger.status("fed/1").releases_left == 0
    assert {row["status"] for row in ledger.history("fed/0")} == {"committed"}
    assert outcome.rounds[-1].epsilon == pytest.approx(epsilon(Event(NOISE, 1.0, 8)), rel=1e-4)


def test_the_run_stops_for_everybody_unless_it_is_told_to_exclude(ledger):
    allow(ledger, 1, 3)
    made = federation()
    run(made, central(ledger, exhausted="stop"))
    assert len(asked(made)) == 3


def test_the_run_stops_when_nobody_has_a_budget(ledger):
    ledger.grant("fed", Budget(epsilon(Event(NOISE, 1.0, 2)) * 1.001))
    made = federation()
    run(made, central(ledger))
    assert len(asked(made)) == 2


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_nothing_of_an_excluded_client_is_in_any_model(ledger, rate):
    """Not even at first, when the server cannot know yet which node is the client's."""
    ledger.grant("fed/1", Budget(1e-3))
    made = federation(bad=1e3), federation()
    first, second = (run(one, central(ledger, rate)) for one in made)
    assert np.array_equal(first.model, second.model)
    sent = [clients for clients in asked(made[0]).values() if 1 in clients]
    assert len(sent) == 1  # from its first reply on the node is known
    rejected = [record.rejected.get("no-budget", 0) for record in first.rounds]
    assert sum(rejected) == sum(1 in c for c in drawn(rate))


def drawn(rate, rounds=8):
    stage = CentralDP(NOISE, CLIENTS, rate, seed=1)
    return [stage.participants(range(CLIENTS), r, 1) for r in range(1, rounds + 1)]


def test_the_others_are_sampled_by_the_same_coins(ledger):
    allow(ledger, 1, 1)
    made = federation()
    outcome = run(made, central(ledger, 0.5))
    coins = drawn(0.5)
    excluded = [
        1 in clients and record.rejected == {"no-budget": 1}
        for clients, record in zip(coins, outcome.rounds[1:], strict=True)
    ]
    assert any(excluded)
    assert [asked(made).get(r, []) for r in range(1, 9)] == [
        [c for c in clients if not (out and c == 1)]
        for clients, out in zip(coins, excluded, strict=True)
    ]


def test_an_enrolled_client_without_an_account_is_not_used(ledger):
    accounts = {name: path for name, path in ACCOUNTS.items() if name != "client-2"}
    outcome = run(federation(), central(ledger, accounts=accounts), rounds=2)
    assert [record.rejected for record in outcome.rounds[1:]] == [{"no-budget": 1}] * 2
    assert "'client-2' has no account" in outcome.clients[-1][2].detail


def test_an_excluded_client_is_not_asked_to_evaluate_either(ledger):
    allow(ledger, 1, 1)
    made = federation()
    run(made, central(ledger), rounds=3, fraction_evaluate=1.0, min_evaluate_nodes=1)
    kinds = [m.metadata.message_type for m in made.grid.pushed if m.metadata.dst_node_id == 101]
    assert kinds == ["train", "evaluate"]


def test_a_client_takes_part_again_when_its_budget_is_raised(ledger, caplog):
    allow(ledger, 1, 1)
    made, stage = federation(), central(ledger)

    def train(client, server_round, model):
        if server_round == 4 and client == 0:
            ledger.grant("fed/1", Budget(100.0))
        return model

    made.train = train
    with caplog.at_level(logging.INFO, "qsfl_flower"):
        run(made, stage)
    assert [1 in clients for clients in asked(made).values()] == [True] + [False] * 3 + [True] * 4
    assert "takes part again from round 5" in caplog.text


def test_the_plan_says_whose_budget_ends_when(ledger):
    allow(ledger, 1, 3)

    def forecast_of(stage):
        bound = stage.bind([Clip(1.0), stage])
        return bound.explain(Layout.of({"w": np.zeros(SIZE)}), 8)[Topic.PRIVACY][1]

    forecast = forecast_of(central(ledger))
    assert (
        "no budget for all 8 releases, but: fed/1 for 3; whoever has none is excluded" in forecast
    )
    assert forecast_of(central(ledger, exhausted="stop")).endswith("ends the run then")


def test_where_the_guarantee_would_not_hold_it_is_refused_by_name(ledger):
    made, excluding = federation(), budget(ledger)
    with pytest.raises(CompositionError, match=r"central_dp excludes .* add Authenticate"):
        StableFedAvg(stages=[Clip(1.0), central(ledger)])
    with pytest.raises(CompositionError, match=r"central_dp excludes .* use a synchronous"):
        made.run([Clip(1.0), central(ledger)], kind=BufferedAsync)
    record = RecordPrivacy(clip_norm=1.0, noise_multiplier=1.0, sampling_rate=0.1, steps=1)
    for make in (
        lambda: RecordDP(record, excluding),
        lambda: LocalDP(1.0, 1.0, excluding),
        lambda: DistributedDP(1.0, CLIENTS, excluding),
    ):
        with pytest.raises(CompositionError, match=r"_dp: exhausted='exclude' is for central_dp"):
            make()
    for options in ({}, {"ledger": ledger, "accounts": ["fed/1"]}):
        with pytest.raises(ConfigError, match="mapping from the clients' names"):
            PrivacyBudget(exhausted="exclude", **options)
    with pytest.raises(ConfigError, match="must be 'stop' or 'exclude'"):
        PrivacyBudget(exhausted="ignore")


def test_an_experiment_names_its_clients_accounts(tmp_path):
    stage = {
        "stage": "central_dp",
        "epsilon": 1.0,
        "noise_multiplier": 10.0,
        "ledger": str(tmp_path / "ledger.db"),
        "exhausted": "exclude",
    }
    stages = [{"stage": "authenticate"}, {"stage": "clip", "clip_norm": 1.0}, stage]
    experiment = experiment_from_dict(
        {"clients": {"count": 3}, "strategy": {"name": "fedavg", "stages": stages}}
    )
    spent = central_dp(experiment.strategy.stages[2], experiment).spending.budget
    assert spent.excludes
    assert spent.accounts == {str(n): f"federation/{n}" for n in range(3)}
