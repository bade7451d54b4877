"""A whole ``qsfl run`` against a plain Flower simulation of the same training."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAME = "simulation"
DESCRIPTION = "wall time of qsfl run against Flower's FedAvg and simulation, same training"

MAX_OVERHEAD = 0.05
MAX_START = 15.0
CONFIGS: dict[str, list[str]] = {
    "plain": [],
    "mnist": ["rounds=5"],
}

Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    """Return one row per configuration; overhead is (qsfl - Flower) / Flower of the medians."""
    rows = []
    for config, overrides in CONFIGS.items():
        if config != "plain" and (quick or "QSFL_DATA_DIR" not in os.environ):
            continue
        shorter = [*overrides, "rounds=2"] if quick else overrides
        seconds: dict[str, list[float]] = {"qsfl": [], "flower": []}
        starts: list[float] = []
        with tempfile.TemporaryDirectory() as folder:
            settings = [*shorter, f"output.folder={folder}"]
            for _ in range(1 if quick else 3):
                for way, measured in seconds.items():
                    start = time.perf_counter()
                    _process(way, config, settings)
                    measured.append(time.perf_counter() - start)
            for metrics in Path(folder).glob("*/metrics.jsonl"):
                first = json.loads(metrics.read_text().splitlines()[1])
                last = json.loads(metrics.read_text().splitlines()[2])
                starts.append(first["time_s"] - last["time_s"])
        ours, theirs = (statistics.median(seconds[way]) for way in ("qsfl", "flower"))
        overhead = (ours - theirs) / theirs
        rows.append(
            {
                "config": " ".join([config, *shorter]),
                "qsfl s": round(ours, 1),
                "Flower s": round(theirs, 1),
                "overhead": f"{overhead:+.1%}",
                "start-up in round 1, s": round(statistics.median(starts), 1),
                "limit": None if quick else f"overhead <= {MAX_OVERHEAD:.0%}",
                "ok": quick or overhead <= MAX_OVERHEAD,
            }
        )
    return rows


def _process(way: str, config: str, settings: list[str]) -> None:
    command = [sys.executable, "-m"]
    if way == "qsfl":
        command += ["qsfl_flower.simulations.cli", "run", config]
        for item in settings:
            command += ["--set", item]
    else:
        command += ["benchmarks.plain_flower", config, *settings]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
