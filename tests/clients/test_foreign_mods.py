"""Flower's own mods and wrappers beside ours: what works in which order, what is refused how."""

from __future__ import annotations

import logging

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp import mod as flower_mods

from qsfl_flower import strategies
from qsfl_flower.clients import auth_mod, policy_mod, privacy_mod, qsfl_mod, state_mod
from qsfl_flower.errors import ConfigError, TooFewReplies
from qsfl_flower.stages import Committee, Compress, MaskedSum, SecureKrum, SecureSum
from qsfl_flower.strategies import StableFedAvg
from qsfl_flower.testing import AppNode, LocalFederation, LocalGrid


def app(mods=()):
    made = ClientApp(mods=list(mods))

    @made.train()
    def train(message, context):
        arrays = {k: Array(v.numpy() + 0.1) for k, v in message.content["arrays"].items()}
        content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 10})}
        return Message(RecordDict(content), reply_to=message)

    return made


START = ArrayRecord({"w": Array(np.zeros(4))})


STAGES = {
    "plain": lambda f: [],
    "compress": lambda f: [Compress()],
    "secure": lambda f: [SecureSum(1.0, Committee(3, 2), clock=f.grid_time)],
    "krum": lambda f: [SecureKrum(1.0, 1, Committee(5, 3), clock=f.grid_time)],
    "masked": lambda f: [MaskedSum(f.credentials, bound=4.0, colluding=0.0, clock=f.grid_time)],
}


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("place", ["first", "last"])
def test_the_size_mods_work_in_every_place(name, place):
    """`message_size_mod` fails on empty texts and bytes, so none may be in what travels."""
    sizes = (flower_mods.message_size_mod, flower_mods.arrays_size_mod)
    federation = LocalFederation(clients=8, mods=(qsfl_mod, *(sizes if place == "last" else ())))
    if place == "first":
        for node, client in federation.grid.clients.items():

            def outer(message, context, inner=client.app):
                return sizes[0](message, context, lambda m, c: sizes[1](m, c, inner))

            federation.grid.clients[node] = AppNode(outer, client.context)
    outcome = federation.run(STAGES[name](federation), rounds=2)
    assert outcome.error is None
    assert all(r.skipped is None for r in outcome.rounds)


def change(message, context, call_next):
    """A mod that changes a reply."""
    reply = call_next(message, context)
    reply.content["more"] = MetricRecord({"x": 1.0})
    return reply


def test_a_mod_in_front_of_auth_mod_is_explained_once(caplog):
    federation = LocalFederation(clients=4)
    for node, client in federation.grid.clients.items():
        federation.grid.clients[node] = AppNode(
            lambda m, c, inner=client.app: change(m, c, inner), client.context
        )
    outcome = federation.run([], rounds=1)
    assert {row.status for row in outcome.clients[-1]} == {"bad-signature"}
    assert caplog.text.count("auth_mod must be the first in ClientApp(mods=[...])") == 1


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr("qsfl_flower.mechanisms.authentication.server._explained", set())


@pytest.mark.parametrize("mod", [auth_mod, state_mod, policy_mod, privacy_mod])
def test_a_mod_without_its_call_says_what_to_write(mod):
    strategy = StableFedAvg(fraction_evaluate=0.0)
    told = rf"write {mod.__name__}\(...\) with its parentheses"
    with pytest.raises(TooFewReplies, match=told):
        strategy.start(LocalGrid(app([mod, qsfl_mod]), 2), START, 1, timeout=5.0)


WRAPPERS = {
    "server fixed": lambda s: flower.DifferentialPrivacyServerSideFixedClipping(s, 0.1, 1.0, 4),
    "client fixed": lambda s: flower.DifferentialPrivacyClientSideFixedClipping(s, 0.1, 1.0, 4),
    "server adaptive": lambda s: flower.DifferentialPrivacyServerSideAdaptiveClipping(s, 0.1, 4),
    "client adaptive": lambda s: flower.DifferentialPrivacyClientSideAdaptiveClipping(s, 0.1, 4),
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_flowers_wrappers_are_refused_before_anybody_trains(wrap):
    grid = LocalGrid(app(), 4)
    wrapped = WRAPPERS[wrap](StableFedAvg(fraction_evaluate=0.0))
    with pytest.raises(ConfigError, match=r"cannot wrap StableFedAvg.*stages=\[Clip.*CentralDP"):
        wrapped.start(grid, START, 1, timeout=5.0)


def test_a_subclass_may_still_call_summary(caplog):
    caplog.set_level(logging.INFO, "flwr")

    class Mine(StableFedAvg):
        def summary(self):
            super().summary()

    Mine(fraction_evaluate=0.0).start(LocalGrid(app(), 2), START, 1, timeout=5.0)
    assert "Stages: validate" in caplog.text


@pytest.mark.parametrize(
    "kind",
    [
        *("MultiKrum", "FedMedian", "CompressedFedAvg", "RobustFedAvg"),
        *("StableFedAvg", "BufferedAsync", "FedAsync"),
    ],
)
@pytest.mark.parametrize("name", ["metrics", "sums", "committee"])
def test_arguments_of_hidden_sums_are_refused_where_nothing_is_hidden(kind, name):
    with pytest.raises(ConfigError, match=f"{name}: {kind} hides nothing"):
        getattr(strategies, kind)(**{name: ("train-loss",)})


def test_other_arguments_are_refused_as_python_does():
    with pytest.raises(TypeError, match="unexpected keyword argument 'fraction_fit'"):
        StableFedAvg(fraction_fit=0.5)
