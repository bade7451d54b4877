"""What a device is and how it fares now: profile, readings, and the monitors that take them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import psutil

MEGABYTE = 1_000_000
_LOW_MEMORY, _HIGH_MEMORY = 1024, 4096
_LOW_CORES, _HIGH_CORES = 2, 4


class DeviceClass(StrEnum):
    """How much a device can do.

    Examples
    --------
    >>> DeviceClass("low")
    <DeviceClass.LOW: 'low'>
    """

    HIGH = "high"
    MID = "mid"
    LOW = "low"


@dataclass(frozen=True)
class DeviceProfile:
    """What does not change while a device trains.

    Parameters
    ----------
    memory_mb : float
        Memory that training may use beyond what the process has already (megabytes), > 0.
    cores : int
        Processor cores, >= 1.
    device_class : DeviceClass
        Decides how many epochs it trains, see `Workload`.
    accelerator : str or None
        ``"cuda"``, ``"mps"``, or None. Told to the operator; training is on the processor.

    Examples
    --------
    >>> DeviceProfile(memory_mb=2000.0, cores=4, device_class=DeviceClass.MID).cores
    4
    >>> DeviceProfile.measure(share=0.25).memory_mb > 0
    True
    """

    memory_mb: float
    cores: int
    device_class: DeviceClass
    accelerator: str | None = None

    @classmethod
    def measure(cls, share: float = 0.5) -> DeviceProfile:
        """Describe this machine; `share` of the memory that is free now may be used."""
        free = psutil.virtual_memory().available / MEGABYTE
        cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
        if free >= _HIGH_MEMORY and cores >= _HIGH_CORES:
            kind = DeviceClass.HIGH
        elif free < _LOW_MEMORY or cores < _LOW_CORES:
            kind = DeviceClass.LOW
        else:
            kind = DeviceClass.MID
        return cls(free * share, cores, kind, _accelerator())


@dataclass(frozen=True)
class Reading:
    """How a device fares at one moment; what no sensor tells is None, which is never 'fine'.

    Parameters
    ----------
    battery : float or None
        Charge, 0 to 1.
    charging : bool or None
        Whether it is on external power.
    metered : bool or None
        Whether traffic on the current network costs.
    in_use : bool or None
        Whether somebody is using the device.
    online : bool or None
        Whether there is a network at all.
    free_mb : float or None
        Free memory (megabytes).
    load : float or None
        Share of the processor that is busy, 0 to 1.
    """

    battery: float | None = None
    charging: bool | None = None
    metered: bool | None = None
    in_use: bool | None = None
    online: bool | None = None
    free_mb: float | None = None
    load: float | None = None


class Monitor(Protocol):
    """Takes readings, and owns the clock that they belong to."""

    def read(self) -> Reading:
        """Return how the device fares now."""

    def seconds(self) -> float:
        """Return the time on a clock that only runs forward (seconds)."""

    def worked(self, examples: int) -> None:
        """Be told that so many examples were trained on since the last call."""

    def rest(self, seconds: float) -> None:
        """Leave the device alone for a while."""


class SystemMonitor:
    """Reads the sensors of this machine, at most once in `max_age` seconds.

    Battery, memory, load and network interfaces come from psutil; whether the network is metered
    from NetworkManager, where there is one. Whether somebody uses the device only the platform can
    tell: pass a function that asks it.

    Parameters
    ----------
    in_use, metered : Callable[[], bool or None], optional
        Ask the platform; None: unknown.
    max_age : float
        Seconds for which a reading is good.

    Examples
    --------
    >>> reading = SystemMonitor(in_use=lambda: False).read()
    >>> reading.in_use
    False
    """

    def __init__(
        self,
        in_use: Callable[[], bool | None] = lambda: None,
        metered: Callable[[], bool | None] | None = None,
        max_age: float = 1.0,
    ) -> None:
        self._in_use = in_use
        self._metered = metered or network_metered
        self._max_age = max_age
        self._taken: tuple[float, Reading] | None = None

    def read(self) -> Reading:
        """Return a reading, a fresh one if the last is too old."""
        now = self.seconds()
        if self._taken is None or now - self._taken[0] > self._max_age:
            self._taken = (now, self._read())
        return self._taken[1]

    def seconds(self) -> float:
        """Return the system's monotonic clock."""
        return time.monotonic()

    def worked(self, examples: int) -> None:
        """Nothing to do: the clock runs by itself."""

    def rest(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)

    def _read(self) -> Reading:
        battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
        up = [name for name, stats in psutil.net_if_stats().items() if stats.isup]
        return Reading(
            battery=None if battery is None else battery.percent / 100,
            charging=None if battery is None else battery.power_plugged,
            metered=self._metered(),
            in_use=self._in_use(),
            online=any(not name.startswith("lo") for name in up) if up else None,
            free_mb=psutil.virtual_memory().available / MEGABYTE,
            load=psutil.cpu_percent() / 100,
        )


class TraceMonitor:
    """Plays a device back from a trace; its clock runs only while the device works or rests.

    Parameters
    ----------
    trace : Callable[[float], Reading]
        The reading at each moment of the trace's own time (seconds).
    start : float
        The moment at which the clock begins.
    examples_per_second : float
        How fast the device trains, > 0.

    Examples
    --------
    >>> from qsfl_flower.clients.device import Reading
    >>> def trace(seconds):
    ...     return Reading(battery=1 - seconds / 100)
    >>> monitor = TraceMonitor(trace, start=0.0, examples_per_second=10.0)
    >>> monitor.worked(200)
    >>> monitor.seconds(), monitor.read().battery
    (20.0, 0.8)
    """

    def __init__(
        self, trace: Callable[[float], Reading], start: float, examples_per_second: float
    ) -> None:
        self._trace = trace
        self._now = start
        self._speed = examples_per_second

    def read(self) -> Reading:
        """Return the trace's reading at the present moment."""
        return self._trace(self._now)

    def seconds(self) -> float:
        """Return the present moment."""
        return self._now

    def worked(self, examples: int) -> None:
        """Let the time pass that so many examples take."""
        self._now += examples / self._speed

    def rest(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds


def network_metered() -> bool | None:
    """Ask NetworkManager whether the connected network is metered; None if it does not tell."""
    tool = shutil.which("nmcli")
    if tool is None:
        return None
    command = [tool, "--get-values", "GENERAL.STATE,GENERAL.METERED", "device", "show"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = [line for line in answer.stdout.splitlines() if line]
    connected = [
        metered
        for state, metered in zip(lines[::2], lines[1::2], strict=False)
        if state.startswith("100") and metered.split()[0] in ("yes", "no")
    ]
    return any(word.startswith("yes") for word in connected) if connected else None


def _accelerator() -> str | None:
    """Name the accelerator, if torch is loaded and sees one; torch is not loaded for this."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else None
