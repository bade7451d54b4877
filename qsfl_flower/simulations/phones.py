"""A fleet of simulated phones: classes of devices, and days and nights in their owners' lives.

Everything follows from the experiment's seed, so that the report can play the same days back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from qsfl_flower.clients.checkpoints import ClientCheckpoints
from qsfl_flower.clients.conditions import Conditions
from qsfl_flower.clients.device import DeviceClass, DeviceProfile, Reading, TraceMonitor
from qsfl_flower.clients.mobile_session import Device
from qsfl_flower.clients.workload import Workload
from qsfl_flower.simulations.config import DevicesSpec

HOUR, DAY = 3600.0, 86400.0
_SLOT = 600.0  # people pick up and put away their phones every ten minutes at most

# Memory for training (MB), cores, examples of a small model per second, relative to each other
# as a phone of this year, one of four years ago, and a cheap one of eight years ago.
KINDS: Mapping[DeviceClass, tuple[float, int, float]] = {
    DeviceClass.HIGH: (1000.0, 8, 2000.0),
    DeviceClass.MID: (200.0, 8, 800.0),
    DeviceClass.LOW: (50.0, 4, 200.0),
}


@dataclass(frozen=True)
class Habits:
    """A day in the life of a phone, by its own clock (seconds).

    Parameters
    ----------
    seed : int
        Of what happens by chance.
    plug, unplug : float
        When it is put on the charger in the evening, and taken off in the morning (hours).
    low : float
        Charge when it is put on the charger, 0 to 1.
    leave, back : float
        When it leaves the network at home, and comes back to it (hours).
    at_work : bool
        Whether there is free network during the day too.
    """

    seed: int
    plug: float
    unplug: float
    low: float
    leave: float
    back: float
    at_work: bool

    def __call__(self, moment: float) -> Reading:
        """Return how the phone fares at a moment (seconds since the first midnight)."""
        hour = moment % DAY / HOUR
        charging = hour >= self.plug or hour < self.unplug
        awake = 7 <= hour < 23.5
        slot = np.random.default_rng((self.seed, int(moment // _SLOT)))
        in_use, offline = slot.random() < (0.25 if awake else 0.02), slot.random() < 0.02
        away = self.leave <= hour < self.back
        return Reading(
            battery=self._battery(hour, charging),
            charging=charging,
            metered=away and not self.at_work,
            in_use=bool(in_use),
            online=not offline,
        )

    def _battery(self, hour: float, charging: bool) -> float:
        """Full after three hours on the charger, then down in a straight line until the evening."""
        if charging:
            plugged = (hour - self.plug) % 24
            return min(1.0, self.low + (1 - self.low) * plugged / 3)
        awake = (hour - self.unplug) / (self.plug - self.unplug)
        return 1.0 - (1.0 - self.low) * awake


@dataclass(frozen=True)
class Phone:
    """A simulated phone."""

    profile: DeviceProfile
    habits: Habits
    examples_per_second: float


@lru_cache(maxsize=8)
def phones_of(spec: DevicesSpec, count: int, seed: int) -> tuple[Phone, ...]:
    """Make the fleet of an experiment: classes by their shares, in random order.

    Parameters
    ----------
    spec : DevicesSpec
        Shares of the classes.
    count : int
        Number of phones.
    seed : int
        The experiment's seed.
    """
    generator = np.random.default_rng((seed, 0xDE71CE))
    shares = np.array([spec.high, spec.mid, spec.low])
    ends = np.round(np.cumsum(shares / shares.sum()) * count).astype(int)
    kinds = np.repeat(np.arange(3), np.diff(ends, prepend=0))
    phones = []
    for index in generator.permutation(kinds):
        kind = tuple(DeviceClass)[index]
        memory, cores, speed = KINDS[kind]
        habits = Habits(
            seed=int(generator.integers(2**32)),
            plug=float(generator.uniform(20.5, 23.5)),
            unplug=float(generator.uniform(5.5, 8.0)),
            low=float(generator.uniform(0.05, 0.6)),
            leave=float(generator.uniform(7.5, 9.5)),
            back=float(generator.uniform(16.0, 20.0)),
            at_work=bool(generator.random() < 0.4),
        )
        profile = DeviceProfile(memory, cores, kind)
        phones.append(Phone(profile, habits, speed * float(generator.uniform(0.7, 1.3))))
    return tuple(phones)


def moment_of(spec: DevicesSpec, server_round: int) -> float:
    """Return when a round begins (seconds since the first midnight)."""
    return spec.start_hour * HOUR + (server_round - 1) * spec.round_minutes * 60


def device_of(spec: DevicesSpec, phone: Phone, folder: Path) -> Device:
    """Return a simulated phone as a client's device; its clock stands at each round's hour.

    Parameters
    ----------
    spec : DevicesSpec
        The fleet's section.
    phone : Phone
        The phone.
    folder : Path
        Where its checkpoints go.
    """
    clock = TraceMonitor(phone.habits, 0.0, phone.examples_per_second)
    epochs = {
        DeviceClass.HIGH: 1.0,
        DeviceClass.MID: spec.mid_epochs,
        DeviceClass.LOW: spec.low_epochs,
    }
    return Device(
        phone.profile,
        clock,
        conditions_of(spec),
        Workload(epochs=epochs, deadline=spec.deadline),
        ClientCheckpoints(folder),
        spec.checkpoint_every,
        spec.max_staleness,
        lambda server_round: clock.rest(moment_of(spec, server_round) - clock.seconds()),
    )


def conditions_of(spec: DevicesSpec) -> Conditions:
    """Return the conditions of an experiment's devices."""
    return Conditions(
        min_battery=spec.min_battery,
        stop_battery=spec.stop_battery,
        unmetered=spec.unmetered,
        idle=spec.idle,
        throttle=spec.throttle,
    )
