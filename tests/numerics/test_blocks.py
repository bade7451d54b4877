from __future__ import annotations

import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.numerics.blocks import (
    BLOCK,
    blocks,
    default_threads,
    each_range,
    map_threads,
    threads_for,
)


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 100))
def test_blocks_cover_a_range_once_in_order(lo, length, most):
    runs = list(blocks(lo, lo + length, most))
    assert [i for start, stop in runs for i in range(start, stop)] == list(range(lo, lo + length))
    assert all(0 < stop - start <= most for start, stop in runs)


def test_blocks_are_of_even_size():
    assert [stop - start for start, stop in blocks(0, 101, 100)] == [51, 50]


@pytest.mark.parametrize("threads", [1, 2, 3, 8, None])
@pytest.mark.parametrize("length", [0, 1, BLOCK, 5 * BLOCK + 3])
def test_every_coordinate_belongs_to_one_thread(length, threads):
    lock, runs = threading.Lock(), []

    def work(start: int, stop: int) -> None:
        with lock:
            runs.append((start, stop))

    each_range(10, 10 + length, threads, work)
    runs.sort()
    assert runs[0][0] == 10
    assert runs[-1][1] == 10 + length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(runs))
    assert len(runs) <= max(1, length // BLOCK)


def test_an_error_in_a_thread_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        map_threads(lambda x: 1 // x, [1, 0], 2)


def test_results_keep_the_order_of_the_items():
    assert map_threads(lambda x: -x, range(50), 3) == [-x for x in range(50)]


def test_number_of_threads():
    assert threads_for(0, None) == 1
    assert threads_for(100, 3) == 3
    assert threads_for(2, 3) == 2
    assert 1 <= default_threads() <= 4
