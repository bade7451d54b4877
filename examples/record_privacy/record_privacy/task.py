"""Model, data, and how much every picture is protected."""

from functools import cache

import numpy as np
from torch import nn

from qsfl_flower.clients.data import Dataset, load_dataset
from qsfl_flower.privacy.record import RecordPrivacy

DELTA = 1e-5


def new_model() -> nn.Module:
    """Return an untrained model for pictures of 8 x 8 pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def load_data(partition: int, partitions: int) -> Dataset:
    """Return the pictures of one client."""
    whole = load_dataset("digits")
    return whole.client_view(np.arange(partition, len(whole.y_train), partitions))


@cache
def privacy_of(epsilon: float, rounds: int) -> RecordPrivacy:
    """Return the DP-SGD that costs a picture at most epsilon over all rounds."""
    return RecordPrivacy.within(epsilon, DELTA, rounds, clip_norm=1.0, sampling_rate=0.3, steps=10)
