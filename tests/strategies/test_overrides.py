"""Hooks of Flower's strategies that users override: they work, or are refused with a reason."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from qsfl_flower.errors import ConfigError
from qsfl_flower.strategies import BufferedAsync, FedAsync, StableFedAvg
from qsfl_flower.testing import LocalGrid

START = {"w": Array(np.zeros(3, np.float32))}


def start(strategy, rounds=3, **options):
    """Run over three clients that add what they are told; return the model and what they saw."""
    seen = []

    def app(message, context):
        told = message.content["config"]
        seen.append((message.metadata.message_type, context.node_id, dict(told)))
        if message.metadata.message_type == "evaluate":
            metrics = MetricRecord({"num-examples": 5, "loss": 2.0})
            return Message(RecordDict({"metrics": metrics}), reply_to=message)
        model = message.content["arrays"]["w"].numpy() + np.float32(told.get("add", 1.0))
        arrays = ArrayRecord({"w": Array(model)})
        metrics = MetricRecord({"num-examples": 5, "train-loss": 1.0})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    result = strategy.start(
        LocalGrid(app, 3), ArrayRecord(START), num_rounds=rounds, timeout=5, **options
    )
    return result, seen


class Schedule(StableFedAvg):
    """What Flower's documentation has people write."""

    def __init__(self, **options):
        super().__init__(**options)
        self.calls = []

    def configure_train(self, server_round, arrays, config, grid):
        config["add"] = 0.5**server_round
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        self.calls.append(("train", server_round, len(replies)))
        return super().aggregate_train(server_round, replies)

    def configure_evaluate(self, server_round, arrays, config, grid):
        self.calls.append(("ask", server_round, 0))
        return super().configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round, replies):
        self.calls.append(("evaluate", server_round, len(list(replies))))
        return MetricRecord({"loss": 7.0})


def test_what_is_changed_in_the_config_reaches_the_clients_and_every_hook_is_called():
    strategy = Schedule()
    result, seen = start(strategy)
    assert sorted({told["add"] for kind, _, told in seen if kind == "train"}) == [0.125, 0.25, 0.5]
    np.testing.assert_allclose(result.arrays["w"].numpy(), 0.875)
    calls = (("train", 3), ("ask", 0), ("evaluate", 3))
    assert strategy.calls == [(kind, r, n) for r in (1, 2, 3) for kind, n in calls]
    assert result.evaluate_metrics_clientapp[3]["loss"] == 7.0


class Fewer(StableFedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        messages = super().configure_train(server_round, arrays, config, grid)
        left = [m for m in messages if m.metadata.dst_node_id != 2]
        more = ConfigRecord({"x": 1})
        return [
            Message(RecordDict({**m.content, "more": more}), m.metadata.dst_node_id, "train")
            for m in left
        ]


def test_messages_may_be_left_out_and_made_anew():
    strategy = Fewer(fraction_evaluate=0.0)
    result, seen = start(strategy, rounds=1)
    assert [node for _, node, _ in seen] == [1, 3]
    assert strategy.outcome.cohort.accepted == 2
    np.testing.assert_allclose(result.arrays["w"].numpy(), 1.0)


class Idle(StableFedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        if server_round == 2:
            return []
        return super().configure_train(server_round, arrays, config, grid)


def test_a_round_may_be_left_out():
    result, seen = start(Idle(fraction_evaluate=0.0))
    assert len(seen) == 6
    np.testing.assert_allclose(result.arrays["w"].numpy(), 2.0)


class OwnMean(StableFedAvg):
    def aggregate_train(self, server_round, replies):
        models = [reply.content["arrays"]["w"].numpy() for reply in replies]
        return ArrayRecord({"w": Array(np.max(models, axis=0))}), None


def test_an_own_aggregation_is_used():
    result, _ = start(OwnMean(fraction_evaluate=0.0))
    np.testing.assert_allclose(result.arrays["w"].numpy(), 3.0)


def message(node):
    content = RecordDict({"arrays": ArrayRecord(START), "config": ConfigRecord()})
    return Message(content, node, "train")


class Own(StableFedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        return [message(1), message(2)]


class Stranger(StableFedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        return [*super().configure_train(server_round, arrays, config, grid), message(9)]


class Twice(StableFedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        return [*super().configure_train(server_round, arrays, config, grid), message(1)]


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Own, r"Own.configure_train returns messages of its own.*call super\(\).configure_train"),
        (Stranger, r"Stranger.configure_train returns 4 messages; allowed is one to each of the 3"),
        (Twice, r"Twice.configure_train returns 4 messages"),
    ],
)
def test_messages_of_a_round_that_nobody_knows_are_refused(kind, why):
    with pytest.raises(ConfigError, match=why):
        start(kind(fraction_evaluate=0.0))


@pytest.mark.parametrize("hook", ["configure_train", "aggregate_train"])
@pytest.mark.parametrize("base", [BufferedAsync, FedAsync])
def test_a_hook_that_an_asynchronous_strategy_would_never_call_is_refused(base, hook):
    kind = type("Mine", (base,), {hook: lambda self, *arguments: []})
    with pytest.raises(ConfigError, match=f"Mine.{hook} would never be called"):
        kind()


def test_hooks_of_evaluation_work_in_an_asynchronous_strategy():
    calls = []

    class Mine(BufferedAsync):
        def aggregate_evaluate(self, server_round, replies):
            calls.append(server_round)
            return super().aggregate_evaluate(server_round, replies)

    start(Mine(buffer_size=2), rounds=2)
    assert calls
