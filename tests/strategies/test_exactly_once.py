"""A hundred clients that answer at the same time, twice, wrongly, or never, in real time."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict

from qsfl_flower.asynchrony import Constant
from qsfl_flower.strategies import BufferedAsync, RunObserver

CLIENTS, ROUNDS, BUFFER = 100, 40, 25


class BusyGrid:
    """A grid whose hundred nodes are threads; it delivers what it is given, in any number."""

    run = SimpleNamespace(run_id=1)

    def __init__(self, seed):
        self.lock = threading.Lock()
        self.mailbox: dict[str, list[Message]] = {}
        self.inbox = {n: queue.Queue() for n in range(CLIENTS)}
        self.good: Counter[str] = Counter()
        self.delivered: set[str] = set()
        self.count = 0
        self.two_at_once = 0
        self.working: Counter[int] = Counter()
        for node in range(CLIENTS):
            threading.Thread(target=self._submitter, args=(node, seed), daemon=True).start()

    def get_nodes(self):
        return [SimpleNamespace(node_id=n, registered_at=f"{n:03d}") for n in range(CLIENTS)]

    def push_messages(self, messages):
        ids = []
        for message in messages:
            with self.lock:
                self.count += 1
                name = f"m{self.count}"
                self.working[message.metadata.dst_node_id] += 1
                self.two_at_once += self.working[message.metadata.dst_node_id] > 1
            message.metadata.__dict__["_message_id"] = name
            self.inbox[message.metadata.dst_node_id].put(message)
            ids.append(name)
        return ids

    def pull_messages(self, ids):
        """Everything there is for these ids, copies and foreign answers included."""
        with self.lock:
            found = [m for i in ids for m in self.mailbox.pop(i, [])]
            self.delivered |= {
                m.metadata.reply_to_message_id for m in found if m.has_content()
            } & self.good.keys()
        return found

    def _submitter(self, node, seed):
        rng, before = random.Random(seed * 1000 + node), "m0"
        while (message := self.inbox[node].get()) is not None:
            time.sleep(rng.random() * 0.02)
            name = message.metadata.message_id
            kind = rng.random()
            if kind < 0.1:
                reply = Message(Error(2, "boom"), reply_to=message)
            else:
                arrays = message.content["arrays"]["w"].numpy() + np.float32(1)
                content = RecordDict({
                    "arrays": ArrayRecord({"w": Array(arrays)}),
                    "metrics": MetricRecord({"num-examples": 10}),
                })  # fmt: skip
                reply = Message(content, reply_to=message)
            foreign = Message(RecordDict(), reply_to=message)
            foreign.metadata.__dict__["_reply_to_message_id"] = before
            before = name
            with self.lock:
                self.working[node] = 0
                if 0.1 <= kind < 0.15:
                    continue  # it has worked, but is never heard of
                if reply.has_content():
                    self.good[name] += 1
                box = self.mailbox.setdefault(name, [])
                box += [reply] * rng.choice([1, 1, 2, 3]) + [foreign] * rng.randint(0, 1)
            if rng.random() < 0.3:  # and once more, later
                time.sleep(0.005)
                with self.lock:
                    self.mailbox.setdefault(name, []).append(reply)


class Rows(RunObserver):
    def __init__(self):
        self.rows = []

    def on_round(self, record, clients):
        self.rows += clients


@pytest.mark.parametrize("seed", [1, 2])
def test_every_update_counts_exactly_once(inside_run, seed):
    """Each good answer moves the model by 1/25, and each of them only once: 40 rounds make 40."""
    grid, rows = BusyGrid(seed), Rows()
    strategy = BufferedAsync(
        fraction_evaluate=0.0, min_available_nodes=CLIENTS, buffer_size=BUFFER, seed=0,
        staleness_weight=Constant(), deadline=0.5, observer=rows, max_staleness=1000,
    )  # fmt: skip
    start = ArrayRecord({"w": Array(np.zeros(4, np.float32))})
    result = strategy.start(grid, start, num_rounds=ROUNDS, timeout=30.0)
    for inbox in grid.inbox.values():
        inbox.put(None)
    accepted = [row for row in rows.rows if row.status == "accepted"]
    assert len(accepted) == ROUNDS * BUFFER
    assert {row.weight for row in accepted} == {1 / BUFFER}
    np.testing.assert_allclose(result.arrays["w"].numpy(), ROUNDS, rtol=1e-5)
    spans = Counter((row.node, row.sent_s, row.arrived_s) for row in accepted)
    assert max(spans.values()) == 1
    # Nothing that was delivered is lost: it counted, or waits for the next round. On a machine that
    # stalls, answers may come after their deadline; each of those has been told as "no-reply".
    waiting = sum(a.message.has_content() for a in strategy.rounds._left_over)
    late = len(grid.delivered) - len(accepted) - waiting
    assert 0 <= late <= sum(row.status == "no-reply" for row in rows.rows)
    assert sum(row.status == "client-error" for row in rows.rows) > 20
    assert grid.two_at_once == 0
    assert any(row.staleness for row in accepted)
