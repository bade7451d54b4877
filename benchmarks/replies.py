"""Real Flower messages without a running federation, for benchmarks of strategies."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

# Flower builds messages only inside a run.
TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
logging.getLogger("flwr").setLevel(logging.ERROR)

LAYERS = 8
"""Matrices of a benchmark model, each half as large as the one before, and each with a bias."""


def make_model(size: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return a float32 model of exactly `size` parameters in sixteen arrays."""
    generator = np.random.default_rng(seed)
    left, model = size, {}
    for layer in range(LAYERS):
        bias = min(64, left)
        weight = left - bias if layer == LAYERS - 1 else (left - bias) // 2
        for name, count in (("weight", weight), ("bias", bias)):
            model[f"{layer}.{name}"] = generator.standard_normal(count, dtype=np.float32)
            left -= count
    return model


def to_arrays(model: dict[str, NDArray[np.float32]]) -> ArrayRecord:
    """Serialize a model as Flower does."""
    return ArrayRecord({name: Array(value) for name, value in model.items()})


def number(messages: Iterable[Message]) -> list[Message]:
    """Give the messages the ids that a grid would give them when they are sent."""
    numbered = list(messages)
    for position, message in enumerate(numbered):
        message.metadata.__dict__["_message_id"] = f"message-{position}"
    return numbered


def trained(message: Message, model: dict[str, NDArray[np.float32]], seed: int) -> Message:
    """Answer as a client that moved every parameter by about a hundredth."""
    generator = np.random.default_rng(seed)
    update = {
        name: value + np.float32(0.01) * generator.standard_normal(value.size, dtype=np.float32)
        for name, value in model.items()
    }
    return answer(message, update, 100 + seed % 50)


def answer(message: Message, update: dict[str, NDArray[np.float32]], examples: int) -> Message:
    """Send a model back as a client that trained on so many examples."""
    metrics = MetricRecord({"num-examples": examples, "train_loss": 0.5})
    content = RecordDict({"arrays": to_arrays(update), "metrics": metrics})
    return Message(content, reply_to=message)


@dataclass
class StubGrid:
    """Nodes that are there; enough of a grid for `configure_train`."""

    count: int
    run = SimpleNamespace(run_id=1)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return range(1, self.count + 1)

    def get_nodes(self) -> list[SimpleNamespace]:
        """Return all nodes with the time at which they registered."""
        return [
            SimpleNamespace(node_id=node, registered_at=f"2026-01-01T00:00:00.{node:06d}")
            for node in self.get_node_ids()
        ]
