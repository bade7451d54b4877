"""A round on a device: what its owner allows, pauses, and training that is taken up again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.common import NDArrays, Scalar
from numpy.typing import NDArray

from qsfl_flower.clients.checkpoints import ClientCheckpoint, ClientCheckpoints
from qsfl_flower.clients.conditions import Conditions
from qsfl_flower.clients.device import MEGABYTE, DeviceProfile, Monitor
from qsfl_flower.clients.kept_state import forgets
from qsfl_flower.clients.session import Declined, Session
from qsfl_flower.clients.training import After, LocalTraining, TrainResult
from qsfl_flower.clients.workload import MemoryModel, Workload


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
    begin : Callable[[int], object]
        Called with the number of each round before the first reading of it.

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
    begin: Callable[[int], object] = lambda server_round: None

    def amount(self, configured: int) -> int:
        """Return how many epochs, or steps of DP-SGD, a device of this class does; >= 1."""
        return self.workload.epochs_of(self.profile.device_class, configured)

    def session(
        self,
        parameters: NDArrays,
        server_round: int,
        proximal_mu: float,
        *,
        deadline: float,
        wanted: int,
        memory: Callable[[], MemoryModel],
        owner: str,
    ) -> MobileSession:
        """Begin a round.

        Parameters
        ----------
        parameters, server_round, proximal_mu
            As for `Session`.
        deadline : float
            Seconds for the round, > 0.
        wanted : int
            Examples of a step, >= 1.
        memory : callable
            Returns what a step needs.
        owner : str
            Whose checkpoints count.

        Raises
        ------
        Declined
            If the conditions to start do not hold.
        """
        self.begin(server_round)
        verdict = self.conditions.to_start(self.monitor.read())
        if verdict.action == "stop":
            raise Declined(verdict.reason, verdict.detail)
        need = memory()
        micro_batch = need.largest_batch(self.profile.memory_mb, wanted)
        if micro_batch == 0:
            raise _too_small(need, self.profile)
        if self.checkpoints is not None:
            self.checkpoints.owner = owner
        return MobileSession(
            self, parameters, server_round, proximal_mu,
            throttled=verdict.action == "throttle", deadline=deadline, micro_batch=micro_batch,
        )  # fmt: skip


class MobileSession(Session):
    """A round on a device: checkpoints, conditions, deadline, rests.

    Parameters
    ----------
    device : Device
        What is trained on.
    parameters, server_round, proximal_mu
        As for `Session`; what is sent now, which `base` is not if training is taken up again.
    throttled : bool
        Whether only half of each training is done.
    deadline : float
        Seconds for the round, > 0.
    micro_batch : int
        Examples that fit the memory at a time, >= 1.
    """

    def __init__(
        self,
        device: Device,
        parameters: NDArrays,
        server_round: int,
        proximal_mu: float,
        *,
        throttled: bool,
        deadline: float,
        micro_batch: int,
    ) -> None:
        self._device, self._sent, self._asked_in = device, parameters, server_round
        super().__init__(parameters, server_round, proximal_mu)
        self._throttled, self._before = throttled, self._started
        self._deadline = min(deadline, device.workload.deadline or float("inf"))
        self.micro_batch = micro_batch
        self._saved = None
        if device.checkpoints is not None and not forgets():
            self._saved = device.checkpoints.latest(server_round, device.max_staleness)
        self._done = self._resumed = 0
        if self._saved is not None:
            self._resumed, self._done = self._saved.step, self._saved.values["done"]
            self.server_round, self.base = self._saved.server_round, _part(self._saved, "base")
            self.micro_batch = min(micro_batch, self._saved.values["micro-batch"])
            if (names := self._saved.values["kept"]) is not None:
                self.kept = dict(zip(names, _part(self._saved, "kept"), strict=True))

    def run(self, training: LocalTraining) -> TrainResult:
        """Train on from the last checkpoint, if there is one.

        Raises
        ------
        Declined
            If the conditions have ceased to hold; what is done is saved.
        """
        if self._throttled:
            training.halve()
        if self._saved is not None:
            arrays = {k: v for k, v in self._saved.arrays.items() if not k.startswith(_OURS)}
            training.restore(arrays, self._saved.values["training"])
            self._saved = None
        self._last = training.batches
        if not training.run(self._after):
            self._save(training)
            raise Declined(self._why.reason, self._why.detail)
        self._done += training.batches
        return training.result()

    def seconds(self) -> float:
        """Return the device's clock."""
        return self._device.monitor.seconds()

    def finish(self, arrays: NDArrays) -> NDArrays:
        """Drop the checkpoints, and put what training changed on top of the model sent now."""
        if self._device.checkpoints is not None:
            self._device.checkpoints.clear()
        if _digest(self._sent) == _digest(self.base):
            return arrays
        return [_moved(p, b, t) for p, b, t in zip(self._sent, self.base, arrays, strict=True)]

    def told(self) -> dict[str, Scalar]:
        """Return in which parts batches were worked on, and what was taken up again."""
        return {
            **super().told(),
            "micro-batch": self.micro_batch or 0,
            "resumed-step": self._resumed,
            "staleness": self._asked_in - self.server_round,
        }

    def _after(self, training: LocalTraining) -> After:
        """Decide after a batch how to go on."""
        monitor, device = self._device.monitor, self._device
        monitor.worked(training.last_batch)
        if training.batches >= training.planned:
            return After.GO_ON
        now = monitor.seconds()
        took, self._before = now - self._before, now
        if now - self._started + took > self._deadline:
            return After.FINISH
        if training.batches - self._last >= device.checkpoint_every:
            self._save(training)
        verdict = device.conditions.to_go_on(monitor.read())
        if verdict.action == "stop":
            done = f"; {training.batches} of {training.planned} batches are done"
            self._why = replace(verdict, detail=verdict.detail + done)
            return After.PAUSE
        if verdict.action == "throttle":
            monitor.rest(took)
            self._before = monitor.seconds()
        return After.GO_ON

    def _save(self, training: LocalTraining) -> None:
        """Write a checkpoint, if the device keeps any."""
        if self._device.checkpoints is None:
            return
        arrays, numbers = training.save()
        kept = None if self.kept is None else list(self.kept)
        values = {
            "training": numbers, "micro-batch": self.micro_batch, "kept": kept, "done": self._done,
        }  # fmt: skip
        for part, own in (("base", self.base), ("kept", list((self.kept or {}).values()))):
            arrays |= {f"{part}/{i:04d}": array for i, array in enumerate(own)}
        self._last = training.batches
        self._device.checkpoints.save(
            ClientCheckpoint(
                self.server_round, _digest(self.base), self._done + training.batches, arrays, values
            )
        )


_OURS = ("base/", "kept/")


def _part(saved: ClientCheckpoint, name: str) -> NDArrays:
    return [saved.arrays[k] for k in sorted(saved.arrays) if k.startswith(f"{name}/")]


def _too_small(memory: MemoryModel, profile: DeviceProfile) -> Declined:
    needed = f"one example needs {memory.needed(1) / MEGABYTE:.1f} MB of memory"
    return Declined("device-too-small", f"{needed}, {profile.memory_mb:.1f} MB may be used")


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
