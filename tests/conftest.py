"""A Flower grid without processes, for tests of strategies against scripted clients."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import settings

# A busy machine is no failure: time limits are pytest's.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@dataclass
class FakeGrid:
    """Answers every message with the node's client function; replies arrive in random order."""

    clients: dict[int, Callable]
    seed: int = 0
    ranks: list[int] | None = None
    pushed: list = field(default_factory=list)
    _ready: dict = field(default_factory=dict)
    _count: int = 0
    run = SimpleNamespace(run_id=1)

    def get_nodes(self):
        order = self.ranks or list(self.clients)
        return [
            SimpleNamespace(node_id=n, registered_at=f"2026-01-01T00:00:{order.index(n):02d}")
            for n in self.clients
        ]

    def get_node_ids(self):
        return list(self.clients)

    def push_messages(self, messages: Iterable) -> list[str]:
        ids = []
        for message in messages:
            self._count += 1
            message.metadata.__dict__["_message_id"] = f"m{self._count}"
            self.pushed.append(message)
            reply = self.clients[message.metadata.dst_node_id](message)
            if reply is not None:
                self._ready[message.metadata.message_id] = reply
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, ids: Iterable[str]) -> list:
        found = [i for i in ids if i in self._ready]
        random.Random(self.seed).shuffle(found)
        return [self._ready.pop(i) for i in found]


@pytest.fixture
def inside_run():
    """Flower's messages can only be built inside a run."""
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


@pytest.fixture
def fake_grid(inside_run):
    return FakeGrid


@pytest.fixture
def trained():
    """Make a client that adds `step` to every float array and claims `examples`."""
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

    def make(step: float, examples: float = 10, metrics: dict | None = None, change=None):
        def client(message):
            record = message.content["arrays"]
            arrays = {
                k: a.numpy() + a.numpy().dtype.type(step)
                if a.numpy().dtype.kind == "f"
                else a.numpy()
                for k, a in record.items()
            }
            if change is not None:
                arrays = change(arrays)
            content = RecordDict(
                {
                    "arrays": ArrayRecord({k: Array(np.asarray(v)) for k, v in arrays.items()}),
                    "metrics": MetricRecord({"num-examples": examples, **(metrics or {})}),
                }
            )
            return Message(content, reply_to=message)

        return client

    return make
