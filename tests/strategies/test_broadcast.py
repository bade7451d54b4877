from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from qsfl_flower.asynchrony import Device, VirtualClock
from qsfl_flower.clients import qsfl_mod
from qsfl_flower.mechanisms.broadcast.client import HELD_RECORD
from qsfl_flower.mechanisms.compression.core import Scheme
from qsfl_flower.stages import Broadcast, Compress, ServerAdam
from qsfl_flower.strategies import FedBuff, RunObserver, StableFedAvg
from qsfl_flower.testing import LocalGrid
from qsfl_flower.wire import from_record, to_record

SIZE = 5000


def an_app(seen):
    app = ClientApp(mods=[qsfl_mod])

    @app.train()
    def train(message, context):
        assert list(message.content.config_records) == ["config"]
        arrays = from_record(message.content["arrays"])
        server_round = message.content["config"]["server-round"]
        seen.append(("train", server_round, context.node_id, arrays["w"].copy()))
        rng = np.random.default_rng((context.node_id, server_round))
        step = rng.standard_normal(SIZE).astype(np.float32)
        new = to_record({"w": arrays["w"] + step, "n": arrays["n"] + 1})
        content = {"arrays": new, "metrics": MetricRecord({"num-examples": 10})}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        arrays = from_record(message.content["arrays"])
        server_round = message.content["config"]["server-round"]
        seen.append(("evaluate", server_round, context.node_id, arrays["w"].copy()))
        metrics = MetricRecord({"num-examples": 10, "loss": float(np.sum(arrays["w"] ** 2))})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


class Watch(RunObserver):
    def __init__(self, before=None):
        self.records, self.models, self.before = [], {}, before

    def on_round(self, record, clients):
        self.records.append(record)
        if self.before is not None:
            self.before(record.round)


def run(stages, rounds, *, before=None, clients=4, **options):
    seen, watch = [], Watch(before)
    grid = LocalGrid(an_app(seen), clients)
    if before is not None:
        watch.before = lambda r: before(r, grid)
    strategy = StableFedAvg(
        min_available_nodes=clients, stages=stages, observer=watch, seed=3, **options
    )
    start = {"w": np.linspace(-1, 1, SIZE, dtype=np.float32), "n": np.array(0)}
    result = strategy.start(grid, to_record(start), num_rounds=rounds, timeout=5)
    return from_record(result.arrays), seen, watch.records, grid, strategy


def test_everybody_has_the_server_s_model_bit_by_bit():
    model, seen, records, grid, _ = run([Broadcast(0.02)], 5, fraction_evaluate=0.5)
    for kind, server_round, _, arrays in seen:
        same = [a for k, r, _, a in seen if (k, r) == (kind, server_round)]
        assert all(np.array_equal(a, same[0]) for a in same), (kind, server_round, arrays)
    last = [a for k, r, _, a in seen if (k, r) == ("evaluate", 5)]
    np.testing.assert_array_equal(last[0], model["w"])
    assert int(model["n"]) == 5
    assert not any(r.rejected for r in records)
    held = from_record(grid.contexts[0].state[HELD_RECORD])
    assert held["w"].nbytes == 4 * SIZE  # the stated size: one copy of the model


def test_only_the_first_exchange_carries_the_model():
    _, _, plain, _, _ = run([], 4, fraction_evaluate=0)
    _, _, few, _, _ = run([Broadcast(0.02)], 4, fraction_evaluate=0)
    assert few[1].bytes_down >= plain[1].bytes_down
    for record in few[2:]:
        assert record.bytes_down < 0.03 * plain[2].bytes_down
        assert record.stages["broadcast"]["record_bytes"] < 0.02 * 4 * SIZE


def test_what_a_step_leaves_out_comes_later():
    """The released steps and the residual add up to the steps of a run without compression."""
    dense, *_ = run([], 1, fraction_evaluate=0)
    model, _, _, _, strategy = run([Broadcast(0.02)], 1, fraction_evaluate=0)
    start = np.linspace(-1, 1, SIZE, dtype=np.float32)
    left = strategy.states["broadcast"]["residual"]
    moved = model["w"].astype(np.float64) - start
    np.testing.assert_allclose(moved + left, dense["w"].astype(np.float64) - start, atol=3e-7)
    assert np.count_nonzero(moved) <= 100


def test_a_client_that_lost_its_model_fails_once_and_then_gets_the_whole():
    def forget(server_round, grid):
        if server_round == 2:
            del grid.contexts[1].state[HELD_RECORD]

    _, seen, records, _, _ = run([Broadcast(0.02)], 5, before=forget, fraction_evaluate=0)
    assert [sum(r.rejected.values()) for r in records] == [0, 0, 0, 1, 0, 0]
    assert sum(1 for k, r, n, _ in seen if (k, n) == ("train", 2)) == 4
    assert records[4].bytes_down > 3 * records[3].bytes_down  # one whole model
    assert records[5].bytes_down < records[3].bytes_down * 1.1


def test_a_damaged_model_is_never_trained_on():
    def damage(server_round, grid):
        if server_round == 2:
            held = from_record(grid.contexts[0].state[HELD_RECORD])
            grid.contexts[0].state[HELD_RECORD] = to_record({**held, "w": held["w"] + 1})

    _, seen, records, _, _ = run([Broadcast(0.02)], 3, before=damage, fraction_evaluate=0)
    assert sum(records[3].rejected.values()) == 1
    assert {n for k, r, n, _ in seen if (k, r) == ("train", 3)} == {2, 3, 4}


def test_clients_that_were_away_catch_up():
    _, seen, records, _, _ = run(
        [Broadcast(0.02)], 8, clients=6, fraction_train=0.34, fraction_evaluate=0, min_replies=1
    )
    assert not any(r.rejected for r in records)
    for server_round in range(1, 9):
        same = [a for _, r, _, a in seen if r == server_round]
        assert all(np.array_equal(a, same[0]) for a in same)


@pytest.mark.parametrize("optimizer", [None, ServerAdam()])
def test_with_compressed_replies_and_an_optimizer(optimizer):
    stages = [Broadcast(0.05), Compress(Scheme(ratio=0.05))]
    stages += [optimizer] if optimizer else []
    _, seen, records, _, _ = run(stages, 4, fraction_evaluate=1.0)
    assert not any(r.rejected for r in records)
    assert records[3].bytes_up + records[3].bytes_down < 0.2 * 4 * 4 * SIZE * 2
    assert len(seen) == 32


def test_asynchronous_clients_follow_too():
    """Everybody trains on a model of the server, while others are still at work on older ones."""
    seen, watch = [], Watch()
    devices = [Device(seconds=s) for s in (1.0, 1.3, 2.9, 7.1)]
    strategy = FedBuff(
        buffer_size=2,
        stages=[Broadcast(0.02)],
        clock=VirtualClock(devices),
        fraction_evaluate=0,
        min_train_nodes=1,
        min_available_nodes=4,
        observer=watch,
        seed=3,
    )
    start = {"w": np.linspace(-1, 1, SIZE, dtype=np.float32), "n": np.array(0)}
    result = strategy.start(LocalGrid(an_app(seen), 4), to_record(start), num_rounds=8)
    assert not any(r.rejected for r in watch.records)
    for server_round in {r for _, r, _, _ in seen}:
        same = [a for _, r, _, a in seen if r == server_round]
        assert all(np.array_equal(a, same[0]) for a in same)
    assert sum(r.bytes_down for r in watch.records[4:]) < 4 * SIZE
    assert np.isfinite(from_record(result.arrays)["w"]).all()
