"""A Flower grid without processes, for scripted clients; and the flwr command, for whole apps."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy: test processes share the cores

import numpy as np
import pytest
from hypothesis import settings

from qsfl_flower import testing

# A busy machine is no failure: time limits are pytest's.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


class _Faults(logging.Handler):
    def __init__(self):
        super().__init__(logging.ERROR)
        self.told = []

    def emit(self, record):
        self.told.append(record.getMessage())


@pytest.fixture(autouse=True)
def internal_faults(request):
    """Collect what was counted as ``internal``; fail the test unless it is marked to expect it."""
    log, faults = logging.getLogger("qsfl_flower.internal"), _Faults()
    level = log.level
    log.addHandler(faults)
    log.setLevel(logging.ERROR)
    yield faults.told
    log.removeHandler(faults)
    log.setLevel(level)
    if faults.told and request.node.get_closest_marker("expects_internal") is None:
        pytest.fail("a fault of the suite was hidden by the barrier:\n" + faults.told[0])


@pytest.fixture
def inside_run():
    """Flower's messages can only be built inside a run."""
    testing.inside_run()


@pytest.fixture
def fake_grid(inside_run):
    """Make a grid of scripted clients; replies arrive in random order."""
    return partial(testing.NodeGrid, seed=0)


@pytest.fixture
def trained():
    """Make a client that adds `step` to every float array and claims `examples`."""
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

    def make(step: float, examples: float = 10, metrics: dict | None = None, change=None):
        def client(message):
            record = message.content["arrays"]
            arrays = {
                k: a.numpy() + a.numpy().dtype.type(step)
                if a.numpy().dtype.kind == "f"
                else a.numpy()
                for k, a in record.items()
            }
            if change is not None:
                arrays = change(arrays)
            content = RecordDict(
                {
                    "arrays": ArrayRecord({k: Array(np.asarray(v)) for k, v in arrays.items()}),
                    "metrics": MetricRecord({"num-examples": examples, **(metrics or {})}),
                }
            )
            return Message(content, reply_to=message)

        return client

    return make


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.fixture
def flower(tmp_path):
    """Run the flwr command with a home and a SuperLink of its own; return what it shows."""
    root, bin_ = Path(__file__).parents[1], Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": free_port(),
        "FLWR_LOCAL_CONTROL_API_PORT": free_port(),
        "COLUMNS": "300",
    }

    def flwr(*arguments, cwd=root):
        return run(["flwr", *map(str, arguments)], cwd, 280)

    def shell(script, cwd, **more):
        return run(["bash", "-c", script], cwd, 800, {k: str(v) for k, v in more.items()})

    def run(command, cwd, timeout, more=None):
        done = subprocess.run(
            command, cwd=cwd, env={**environment, **(more or {})}, timeout=timeout,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)

    flwr.shell = shell
    yield flwr
    port = environment["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "flower-superlink" in command and port in command:
            os.kill(int(process.parent.name), signal.SIGTERM)
