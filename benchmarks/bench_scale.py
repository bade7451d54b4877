"""Ten thousand virtual devices on 24 SuperNodes: what a round costs as more of them take part."""

from __future__ import annotations

import os
import statistics
from typing import Any

import numpy as np

from benchmarks.watched import watch

NAME = "scale"
DESCRIPTION = "10,000 devices, up to 1,000 a round, hidden 1 % updates of bounded norm, MNIST MLP"

DEVICES, HOSTS = 10_000, 24
MAX_SERVER, MAX_ROUND = 10.0, 30.0
MAX_GROWTH = 0.05
# A device is asked once in ten rounds or less: what it left out by then would be out of date.
STAGES = (
    "strategy.stages=[{stage: authenticate}, {stage: shared_mask, ratio: 0.01, feedback: false}, "
    "{stage: secure_sum, clip_norm: 5.0, members: 5, threshold: 3, min_clients: 20, "
    "enforce_norm: true, weighted: false}]"
)

Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    """Return one row per number of clients in a round, the fitted power, memory, and Flower's."""
    small = quick or "QSFL_DATA_DIR" not in os.environ
    config, devices = ("plain", 600) if small else ("mnist", DEVICES)
    common = [
        "model.name=mlp", "data.partition={scheme: iid}", "clients.epochs=1",
        "clients.batch_size=16",
        f"clients.count={devices}", f"simulation.supernodes={HOSTS}", "data.test_fraction=0.0",
    ]  # fmt: skip
    rows, server = [], {}
    for clients in (20, 60) if quick else (100, 300, 1000):
        share = f"clients.fraction_train={clients / devices}"
        seen = watch("qsfl", config, [*common, STAGES, share, f"rounds={2 if quick else 4}"])
        later = [r["timing"] for r in seen.records if r["round"] > 1]
        server[clients] = statistics.median(t["configure"] + t["aggregate"] for t in later)
        whole = statistics.median(seen.seconds)
        limited = clients == 1000
        rows.append(
            {
                "nodes": f"{devices} on {HOSTS}",
                "clients": clients,
                "round s": round(whole, 1),
                "server s, committee included": round(server[clients], 2),
                "limit": f"{MAX_ROUND:.0f} s, server {MAX_SERVER:.0f} s" if limited else None,
                "ok": not limited or (whole <= MAX_ROUND and server[clients] <= MAX_SERVER),
            }
        )
    power = np.polyfit(np.log(list(server)), np.log(list(server.values())), 1)[0]
    rows.append({"nodes": "server time grows as", "clients": f"n^{power:.2f}", "ok": True})
    rows.append(_memory(config, [*common, STAGES], devices, quick))
    plain = 60 if quick else 1000
    flower = [f"clients.count={plain}", "rounds=3", "simulation.supernodes=null"]
    seen = watch("flower", config, [*common, *flower])
    rows.append(
        {
            "nodes": f"{plain} nodes of Flower, FedAvg",
            "clients": plain,
            "round s": round(statistics.median(seen.seconds), 1),
            "ok": True,
        }
    )
    return rows


def _memory(config: str, common: list[str], devices: int, quick: bool) -> Row:
    """Return how the server's memory grows from the tenth round to the last."""
    clients, rounds = (20, 4) if quick else (100, 50)
    share = f"clients.fraction_train={clients / devices}"
    seen = watch("qsfl", config, [*common, share, f"rounds={rounds}"])
    early, late = seen.peaks[min(10, rounds - 1)], seen.peaks[-1]
    growth = late / early - 1
    return {
        "nodes": f"memory over {rounds} rounds",
        "clients": clients,
        "server MB": f"{early / 1e6:.0f} -> {late / 1e6:.0f}",
        "limit": f"{MAX_GROWTH:.0%}",
        "ok": quick or growth <= MAX_GROWTH,
    }
