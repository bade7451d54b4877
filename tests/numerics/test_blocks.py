from __future__ import annotations

import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.numerics.blocks import (
    BLOCK,
    ROW,
    blocks,
    default_threads,
    each_range,
    map_threads,
    threads_for,
)


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 20))
def test_blocks_cover_a_range_once_in_order_in_whole_rows(lo, length, rows):
    runs = list(blocks(lo, lo + length, rows * ROW))
    assert [start for start, _ in runs] == [lo, *(stop for _, stop in runs)][: len(runs)]
    assert runs[-1][1] == lo + length if length else not runs
    assert all(0 < stop - start <= rows * ROW for start, stop in runs)
    assert all((stop - start) % ROW == 0 for start, stop in runs[:-1])


def test_blocks_are_of_similar_size():
    assert [stop - start for start, stop in blocks(0, 5 * ROW, 4 * ROW)] == [3 * ROW, 2 * ROW]


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
