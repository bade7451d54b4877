"""Frozen, tied and buffered arrays in experiments: the roles come from the torch module."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.models import get_arrays
from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.app import mods_of
from qsfl_flower.simulations.build import client_of, evaluator_of, owners_of, strategy_of
from qsfl_flower.simulations.config import experiment_from_dict, load_experiment
from qsfl_flower.simulations.explain import explain_experiment
from qsfl_flower.simulations.materials import model_of
from qsfl_flower.simulations.privacy import size_of
from qsfl_flower.strategies import CheckpointStore, RunObserver
from qsfl_flower.testing import LocalGrid
from qsfl_flower.wire import from_record, to_record

CLIENTS = 4


def frozen(input_shape, num_classes):
    """A random backbone that is not trained, and a head."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, num_classes))
    model[1].requires_grad_(False)
    return model


class Tied(nn.Module):
    """One weight in two layers, with a normalization that keeps statistics."""

    def __init__(self, num_classes):
        super().__init__()
        self.flat, self.norm = nn.Flatten(), nn.BatchNorm1d(64)
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.head = nn.Linear(64, num_classes)

    def forward(self, x):
        return self.head(self.second(self.norm(self.first(self.flat(x)).relu())).relu())


def tied(input_shape, num_classes):
    return Tied(num_classes)


def made(model, *stages, **strategy):
    name = model["name"]
    return experiment_from_dict(
        {
            "data": {"dataset": "digits"},
            "model": {**model, "name": f"{__name__}:{name}" if name in globals() else name},
            "clients": {"count": CLIENTS, "learning_rate": 0.1, "fraction_evaluate": 0.0},
            "strategy": {"name": "fedavg", **strategy, "stages": list(stages)},
            "seed": 3,
        }
    )


def run(tmp_path, model, *stages, rounds=3, **strategy):
    return run_of(tmp_path, made({"name": model}, *stages, **strategy), rounds)


def run_of(tmp_path, exp, rounds):
    owners = owners_of(exp)
    app = numpy_client_app(
        lambda context: client_of(exp, owners, int(context.node_config["partition-id"])),
        mods=mods_of(exp, owners),
    )
    start = get_arrays(model_of(exp))
    done = strategy_of(exp, CheckpointStore(tmp_path), RunObserver()).start(
        LocalGrid(app, CLIENTS), to_record(start), num_rounds=rounds, timeout=600.0
    )
    accuracy = float(evaluator_of(exp)(rounds, done.arrays)["accuracy"])
    return exp, start, from_record(done.arrays), accuracy


CENTRAL = (
    {"stage": "clip", "clip_norm": 1.0},
    {"stage": "central_dp", "epsilon": 1000.0, "noise_multiplier": 0.3},
)


def test_a_frozen_backbone_gets_no_noise_and_counts_for_no_noise(tmp_path):
    exp, start, arrays, accuracy = run(tmp_path, "frozen", *CENTRAL, rounds=8)
    for name in ("1.weight", "1.bias"):
        assert arrays[name].tobytes() == start[name].tobytes()
    assert size_of(exp) == 128 * 10 + 10 + 1
    assert accuracy > 0.5


@pytest.mark.parametrize(
    "stages", [CENTRAL, ({"stage": "compress", "ratio": 0.1},), ({"stage": "broadcast"},)]
)
def test_tied_weights_stay_one(tmp_path, stages):
    _, start, arrays, _ = run(tmp_path, "tied", *stages)
    assert arrays["second.weight"].tobytes() == arrays["first.weight"].tobytes()
    assert not np.array_equal(arrays["first.weight"], start["first.weight"])
    assert (arrays["norm.running_var"] >= 0).all()


def test_explain_counts_what_is_sent(tmp_path):
    exp, *_ = run(tmp_path, "frozen", rounds=1)
    told = explain_experiment(exp)
    assert "the model of 1,290 parameters" in told
    assert "down: 39.1 kB for each client" in told


def test_a_layer_named_in_the_file_keeps_its_values(tmp_path):
    exp = made({"name": "mlp", "frozen": ["1"]}, *CENTRAL)
    _, start, arrays, _ = run_of(tmp_path, exp, 2)
    for name in ("1.weight", "1.bias"):
        assert arrays[name].tobytes() == start[name].tobytes()
    assert not np.array_equal(arrays["3.weight"], start["3.weight"])
    told = explain_experiment(exp)
    assert "2 arrays, the first is '1.weight': keep their first values" in told


def test_frozen_statistics_do_not_move_either(tmp_path):
    _, start, arrays, _ = run_of(tmp_path, made({"name": "tied", "frozen": ["norm"]}), 2)
    for name in start:
        assert (arrays[name].tobytes() == start[name].tobytes()) == name.startswith("norm.")


def test_the_example_of_the_docs_keeps_statistics_on_the_devices(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "personalization.md").read_text(encoding="utf-8")
    section = page.split("(FedBN)\n", 1)[1].split("\n## ", 1)[0]
    blocks = dict(re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL))
    (tmp_path / "digits_models.py").write_text(blocks["python"], encoding="utf-8")
    (tmp_path / "fedbn.yaml").write_text(blocks["yaml"], encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    exp = load_experiment(tmp_path / "fedbn.yaml", ["clients.count=3"])
    _, start, arrays, _ = run_of(tmp_path, exp, 2)
    for name in start:
        assert (arrays[name].tobytes() == start[name].tobytes()) == name.startswith("2.")
    told = " ".join(explain_experiment(exp).split())
    assert "5 arrays, the first is '2.weight': stay on each device" in told


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "tied", "local": ["nrom"]}, r"model\.local: .* 'nrom'; did you mean 'norm'\?"),
        ({"name": "tied", "frozen": ["BatchNorm2d"]}, "did you mean 'BatchNorm1d'"),
        ({"name": "mlp", "frozen": ["2"]}, r"model\.frozen: .* '2'; it has 1\.weight, "),
        ({"name": "tied", "local": ["second"]}, "'second.weight' and 'first.weight' are one array"),
        ({"name": "tied", "local": ["norm"], "frozen": ["norm.bias"]}, "'norm.bias' is in model.l"),
        ({"name": "mlp", "frozen": ["1", "3"]}, "none of the model's arrays is trained"),
    ],
)
def test_layers_that_do_not_fit_are_refused_by_name(model, message):
    exp = made(model)
    with pytest.raises(ConfigError, match=message):
        explain_experiment(exp)
