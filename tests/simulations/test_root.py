"""FLTrust in an experiment: the server's own examples, and its update from them."""

from __future__ import annotations

import numpy as np
import pytest

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.models import get_arrays
from qsfl_flower.clients.trainer import TrainingClient
from qsfl_flower.errors import CompositionError, ConfigError
from qsfl_flower.numerics import Layout, Vector
from qsfl_flower.rounds.chain import Chain
from qsfl_flower.rounds.context import RoundContext
from qsfl_flower.simulations.app import mods_of
from qsfl_flower.simulations.build import (
    client_of,
    evaluator_of,
    owners_of,
    strategy_of,
)
from qsfl_flower.simulations.config import experiment_from_dict
from qsfl_flower.simulations.materials import dataset_of, model_of, training_of
from qsfl_flower.simulations.root import root_rows, root_update_of
from qsfl_flower.simulations.stages import stages_of
from qsfl_flower.strategies import CheckpointStore, RunObserver
from qsfl_flower.testing import LocalGrid
from qsfl_flower.wire import to_record

FLTRUST = {"stage": "robust", "rule": "fltrust", "root_examples": 100}


def experiment(*stages, **more):
    return experiment_from_dict(
        {
            "data": {"dataset": "digits"},
            "model": {"name": "mlp"},
            "clients": {"count": 10, "learning_rate": 0.05, "momentum": 0.9},
            "strategy": {"name": "fedavg", "stages": list(stages)},
            "seed": 3,
            **more,
        }
    )


def accuracy(exp, tmp_path, rounds=12):
    owners = owners_of(exp)
    app = numpy_client_app(
        lambda context: client_of(exp, owners, int(context.node_config["partition-id"])),
        mods=mods_of(exp, owners),
    )
    strategy = strategy_of(exp, CheckpointStore(tmp_path), RunObserver())
    start = to_record(get_arrays(model_of(exp)))
    result = strategy.start(LocalGrid(app, 10), start, num_rounds=rounds, timeout=600.0)
    return float(evaluator_of(exp)(rounds, result.arrays)["accuracy"])


@pytest.mark.parametrize("partition", [{"scheme": "iid"}, {"scheme": "dirichlet", "alpha": 0.5}])
def test_the_servers_examples_belong_to_no_client(partition):
    exp = experiment(FLTRUST, data={"dataset": "digits", "partition": partition})
    rows, owners = root_rows(exp), owners_of(exp)
    assert np.unique(rows).size == 100
    assert np.array_equal(np.flatnonzero(owners < 0), rows)
    assert not np.array_equal(rows, root_rows(exp.model_copy(update={"seed": 4})))
    assert not root_rows(experiment()).size
    assert np.all(owners_of(experiment()) >= 0)


def test_the_server_trains_as_a_client_with_these_examples_would():
    exp = experiment(FLTRUST)
    arrays = get_arrays(model_of(exp))
    moved = {k: (v + 0.01).astype(v.dtype) for k, v in arrays.items()}
    layout = Layout.of(moved)
    context = RoundContext(7, layout, Vector.of(moved, layout))
    found = root_update_of(exp)(context)
    view = dataset_of(exp).client_view(root_rows(exp))
    client = TrainingClient(model_of(exp), view, training_of(exp), seed=3, client_id="server")
    trained, examples, _ = client.fit(list(moved.values()), {"server-round": 7})
    wanted = [(a.astype(float) - b).ravel() for a, b in zip(trained, moved.values(), strict=True)]
    assert examples == 100
    assert np.array_equal(found, np.concatenate(wanted))


@pytest.mark.parametrize("first", [[], [{"stage": "shared_mask", "ratio": 0.3}]])
def test_sign_flips_of_most_clients_do_not_matter(tmp_path, inside_run, first):
    flips = [{"attack": "sign-flip", "clients": [0, 1, 2, 3, 4, 5], "scale": 5.0}]
    attacked = accuracy(experiment(*first, FLTRUST, attacks=flips), tmp_path / "a")
    mean = accuracy(experiment(*first, attacks=flips), tmp_path / "b")
    honest = accuracy(experiment(*first, FLTRUST), tmp_path / "c")
    assert mean < 0.2 < 0.5 < honest
    assert attacked > honest - 0.1


def test_too_many_examples_are_refused(tmp_path):
    file = tmp_path / "small.npz"
    x, y = np.zeros((30, 8, 8), np.uint8), np.arange(30) % 3
    np.savez(file, x_train=x, y_train=y, x_test=x, y_test=y)
    exp = experiment(FLTRUST, data={"dataset": "npz", "file": str(file)})
    with pytest.raises(ConfigError, match=r"root_examples is 100, and .* has 30 examples"):
        owners_of(exp)


def test_no_clip_norm_bounds_what_the_server_trains():
    private = {"stage": "central_dp", "epsilon": 8.0, "accept_worst_case": True}
    stages = stages_of(experiment({"stage": "clip", "clip_norm": 1.0}, FLTRUST, private))
    with pytest.raises(CompositionError, match="length of the server's own update"):
        Chain(stages)
