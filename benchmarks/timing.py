"""Fair comparison of two ways on a machine that is not quite idle."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

REST = 0.02
"""Seconds before each call."""
SLOW = 5.0
"""A way whose first call takes so many seconds is not called again."""


@dataclass(frozen=True)
class Timing:
    """Medians over the repetitions, in milliseconds.

    Attributes
    ----------
    wall : float
        Time on the clock: what users wait, and what other programs disturb.
    cpu : float
        Time on all cores together: what the work costs, also on a busy machine.
    """

    wall: float
    cpu: float


def alternate(ways: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, Timing]:
    """Call all ways in turn, so that a slow minute hits all of them; the first turn warms up.

    A slow way is judged by that turn alone.

    Before each call is a short rest: idle threads of OpenMP and BLAS pools spin for some
    milliseconds after their work, which would be charged to whoever comes next.
    """
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repetitions + 1):
        for name, way in ways.items():
            if wall[name] and wall[name][0] > 1e3 * SLOW:
                continue
            time.sleep(REST)
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            way()
            took = time.perf_counter() - wall_start
            if turn or took > SLOW:
                wall[name].append(1e3 * took)
                cpu[name].append(1e3 * (time.process_time() - cpu_start))
    return {
        name: Timing(statistics.median(wall[name]), statistics.median(cpu[name])) for name in ways
    }
