"""Cut long vectors into blocks and spread the work over threads.

NumPy releases the interpreter lock inside its loops, so threads over disjoint coordinates run in
parallel. Everything computed this way is coordinate by coordinate (or vector by vector), so the
cut decides only the speed, never a bit of the result.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ROW = 8192
"""Coordinates whose squares are added up by one dot product.

Cuts are made at multiples of this number, so that it does not depend on the cut which squares come
together. BLAS may split longer products over its own threads, and then the last bits would depend
on their number.
"""

BLOCK = 1 << 16
"""Most coordinates that are added up at a time: 512 KiB per buffer of float64.

Measured, not derived: smaller blocks would fit a nearer cache, but memory is read best in long
runs, and threads that return to the interpreter every few microseconds wait for each other.
"""

MAX_THREADS = 4
"""Threads used by default at most: beyond a few, memory is the bottleneck."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def threads_for(tasks: int, threads: int | None) -> int:
    """Return how many threads to start: as many as asked or as there are cores, if useful."""
    return max(1, min(tasks, default_threads() if threads is None else threads))


def default_threads() -> int:
    """Return the number of cores that this process may use, at most `MAX_THREADS`."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return min(MAX_THREADS, len(allowed) or os.cpu_count() or 1)


def blocks(lo: int, hi: int, most: int = BLOCK) -> Iterator[tuple[int, int]]:
    """Cut the coordinates ``lo <= i < hi`` into runs of similar length.

    A run has at most `most` coordinates, a multiple of `ROW`; all but the last one have a multiple
    of `ROW`.
    """
    if hi > lo:
        step = _rows(hi - lo, math.ceil((hi - lo) / most))
        for start in range(lo, hi, step):
            yield start, min(start + step, hi)


def each_range(lo: int, hi: int, threads: int | None, work: Callable[[int, int], None]) -> None:
    """Call ``work(start, stop)`` on one run of coordinates per thread, cut as by `blocks`."""
    count = threads_for((hi - lo) // BLOCK, threads)
    step = _rows(hi - lo, count)
    bounds = [min(lo + step * part, hi) for part in range(count + 1)]
    map_threads(lambda part: work(bounds[part], bounds[part + 1]), range(count), count)


def _rows(length: int, parts: int) -> int:
    """Return a length in whole rows of which so many parts cover everything."""
    return ROW * math.ceil(length / (parts * ROW))


def map_threads(
    function: Callable[[Item], Result], items: Sequence[Item] | Iterable[Item], threads: int
) -> list[Result]:
    """Apply a function to every item, in order, on up to `threads` threads."""
    if threads == 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))
