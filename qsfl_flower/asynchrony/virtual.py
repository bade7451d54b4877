"""A clock for simulations: devices take the time they would take, and nobody waits for it."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qsfl_flower.asynchrony.clock import Clock, Fetch, Pause
from qsfl_flower.asynchrony.devices import Device
from qsfl_flower.errors import CheckpointError, ConfigError

_PAUSE = 0.01


@dataclass(frozen=True, order=True)
class _Event:
    """Something that happens at a time: a device has done its work, or its answer is here."""

    at: float
    task: int
    device: int
    trained_at: float
    uploaded: bool = False


class VirtualClock(Clock):
    """Time as the devices of a simulated federation would spend it.

    A task takes the time of the download, of the work while the device is online, and of the
    upload of the answer that it really gave. Answers are released in the order of these times, ties
    in the order in which the tasks were sent, whatever the order in which they were computed: the
    same seed gives the same run on every machine. An answer is waited for only when its turn has
    come, so that others are computed meanwhile.

    Parameters
    ----------
    devices : Sequence[Device]
        Profile of every client, in canonical order.
    seed : int
        Of the variation from task to task, >= 0.
    patience : float
        Seconds of real time after which an answer that is due counts as never given, > 0.
    source : Callable[[], float]
        Real time, seconds.
    """

    simulated = True

    def __init__(
        self,
        devices: Sequence[Device],
        seed: int = 0,
        patience: float = 3600.0,
        source: Callable[[], float] = time.monotonic,
    ) -> None:
        if not devices:
            raise ConfigError("virtual clock: no devices; give one profile for every client")
        self.devices = tuple(devices)
        self._absent = any(not d.available.always for d in self.devices)
        self.seed, self.patience, self._source = seed, patience, source
        self._now = 0.0
        self._asked: dict[int, int] = {}
        self._events: list[_Event] = []
        self._answers: dict[int, int] = {}
        self._expected: set[int] = set()

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        return self._now

    def send(self, task: int, device: int, size: int) -> None:
        """Work out when the device will be done."""
        if not 0 <= device < len(self.devices):
            raise ConfigError(
                f"virtual clock: there is no profile for client {device}; there are "
                f"{len(self.devices)}: give one for every client"
            )
        times = self._asked[device] = self._asked.get(device, 0) + 1
        trained_at = self.devices[device].done(self._now, size, (self.seed, device, times))
        if trained_at < math.inf:
            self._expected.add(task)
            heapq.heappush(self._events, _Event(trained_at, task, device, trained_at))

    def receive(self, fetch: Fetch, until: float, pause: Pause) -> list[int]:
        """Move on to the next answer or to `until`, whichever is earlier."""
        while self._events and self._events[0].at <= until:
            event = self._events[0]
            heapq.heappop(self._events)
            if event.uploaded:
                self._now = max(self._now, event.at)
                del self._answers[event.task]
                return [event.task]
            if self._wait(event.task, fetch, pause):
                at = self.devices[event.device].arrival(event.at, self._answers[event.task])
                heapq.heappush(self._events, replace(event, at=at, uploaded=True))
            else:
                self._expected.discard(event.task)
        if math.isfinite(until):
            self._now = max(self._now, until)
        return []

    def forget(self, tasks: Collection[int]) -> None:
        """Change nothing: a late answer arrives when it arrives."""

    def void(self, tasks: Collection[int]) -> None:
        """Upload nothing for these tasks; an upload that has begun goes on to its end."""
        for task in self._answers.keys() & tasks:
            self._answers[task] = 0

    def online(self, devices: Sequence[int]) -> list[int]:
        """Return those that are within reach now."""
        if not self._absent:
            return list(devices)
        return [d for d in devices if self.devices[d].available.next_online(self._now) <= self._now]

    def next_online(self, devices: Collection[int]) -> float:
        """Return when the first of these devices comes online; infinity if there are none."""
        return min(
            (self.devices[d].available.next_online(self._now) for d in devices), default=math.inf
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the state as JSON values; answers are not part of it and are computed again."""
        return {
            "now": self._now,
            "asked": [[device, times] for device, times in self._asked.items()],
            "events": [
                [event.task, event.trained_at, event.device, event.at if event.uploaded else None]
                for event in self._events
            ],
        }

    def restore(self, values: Mapping[str, Any], void: Collection[int] = ()) -> None:
        """Go on from a saved state; tasks under way that may count have to be sent again."""
        self._answers, self._expected, events = {}, set(), []
        try:
            self._now = float(values["now"])
            self._asked = {int(device): int(times) for device, times in values["asked"]}
            for number, end, place, arrival in values["events"]:
                task, trained_at, device = int(number), float(end), int(place)
                if task in void and arrival is not None:
                    events.append(_Event(float(arrival), task, device, trained_at, uploaded=True))
                    self._answers[task] = 0
                else:
                    events.append(_Event(trained_at, task, device, trained_at))
                    self._expected.add(task)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"the state of the clock is damaged: {error!r}") from None
        self._events = events
        heapq.heapify(self._events)

    def _wait(self, task: int, fetch: Fetch, pause: Pause) -> bool:
        """Wait in real time until the answer is there; False after `patience` seconds."""
        end = self._source() + self.patience
        while task not in self._answers:
            found = fetch(list(self._expected))
            self._expected -= found.keys()
            self._answers |= found
            if not found:
                if self._source() > end:
                    return False
                pause(_PAUSE)
        return True
