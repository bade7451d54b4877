"""Asynchronous against synchronous rounds: what the coordinator costs, and what waiting costs."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from qsfl_flower.asynchrony import Device, VirtualClock
from qsfl_flower.simulations.config import load_experiment
from qsfl_flower.simulations.runner import run_experiment
from qsfl_flower.strategies import BufferedAsync

NAME = "async"
DESCRIPTION = (
    "buffered asynchronous rounds: coordinator per reply, time to the synchronous accuracy"
)

MAX_OVERHEAD_MS = 1.0
IN_FLIGHT = 1000

Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    """Return rows on the coordinator, then rows on whole federations."""
    replies = 500 if quick else 5000
    rows = [_coordinator(clock, replies, quick) for clock in ("wall", "virtual")]
    small = not quick and "QSFL_DATA_DIR" in os.environ
    data = ["data.dataset=mnist", "model.name=mnist-cnn", "clients.epochs=1",
            "clients.batch_size=64"] if small else []  # fmt: skip
    return rows + _federation(data, 4 if quick else 10, quick)


class _Grid:
    """Clients without a network: replies come all at once, or one at a time, the worst case."""

    run = SimpleNamespace(run_id=1)

    def __init__(self, nodes: int, at_once: bool) -> None:
        self._at_once = at_once
        self._nodes = [SimpleNamespace(node_id=n, registered_at=f"{n:06d}") for n in range(nodes)]
        self._ready: dict[str, Message] = {}
        self._order: deque[str] = deque()
        self._sent = 0
        self.seconds = 0.0

    def get_nodes(self) -> list[SimpleNamespace]:
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        began = time.process_time()
        names = []
        for message in messages:
            self._sent += 1
            name = f"m{self._sent}"
            message.metadata.__dict__["_message_id"] = name
            content = RecordDict(
                {
                    "arrays": message.content["arrays"],
                    "metrics": MetricRecord({"num-examples": 10, "train-loss": 0.5}),
                }
            )
            self._ready[name] = Message(content, reply_to=message)
            self._order.append(name)
            names.append(name)
        self.seconds += time.process_time() - began
        return names

    def pull_messages(self, names: Iterable[str]) -> list[Message]:
        began = time.process_time()
        list(names)
        count = len(self._order) if self._at_once else min(1, len(self._order))
        found = [self._ready.pop(self._order.popleft()) for _ in range(count)]
        self.seconds += time.process_time() - began
        return found


def _coordinator(kind: str, replies: int, quick: bool) -> Row:
    """Measure the CPU time of everything that is not the grid; the coordinator has one thread."""
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    nodes, buffer = 2 * IN_FLIGHT, 100
    grid = _Grid(nodes, at_once=kind == "virtual")
    clock = VirtualClock([Device(jitter=1.0)] * nodes) if kind == "virtual" else None
    strategy = BufferedAsync(
        fraction_evaluate=0.0, min_available_nodes=nodes, buffer_size=buffer,
        concurrency=IN_FLIGHT, seed=0, clock=clock,
    )  # fmt: skip
    start = ArrayRecord({"w": Array(np.zeros(10, np.float32))})
    began = time.process_time()
    strategy.start(grid, start, num_rounds=replies // buffer)  # type: ignore[arg-type]
    per_reply = (time.process_time() - began - grid.seconds) / replies * 1e3
    return {
        "what": f"coordinator, {kind} clock, {IN_FLIGHT:,} in flight",
        "CPU ms per reply": round(per_reply, 3),
        "limit": None if quick else f"<= {MAX_OVERHEAD_MS} ms",
        "ok": quick or per_reply <= MAX_OVERHEAD_MS,
    }


def _federation(data: list[str], rounds: int, quick: bool) -> list[Row]:
    """Train 20 clients, 4 of them ten times slower, with equally many updates."""
    with tempfile.TemporaryDirectory() as folder:
        common = [*data, f"output.folder={folder}"]
        sync = _curve([*common, 'strategy={"name": "fedavg"}', f"rounds={rounds}"])
        free = _curve([*common, f"rounds={2 * rounds}"])
    final, time_sync = sync[-1][2], sync[-1][1]
    reached = next((at for _, at, accuracy in free if accuracy >= final), None)
    best = free[-1][2]
    half = reached is not None and reached <= time_sync / 2
    name = f"{'mnist' if data else 'digits'}, 4 of 20 are ten times slower"
    head: Row = {"what": name, "updates": 20 * rounds}
    return [
        {**head, "strategy": "fedavg", "accuracy": final, "simulated s": round(time_sync)},
        {
            **head,
            "strategy": "fedbuff, K = 10",
            "accuracy": best,
            "simulated s": round(free[-1][1]),
            "fedavg's accuracy at s": None if reached is None else round(reached),
            "limit": None if quick else "within 1 point; fedavg's accuracy in half the time",
            "ok": quick or (best >= final - 0.01 and half),
        },
    ]


def _curve(overrides: list[str]) -> list[tuple[int, float, float]]:
    """Run a federation; return round, simulated seconds and accuracy of every round."""
    summary = run_experiment(load_experiment("async", overrides))
    lines = (Path(summary["folder"]) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines][1:]
    return [(r["round"], r["clock_s"], r["eval_accuracy"]) for r in records]
