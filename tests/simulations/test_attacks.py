"""Attackers of a simulation: the mod on real messages, with the experiment's own clients."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.models import get_arrays
from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.robust.core.attacks import ATTACKS, build_attack
from qsfl_flower.simulations.attacks import attack_mod
from qsfl_flower.simulations.build import client_of, dataset_of, model_of, owners_of, rows_of
from qsfl_flower.simulations.config import experiment_from_dict, load_experiment
from qsfl_flower.wire import from_record, to_record


def experiment(*attacks: dict, **more):
    return experiment_from_dict(
        {
            "data": {"dataset": "digits"},
            "model": {"name": "mlp"},
            "clients": {"count": 5},
            "attacks": list(attacks),
            **more,
        }
    )


def reply(exp, client: int, server_round: int = 1, state: RecordDict | None = None, mods=True):
    """What a client sends as an update, and the model that it started from."""
    owners = owners_of(exp)
    model = get_arrays(model_of(exp))
    app = numpy_client_app(
        lambda context: client_of(exp, owners, int(context.node_config["partition-id"])),
        mods=[attack_mod(exp, owners)] if mods else [],
    )
    content = RecordDict(
        {"arrays": to_record(model), "config": ConfigRecord({"server-round": server_round})}
    )
    state = RecordDict() if state is None else state
    context = Context(1, 9, {"partition-id": client, "num-partitions": 5}, state, {})
    answer = app(Message(content, 9, "train"), context)
    assert not answer.has_error()
    sent = from_record(answer.content.array_records["arrays"])
    return np.concatenate([(sent[k].astype(float) - model[k]).ravel() for k in model])


def test_attackers_attack_in_their_rounds_and_the_others_never(inside_run):
    exp = experiment({"attack": "sign-flip", "clients": [1], "rounds": [2], "scale": 2.0})
    for client, server_round, factor in ((1, 1, 1.0), (1, 2, -2.0), (3, 2, 1.0)):
        honest = reply(exp, client, server_round, mods=False)
        sent = reply(exp, client, server_round)
        assert sent == pytest.approx(factor * honest, abs=1e-6)


def test_an_omniscient_attacker_knows_the_honest_updates_exactly(inside_run):
    exp = experiment({"attack": "inner-product", "clients": [0, 4], "epsilon": 0.5})
    honest = np.mean([reply(exp, client, mods=False) for client in (1, 2, 3)], axis=0)
    sent = reply(exp, 4)
    assert sent == pytest.approx(-0.5 * honest, abs=1e-6)
    assert np.array_equal(sent, reply(exp, 0))


def test_colluders_may_know_their_own_updates_only(inside_run):
    exp = experiment({"attack": "inner-product", "clients": [0, 4], "knowledge": "colluders"})
    own = np.mean([reply(exp, client, mods=False) for client in (0, 4)], axis=0)
    assert reply(exp, 0) == pytest.approx(-0.5 * own, abs=1e-6)


def test_a_replay_is_kept_in_the_clients_state(inside_run):
    exp = experiment({"attack": "replay", "clients": [2], "scale": 3.0})
    state = RecordDict()
    first = reply(exp, 2, 1, state)
    assert reply(exp, 2, 2, state) == pytest.approx(3 * first, abs=1e-6)


def test_data_attacks_change_what_the_client_trains_on(inside_run):
    exp = experiment({"attack": "label-flip", "clients": [3]})
    data, (train, _) = dataset_of(exp), rows_of(exp, owners_of(exp), 3)
    view = client_of(exp, owners_of(exp), 3)._data
    assert np.array_equal(view.y_train, 9 - data.y_train[train])
    assert not np.allclose(reply(exp, 3), reply(experiment(), 3, mods=False))
    untouched = client_of(exp, owners_of(exp), 2)._data
    assert np.array_equal(untouched.y_train, data.y_train[rows_of(exp, owners_of(exp), 2)[0]])


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_can_be_configured_with_the_defaults_of_its_class(name):
    (spec,) = experiment({"attack": name, "clients": [0]}).attacks
    assert build_attack(spec.attack, **spec.parameters) == ATTACKS[name]()


@pytest.mark.parametrize(
    ("attacks", "told"),
    [
        ([{"attack": "zero", "clients": [5]}], "there is no client 5"),
        ([{"attack": "zero", "clients": [1, 2]}, {"attack": "alie", "clients": [2]}], "already"),
        ([{"attack": "label-flip", "clients": [1], "rounds": [3]}], "once and for all"),
        ([{"attack": "zero", "clients": [0, 1, 2, 3, 4]}], "at least one honest"),
        ([{"attack": "zero", "clients": []}], "clients"),
        ([{"attack": "sparse", "clients": [1], "share": 2.0}], "share"),
        ([{"attack": "sign_flip", "clients": [1]}], "sign-flip"),
    ],
)
def test_impossible_attacks_are_told(attacks, told):
    with pytest.raises(ConfigError, match=told):
        experiment(*attacks)


def test_the_shipped_configuration_names_attackers_and_detects():
    exp = load_experiment("attacks")
    assert sum(len(a.clients) for a in exp.attacks) * 10 <= 3 * exp.clients.count
    assert "detect" in {stage.stage for stage in exp.strategy.stages}
