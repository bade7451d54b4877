"""How coordinates are sorted; the rules themselves are compared with oracles in `test_rules`."""

import numpy as np
import pytest

from qsfl_flower.mechanisms.robust.core import coordinates


@pytest.mark.parametrize("count", range(1, coordinates.SMALL + 1))
def test_the_network_sorts_everything(count: int) -> None:
    # A network that sorts all columns of zeros and ones sorts everything (the 0-1 principle).
    columns = np.indices((2,) * count).reshape(count, -1)
    for low, high in coordinates.network(count):
        assert low < high
        columns[low], columns[high] = (
            np.minimum(columns[low], columns[high]),
            np.maximum(columns[low], columns[high]),
        )
    assert (np.diff(columns, axis=0) >= 0).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("count", [1, 2, 7, coordinates.SMALL, coordinates.SMALL + 1, 40])
def test_columns_are_sorted_in_the_memory_given(count: int, dtype: str) -> None:
    block = np.random.default_rng(count).standard_normal((count, 33)).astype(dtype)
    block[:, :2] = np.sign(block[:, :2])  # ties
    wanted = np.sort(block, axis=0)
    spare = np.empty(34 * (count + 1), dtype)
    ranks = coordinates.sort_columns(block, spare)
    np.testing.assert_array_equal(ranks, wanted)
    assert np.shares_memory(ranks, spare)


@pytest.mark.parametrize("count", [1, 5, coordinates.SMALL, coordinates.SMALL + 1])
def test_nan_shows_at_an_end_whoever_sent_it(count: int) -> None:
    block = np.zeros((count, count), np.float32)
    np.fill_diagonal(block, np.nan)
    ranks = coordinates.sort_columns(block, np.empty(count * (count + 1), np.float32))
    assert (np.isnan(ranks[0]) | np.isnan(ranks[-1])).all()
