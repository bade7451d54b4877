"""The scenario's federation and tables, on digits; what it promises, on MNIST (slow)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from qsfl_flower.clients.data import load_dataset
from qsfl_flower.clients.partition import Iid, partition
from qsfl_flower.errors import ConfigError, DataError
from qsfl_flower.mechanisms.robust.core.attacks import build_attack
from qsfl_flower.simulations.scenarios import detection, robustness
from qsfl_flower.simulations.scenarios.cohort import Cohort, Training

SMALL = Training(hidden=6, steps=2, batch_size=4, learning_rate=0.1)


def cohort(attack=None, attackers=()) -> Cohort:
    data = load_dataset("digits")
    parts = partition(data.y_train, 5, Iid(), 0)
    return Cohort(data, parts, SMALL, attack, attackers, root=np.arange(20), seed=3)


def test_batched_training_equals_autograd_on_one_client():
    federation = cohort()
    start = federation.initial()
    updates, _ = federation.updates(start, 1)
    pool = federation._pool
    rows = pool.batches(SMALL.steps, SMALL.batch_size, 3, 1)
    shapes = federation.layout.shapes
    spans = federation.layout.slices.values()
    weights = [
        torch.tensor(start[s].reshape(shape), dtype=torch.float32, requires_grad=True)
        for s, shape in zip(spans, shapes, strict=True)
    ]
    for step in range(SMALL.steps):
        x, y = pool.take(rows[step, 2])
        hidden = torch.relu(x @ weights[0].T + weights[1])
        loss = torch.nn.functional.cross_entropy(hidden @ weights[2].T + weights[3], y)
        gradients = torch.autograd.grad(loss, weights)
        weights = [
            (w - SMALL.learning_rate * g).detach().requires_grad_()
            for w, g in zip(weights, gradients, strict=True)
        ]
    trained = np.concatenate([w.detach().numpy().ravel() for w in weights])
    assert updates[2] == pytest.approx(trained - start.astype(np.float32), abs=1e-5)


def test_honest_clients_send_the_same_whatever_the_others_do():
    start = cohort().initial()
    calm, root = cohort().updates(start, 2)
    attacked, same = cohort(build_attack("scaling", factor=5.0), [0, 3]).updates(start, 2)
    assert np.array_equal(attacked[[1, 2, 4]], calm[[1, 2, 4]])
    assert attacked[0] == pytest.approx(5 * calm[0])
    assert np.array_equal(root, same)
    flipped, _ = cohort(build_attack("label-flip"), [1]).updates(start, 2)
    assert not np.allclose(flipped[1], calm[1])


def test_a_small_table_is_written_with_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(
        robustness, "in_processes", lambda tasks: enumerate(task() for task in tasks)
    )
    found = robustness.run(
        tmp_path,
        rounds=2,
        schemes=["IID"],
        liars=[6],
        only_defences=["mean (no defence)", "bulyan", "detection + mean"],
        only_attacks=["none", "scaling x1000", "backdoor"],
        dataset="digits",
    )
    assert found["cells"] == 9
    rows = json.loads((tmp_path / "robustness.json").read_text())["rows"]
    cells = {(row["defence"], row["attack"]): row for row in rows}
    assert cells["bulyan", "none"]["accuracy"] is None  # 20 clients are too few for 6 liars
    assert "20" in cells["bulyan", "none"]["why"]
    assert 0 <= cells["mean (no defence)", "backdoor"]["backdoor_success"] <= 1
    table = (tmp_path / "robustness.md").read_text()
    assert "| scaling x1000 |" in table
    assert "trigger obeyed" in table
    assert "not hiding, together" in (tmp_path / "detection.md").read_text()
    assert (tmp_path / "robustness-iid-6.png").read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_table_goes_on_where_it_was(tmp_path, monkeypatch):
    computed = []

    def once(tasks):
        for index, task in enumerate(tasks[:1]):
            computed.append(task)
            yield index, task()

    monkeypatch.setattr(robustness, "in_processes", once)
    shape = {"rounds": 1, "schemes": ["IID"], "liars": [3], "dataset": "digits"}
    chosen = {"only_defences": ["mean (no defence)", "median"], "only_attacks": ["none"]}
    with pytest.raises(KeyError):
        robustness.run(tmp_path, **shape, **chosen)
    found = robustness.run(tmp_path, **shape, **chosen)
    assert (len(computed), found["cells"]) == (2, 2)
    robustness.run(tmp_path, **shape, **chosen)
    assert len(computed) == 2


def test_counts_of_detection():
    flagged = np.array([[1, 0, 0], [0, 0, 1]], dtype=bool)
    away = np.array([[0, 0, 0], [1, 0, 0]], dtype=bool)
    found = detection.counts(flagged, away, [0])
    assert (found["attacks"], found["caught"], found["caught_by_flag"]) == (2, 2, 1)
    assert (found["honest"], found["false_alarms"], found["honest_ever_away"]) == (4, 1, 0)
    assert found["all_away_from"] == 2
    assert detection.rates([found]) == {"true_positives": 1.0, "false_positives": 0.25}
    told = detection.kinds(flagged, [["scaling", "", ""], ["", "", "zero"]], [0, 2])
    assert told == {"scaling": 1, "zero": 1}


def test_unknown_names_are_told(tmp_path):
    with pytest.raises(ConfigError, match="krumm"):
        robustness.run(tmp_path, only_defences=["krumm"], dataset="digits")


@pytest.fixture(scope="module")
def mnist():
    try:
        return load_dataset("mnist")
    except DataError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", list(robustness.SCHEMES))
@pytest.mark.parametrize("attackers", [3, 6])
def test_attacks_that_do_not_hide_are_kept_out(mnist, scheme, attackers):
    rows = [
        robustness.cell("mnist", scheme, attackers, "detection + mean", attack, 20, seed=2)
        for attack in detection.PLAIN
    ]
    found = detection.rates(rows)
    assert found["true_positives"] > 0.98
    assert found["false_positives"] < 0.02


@pytest.mark.slow
def test_multi_krum_needs_at_most_a_fifth_more_rounds(mnist):
    found = robustness.convergence(mnist, seed=1)
    calm = found["mean, no attackers"]
    assert all(
        rounds <= 1.2 * calm for name, rounds in found.items() if name.startswith("multi_krum")
    )
