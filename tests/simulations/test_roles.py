"""Frozen, tied and buffered arrays in experiments: the roles come from the torch module."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.models import get_arrays
from qsfl_flower.simulations.app import mods_of
from qsfl_flower.simulations.build import client_of, evaluator_of, owners_of, strategy_of
from qsfl_flower.simulations.config import experiment_from_dict
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
    """One weight in two layers, with a normalisation that keeps statistics."""

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


def run(tmp_path, model, *stages, rounds=3, **strategy):
    exp = experiment_from_dict(
        {
            "data": {"dataset": "digits"},
            "model": {"name": f"{__name__}:{model}"},
            "clients": {"count": CLIENTS, "learning_rate": 0.1, "fraction_evaluate": 0.0},
            "strategy": {"name": "fedavg", **strategy, "stages": list(stages)},
            "seed": 3,
        }
    )
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
    assert "down: 38" in told
