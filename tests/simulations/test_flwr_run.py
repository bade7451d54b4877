"""``flwr run .`` gives what ``qsfl run`` gives: real daemons, so marked slow (half a minute)."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from safetensors.numpy import load_file

from qsfl_flower.errors import TooFewReplies
from qsfl_flower.rounds import exchange
from qsfl_flower.simulations import app
from qsfl_flower.testing import NodeGrid

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_both_ways_give_the_same_model(flower, tmp_path):
    settings = "rounds=2; clients.count=4"
    shown = flower(
        "run", ".", "--stream",
        "--federation-config", "num-supernodes=4 client-resources-num-cpus=1",
        "--run-config", f'config="plain" set="{settings}" output="{tmp_path}/flwr"',
    )  # fmt: skip
    assert "round 2/2" in shown, shown
    command = [sys.executable, "-m", "qsfl_flower.simulations.cli", "run", "plain"]
    for item in (*settings.split("; "), f"output.folder={tmp_path}/qsfl"):
        command += ["--set", item]
    subprocess.run(command, check=True, timeout=280)
    ours, theirs = (
        load_file(next((tmp_path / way).glob("*/model.safetensors"))) for way in ("qsfl", "flwr")
    )
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.slow
def test_a_wrong_number_of_supernodes_is_said(flower, tmp_path):
    shown = flower(
        "run", ".", "--stream",
        "--federation-config", "num-supernodes=3 client-resources-num-cpus=1",
        "--run-config",
        f'config="plain" set="clients.count=2; rounds=1; strategy.max_failed_rounds=1" '
        f'output="{tmp_path}/flwr"',
    )  # fmt: skip
    assert re.search(r"federation has 3 SuperNodes, the experiment needs 2", shown), shown


def test_the_log_says_which_configuration_runs_and_how_many_nodes_it_needs(
    inside_run, tmp_path, monkeypatch, caplog
):
    """A run config that Flower dropped leaves the default: the first line names it."""
    monkeypatch.setitem(exchange._CLOSED, "InMemoryGrid", 0.2)
    output = str(tmp_path / "runs")
    context = Context(
        1, 0, {}, RecordDict(), {"config": "plain", "set": "rounds=1", "output": output}
    )
    grid = type("InMemoryGrid", (NodeGrid,), {})({1: print, 2: print})
    with caplog.at_level("INFO", "flwr"), pytest.raises(TooFewReplies) as caught:
        app.main(grid, context)
    assert re.search(
        r"configuration 'plain' \(digest [0-9a-f]{12}\), overrides: rounds=1", caplog.text
    )
    assert "2 nodes are connected and 10 are needed (clients.count of plain = 10)" in str(
        caught.value
    )
    assert "num-supernodes=10" in str(caught.value)


def test_the_bundle_holds_the_package_and_the_configurations_only(flower, tmp_path):
    root = tmp_path / "qsfl-flower"
    for name in ("qsfl_flower", "configs", "tests", "docs", "benchmarks"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    shown = flower("build", "--app", root)
    (bundle,) = [*root.glob("*.fab"), *ROOT.glob("*.fab")]
    try:
        with zipfile.ZipFile(bundle) as archive:
            names = archive.namelist()
            size = sum(entry.file_size for entry in archive.infolist())
    finally:
        bundle.unlink()
    tops = {name.split("/")[0] for name in names}
    assert tops <= {"qsfl_flower", "configs", "pyproject.toml", "README.md", "LICENSE", ".info"}, (
        shown
    )
    assert "configs/quickstart.yaml" in names
    assert size < 5_000_000  # the source alone, 2.6 MB; Flower takes 10 MB


@pytest.mark.slow
def test_flower_runs_the_chain(flower, tmp_path):
    shown = flower(
        "run", ".", "--stream",
        "--federation-config", "num-supernodes=10 client-resources-num-cpus=1",
        "--run-config", f'set="rounds=2" output="{tmp_path}/flwr"',
    )  # fmt: skip
    assert "round 2/2" in shown, shown
    (metrics,) = (tmp_path / "flwr").glob("*/metrics.jsonl")
    last = json.loads(metrics.read_text().splitlines()[-1])
    assert last["stages"]["secure_krum"]["summed"] == 6
    assert last["epsilon"] > 0
