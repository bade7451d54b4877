"""Older server functions under a strategy of the suite."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAdam, FedAvg

from qsfl_flower.clients import legacy_mod, qsfl_mod
from qsfl_flower.errors import ConfigError
from qsfl_flower.stages import Clip
from qsfl_flower.strategies import StableFedAvg, legacy_server_app
from qsfl_flower.testing import LocalGrid

ARRAYS = [np.full((2,), float(i), np.float32) for i in range(12)]
"""More than ten, so that an order by name would not be that of the app."""


class Adder(NumPyClient):
    def fit(self, parameters, config):
        return [p + 1 for p in parameters], 10, {"train_loss": 0.5}


def run(components, run_config=None, strategy=StableFedAvg, **options):
    context = Context(1, 0, {}, RecordDict(), run_config or {})
    app = legacy_server_app(lambda _: components, strategy, **options)
    client = ClientApp(client_fn=lambda _: Adder().to_client(), mods=[qsfl_mod, legacy_mod])
    app(LocalGrid(client, 4), context)


def components(rounds=2, **options):
    options.setdefault("initial_parameters", ndarrays_to_parameters(ARRAYS))
    strategy = FedAvg(min_fit_clients=3, min_available_clients=4, **options)
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))


def test_rounds_parameters_and_evaluation_are_the_apps():
    seen = []

    def evaluate(server_round, arrays, config):
        seen.append((server_round, [float(a[0]) for a in arrays]))
        return 1.0, {"accuracy": 0.5, "note": "text"}

    run(components(evaluate_fn=evaluate), fraction_evaluate=0.0)
    assert seen == [(r, [i + r for i in range(12)]) for r in range(3)]


def test_sampling_is_the_apps_and_options_are_the_strategys():
    made = []

    def strategy(**settings):
        made.append(settings)
        return StableFedAvg(fraction_evaluate=0.0, **settings)

    clip = [Clip(1.0)]
    run(
        components(fraction_fit=0.5), {"qsfl-keys": "/keys"}, lambda credentials, **s: strategy(**s)
    )
    run(components(fraction_fit=0.5), None, strategy, stages=clip, min_train_nodes=2)
    sampling = {"fraction_train": 0.5, "min_train_nodes": 3, "min_available_nodes": 4}
    assert made == [sampling, {**sampling, "stages": clip, "min_train_nodes": 2}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"on_fit_config_fn": lambda r: {}}, "on_fit_config_fn is not carried over"),
        ({"initial_parameters": None}, "no initial_parameters"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        run(components(**change))


def test_other_strategies_are_refused():
    adam = FedAdam(initial_parameters=ndarrays_to_parameters(ARRAYS))
    with pytest.raises(ConfigError, match="the strategy is FedAdam"):
        run(ServerAppComponents(strategy=adam, config=ServerConfig(num_rounds=1)))
