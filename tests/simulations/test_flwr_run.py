"""``flwr run .`` gives what ``qsfl run`` gives: real daemons, so marked slow (half a minute)."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.fixture
def flower(tmp_path):
    """Run the flwr command with a home and a SuperLink of its own."""
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": free_port(),
        "FLWR_LOCAL_CONTROL_API_PORT": free_port(),
        "COLUMNS": "300",
    }

    def flwr(*arguments):
        done = subprocess.run(
            ["flwr", *map(str, arguments)],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        return done.stdout + done.stderr

    yield flwr
    port = environment["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "flower-superlink" in command and port in command:
            os.kill(int(process.parent.name), signal.SIGTERM)


@pytest.mark.slow
def test_both_ways_give_the_same_model(flower, tmp_path):
    settings = "rounds=2; clients.count=4"
    shown = flower(
        "run", ".", "--stream",
        "--federation-config", "num-supernodes=4 client-resources-num-cpus=1",
        "--run-config", f'set="{settings}" output="{tmp_path}/flwr"',
    )  # fmt: skip
    assert "round 2/2" in shown, shown
    command = [sys.executable, "-m", "qsfl_flower.simulations.cli", "run", "quickstart"]
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
        f'set="clients.count=2; rounds=1; strategy.max_failed_rounds=1" output="{tmp_path}/flwr"',
    )  # fmt: skip
    assert re.search(r"federation has 3 SuperNodes, the experiment needs 2", shown), shown


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
    assert size < 2_000_000
