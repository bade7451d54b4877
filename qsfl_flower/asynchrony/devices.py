"""Profiles of simulated devices: how fast, how well connected, and when they can be reached."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from qsfl_flower.errors import ConfigError

HOUR = 3600.0
DAY = 24 * HOUR


@dataclass(frozen=True)
class Availability:
    """When a device can be reached and works: a trace that repeats.

    Parameters
    ----------
    online : tuple[tuple[float, float], ...]
        Start and end of each time online, seconds within the period, in order and apart.
    period : float
        Seconds after which the trace begins anew, > 0.
    shift : float
        Seconds by which this device is ahead of the trace.
    """

    online: tuple[tuple[float, float], ...] = ((0.0, DAY),)
    period: float = DAY
    shift: float = 0.0

    def __post_init__(self) -> None:
        edges = [edge for span in self.online for edge in span]
        apart = all(a < b for a, b in itertools.pairwise(edges))
        if not edges or not apart or edges[0] < 0 or edges[-1] > self.period:
            raise ConfigError(
                f"availability: {self.online!r} is not a list of (start, end) in order, apart and "
                f"within 0 and {self.period:g} s"
            )

    def next_online(self, at: float) -> float:
        """Return the first time from `at` on at which the device is online."""
        if self.always:
            return at
        start, end = self._span(at)
        return at if start <= at < end else start

    def after_work(self, at: float, seconds: float) -> float:
        """Return when a device that starts at `at` has been online for so many seconds.

        Work rests while the device is offline, and goes on afterwards.
        """
        if self.always or seconds <= 0 or math.isinf(seconds):
            return at + seconds
        whole = math.fsum(end - start for start, end in self.online)
        cycles = math.ceil(seconds / whole) - 1
        left = seconds - cycles * whole
        at += cycles * self.period
        while True:
            start, end = self._span(at)
            at = max(at, start)
            if left <= end - at:
                return at + left
            left -= end - at
            at = end

    @property
    def always(self) -> bool:
        """Whether the device is never offline."""
        return self.online == ((0.0, self.period),)

    def _span(self, at: float) -> tuple[float, float]:
        """Return the time online that contains `at`, or the next one."""
        cycle = math.floor((at + self.shift) / self.period)
        inside = at + self.shift - cycle * self.period
        ends = [end for _, end in self.online]
        index = bisect_right(ends, inside)
        if index == len(ends):
            index, cycle = 0, cycle + 1
        origin = cycle * self.period - self.shift
        start, end = self.online[index]
        return origin + start, origin + end


ALWAYS = Availability()


@dataclass(frozen=True)
class Device:
    r"""One simulated device.

    A task takes :math:`B_\downarrow / r_\downarrow + t\,e^{\sigma z} + B_\uparrow / r_\uparrow`
    seconds of time online, z standard normal and drawn anew for every task.

    Parameters
    ----------
    seconds : float
        Median time t of the work itself, > 0.
    jitter : float
        Spread :math:`\sigma` >= 0 of the logarithm of the work time.
    download, upload : float
        Bytes per second, > 0; infinity: no time at all.
    dropout : float
        Probability in [0, 1] that a task is never answered.
    available : Availability
        When it is online.
    """

    seconds: float = 1.0
    jitter: float = 0.0
    download: float = math.inf
    upload: float = math.inf
    dropout: float = 0.0
    available: Availability = ALWAYS

    def __post_init__(self) -> None:
        for name in ("seconds", "download", "upload"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"device: {name} is {getattr(self, name)!r}; it must be > 0")
        if not 0 <= self.dropout <= 1:
            raise ConfigError(f"device: dropout is {self.dropout!r}; it must be in [0, 1]")
        if not self.jitter >= 0:
            raise ConfigError(f"device: jitter is {self.jitter!r}; it must be >= 0")

    def done(self, at: float, size: int, key: Sequence[int]) -> float:
        """Return when a task of `size` bytes sent at `at` is done; infinity if never.

        Parameters
        ----------
        at : float
            Seconds.
        size : int
            Bytes to download.
        key : Sequence[int]
            Seeds the draws of this task; each >= 0.
        """
        work = self.seconds
        if self.jitter or self.dropout:
            generator = np.random.default_rng(key)
            if generator.random() < self.dropout:
                return math.inf
            work *= math.exp(self.jitter * generator.standard_normal())
        return self.available.after_work(at, size / self.download + work)

    def arrival(self, at: float, size: int) -> float:
        """Return when an answer of `size` bytes that was ready at `at` has been uploaded."""
        return self.available.after_work(at, size / self.upload)


@dataclass(frozen=True)
class DeviceClass:
    """A share of a fleet.

    Parameters
    ----------
    share : float
        Relative number of devices, > 0.
    device : Device
        Their common profile.
    """

    share: float
    device: Device


def make_fleet(
    classes: Sequence[DeviceClass], count: int, seed: int, spread: bool = True
) -> tuple[Device, ...]:
    """Distribute classes over the devices of a fleet.

    Parameters
    ----------
    classes : Sequence[DeviceClass]
        At least one. Numbers of devices are rounded by largest remainders.
    count : int
        Devices, >= 1.
    seed : int
        Of the order; the same seed gives the same fleet.
    spread : bool
        Shift the availability of the devices of a class evenly over its period, so that they are
        not all offline at once.

    Returns
    -------
    tuple[Device, ...]
        One profile per client.
    """
    if not classes or count < 1 or not all(c.share > 0 for c in classes):
        raise ConfigError("fleet: at least one class with a share > 0 and one device are needed")
    total = math.fsum(c.share for c in classes)
    exact = [c.share / total * count for c in classes]
    amounts = [int(value) for value in exact]
    order = sorted(range(len(classes)), key=lambda i: amounts[i] - exact[i])
    for index in order[: count - sum(amounts)]:
        amounts[index] += 1
    devices = []
    for one, amount in zip(classes, amounts, strict=True):
        trace = one.device.available
        for index in range(amount):
            shift = trace.shift + (trace.period * index / amount if spread else 0.0)
            devices.append(replace(one.device, available=replace(trace, shift=shift)))
    places = np.random.default_rng(seed).permutation(count)
    return tuple(devices[place] for place in places)
