"""One enrolled key holds one place of a buffer, on however many nodes it answers."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.client import NumPyClient

from qsfl_flower.clients import auth_mod, numpy_client_app, qsfl_mod
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.stages import Authenticate, Robust
from qsfl_flower.strategies import BufferedAsync, RunObserver
from qsfl_flower.strategies.asynchronous import SECOND_PLACE
from qsfl_flower.testing import NodeGrid

from .conftest import NOW

HONEST, NODES, PLACES, SIZE, POISON = 8, 3, 5, 20, 10.0
LIAR = str(HONEST)


class App(NumPyClient):
    def __init__(self, number):
        self.number, self.asked = number, 0

    def fit(self, parameters, config):
        self.asked += 1
        rng = np.random.default_rng((self.number, self.asked))
        step = POISON if self.number == HONEST else 0.1 + 0.3 * rng.normal(size=SIZE)
        return [parameters[0] + step], 10, {}


class HoldingGrid(NodeGrid):
    """Honest answers come one at a time; the liar's are held until all of them are there."""

    def __init__(self, clients):
        super().__init__(clients)
        self.held, self.release = {}, False

    def pull_messages(self, message_ids):
        if self.release:
            self.release = False
            self.ready |= self.held
            return super().pull_messages([i for i in message_ids if i in self.held])
        return super().pull_messages([i for i in message_ids if i in self.ready][:1])


class Rows(RunObserver):
    def __init__(self):
        self.rows, self.rejected = [], []

    def on_round(self, record, clients):
        self.rows.append([r.client for r in clients if r.status in ("accepted", "not-selected")])
        self.rejected.append(dict(record.rejected))


@pytest.mark.parametrize("rule", ["krum", "multi_krum", "median"])
def test_one_key_on_three_nodes_holds_one_place(keys, inside_run, rule):
    """The key's nodes are asked in different rounds, and all answer into the same buffer."""
    roster = open_roster(keys.roster, keys.authority)
    grid = None

    def node(number, node_id, turn):
        context = Context(1, node_id, {"partition-id": number}, RecordDict(), {})
        credentials = Credentials(keys.clients[str(number)], roster)
        made = App(number)
        app = numpy_client_app(
            lambda _: made, mods=[auth_mod(lambda _: credentials, lambda: NOW), qsfl_mod]
        )
        asked = []

        def answer(message):
            reply = app(message, context)
            if number != HONEST:
                return reply
            asked.append(message)
            if len(asked) <= turn:  # so that this node is asked in another round than the others
                return Message(Error(2, "busy"), reply_to=message)
            grid.held[message.metadata.message_id] = reply
            grid.release = turn == NODES - 1
            return None

        return answer

    clients = {100 + n: node(n, 100 + n, 0) for n in range(HONEST)}
    clients |= {200 + turn: node(HONEST, 200 + turn, turn) for turn in range(NODES)}
    grid, watch = HoldingGrid(clients), Rows()
    strategy = BufferedAsync(
        buffer_size=PLACES,
        concurrency=HONEST + NODES,
        min_available_nodes=HONEST + NODES,
        fraction_evaluate=0.0,
        max_staleness=10,
        max_failed_rounds=9,
        observer=watch,
        stages=[
            Authenticate(Credentials(keys.server, roster), clock=lambda: NOW),
            Robust(rule, num_byzantine=1),
        ],
    )
    start = ArrayRecord({"w": Array(np.zeros(SIZE))})
    result = strategy.start(grid, start, num_rounds=8, timeout=20)
    assert any(LIAR in row for row in watch.rows), "the attack takes place"
    assert all(row.count(LIAR) <= 1 for row in watch.rows)
    assert sum(r.get(SECOND_PLACE, 0) for r in watch.rejected) == NODES - 1
    assert np.abs(result.arrays["w"].numpy()).max() < POISON / 2
