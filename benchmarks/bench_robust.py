"""Robust rules against Flower, ByzFL and byzpy, on the same arrays in one process.

Flower gets what it gets in a round, replies as records; the others and we get float32 arrays.
Everybody may use all cores. ``ratio`` is the time of the fastest peer by ours, on the clock and in
processor time. A peer that is not installed is left out. ``--quick`` checks that everything runs.

The last rows are whole rounds of 100 clients with the MNIST network in one process: training,
messages, mods, strategy. ``overhead`` is what the server adds to a round of the plain mean, in
percent of that round if all cores trained at once.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import flwr.serverapp.strategy as flower
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from benchmarks.replies import StubGrid
from benchmarks.timing import alternate
from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.models import get_arrays
from qsfl_flower.mechanisms.detection.core import Detection, Memory, extract, inspect
from qsfl_flower.mechanisms.robust import core as robust
from qsfl_flower.mechanisms.robust.core import Updates
from qsfl_flower.numerics import Layout
from qsfl_flower.simulations.build import client_of, model_of, owners_of
from qsfl_flower.simulations.config import load_experiment
from qsfl_flower.stages import Detect, Robust, Stage
from qsfl_flower.strategies import RoundRecord, RunObserver, StableFedAvg
from qsfl_flower.testing import LocalGrid
from qsfl_flower.wire import to_record

NAME = "robust"
DESCRIPTION = "robust rules: time and memory against Flower, ByzFL and byzpy"

SIZES = tuple((n, d) for d in (100_000, 1_000_000) for n in (10, 50, 100, 200))
QUICK_SIZES = ((10, 10_000),)
MAX_EXTRA = 0.25  # of the inputs
AGAINST_FLOWER = {"median": 5.0, "trimmed_mean": 5.0, "bulyan": 4.0, "krum": 2.0}
LIMITED_FROM = 50  # clients, at d = 1e6
MAX_OVERHEAD = 0.2  # of a round's wall time
MAX_DETECTION = 2_000  # ms, of 2,000 updates of 5,000 parameters

Row = dict[str, Any]
Way = Callable[[], object]


def run(quick: bool) -> list[Row]:
    """Return one row per rule and size; the ratios are the peers' times by ours."""
    rows: list[Row] = []
    for clients, size in QUICK_SIZES if quick else SIZES:
        matrix = make_updates(clients, size)
        for name, ways in rules(matrix):
            rows.append(_row(name, ways, matrix, quick))
    return [*rows, _detection(quick), *_whole_rounds(quick)]


def make_updates(clients: int, size: int) -> np.ndarray:
    """Return float32 updates: a common direction, noise, and a fifth of outliers."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((clients, size), dtype=np.float32)
    matrix += rng.standard_normal(size, dtype=np.float32)
    matrix[: clients // 5] *= np.float32(-10)
    return matrix


def rules(matrix: np.ndarray) -> Iterator[tuple[str, dict[str, Way]]]:
    """Yield each rule with the ways to compute it, ours first."""
    count = len(matrix)
    f = min(count // 5, (count - 3) // 4)
    updates = Updates.of(matrix)
    peers: dict[str, dict[str, Way]] = {}
    for found in (_flower(matrix, f), _byzfl(matrix, f), _byzpy(matrix, f)):
        for name, peer, way in found:
            peers.setdefault(name, {})[peer] = way
    ours: dict[str, Way] = {
        name: lambda rule=rule: robust.aggregate(updates, rule(f))  # type: ignore[misc]
        for name, rule in robust.RULES.items()
        if name not in {"mean", "fltrust", "mda"}
    }
    ours["mean"] = lambda: robust.aggregate(updates, robust.Mean())
    ours["mda"] = lambda: robust.aggregate(updates, robust.MDA(f))
    root = matrix[-1].astype(np.float64)
    ours["fltrust"] = lambda: robust.aggregate(updates, robust.FLTrust(root=root))

    ours["nnm + trimmed_mean"] = lambda: robust.aggregate(
        updates, robust.TrimmedMean(f), robust.NearestNeighbourMixing()
    )
    for name, way in ours.items():
        yield name, {"ours": way, **peers.get(name, {})}


def _row(name: str, ways: dict[str, Way], matrix: np.ndarray, quick: bool) -> Row:
    count, size = matrix.shape
    timings = alternate(ways, 1 if quick else 3 if size * count > 2e7 else 7)
    best = {peer: timing.wall for peer, timing in timings.items() if peer != "ours"}
    own = timings["ours"].wall
    extra = _extra(ways["ours"]) / matrix.nbytes
    row: Row = {
        "n": count,
        "d": size,
        "rule": name,
        "ms": round(own, 1),
        "cpu ms": round(timings["ours"].cpu, 1),
        "extra / inputs": round(extra, 3),
        **{f"{peer} ms": round(ms, 1) for peer, ms in best.items()},
    }
    if best:
        fastest = min(best, key=lambda peer: best[peer])
        row["fastest peer"] = fastest
        row["ratio"] = round(best[fastest] / own, 2)
        row["cpu ratio"] = round(timings[fastest].cpu / timings["ours"].cpu, 2)
    if not quick:
        wanted = AGAINST_FLOWER.get(name) if count >= LIMITED_FROM and size >= 10**6 else None
        row["ok"] = (
            extra <= MAX_EXTRA
            and row.get("ratio", 1.0) >= 1.0
            and (wanted is None or best["Flower"] / own >= wanted)
        )
    return row


def _detection(quick: bool) -> Row:
    """Detect among many small updates; the first round, which simulates limits, does not count."""
    count, size = (50, 500) if quick else (2_000, 5_000)
    updates, names = Updates.of(make_updates(count, size)), [str(n) for n in range(count)]
    layout, memory, taken = Layout(("w",), ((size,),), ("float32",)), Memory.new(0), []
    for turn in range(1, 3 if quick else 5):
        begun = time.perf_counter(), time.process_time()
        table = extract(updates, layout, np.ones(size), memory.trusted(names, turn))
        memory = inspect(table, names, memory, Detection(), turn)[1]
        taken.append((time.perf_counter() - begun[0], time.process_time() - begun[1]))
    wall, cpu = (1e3 * statistics.median(values) for values in zip(*taken[1:], strict=True))
    row: Row = {"n": count, "d": size, "rule": "detect", "ms": round(wall, 1)}
    row["cpu ms"] = round(cpu, 1)
    return row if quick else {**row, "ok": wall <= MAX_DETECTION}


class _Laps(RunObserver):
    """Keeps how long the parts of a round took, in milliseconds."""

    def on_round(self, record: RoundRecord, clients: Any) -> None:
        """Keep the last round's."""
        self.ms = {name: 1e3 * seconds for name, seconds in record.timing.items()}


def _whole_rounds(quick: bool) -> list[Row]:
    """Compare rounds that differ in the server's stages only, in turn; the first does not count."""
    if not quick and "QSFL_DATA_DIR" not in os.environ:
        return []
    clients = 20 if quick else 100
    experiment = load_experiment(
        "plain" if quick else "mnist",
        [f"clients.count={clients}", "data.partition={scheme: iid}"],
    )
    owners, start = owners_of(experiment), to_record(get_arrays(model_of(experiment)))

    def client(context: Any) -> Any:
        return client_of(experiment, owners, int(context.node_config["partition-id"]))

    grid = LocalGrid(numpy_client_app(client), clients)
    f = clients // 5
    chains: dict[str, Callable[[], list[Stage]]] = {
        "mean": list,
        "multi_krum": lambda: [Robust("multi_krum", f)],
        "nnm + trimmed_mean": lambda: [Robust("trimmed_mean", f, before="nnm")],
        "bulyan": lambda: [Robust("bulyan", f)],
        "detect": lambda: [Detect()],
    }
    laps: dict[str, list[dict[str, float]]] = {name: [] for name in chains}
    for turn in range(1 if quick else 3):
        for name, stages in chains.items():
            seen = _Laps()
            strategy = StableFedAvg(
                fraction_evaluate=0.0, min_available_nodes=clients, stages=stages(), observer=seen
            )
            strategy.start(grid, start, num_rounds=1)
            if turn or quick:
                laps[name].append(seen.ms)
    found = {
        name: {part: statistics.median(ms[part] for ms in taken) for part in taken[0]}
        for name, taken in laps.items()
    }
    training = found["mean"]["clients"] / (os.cpu_count() or 1)
    rows: list[Row] = []
    for name, ms in found.items():
        added = ms["aggregate"] - found["mean"]["aggregate"]
        overhead = added / (training + found["mean"]["aggregate"])
        row: Row = {
            "n": clients,
            "d": sum(a.size for a in get_arrays(model_of(experiment)).values()),
            "rule": f"a round with {name}",
            "ms": round(sum(ms.values()), 1),
            "aggregate ms": round(ms["aggregate"], 1),
            "overhead": f"{overhead:+.1%}",
        }
        if not quick:
            row["ok"] = overhead <= MAX_OVERHEAD
        rows.append(row)
    return rows


def _extra(way: Way) -> int:
    """Return the peak of what a way allocates, in bytes, its result included."""
    gc.collect()
    tracemalloc.start()
    way()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def _flower(matrix: np.ndarray, f: int) -> Iterator[tuple[str, str, Way]]:
    """Flower's strategies, on replies that hold the arrays."""
    grid: Any = StubGrid(len(matrix))
    strategies = {
        "krum": flower.Krum(num_malicious_nodes=f),
        "multi_krum": flower.MultiKrum(num_malicious_nodes=f, num_nodes_to_select=len(matrix) - f),
        "median": flower.FedMedian(),
        "trimmed_mean": flower.FedTrimmedAvg(beta=f / len(matrix) + 1e-9),
        "bulyan": flower.Bulyan(num_malicious_nodes=f),
        "mean": flower.FedAvg(),
    }
    first = flower.FedAvg(min_train_nodes=len(matrix), min_available_nodes=len(matrix))
    asked = first.configure_train(
        1, ArrayRecord({"w": Array(np.zeros(1, np.float32))}), ConfigRecord(), grid
    )
    messages = list(asked)
    for index, message in enumerate(messages):
        message.metadata.__dict__["_message_id"] = str(index)
    records = [ArrayRecord({"w": Array(row)}) for row in matrix]

    def replies() -> list[Message]:
        # FedTrimmedAvg takes the arrays out of its replies: they are made anew, which is cheap.
        return [
            Message(
                RecordDict(
                    {
                        "arrays": ArrayRecord(dict(record.items())),
                        "metrics": MetricRecord({"num-examples": 1}),
                    }
                ),
                reply_to=message,
            )
            for record, message in zip(records, messages, strict=True)
        ]

    for name, strategy in strategies.items():
        yield name, "Flower", lambda s=strategy: s.aggregate_train(1, replies())  # type: ignore[misc]


def _byzfl(matrix: np.ndarray, f: int) -> Iterator[tuple[str, str, Way]]:
    """ByzFL on NumPy and on torch, whichever of the two is faster being what counts."""
    if importlib.util.find_spec("byzfl") is None:
        return
    import byzfl
    import torch

    makers: dict[str, Callable[[], Callable[[Any], Any]]] = {
        "mean": byzfl.Average,
        "krum": lambda: byzfl.Krum(f),
        "multi_krum": lambda: byzfl.MultiKrum(f),
        "median": byzfl.Median,
        "trimmed_mean": lambda: byzfl.TrMean(f),
        "geometric_median": byzfl.GeometricMedian,
        "centered_clipping": lambda: byzfl.CenteredClipping(L=3),
        "meamed": lambda: byzfl.Meamed(f),
    }
    if len(matrix) <= 10:
        makers["mda"] = lambda: byzfl.MDA(f)
    pairs = ("krum", "multi_krum", "nnm + trimmed_mean")

    def nnm() -> Callable[[Any], Any]:
        mix, trim = byzfl.NNM(f), byzfl.TrMean(f)
        return lambda rows: trim(mix(rows))

    if matrix.nbytes * len(matrix) < 2e9:
        makers["nnm + trimmed_mean"] = nnm
    tensor = torch.from_numpy(matrix)
    for name, make in makers.items():
        if name in pairs and matrix.nbytes > 5e8:
            yield name, "ByzFL torch", lambda make=make: make()(tensor)  # type: ignore[misc]
            continue
        yield name, "ByzFL numpy", lambda make=make: make()(matrix)  # type: ignore[misc]
        yield name, "ByzFL torch", lambda make=make: make()(tensor)  # type: ignore[misc]


def _byzpy(matrix: np.ndarray, f: int) -> Iterator[tuple[str, str, Way]]:
    """Byzpy, on a list of torch tensors, since not all of its rules take arrays."""
    if importlib.util.find_spec("byzpy") is None:
        return
    import torch
    from byzpy.aggregators.coordinate_wise.median import CoordinateWiseMedian
    from byzpy.aggregators.coordinate_wise.trimmed_mean import CoordinateWiseTrimmedMean
    from byzpy.aggregators.geometric_wise.geometric_median import GeometricMedian
    from byzpy.aggregators.geometric_wise.krum import Krum, MultiKrum
    from byzpy.aggregators.norm_wise.center_clipping import CenteredClipping
    from byzpy.aggregators.norm_wise.comparative_gradient_elimination import (
        ComparativeGradientElimination,
    )
    from byzpy.pre_aggregators.nnm import NearestNeighborMixing

    rows = list(torch.from_numpy(matrix))
    ways: dict[str, Any] = {
        "krum": Krum(f),
        "multi_krum": MultiKrum(f, len(rows) - f),
        "median": CoordinateWiseMedian(),
        "trimmed_mean": CoordinateWiseTrimmedMean(f),
        "geometric_median": GeometricMedian(),
        "centered_clipping": CenteredClipping(c_tau=100.0, M=3),
        "cge": ComparativeGradientElimination(f),
    }
    for name, way in ways.items():
        yield name, "byzpy", lambda way=way: way.aggregate(rows)  # type: ignore[misc]
    mix, trim = NearestNeighborMixing(f), CoordinateWiseTrimmedMean(f)
    yield "nnm + trimmed_mean", "byzpy", lambda: trim.aggregate(mix.pre_aggregate(rows))
