"""Data and model of an experiment."""

from __future__ import annotations

from pathlib import Path

import torch

from qsfl_flower.clients.data import Dataset, load_dataset
from qsfl_flower.clients.models import build_model
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
