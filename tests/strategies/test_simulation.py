"""The three kinds of ClientApp under Flower's Ray simulation: real processes, so marked slow."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.mods import legacy_mod, qsfl_mod
from qsfl_flower.stages import Clip
from qsfl_flower.strategies import StableFedAvg
from qsfl_flower.wire import from_record, to_record

pytestmark = pytest.mark.slow
APPS = Path(__file__).parent.parent / "apps"


def load(name):
    spec = importlib.util.spec_from_file_location(name, APPS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def federation(client_app, **arguments):
    """Three clients that add 1, 2 and 3; the mean step is 2."""
    found = {}
    server = ServerApp()

    @server.main()
    def main(grid, context):
        strategy = StableFedAvg(min_available_nodes=3, min_train_nodes=3, seed=1, **arguments)
        start = to_record({"w": np.zeros(4, np.float32), "b": np.zeros((2, 2), np.float32)})
        found["result"] = strategy.start(grid, start, num_rounds=2, timeout=60)

    backend = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": 2, "logging_level": "ERROR", "log_to_driver": False},
    }
    run_simulation(server, client_app, num_supernodes=3, backend_config=backend)
    return found["result"]


@pytest.mark.parametrize(
    "kind", ["stock", "stock with mod", "bridge", "legacy", "legacy with mods"]
)
def test_every_kind_of_app(kind):
    arguments = {}
    clip = "mod" in kind or kind == "bridge"
    if kind == "stock":
        app = load("message_app").app
    elif kind == "stock with mod":
        stock = load("message_app")
        app = ClientApp(mods=[qsfl_mod])
        app.train()(stock.train)
        app.evaluate()(stock.evaluate)
    elif kind == "bridge":
        legacy = load("legacy_app")
        app = numpy_client_app(lambda c: legacy.Client(1.0 + int(c.node_config["partition-id"])))
    elif kind == "legacy":
        app, arguments["client_api"] = load("legacy_app").app, "legacy"
    else:
        app = ClientApp(client_fn=load("legacy_app").client_fn, mods=[qsfl_mod, legacy_mod])
    if clip:  # steps of norm 2.83, 5.66, 8.49, clipped to 2: each coordinate moves 2 / sqrt(8)
        arguments["stages"] = [Clip(2.0)]
    result = federation(app, **arguments)
    moved = 2 * 2 / 8**0.5 if clip else 4.0
    for name in ("w", "b"):
        np.testing.assert_allclose(from_record(result.arrays)[name], moved, rtol=1e-6)
    assert result.train_metrics_clientapp[2]["train-loss"] == pytest.approx(2.0)
    assert result.evaluate_metrics_clientapp[2]["loss"] == pytest.approx(8 * moved, rel=1e-6)
