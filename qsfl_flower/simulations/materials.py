"""Data and model of an experiment, and how it is trained."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import torch

from qsfl_flower.clients.data import Dataset, load_dataset
from qsfl_flower.clients.models import build_model, roles_of
from qsfl_flower.clients.training import TrainConfig
from qsfl_flower.simulations.config import Experiment


def dataset_of(experiment: Experiment) -> Dataset:
    """Load the data set of an experiment (cached per process)."""
    data = experiment.data
    return load_dataset(
        data.dataset,
        root=Path(data.root) if data.root else None,
        file=Path(data.file) if data.file else None,
        download=data.download,
    )


def model_of(experiment: Experiment) -> torch.nn.Module:
    """Build the experiment's model with its first weights."""
    data = dataset_of(experiment)
    return build_model(experiment.model.name, data.input_shape, data.num_classes, experiment.seed)


@lru_cache(maxsize=4)
def roles_of_model(experiment: Experiment) -> Mapping[str, str]:
    """Return the roles of the model's arrays that are not simply trained."""
    return roles_of(model_of(experiment))


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
    )
