"""Fair comparison of two ways on a machine that is not quite idle."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

REST = 0.02
"""Seconds before each call."""


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

    Before each call is a short rest: idle threads of OpenMP and BLAS pools spin for some
    milliseconds after their work, which would be charged to whoever comes next.
    """
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repetitions + 1):
        for name, way in ways.items():
            time.sleep(REST)
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            way()
            if turn:
                wall[name].append(1e3 * (time.perf_counter() - wall_start))
                cpu[name].append(1e3 * (time.process_time() - cpu_start))
    return {
        name: Timing(statistics.median(wall[name]), statistics.median(cpu[name])) for name in ways
    }
