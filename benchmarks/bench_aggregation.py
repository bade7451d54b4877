"""Server-side aggregation against Flower's FedAvg, on the same replies in one process."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg

from benchmarks.replies import StubGrid, make_model, number, to_arrays, trained
from benchmarks.timing import alternate
from qsfl_flower.numerics import (
    Layout,
    Vector,
    measure,
    sum_and_measure,
    view_npy,
    weighted_sum,
)
from qsfl_flower.strategies import StableFedAvg

NAME = "aggregation"
DESCRIPTION = "one round's aggregation: time against Flower's FedAvg, extra memory"

MIN_RATIO = 1.5
MAX_VECTORS = 4.0  # extra memory in float64 vectors of the model's size
SIZES = ((100, 1_000_000), (10, 10_000_000), (10, 1_000_000))
QUICK_SIZES = ((10, 100_000),)
LIMITED = SIZES[:2]  # small rounds are over in milliseconds either way

Row = dict[str, Any]
Way = Callable[[], object]


def run(quick: bool) -> list[Row]:
    """Return one row per way and size; the ratio is Flower's median time by ours."""
    rows: list[Row] = []
    for clients, size in QUICK_SIZES if quick else SIZES:
        ways = _ways(clients, size)
        timings = alternate(ways, 3 if quick else 9)
        flower = timings["Flower FedAvg"]
        for name, timing in timings.items():
            limited = name == "StableFedAvg" and (clients, size) in LIMITED
            ratio = flower.wall / timing.wall
            rows.append(
                {
                    "clients": clients,
                    "parameters": size,
                    "way": name,
                    "ms": round(timing.wall, 1),
                    "cpu ms": round(timing.cpu, 1),
                    "ratio": round(ratio, 2),
                    "cpu ratio": round(flower.cpu / timing.cpu, 2),
                    "extra float64 vectors": round(_extra(ways[name]) / (8 * size), 2),
                    "limit": f"ratio >= {MIN_RATIO}, extra <= {MAX_VECTORS}" if limited else None,
                }
            )
            if limited:
                extra = rows[-1]["extra float64 vectors"]
                rows[-1]["ok"] = ratio >= MIN_RATIO and extra <= MAX_VECTORS
    return rows


def _ways(clients: int, size: int) -> dict[str, Way]:
    model = make_model(size)
    ours = StableFedAvg(min_train_nodes=clients, min_available_nodes=clients, seed=0)
    grid: Any = StubGrid(clients)
    sent = number(ours.configure_train(1, to_arrays(model), ConfigRecord(), grid))
    replies = [trained(message, model, seed) for seed, message in enumerate(sent)]
    flower = FedAvg()
    layout = Layout.of(model)
    dense = Vector.dense(np.concatenate([value.astype(np.float64) for value in model.values()]))

    def numerics(combine: Callable[[list[Vector], np.ndarray], np.ndarray]) -> Way:
        def way() -> object:
            vectors, weights = _read(replies, layout)
            return layout.unpack(combine(vectors, weights), {})

        return way

    def measure_first(vectors: list[Vector], weights: np.ndarray) -> np.ndarray:
        for vector in vectors:
            measure(vector, dense)
        return weighted_sum(vectors, weights)

    def at_once(vectors: list[Vector], weights: np.ndarray) -> np.ndarray:
        total, _ = sum_and_measure(vectors, weights, [dense] * len(vectors))
        return total

    def stable() -> object:
        result = ours.aggregate_train(1, replies)
        if ours.outcome is None or len(ours.outcome.cohort.updates) != clients:
            raise RuntimeError("the strategy did not use every reply")
        return result

    return {
        "Flower FedAvg": lambda: flower.aggregate_train(1, replies),
        "StableFedAvg": stable,
        "read, sum": numerics(weighted_sum),
        "read, sum and measure": numerics(at_once),
        "read, measure, sum": numerics(measure_first),
    }


def _read(replies: list[Message], layout: Layout) -> tuple[list[Vector], np.ndarray]:
    vectors, weights = [], []
    for reply in replies:
        record = reply.content["arrays"]
        arrays = {
            name: view_npy(array.data, array.dtype, tuple(array.shape))
            for name, array in record.items()
        }
        layout.check(arrays)
        vectors.append(Vector.of(arrays, layout))
        weights.append(reply.content["metrics"]["num-examples"])
    return vectors, np.array(weights) / np.sum(weights)


def _extra(way: Way) -> int:
    """Return the peak of the memory that a way allocates, in bytes, its result included."""
    tracemalloc.start()
    way()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak
