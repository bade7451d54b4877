"""The kill drill with 20 kills; `python -m benchmarks kills` has 200, and 20 of `qsfl run`."""

import importlib
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")


@pytest.fixture
def drill(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    return importlib.import_module("benchmarks.bench_kills").drill


@pytest.mark.parametrize(
    ("case", "kills"),
    [("record-dp", 20), ("record-dp, async", 5), ("local-dp", 5), ("central-dp", 5)],
)
def test_a_killed_server_forgets_no_privacy_loss_and_counts_no_update_twice(
    drill, tmp_path, case, kills
):
    row = drill(case, tmp_path, kills)
    assert row["ok"], row
    real = row["epsilon from the devices"]
    assert row["epsilon reported"] >= real - 2e-6 > 0  # both are rounded in the table
    assert row["kills"] == kills
