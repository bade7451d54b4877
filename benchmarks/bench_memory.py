"""Memory over many rounds: nothing may pile up."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from typing import Any

import psutil
from flwr.app import ConfigRecord

from benchmarks.replies import StubGrid, answer, make_model, number, to_arrays
from qsfl_flower.strategies import StableFedAvg

NAME = "memory"
DESCRIPTION = "resident memory over 50 rounds of 3 clients (QSFL_BENCH_PARAMETERS=100000000)"

CLIENTS = 3
WARM_UP = 5
MAX_GROWTH = 0.25  # of one float32 model of at least 10 million parameters

Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    """Return one row per few rounds.

    ``resident`` is what the system shows: it includes what Python's cycle collector and the C
    allocator will reuse. ``in use`` is taken after both gave back what they could; a leak would
    show there.
    """
    size = int(os.environ.get("QSFL_BENCH_PARAMETERS", 1_000_000 if quick else 10_000_000))
    rounds = 15 if quick else 50
    strategy = StableFedAvg(min_train_nodes=CLIENTS, min_available_nodes=CLIENTS, seed=0)
    start = make_model(size)
    arrays, reference, rows = to_arrays(start), 0.0, []
    grid: Any = StubGrid(CLIENTS)
    for turn in range(1, rounds + 1):
        sent = number(strategy.configure_train(turn, arrays, ConfigRecord(), grid))
        # Every round has its own replies, as in a federation, and lets go of them.
        replies = [answer(message, start, examples) for examples, message in enumerate(sent, 1)]
        result, _ = strategy.aggregate_train(turn, replies)
        if result is None:
            raise RuntimeError("the round was skipped")
        arrays = result
        del replies, sent, result
        if turn not in (1, WARM_UP) and turn % 10 and turn != rounds:
            continue
        resident, in_use = _resident(), _in_use()
        reference = in_use if turn <= WARM_UP else reference
        growth = (in_use - reference) / (4 * size)
        rows.append(
            {
                "parameters": size,
                "round": turn,
                "resident MB": round(resident / 1e6),
                "in use MB": round(in_use / 1e6),
                "growth in models": round(growth, 3),
                "limit": "" if quick else f"<= {MAX_GROWTH}",
                # A small model drowns in what the interpreter itself needs.
                "ok": quick or growth <= MAX_GROWTH,
            }
        )
    return rows


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def _in_use() -> int:
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)
    return _resident()
