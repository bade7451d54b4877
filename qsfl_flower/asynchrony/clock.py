"""When answers count as arrived: by the clock on the wall, or by a clock that is only computed.

A strategy tells its clock which tasks it has sent, and asks it for the next answers. The wall clock
looks whether some are there. The virtual clock (`virtual.py`) fetches answers as they are computed
and releases them in the order in which slow and fast devices would have delivered them. So the same
strategy runs in a deployment and, without a second of waiting, in a simulation of one.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

from qsfl_flower.errors import CheckpointError

_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5


Fetch = Callable[[Sequence[int]], Mapping[int, int]]
"""Look, without waiting, which of these tasks have been answered: the bytes of each answer."""

Pause = Callable[[float], None]
"""Sleep for so many seconds of real time; may raise to end the wait."""


class Clock(ABC):
    """Time, and the order in which answers arrive."""

    simulated: ClassVar[bool] = False
    """Whether time is computed, so that waiting costs nothing."""

    @property
    @abstractmethod
    def now(self) -> float:
        """Seconds since the start of the run."""

    @abstractmethod
    def send(self, task: int, device: int, size: int) -> None:
        """A task of `size` bytes leaves for a device now."""

    @abstractmethod
    def receive(self, fetch: Fetch, until: float, pause: Pause) -> list[int]:
        """Return the tasks that were answered next, or none if `until` comes first.

        Parameters
        ----------
        fetch : Fetch
            Looks for answers.
        until : float
            Time of this clock at which to give up; infinity waits until no answer can come.
        pause : Pause
            Called between two looks.
        """

    @abstractmethod
    def forget(self, tasks: Collection[int]) -> None:
        """Wait for these answers no longer; they may still be released if they come."""

    @abstractmethod
    def void(self, tasks: Collection[int]) -> None:
        """Whatever is answered to these tasks counts for nothing."""

    def online(self, devices: Sequence[int]) -> list[int]:
        """Return those of the connected devices that can be asked now, in the same order."""
        return list(devices)

    def next_online(self, devices: Collection[int]) -> float:
        """Return when the first of these devices can be asked; infinity if never."""
        return self.now if devices else math.inf

    def to_dict(self) -> dict[str, Any] | None:
        """Return the state as JSON values, or None if tasks under way do not survive a restart."""
        return None

    @abstractmethod
    def restore(self, values: Mapping[str, Any], void: Collection[int] = ()) -> None:
        """Go on from what `to_dict` returned; `void` are the tasks that count for nothing."""


class WallClock(Clock):
    """Real time.

    Parameters
    ----------
    source : Callable[[], float]
        A monotonic clock of this machine, seconds. What clients say about time is not used.
    """

    def __init__(self, source: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._start: float | None = None
        self._open: dict[int, None] = {}

    @property
    def now(self) -> float:
        """Seconds since the clock was first looked at."""
        if self._start is None:
            self._start = self._source()
        return self._source() - self._start

    def send(self, task: int, device: int, size: int) -> None:
        """Expect an answer to the task."""
        del device, size
        self._open[task] = None

    def receive(self, fetch: Fetch, until: float, pause: Pause) -> list[int]:
        """Look again and again, ever less often, until something is there or time is up."""
        wait = _FIRST_PAUSE
        while True:
            found = list(fetch(list(self._open))) if self._open else []
            self.forget(found)
            left = until - self.now
            if found or left <= 0 or not (self._open or math.isfinite(until)):
                return found
            pause(min(wait, left))
            wait = min(wait * 1.3, _LONGEST_PAUSE)

    def forget(self, tasks: Collection[int]) -> None:
        """Look for these no longer."""
        for task in tasks:
            self._open.pop(task, None)

    def void(self, tasks: Collection[int]) -> None:
        """Change nothing: what comes, comes."""

    def restore(self, values: Mapping[str, Any], void: Collection[int] = ()) -> None:
        """Refuse: real time has no state.

        Raises
        ------
        CheckpointError
            Always; the checkpoint was written under another clock.
        """
        raise CheckpointError(
            "the checkpoint holds tasks under way on a simulated clock, and this run goes by the "
            "clock on the wall: resume it with a VirtualClock, or start anew from its model"
        )
