"""The kill drill with 20 kills; `python -m benchmarks kills` has 200, and 20 of `qsfl run`."""

import sys

import pytest

from benchmarks.bench_kills import GRID, drill

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")


@pytest.mark.parametrize(
    ("case", "kills"),
    [("record_dp", 20), ("record_dp, async", 5), ("local_dp", 5), ("central_dp", 5)],
)
def test_a_killed_server_forgets_no_privacy_loss_and_counts_no_update_twice(tmp_path, case, kills):
    row = drill(case, tmp_path, kills)
    assert row["ok"], row
    real = row["epsilon from the devices"]
    # Both are upper bounds, on grids of their own, and rounded in the table.
    assert row["epsilon reported"] >= real * (1 - GRID) - 2e-6 > 0
    assert row["kills"] == kills
