"""Audit what is released beside the noise: counters of a model, and statistics that layers keep.

It needs nothing of the suite but its first release, so that one file audits any version of it:

    PYTHONPATH=OTHER_CHECKOUT python benchmarks/audit_leaks.py

Each canary leaves its mark in one place that no noise covers, and is in by a coin; the auditor
guesses the coins from what is released (Steinke, Nasr, Jagielski 2023).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

from qsfl_flower.clients import PrivateTrainingClient, TrainConfig
from qsfl_flower.clients.data import Dataset, Normalization
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.errors import QSFLError
from qsfl_flower.privacy.audit import audit
from qsfl_flower.privacy.gaussian import gaussian_noise_multiplier
from qsfl_flower.privacy.record import RecordPrivacy
from qsfl_flower.stages import CentralDP, Clip, LocalDP
from qsfl_flower.strategies import StableFedAvg

CANARIES, GUESSES, EPSILON, DELTA, CONFIDENCE = 200, 60, 1.0, 1e-5, 0.95
NOISE = gaussian_noise_multiplier(EPSILON, DELTA)
INCLUDED = np.random.default_rng(0).random(CANARIES) < 0.5


class Grid:
    """Answers every message in this process."""

    def __init__(self) -> None:
        from flwr.supercore.task_identity import TaskIdentity

        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
        self.run = SimpleNamespace(run_id=1)
        self.ready: dict[str, Message] = {}
        self.count = 0

    def get_nodes(self) -> list[Any]:
        """Return one node for each canary."""
        return [SimpleNamespace(node_id=n, registered_at=f"{n:06d}") for n in range(CANARIES)]

    def push_messages(self, messages: Any) -> list[str]:
        """Let the nodes answer."""
        names = []
        for message in messages:
            self.count += 1
            name = f"message-{self.count}"
            message.metadata.__dict__["_message_id"] = name
            node = message.metadata.dst_node_id
            context = Context(1, node, {"partition-id": node}, RecordDict(), {})
            self.ready[name] = qsfl_mod(message, context, _counting_client)
            names.append(name)
        return names

    def pull_messages(self, names: Any) -> list[Message]:
        """Return the replies that are there."""
        return [self.ready.pop(name) for name in list(names) if name in self.ready]


def _counting_client(message: Message, context: Context) -> Message:
    """A client that counts something about its data in an integer array of the model."""
    arrays = {name: array.numpy().copy() for name, array in message.content["arrays"].items()}
    own = int(context.node_config["partition-id"])
    arrays["seen"][own] += 5000 * int(INCLUDED[own])
    content = {
        "arrays": ArrayRecord({name: Array(array) for name, array in arrays.items()}),
        "metrics": MetricRecord({"num-examples": 1}),
    }
    return Message(RecordDict(content), reply_to=message)


def counters(*stages: Any) -> np.ndarray:
    """Return the released counters of a model after one round under such stages."""
    strategy = StableFedAvg(
        fraction_evaluate=0.0, min_available_nodes=CANARIES, stages=stages, max_failed_rounds=1
    )
    start = {"w": np.zeros(4, np.float32), "seen": np.zeros(CANARIES, np.int64)}
    record = ArrayRecord({name: Array(array) for name, array in start.items()})
    result = strategy.start(Grid(), record, 1, timeout=60)
    return np.asarray(result.arrays["seen"].numpy(), dtype=np.float64)


def statistics() -> np.ndarray:
    """Return the running means of an instance norm that a client sends after a step of DP-SGD."""
    x = np.zeros((CANARIES, CANARIES, 2), np.float32)
    x[np.arange(CANARIES), np.arange(CANARIES)] = 100.0
    x = x[INCLUDED]
    plain = Normalization((0.0,), (1.0,))
    data = Dataset("canaries", x, np.zeros(len(x), np.int64), x[:0], np.zeros(0, np.int64),
                   x.shape[1:], 2, None, "toy", plain)  # fmt: skip
    model = torch.nn.Sequential(
        torch.nn.InstanceNorm1d(CANARIES, track_running_stats=True),
        torch.nn.Flatten(),
        torch.nn.Linear(2 * CANARIES, 2),
    )
    names = list(model.state_dict())
    privacy = RecordPrivacy(clip_norm=1.0, noise_multiplier=NOISE, sampling_rate=1.0, steps=1)
    client = PrivateTrainingClient(model, data, TrainConfig(), privacy, seed=0, client_id=0)
    sent, _, _ = client.fit([v.numpy() for v in model.state_dict().values()], {"server-round": 1})
    return np.asarray(sent[names.index("0.running_mean")], dtype=np.float64)


CASES: dict[str, Callable[[], np.ndarray]] = {
    "central noise, integer array": lambda: counters(Clip(1.0), CentralDP(NOISE, CANARIES)),
    "local noise, integer array": lambda: counters(LocalDP(1.0, NOISE)),
    "DP-SGD, buffer of an instance norm": statistics,
}


def leak(name: str) -> dict[str, Any]:
    """Return claim and audited bound of a case, or that the suite refuses it."""
    row: dict[str, Any] = {"released beside the noise": name, "claimed epsilon": EPSILON}
    try:
        scores = CASES[name]()
    except QSFLError as error:
        return row | {"audited at least": 0.0, "verdict": f"refused: {error}"[:160]}
    found = audit(scores, INCLUDED, delta=DELTA, guesses=GUESSES, confidence=CONFIDENCE)
    broken = found.epsilon > EPSILON
    return row | {
        "audited at least": round(found.epsilon, 2),
        "right guesses": f"{found.correct} of {found.guesses}",
        "verdict": "audited lower bound > claimed epsilon" if broken else "within the claim",
    }


if __name__ == "__main__":
    rows = [leak(name) for name in CASES]
    for row in rows:
        sys.stdout.write(json.dumps(row) + "\n")
    sys.exit(any(">" in row["verdict"].split(":")[0] for row in rows))
