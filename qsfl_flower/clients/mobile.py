"""A client for devices with better things to do: it asks, adapts, pauses and takes up again."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from flwr.common import NDArrays, Scalar
from numpy.typing import NDArray
from torch import nn

from qsfl_flower.clients.checkpoints import ClientCheckpoint, ClientCheckpoints
from qsfl_flower.clients.conditions import Conditions, Verdict
from qsfl_flower.clients.data import Dataset
from qsfl_flower.clients.device import MEGABYTE, DeviceProfile, Monitor
from qsfl_flower.clients.kept_state import forgets
from qsfl_flower.clients.trainer import TrainingClient, derive_seed, number
from qsfl_flower.clients.training import After, LocalTraining, TrainConfig
from qsfl_flower.clients.workload import MemoryModel, Workload, measure_memory, remembered
from qsfl_flower.wire import DETAIL_KEY, REFUSED_KEY

log = logging.getLogger("qsfl_flower")


@dataclass(frozen=True)
class Device:
    """What a `MobileClient` runs on, and what its owner allows.

    Parameters
    ----------
    profile : DeviceProfile
        Memory, cores and class.
    monitor : Monitor
        Sensors and clock.
    conditions : Conditions
        When it may train.
    workload : Workload
        How much it trains.
    checkpoints : ClientCheckpoints or None
        Where interrupted training waits; None: it starts anew.
    checkpoint_every : int
        Batches between two checkpoints, >= 1.
    max_staleness : int
        Rounds that the server may have moved on before interrupted training is given up, >= 0.

    Examples
    --------
    >>> from qsfl_flower.clients.device import Reading
    >>> device = Device(
    ...     DeviceProfile(memory_mb=2000.0, cores=4, device_class=DeviceClass.MID),
    ...     TraceMonitor(lambda now: Reading(battery=0.9), start=0.0, examples_per_second=100.0),
    ...     Conditions(unmetered=False, idle=False),
    ... )
    """

    profile: DeviceProfile
    monitor: Monitor
    conditions: Conditions = field(default_factory=Conditions)
    workload: Workload = field(default_factory=Workload)
    checkpoints: ClientCheckpoints | None = None
    checkpoint_every: int = 50
    max_staleness: int = 2


class MobileClient(TrainingClient):
    r"""Train on a device as far as its owner, its battery and its memory allow.

    * It refuses a round, with a named reason, where the conditions to start do not hold. When they
      cease to hold it saves its training and refuses too; asked again, it goes on where it stopped.
      Killed at any moment it does the same from its last checkpoint. The update that comes of it is
      bit for bit the one of undisturbed training.
    * Batches that do not fit its memory are worked on in parts: slower, with the same result. The
      need is measured on the device, once for each model.
    * If the server has moved on from :math:`x_s` to :math:`x_t` meanwhile, the difference that
      training made to :math:`x_s` is put on top of :math:`x_t`, up to `Device.max_staleness`
      rounds.

    Parameters
    ----------
    model, data, config, seed, client_id, declare_labels
        As for `TrainingClient`.
    device : Device
        What it runs on.

    Notes
    -----
    Who sees what: the server sees what it sees of a `TrainingClient`, and the reason of a refusal:
    that a device's battery is low or that it is in use tells something about its owner.

    Examples
    --------
    >>> import torch
    >>> from qsfl_flower.clients.data import load_dataset
    >>> data = load_dataset("digits").client_view(range(60), range(60, 100))
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> from qsfl_flower.clients.device import Reading
    >>> low = TraceMonitor(lambda now: Reading(battery=0.05), start=0.0, examples_per_second=100.0)
    >>> device = Device(DeviceProfile(2000.0, 4, DeviceClass.MID), low, Conditions(unmetered=False))
    >>> client = MobileClient(
    ...     model, data, TrainConfig(), seed=1, client_id="client-0", device=device
    ... )
    >>> arrays, examples, metrics = client.fit(client.get_parameters({}), {"server-round": 1})
    >>> metrics["refused"]
    'device-battery-low'
    """

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        config: TrainConfig,
        *,
        seed: int,
        client_id: int | str,
        device: Device,
        declare_labels: bool = False,
    ) -> None:
        epochs = device.workload.epochs_of(device.profile.device_class, config.epochs)
        super().__init__(
            model,
            data,
            replace(config, epochs=epochs),
            seed=seed,
            client_id=client_id,
            declare_labels=declare_labels,
        )
        self._device = device

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        """Train from the given parameters, or refuse.

        Parameters
        ----------
        parameters : list of ndarray
            The global model, in ``state_dict`` order.
        config : dict
            As for `TrainingClient.fit`, and ``deadline`` (seconds, > 0).

        Returns
        -------
        parameters, num_examples, metrics
            As `TrainingClient.fit`; a refusal returns the given parameters, 0, and the texts
            ``refused`` and ``refused-detail``. ``micro-batch`` tells in which parts batches were
            worked on, ``resumed-step`` and ``staleness`` what was taken up again.
        """
        device = self._device
        verdict = device.conditions.to_start(device.monitor.read())
        if verdict.action == "stop":
            return _refusal(parameters, verdict)
        memory = self._memory()
        micro_batch = memory.largest_batch(device.profile.memory_mb, self._config.batch_size)
        if micro_batch == 0:
            return _refusal(parameters, _too_small(memory, device.profile))
        server_round = int(number(config, "server-round", 1, 0))
        version = _digest(parameters)
        saved = self._saved(server_round)
        started_in = server_round if saved is None else saved.server_round
        base = parameters if saved is None else _base(saved)
        if saved is not None:
            micro_batch = min(micro_batch, saved.values["micro-batch"])
        self._load(base)
        training = LocalTraining(
            self._model,
            self._data.x_train,
            self._data.y_train,
            self._data.normalization,
            self._config,
            seed=derive_seed(self._seed, self._client_id, started_in),
            server_round=started_in,
            proximal_mu=number(config, "proximal-mu", 0.0, 0),
            micro_batch=micro_batch,
            max_steps=self._max_steps() if verdict.action == "throttle" else None,
        )
        if saved is not None:
            training.restore(_training_part(saved), saved.values["training"])
        keeper = _Keeper(device, config, started_in, base, micro_batch, training.batches)
        if not training.run(keeper.after):
            keeper.save(training)
            return _refusal(parameters, keeper.why)
        if device.checkpoints is not None:
            device.checkpoints.clear()
        result = training.result()
        metrics = self._told(result, device.monitor.seconds() - keeper.started)
        metrics["micro-batch"] = micro_batch
        metrics["resumed-step"] = 0 if saved is None else saved.step
        metrics["staleness"] = server_round - started_in
        if result.num_examples == 0:
            return parameters, 0, metrics
        trained = self.get_parameters({})
        if version != _digest(base):
            trained = [_moved(p, b, t) for p, b, t in zip(parameters, base, trained, strict=True)]
        return trained, result.num_examples, metrics

    def _max_steps(self) -> int:
        """Half of the batches that are planned, at least one."""
        batches = -(-len(self._data.y_train) // self._config.batch_size)
        return max(1, self._config.epochs * batches // 2)

    def _memory(self) -> MemoryModel:
        """Return what a step needs, measured once for a model on a device."""
        config, shapes = self._config, self._shapes()
        what = [shapes, config.optimizer, config.momentum > 0, config.mixed_precision]
        key = hashlib.sha256(json.dumps(what).encode()).hexdigest()
        store = self._device.checkpoints
        folder = None if store is None else store.folder
        return remembered(
            key,
            folder,
            lambda: measure_memory(
                lambda: copy.deepcopy(self._model), self._data.input_shape, config
            ),
        )

    def _shapes(self) -> list[Any]:
        return [(k, list(v.shape)) for k, v in self._model.state_dict().items()]

    def _saved(self, server_round: int) -> ClientCheckpoint | None:
        """Return interrupted training that can be taken up."""
        store = self._device.checkpoints
        if store is None or forgets():
            return None
        store.owner = self._owner()
        return store.latest(server_round, self._device.max_staleness)

    def _owner(self) -> str:
        """Identify client, data and settings: other checkpoints are not this client's."""
        labels = hashlib.sha256(self._data.y_train.tobytes()).hexdigest()
        what = [str(self._client_id), self._seed, labels, asdict(self._config), self._shapes()]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()


@dataclass
class _Keeper:
    """Looks after one training: checkpoints, conditions, deadline, rests."""

    device: Device
    config: Mapping[str, Any]
    server_round: int
    base: NDArrays
    micro_batch: int
    last: int
    why: Verdict = field(default_factory=Verdict)

    def __post_init__(self) -> None:
        asked = number(self.config, "deadline", float("inf"), 0)
        self.deadline = min(asked, self.device.workload.deadline or float("inf"))
        self.started = self.before = self.device.monitor.seconds()

    def after(self, training: LocalTraining) -> After:
        """Decide after a batch how to go on."""
        monitor, device = self.device.monitor, self.device
        monitor.worked(training.last_batch)
        if training.batches >= training.planned:
            return After.GO_ON
        now = monitor.seconds()
        took, self.before = now - self.before, now
        if now - self.started + took > self.deadline:
            return After.FINISH
        if training.batches - self.last >= device.checkpoint_every:
            self.save(training)
        verdict = device.conditions.to_go_on(monitor.read())
        if verdict.action == "stop":
            done = f"; {training.batches} of {training.planned} batches are done"
            self.why = replace(verdict, detail=verdict.detail + done)
            return After.PAUSE
        if verdict.action == "throttle":
            monitor.rest(took)
            self.before = monitor.seconds()
        return After.GO_ON

    def save(self, training: LocalTraining) -> None:
        """Write a checkpoint, if the device keeps any."""
        if self.device.checkpoints is None:
            return
        arrays, numbers = training.save()
        values = {"training": numbers, "micro-batch": self.micro_batch}
        arrays |= {f"base/{i:04d}": array for i, array in enumerate(self.base)}
        self.last = training.batches
        self.device.checkpoints.save(
            ClientCheckpoint(
                self.server_round, _digest(self.base), training.batches, arrays, values
            )
        )


def _refusal(parameters: NDArrays, verdict: Verdict) -> tuple[NDArrays, int, dict[str, Scalar]]:
    return parameters, 0, {REFUSED_KEY: verdict.reason, DETAIL_KEY: verdict.detail}


def _too_small(memory: MemoryModel, profile: DeviceProfile) -> Verdict:
    needed = f"one example needs {memory.needed(1) / MEGABYTE:.1f} MB of memory"
    return Verdict("stop", "device-too-small", f"{needed}, {profile.memory_mb:.1f} MB may be used")


def _base(saved: ClientCheckpoint) -> NDArrays:
    return [saved.arrays[k] for k in sorted(saved.arrays) if k.startswith("base/")]


def _training_part(saved: ClientCheckpoint) -> dict[str, NDArray[Any]]:
    return {k: v for k, v in saved.arrays.items() if not k.startswith("base/")}


def _digest(arrays: NDArrays) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _moved(now: NDArray[Any], base: NDArray[Any], trained: NDArray[Any]) -> NDArray[Any]:
    """Put what training changed on top of the server's present model; counters stay as trained."""
    if now.dtype.kind != "f":
        return trained
    step = trained.astype(np.float64) - base
    return np.asarray(now + step, dtype=now.dtype)
