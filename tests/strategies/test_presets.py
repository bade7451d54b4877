"""The presets, run in one process by stock clients with the keys of `qsfl keys federation`."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from qsfl_flower.clients import auth_mod, qsfl_mod
from qsfl_flower.crypto.errors import KeyFileError
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.errors import CompositionError, ConfigError
from qsfl_flower.privacy.calibration import epsilon_of_events, noise_multiplier_for
from qsfl_flower.privacy.record import RecordPrivacy
from qsfl_flower.stages import Committee, DistributedDP, RecordDP, Validate
from qsfl_flower.strategies import (
    PrivacyBudget,
    RunObserver,
    SecAggFedAvg,
    SecureFedAvg,
    SecureMultiKrum,
    cross_device,
    cross_silo,
    full_chain,
    research,
)
from qsfl_flower.testing import LocalGrid
from qsfl_flower.wire import from_record, to_record

CLIENTS = 9
SIZE = 40
LIAR = 4
MODEL = {"w": np.zeros((4, 10), np.float32)}
HIDDEN = [cross_silo, full_chain, cross_device]


def step_of(client: int) -> np.ndarray:
    """Honest steps agree but for a little; one client sends the opposite, much longer."""
    noise = np.random.default_rng(client).normal(0, 0.01, (4, 10))
    return np.full((4, 10), -50.0) if client == LIAR else 0.1 + noise


def train(message: Message, context) -> Message:
    step = step_of(context.node_config["partition-id"])
    arrays = {"w": Array((message.content["arrays"]["w"].numpy() + step).astype(np.float32))}
    metrics = MetricRecord({"num-examples": 50, "train_loss": 0.5, "secret": 7.0})
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
    return Message(content, reply_to=message)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("federation") / "keys"
    create_federation([f"client-{i}" for i in range(CLIENTS)], now=int(time.time())).save(folder)
    return str(folder)


class Seen(RunObserver):
    def __init__(self):
        self.rounds, self.rows = [], []

    def on_round(self, record, clients):
        self.rounds.append(record)
        self.rows.append(clients)


def run(preset, keys, mods, rounds=1, **arguments):
    app = ClientApp(mods=mods)
    app.train()(train)
    grid = LocalGrid(app, CLIENTS)
    for context in grid.contexts:
        context.run_config = {"qsfl-keys": keys}
    seen = Seen()
    strategy = preset(clip_norm=2.0, **{"observer": seen, **arguments})
    result = strategy.start(grid, to_record(MODEL), num_rounds=rounds, timeout=60)
    return from_record(result.arrays)["w"], seen, result, strategy


def hidden(preset, keys, rounds=1, **arguments):
    if preset is not cross_device:
        arguments = {"num_byzantine": 1, **arguments}
    return run(preset, keys, [auth_mod(), qsfl_mod], rounds, credentials=keys, **arguments)


def test_a_liar_among_silos_does_not_count(keys):
    model, seen, result, _ = hidden(cross_silo, keys)
    np.testing.assert_allclose(model, 0.1, atol=0.02)
    rows = {row.client: row for row in seen.rows[1]}
    assert rows[f"client-{LIAR}"].status == "not-selected"
    # 50 examples weigh 52,429 / 2^20: a metric is right to half of one of these parts.
    assert result.train_metrics_clientapp[1] == {"train_loss": pytest.approx(0.5, abs=1e-5)}
    assert seen.rounds[1].stages["authenticate"]["sessions"] == CLIENTS


def test_research_computes_the_same_in_the_clear(keys):
    silo, _, _, _ = hidden(cross_silo, keys, num_selected=CLIENTS - 1)
    clear, seen, _, _ = run(research, keys, [qsfl_mod], num_byzantine=1, fraction_evaluate=0.0)
    np.testing.assert_allclose(clear, silo, atol=1e-5)
    norms = {row.client: row.norm for row in seen.rows[1]}
    assert norms["0"] == pytest.approx(np.linalg.norm(step_of(0)), rel=1e-5)


def test_what_records_cost_is_recorded_where_updates_are_hidden(keys, monkeypatch):
    privacy = RecordPrivacy(clip_norm=1.0, noise_multiplier=1.1, sampling_rate=0.05, steps=2)

    def privately(message, context, train=train):
        reply = train(message, context)
        reply.content["metrics"].update(privacy.told())
        return reply

    monkeypatch.setitem(run.__globals__, "train", privately)
    _, seen, _, _ = hidden(cross_silo, keys, privacy=RecordDP(privacy), metrics=())
    spent = epsilon_of_events([privacy.event(SIZE)], 1e-5)
    assert seen.rounds[1].epsilon == pytest.approx(spent, rel=1e-4)
    assert seen.rounds[1].stages["record_dp"]["epsilon"] == seen.rounds[1].epsilon


@pytest.mark.parametrize("preset", [full_chain, cross_device])
def test_a_round_deals_with_a_public_part_and_the_rest_comes_later(preset, keys):
    first, _, _, _ = hidden(preset, keys, ratio=0.25)
    assert np.count_nonzero(first) == SIZE // 4
    later, _, _, _ = hidden(preset, keys, rounds=12, ratio=0.25)
    assert np.count_nonzero(later) > 0.9 * SIZE
    same, _, _, _ = hidden(full_chain, keys, ratio=0.25)
    if preset is full_chain:
        assert np.array_equal(first != 0, same != 0), "the coordinates come from a public seed"


def test_a_liar_among_devices_moves_the_mean_by_its_share_of_the_clip_norm(keys):
    model, seen, _, _ = hidden(cross_device, keys, ratio=1.0)
    honest = np.mean([step_of(c) for c in range(CLIENTS) if c != LIAR], axis=0)
    honest = honest * (CLIENTS - 1) / CLIENTS
    assert np.linalg.norm(model - honest) == pytest.approx(2.0 / CLIENTS, rel=1e-3)
    assert seen.rounds[1].accepted == CLIENTS


KRUM = (SecureMultiKrum, cross_silo, full_chain)
SUMS = [*HIDDEN, SecureFedAvg, SecureMultiKrum, SecAggFedAvg]
MINE = ("secret", "train_loss")


@pytest.mark.parametrize("preset", SUMS)
def test_metrics_are_named_in_one_way(preset, keys):
    """`metrics=` on every strategy that hides updates, or inside the arguments of its sum."""
    more = {"num_byzantine": 1} if preset in KRUM else {}
    inside = "masks" if preset is SecAggFedAvg else "sums"
    for given in ({"metrics": MINE}, {inside: {"metrics": MINE}}):
        made = preset(credentials=keys, clip_norm=1.0, **more, **given)
        assert made.chain.combiner.tally.metrics == MINE
    for given, named in (
        ({"metrics": MINE, inside: {"metrics": MINE}}, "given twice"),
        ({"metrics": "train_loss"}, "a sequence of names"),
        ({inside: {"metric": MINE}}, rf"{inside}: 'metric' is not among .*metrics"),
        ({inside: {"clip_norm": 2.0}}, f"{inside}: 'clip_norm'"),
    ):
        with pytest.raises(ConfigError, match=named):
            preset(credentials=keys, clip_norm=1.0, **more, **given)


def test_metrics_of_ones_own_are_averaged(keys):
    _, _, result, _ = hidden(cross_silo, keys, metrics=MINE)
    told = {"secret": pytest.approx(7.0, abs=1e-4), "train_loss": pytest.approx(0.5, abs=1e-5)}
    assert result.train_metrics_clientapp[1] == told


def test_arguments_of_sums_that_do_not_belong_are_named(keys):
    with pytest.raises(ConfigError, match="masks="):
        SecAggFedAvg(credentials=keys, sums={"metrics": MINE})
    for name in ("metrics", "sums", "credentials"):
        with pytest.raises(ConfigError, match=f"{name}: .* hides nothing"):
            research(num_byzantine=1, clip_norm=1.0, **{name: MINE})


@pytest.mark.parametrize("preset", SUMS)
def test_the_keys_of_a_client_are_refused_for_the_server(preset, keys):
    with pytest.raises(ConfigError, match=r"client-0' are the keys of client 'client-0'.*server"):
        preset(
            credentials=f"{keys}/client-0", clip_norm=1.0,
            **({"num_byzantine": 1} if preset in KRUM else {}),
        )  # fmt: skip


@pytest.mark.parametrize("preset", HIDDEN)
def test_no_single_update_reaches_the_server(preset, keys):
    _, seen, _, strategy = hidden(preset, keys)
    assert strategy.chain.hides
    for row in seen.rows[1]:
        assert row.train_loss is None
        assert row.num_examples is None


def test_rounds_appear_in_flowers_log_unless_there_is_an_observer(keys, caplog):
    with caplog.at_level("INFO", "flwr"):
        hidden(cross_silo, keys, observer=None)
        told = caplog.text
        assert "Stages: authenticate -> validate -> secure_krum" in told
        assert "[ROUND 1] train loss 0.5000, 6 of 9 clients" in told
        assert "3 x not-selected" in told
        assert "secure_krum: clients 9, summed 6, dropped 0" in told
        caplog.clear()
        hidden(cross_silo, keys)
        assert "ROUND" not in caplog.text


@pytest.mark.parametrize("preset", HIDDEN)
def test_too_few_nodes_are_raised_to_what_a_round_needs(preset, keys):
    wanted = {} if preset is cross_device else {"num_byzantine": 3}
    least = 7 if preset is cross_device else 9
    for given in ({}, {"min_train_nodes": 2, "min_available_nodes": 2}):
        made = preset(**given, credentials=keys, clip_norm=1.0, **wanted)
        assert (made.min_train_nodes, made.min_available_nodes) == (least, least)
    made = preset(credentials=keys, clip_norm=1.0, min_train_nodes=20, **wanted)
    assert made.min_train_nodes == 20


@pytest.mark.parametrize("preset", HIDDEN)
def test_evaluation_on_the_clients_is_refused_with_the_alternative(preset, keys):
    wanted = {} if preset is cross_device else {"num_byzantine": 1}
    with pytest.raises(CompositionError, match="evaluate_fn"):
        preset(credentials=keys, clip_norm=1.0, fraction_evaluate=0.5, **wanted)


@pytest.mark.parametrize("preset", [*HIDDEN, research])
def test_record_level_privacy_is_told_to_the_clients(preset, keys):
    privacy = RecordPrivacy(clip_norm=1.0, noise_multiplier=1.1, sampling_rate=0.1, steps=5)
    wanted = {} if preset is cross_device else {"num_byzantine": 1}
    if preset is not research:
        wanted["credentials"] = keys
    made = preset(clip_norm=1.0, privacy=RecordDP(privacy, rounds=3), **wanted)
    assert "record_dp" in [stage.name for stage in made.chain.stages]


def test_devices_get_client_level_privacy_without_a_change_to_the_app(keys):
    """docs/drop-in.md: the budget lasts for the rounds that the noise was made for."""
    rounds = 3
    noise = noise_multiplier_for(8.0, 1e-5, rounds, slack=1e-11)
    dp = DistributedDP(noise, CLIENTS, PrivacyBudget(epsilon=8.0), rounds=rounds)
    committee = Committee(7, 3, quorum=5, min_clients=8)
    model, seen, result, _ = hidden(cross_device, keys, rounds, privacy=dp, committee=committee)
    assert [r.skipped for r in seen.rounds] == [None] * (rounds + 1)
    assert 7.9 < seen.rounds[-1].epsilon <= 8.0
    assert {row.norm for row in seen.rows[1]} == {None}
    assert result.train_metrics_clientapp[1] == {}
    assert np.isfinite(model).all()


@pytest.mark.parametrize("preset", HIDDEN)
def test_a_limit_on_norms_that_nobody_could_check_is_refused(preset, keys):
    wanted = {} if preset is cross_device else {"num_byzantine": 1}
    with pytest.raises(CompositionError, match="validate has to look at single updates"):
        preset(credentials=keys, clip_norm=1.0, stages=[Validate(max_norm=5.0)], **wanted)


def snippets():
    page = (Path(__file__).parents[2] / "docs" / "drop-in.md").read_text()
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


@pytest.mark.parametrize("snippet", snippets())
def test_the_snippets_of_the_page_work(snippet, keys):
    names = {}
    exec(snippet.replace("~/qsfl-keys", keys), names)
    assert names["strategy"].chain.hides


def test_wrong_key_folders_are_named(keys, tmp_path):
    with pytest.raises(KeyFileError, match=r"keys found: none"):
        cross_silo(credentials=tmp_path, num_byzantine=1, clip_norm=1.0)
    with pytest.raises(KeyFileError, match=r"nowhere: a key folder holds"):
        cross_silo(credentials=tmp_path / "nowhere", num_byzantine=1, clip_norm=1.0)
