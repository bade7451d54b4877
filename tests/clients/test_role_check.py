"""What the server says of the arrays, held against the module on the device."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.data import load_dataset
from qsfl_flower.clients.models import get_arrays, roles_of
from qsfl_flower.clients.trainer import TrainConfig, TrainingClient
from qsfl_flower.stages import Clip
from qsfl_flower.strategies import RunObserver, StableFedAvg
from qsfl_flower.wire import to_record


def module():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 10)
    )
    model[3].requires_grad_(False)
    return model


class Rows(RunObserver):
    def __init__(self):
        self.rows = []

    def on_round(self, record, clients):
        self.rows = list(clients)


@pytest.fixture
def run(fake_grid, caplog):
    data = load_dataset("digits")

    def run(roles):
        rows, devices = Rows(), {}
        for n in range(2):
            own = data.client_view(np.arange(40 * n, 40 * n + 40), np.arange(0))
            client = TrainingClient(module(), own, TrainConfig(), seed=0, client_id=n)
            app = numpy_client_app(lambda context, client=client: client)
            context = Context(1, n, {"partition-id": n}, RecordDict(), {})
            devices[n] = lambda message, app=app, context=context: app(message, context)
        strategy = StableFedAvg(
            stages=[Clip(1.0)], roles=roles, fraction_evaluate=0.0, observer=rows
        )
        start = to_record(get_arrays(module()))
        with caplog.at_level(logging.WARNING, "qsfl_flower"):
            strategy.start(fake_grid(devices), start, 1, timeout=30.0)
        told = [r.getMessage() for r in caplog.records if "on this device" in r.getMessage()]
        return rows.rows, told

    return run


def test_a_weight_that_the_server_calls_a_buffer_is_refused_by_name(run):
    with pytest.raises(Exception, match=r"'1\.weight' a buffer, and on this device it is trained"):
        run({**roles_of(module()), "1.weight": "buffer"})


def test_the_module_s_own_roles_are_fine(run):
    rows, told = run(roles_of(module()))
    assert not told
    assert [row.status for row in rows] == ["accepted"] * 2


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"3.weight": "trained"}, "'3.weight' trained, and on this device it is frozen"),
        ({"2.running_mean": "trained"}, "'2.running_mean' trained, .* it is buffer"),
        ({"4.bias": "frozen"}, "'4.bias' frozen, and on this device it is trained"),
    ],
)
def test_what_costs_accuracy_alone_is_logged_once(run, change, sentence):
    rows, (told,) = run({**roles_of(module()), **change})
    assert re.search(sentence, told)
    assert [row.status for row in rows] == ["accepted"] * 2


@pytest.mark.parametrize("role", ["local", "frozen"])
def test_statistics_may_stay_where_they_are(run, role):
    own = roles_of(module())
    assert not run({**own, **{n: role for n in own if "running" in n}})[1]
