"""The schema and the code that it configures agree on names, defaults and bounds."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

from qsfl_flower.clients import losses
from qsfl_flower.clients.data import DATASETS, load_dataset
from qsfl_flower.clients.models import MODELS, build_model
from qsfl_flower.clients.partition import Dirichlet, Shards
from qsfl_flower.clients.training import TrainConfig
from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.config import ClientsSpec, DataSpec, DirichletSpec, ShardsSpec
from qsfl_flower.simulations.config.contradictions import TRAIN_SIZES
from qsfl_flower.simulations.config.data import LOSSES
from qsfl_flower.simulations.config.sections import BUILT_IN_MODELS
from qsfl_flower.simulations.config.strategy import (
    CommonStrategySpec,
    FedAdamSpec,
    FedAvgMSpec,
    FedYogiSpec,
)
from qsfl_flower.stages import ServerAdam, ServerMomentum, ServerYogi
from qsfl_flower.strategies import StableFedAvg

NOT_SAME = {"self", "name", "stage", "stages"}


def test_losses_are_the_trainer_s():
    tasks = {task: [n for n, loss in losses.LOSSES.items() if loss.task == task] for task in LOSSES}
    assert {task: list(names) for task, names in LOSSES.items()} == tasks
    assert {name for names in tasks.values() for name in names} == losses.LOSSES.keys()


def test_training_keys_are_the_trainer_s():
    ours = {key: field.default for key, field in ClientsSpec.model_fields.items()}
    ours["loss"] = LOSSES["classes"][0]  # of the data's task, unless the model names one
    for field in dataclasses.fields(TrainConfig):
        assert ours[field.name] == field.default


@pytest.mark.parametrize(
    ("spec", "made"),
    [
        (DirichletSpec, Dirichlet),
        (ShardsSpec, Shards),
        (FedAvgMSpec, ServerMomentum),
        (FedAdamSpec, ServerAdam),
        (FedYogiSpec, ServerYogi),
    ],
)
def test_keys_are_parameters(spec, made):
    """Every own key of a kind is a parameter of what is made of it, with the same default."""
    parameters = inspect.signature(made).parameters
    own = set(spec.model_fields) - set(CommonStrategySpec.model_fields) - NOT_SAME - {"scheme"}
    assert own
    for key in own:
        field = spec.model_fields[key]
        assert key in parameters
        if not field.is_required() and parameters[key].default is not inspect.Parameter.empty:
            assert field.default == parameters[key].default


def test_common_keys_are_parameters_of_the_strategy():
    parameters = inspect.signature(StableFedAvg).parameters
    for key in set(CommonStrategySpec.model_fields) - {"name"}:
        assert key in parameters


def test_data_sets_and_models_are_known():
    choices = set(DataSpec.model_fields["dataset"].annotation.__args__)
    assert choices | {"synthetic"} == set(DATASETS)
    assert set(BUILT_IN_MODELS) == set(MODELS)


def test_size_of_digits():
    digits = load_dataset("digits")
    assert len(digits.x_train) == TRAIN_SIZES["digits"]
    build_model("mlp", digits.input_shape, digits.num_classes, seed=0)
    with pytest.raises(ConfigError, match="at least 16 x 16"):
        build_model("mnist-cnn", digits.input_shape, digits.num_classes, seed=0)
