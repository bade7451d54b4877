"""The whole chain against plain Flower on the same training: wall time of a round, memory."""

from __future__ import annotations

import os
import statistics
from typing import Any

from benchmarks.watched import Watched, watch

NAME = "chain"
DESCRIPTION = "a round of the full chain against Flower's FedAvg, MNIST CNN, 20 clients"

MAX_RATIO, MAX_MEMORY = 1.5, 2.0
COMMON = ["clients.count=20", "data.partition={scheme: iid}", "clients.epochs=1"]
CHAIN = (
    "strategy.stages=[{stage: authenticate}, {stage: validate}, {stage: shared_mask, ratio: 0.01}, "
    "{stage: secure_krum, clip_norm: 5.0, num_byzantine: 3, members: 7, threshold: 3}]"
)
PRIVATE = (
    "strategy.stages=[{stage: authenticate}, {stage: record_dp, epsilon: 1.0, clip_norm: 1.0, "
    "sampling_rate: 0.02, steps: 47}, {stage: shared_mask, ratio: 0.01}, "
    "{stage: secure_krum, clip_norm: 5.0, num_byzantine: 3, members: 7, threshold: 3}]"
)

Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    """Return one row per way; rounds are those after the first, which starts the clients."""
    small = quick or "QSFL_DATA_DIR" not in os.environ
    config = "plain" if small else "mnist"
    common = [*COMMON, f"rounds={2 if quick else 4}"]
    plain = watch("flower", config, common)
    rows = [{"way": "Flower FedAvg", **_seen(plain, plain), "ok": True}]
    for name, stages in (("chain", CHAIN), ("chain with DP-SGD", PRIVATE)):
        chain = watch("qsfl", config, [*common, stages, "data.test_fraction=0.0"])
        seen = _seen(chain, plain)
        limited = not quick and name == "chain"
        rows.append(
            {
                "way": name,
                **seen,
                "limit": f"{MAX_RATIO} x, memory {MAX_MEMORY} x" if limited else None,
                "ok": not limited
                or (seen["ratio"] <= MAX_RATIO and seen["memory ratio"] <= MAX_MEMORY),
                **_stages(chain),
            }
        )
    return rows


def _seen(watched: Watched, plain: Watched) -> Row:
    seconds, peak = statistics.median(watched.seconds), watched.peaks[-1]
    return {
        "round s": round(seconds, 2),
        "ratio": round(seconds / statistics.median(plain.seconds), 2),
        "server MB": round(peak / 1e6),
        "memory ratio": round(peak / plain.peaks[-1], 2),
    }


def _stages(watched: Watched) -> Row:
    """Return what the stages took on the server, on average, with their waiting for clients."""
    later = [record["stage_seconds"] for record in watched.records if record["round"] > 1]
    names = dict.fromkeys(name for seconds in later for name in seconds)
    return {f"{n} ms": round(1e3 * statistics.mean(s.get(n, 0) for s in later), 1) for n in names}
