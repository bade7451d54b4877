"""What the care of a `MobileClient` costs: time beside plain training, and memory."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

NAME = "devices"
DESCRIPTION = "time and memory of the device client with monitor and checkpoints"

MAX_OVERHEAD = 0.05
MAX_GROWTH_MB = 150.0
MAX_WHOLE_MB = 500.0

Row = dict[str, Any]

_MEMORY = """
import psutil, torch
own = psutil.Process()
torch.set_num_threads(1)
bare = own.memory_info().rss
cpu_only = torch.version.cuda is None
import sys, tempfile
from pathlib import Path
from benchmarks.bench_devices import device_client, start
with tempfile.TemporaryDirectory() as folder:
    client = device_client(Path(folder), int(sys.argv[1]))
    client.fit(start(client), {"server-round": 1})
peak = own.memory_info().rss
if sys.platform == "linux":
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(bare, peak, int(cpu_only))
"""


def run(quick: bool) -> list[Row]:
    """Return one row for time and one for memory."""
    import torch

    torch.set_num_threads(1)
    return [_overhead(640 if quick else 9600, 1 if quick else 3, quick), _memory(640)]


def device_client(folder: Path, examples: int) -> Any:
    """Return a client on this machine with every safeguard and the default interval."""
    from qsfl_flower.clients import (
        ClientCheckpoints,
        Conditions,
        Device,
        DeviceProfile,
        MobileClient,
        SystemMonitor,
    )

    device = Device(
        DeviceProfile.measure(),
        SystemMonitor(),
        Conditions(unknown="allow"),
        checkpoints=ClientCheckpoints(folder),
    )
    return MobileClient(*_parts(examples), seed=0, client_id=0, device=device)


def start(client: Any) -> list[Any]:
    """Return the first model."""
    return list(client.get_parameters({}))


def _parts(examples: int) -> Any:
    from qsfl_flower.clients import TrainConfig
    from qsfl_flower.clients.data import Dataset, Normalization
    from qsfl_flower.clients.models import build_model

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (examples, 1, 28, 28), dtype=np.uint8)
    y = rng.integers(0, 10, examples)
    scale = Normalization((33.3,), (78.6,))
    none = x[:0], y[:0]
    data = Dataset("mnist", x, y, *none, (1, 28, 28), 10, None, "noise", scale)
    return build_model("mnist-cnn", (1, 28, 28), 10, 0), data, TrainConfig(momentum=0.9)


def _overhead(examples: int, repeats: int, quick: bool) -> Row:
    """Alternate both clients, so that the machine's moods hit both, and take the best of each."""
    from qsfl_flower.clients import TrainingClient

    times: dict[str, list[float]] = {"plain": [], "device": []}
    with tempfile.TemporaryDirectory() as folder:
        clients = {
            "plain": TrainingClient(*_parts(examples), seed=0, client_id=0),
            "device": device_client(Path(folder), examples),
        }
        for client in clients.values():
            client.fit(start(client), {"server-round": 1})
        for turn in range(repeats):
            for name, client in clients.items():
                began = time.process_time()
                client.fit(start(client), {"server-round": turn + 2})
                times[name].append(time.process_time() - began)
    plain, device = min(times["plain"]), min(times["device"])
    return {
        "what": f"CPU seconds, {examples} examples, {examples // 32} steps",
        "plain": round(plain, 3),
        "device": round(device, 3),
        "difference": round(device / plain - 1, 4),
        "limit": "" if quick else f"< {MAX_OVERHEAD}",
        "ok": quick or device / plain - 1 < MAX_OVERHEAD,
    }


def _memory(examples: int) -> Row:
    command = [sys.executable, "-c", _MEMORY, str(examples)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    bare, peak, cpu_only = (int(word) for word in out.split())
    growth = (peak - bare) / 1e6
    whole = peak / 1e6
    return {
        "what": "MB resident: bare import torch, peak in training the MNIST network",
        "plain": round(bare / 1e6),
        "device": round(whole),
        "difference": round(growth),
        "limit": f"<= {MAX_GROWTH_MB:g}" + (f", in all {MAX_WHOLE_MB:g}" if cpu_only else ""),
        "ok": growth <= MAX_GROWTH_MB and (not cpu_only or whole <= MAX_WHOLE_MB),
    }
