"""Runs of an experiment as processes whose rounds and memory are watched."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

_EVERY = 0.2  # seconds between two looks at the memory


@dataclass(frozen=True)
class Watched:
    """What was seen of a run.

    Parameters
    ----------
    seconds : list of float
        Wall time of the rounds after the first, evaluation on the server included.
    peaks : list of int
        Highest resident memory of the server's process in bytes, up to the end of each round.
    records : list of dict
        The rounds' records, of a run of the suite.
    """

    seconds: list[float]
    peaks: list[int]
    records: list[dict[str, Any]]


def watch(way: str, config: str, overrides: list[str]) -> Watched:
    """Run an experiment and watch it.

    Parameters
    ----------
    way : str
        ``"qsfl"``, or ``"flower"`` for Flower's own FedAvg with the same training.
    config : str
        Configuration.
    overrides : list of str
        As for ``--set``.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = [*overrides, f"output.folder={folder}"]
        command = [sys.executable, "-m"]
        if way == "qsfl":
            command += ["qsfl_flower.simulations.cli", "run", config]
            command += [part for item in settings for part in ("--set", item)]
        else:
            command += ["benchmarks.plain_flower", config, *settings]
        ends, peaks = _follow(command, '{"round"' if way == "flower" else "round ")
        records = []
        for metrics in Path(folder).glob("*/metrics.jsonl"):
            records = [json.loads(line) for line in metrics.read_text().splitlines()]
    return Watched([b - a for a, b in pairwise(ends[1:])], peaks, records)


def _follow(command: list[str], mark: str) -> tuple[list[float], list[int]]:
    """Return when each round was over, from round 0 on, and the highest memory until then."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1
    )
    peak = [0]

    def look() -> None:
        while process.poll() is None:
            try:
                peak[0] = max(peak[0], psutil.Process(process.pid).memory_info().rss)
            except psutil.Error:
                return
            time.sleep(_EVERY)

    threading.Thread(target=look, daemon=True).start()
    ends, peaks = [], []
    for line in process.stdout or ():
        if line.startswith(mark):
            ends.append(time.monotonic())
            peaks.append(peak[0])
    if process.wait() != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return ends, peaks
