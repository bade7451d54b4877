"""How much a device does in a round: batches that fit its memory, epochs that fit its class."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from qsfl_flower.clients.data import Normalization
from qsfl_flower.clients.device import MEGABYTE, DeviceClass
from qsfl_flower.clients.train_config import TrainConfig
from qsfl_flower.clients.training import train
from qsfl_flower.crypto.files import write_file
from qsfl_flower.errors import ConfigError, CryptoError

if TYPE_CHECKING:
    from qsfl_flower.clients.dpsgd import RecordTraining

_SMALL, _LARGE = 2, 16
NO_LABELS = np.zeros(0, np.int64)


@dataclass(frozen=True)
class MemoryModel:
    """The memory that a step of training takes: ``fixed + per_example * examples`` bytes.

    `fixed` holds gradients, optimizer state and workspace; the model and the data are there anyway.
    """

    fixed: float
    per_example: float

    def needed(self, examples: int) -> float:
        """Return the bytes for a step on so many examples."""
        return self.fixed + self.per_example * examples

    def largest_batch(self, memory_mb: float, wanted: int) -> int:
        """Return `wanted`, halved until it fits into the memory; 0 if not even one example does."""
        batch = wanted
        while batch and self.needed(batch) > memory_mb * MEGABYTE:
            batch //= 2
        return batch


def measure_memory(
    make_model: Callable[[], nn.Module],
    input_shape: tuple[int, ...],
    config: TrainConfig,
    records: RecordTraining | None = None,
    labels: NDArray[Any] = NO_LABELS,
) -> MemoryModel:
    """Train a copy of the model on a few blank examples and watch torch's allocator.

    The peak of two runs of different batch size gives the line; nothing is assumed about layers.

    Parameters
    ----------
    make_model : Callable[[], torch.nn.Module]
        Returns a copy that may be trained.
    input_shape : tuple of int
        Shape of one example.
    config : TrainConfig
        Optimizer and precision count.
    records : RecordTraining or None
        How single records are bounded, which needs memory of its own.
    labels : numpy.ndarray
        Of which kind the labels are, shape (examples, ...).
    """
    small, large = (
        _peak(make_model(), examples, input_shape, config, records, labels)
        for examples in (_SMALL, _LARGE)
    )
    slope = max(0.0, (large - small) / (_LARGE - _SMALL))
    return MemoryModel(max(0.0, small - slope * _SMALL), slope)


_known: dict[str, MemoryModel] = {}


def remembered(key: str, folder: Path | None, measure: Callable[[], MemoryModel]) -> MemoryModel:
    """Return a measurement of this process, or of the folder, or a new one; ClientApps are short.

    Parameters
    ----------
    key : str
        What the measurement belongs to, fit for a file name.
    folder : Path or None
        Where it is kept between processes.
    """
    path = None if folder is None else folder / f"memory-{key[:16]}.json"
    if key not in _known and path is not None and path.exists():
        with contextlib.suppress(OSError, ValueError, TypeError):
            _known[key] = MemoryModel(**json.loads(path.read_bytes()))
    if key not in _known:
        _known[key] = measure()
        if path is not None:
            with contextlib.suppress(OSError, CryptoError):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file(
                    path, json.dumps(asdict(_known[key])).encode(), private=True, overwrite=True
                )
    return _known[key]


def _peak(
    model: nn.Module,
    examples: int,
    input_shape: tuple[int, ...],
    config: TrainConfig,
    records: RecordTraining | None = None,
    labels: NDArray[Any] = NO_LABELS,
) -> float:
    from torch.autograd import profiler

    x = np.zeros((examples, *input_shape), np.uint8)
    y = np.zeros((examples, *labels.shape[1:]), labels.dtype)
    channels = input_shape[0]
    scale = Normalization((0.0,) * channels, (1.0,) * channels)
    one = TrainConfig(
        batch_size=examples,
        optimizer=config.optimizer,
        momentum=config.momentum,
        mixed_precision=config.mixed_precision,
        loss=config.loss,
    )
    if records is not None:
        from qsfl_flower.clients.dpsgd import gradients_of

        gradients = gradients_of(model, x, y, scale, loss=records.loss)
    with _quiet(), profiler.profile(profile_memory=True) as profile:
        if records is None:
            train(model, x, y, scale, one, seed=0)
        else:
            records.everything().training(model, x, y, scale, one, gradients).run()
    events = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the profiler's own log, written by C++ code, off the terminal."""
    sys.stderr.flush()
    saved, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(sink)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """How many epochs a device trains.

    Parameters
    ----------
    epochs : Mapping[DeviceClass, float]
        Factor on the configured epochs by class, > 0; at least one epoch is trained.
    deadline : float or None
        Seconds after which a device sends what it has, > 0; the server may ask for less.

    Examples
    --------
    >>> factors = {DeviceClass.HIGH: 1.0, DeviceClass.MID: 1.0, DeviceClass.LOW: 0.5}
    >>> Workload(epochs=factors).epochs_of(DeviceClass.LOW, configured=4)
    2
    """

    epochs: Mapping[DeviceClass, float] = field(
        default_factory=lambda: dict.fromkeys(DeviceClass, 1.0)
    )
    deadline: float | None = None

    def __post_init__(self) -> None:
        if set(self.epochs) != set(DeviceClass) or not all(f > 0 for f in self.epochs.values()):
            raise ConfigError(f"epochs must give each class a factor > 0, found {self.epochs!r}")
        if self.deadline is not None and not self.deadline > 0:
            raise ConfigError(f"deadline must be > 0 or null, found {self.deadline!r}")

    def epochs_of(self, device_class: DeviceClass, configured: int) -> int:
        """Return the epochs that a device of this class trains."""
        return max(1, round(configured * self.epochs[device_class]))
