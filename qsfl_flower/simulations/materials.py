"""Data and model of an experiment, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch

from qsfl_flower.clients.data import Dataset, Format, load_dataset
from qsfl_flower.clients.losses import LOSSES
from qsfl_flower.clients.models import arrays_of, build_model, freeze, roles_of
from qsfl_flower.clients.training import TrainConfig
from qsfl_flower.errors import ConfigError
from qsfl_flower.numerics.roles import FROZEN, LOCAL, TIED
from qsfl_flower.simulations.config import Experiment


def dataset_of(experiment: Experiment) -> Dataset:
    """Load the data set of an experiment (cached per process)."""
    data = experiment.data
    return load_dataset(
        data.dataset,
        root=Path(data.root) if data.root else None,
        file=Path(data.file) if data.file else None,
        download=data.download,
        options=data.options,
        form=Format(data.task, data.targets, data.id_column, data.picture_size),
    )


def model_of(experiment: Experiment) -> torch.nn.Module:
    """Build the experiment's model with its first weights."""
    data = dataset_of(experiment)
    spec = experiment.model
    model = build_model(
        spec.name, data.input_shape, data.num_classes, experiment.seed, spec.options
    )
    freeze(model, spec.frozen, "model.frozen")
    return model


@lru_cache(maxsize=4)
def roles_of_model(experiment: Experiment) -> Mapping[str, str]:
    """Return the roles of the model's arrays that are not simply trained."""
    model, spec = model_of(experiment), experiment.model
    try:
        roles = roles_of(model, local=spec.local)
    except ConfigError as error:
        raise ConfigError(f"model.{error}") from None
    for name in arrays_of(model, spec.frozen):
        if roles.get(name) == LOCAL:
            raise ConfigError(f"model.frozen: {name!r} is in model.local too; name it in one")
        if not roles.get(name, "").startswith(TIED):
            roles[name] = FROZEN
    return roles


def loss_of(experiment: Experiment) -> str:
    """Return the name of the loss: the model's, or that of the data's task."""
    fitting = (name for name, loss in LOSSES.items() if loss.task == experiment.data.task)
    return experiment.model.loss or next(fitting)


def training_of(experiment: Experiment) -> TrainConfig:
    """Return how a client of the experiment trains."""
    spec = experiment.clients
    return TrainConfig(
        epochs=spec.epochs,
        batch_size=spec.batch_size,
        learning_rate=spec.learning_rate,
        lr_decay=spec.lr_decay,
        optimizer=spec.optimizer,
        momentum=spec.momentum,
        weight_decay=spec.weight_decay,
        grad_clip_norm=spec.grad_clip_norm,
        augment=spec.augment,
        warmup_rounds=spec.warmup_rounds,
        cosine_rounds=spec.cosine_rounds,
        mixed_precision=spec.mixed_precision,
        loss=loss_of(experiment),
    )
