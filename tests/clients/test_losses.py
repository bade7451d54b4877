"""Losses of every task are torch's, however many examples are looked at at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from qsfl_flower.clients.data import Normalization
from qsfl_flower.clients.losses import LOSSES
from qsfl_flower.clients.training import TrainConfig, evaluate_classes, evaluate_model, train
from qsfl_flower.errors import ConfigError

SCALE = Normalization((0.0,) * 4, (1.0,) * 4)


def examples(task):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(50, 4)).astype(np.float32)
    if task == "classes":
        return x, rng.integers(3, size=50)
    y = (x[:, :3] > 0) if task == "labels" else 2 * x[:, :3]
    return x, y.astype(np.float32)


@pytest.mark.parametrize("name", LOSSES)
def test_evaluation_is_the_mean_over_all_examples(name):
    how = LOSSES[name]
    x, y = examples(how.task)
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    outputs = model(torch.tensor(x)).double()
    wanted = how.function(outputs, torch.tensor(y)).item()
    loss, accuracy = evaluate_model(model, x, y, SCALE, batch_size=7, loss=name)
    assert loss == pytest.approx(wanted)
    counts = evaluate_classes(model, x, y, SCALE, batch_size=7, loss=name)[1]
    assert counts.shape == (2, 3)
    if how.task == "values":
        assert math.isnan(accuracy)
    else:
        assert accuracy == pytest.approx(how.right(outputs, torch.tensor(y)) / 50)
        assert counts[0].sum() == (50 if how.task == "classes" else 150)


@pytest.mark.parametrize("name", LOSSES)
def test_training_lowers_the_loss_and_parts_of_a_batch_add_up(name):
    x, y = examples(LOSSES[name].task)
    model = nn.Linear(4, 3)
    before, _ = evaluate_model(model, x, y, SCALE, loss=name)
    config = TrainConfig(epochs=20, batch_size=10, learning_rate=0.2, loss=name)
    result = train(model, x, y, SCALE, config, seed=1)
    after, _ = evaluate_model(model, x, y, SCALE, loss=name)
    assert after < before
    assert (result.accuracy == 0) == (LOSSES[name].task == "values")


def test_an_unknown_loss_is_refused():
    x, y = examples("values")
    with pytest.raises(ConfigError, match="loss 'mean' is not one of cross-entropy, "):
        evaluate_model(nn.Linear(4, 3), x, y, SCALE, loss="mean")
