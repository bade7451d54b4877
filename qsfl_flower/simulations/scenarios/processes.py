"""Many independent trainings on all cores."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_processes(tasks: Sequence[Callable[[], Result]]) -> Iterator[tuple[int, Result]]:
    """Call tasks in as many processes as there are cores.

    Parameters
    ----------
    tasks : Sequence[Callable]
        Each takes one thread and depends on its arguments alone, so that the number of processes
        changes nothing.

    Yields
    ------
    index, result
        Of each task, as soon as it is done.
    """
    workers = min(os.cpu_count() or 1, len(tasks))
    if workers <= 1:
        yield from ((index, task()) for index, task in enumerate(tasks))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(task): index for index, task in enumerate(tasks)}
        for future in as_completed(futures):
            yield futures[future], future.result()
