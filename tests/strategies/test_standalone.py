"""A strategy's hooks called by themselves, as users' unit tests call Flower's."""

from __future__ import annotations

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict

from qsfl_flower import strategies
from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.robust.core import RULES
from qsfl_flower.stages import Clip, Robust, ServerAdam, Validate
from qsfl_flower.strategies import RobustFedAvg, StableFedAvg
from qsfl_flower.testing import inside_run


def replies(count: int = 7, shift: float = 3.0) -> list[Message]:
    """Replies as Flower's own tests make them: all of one node, to nothing that was sent."""
    inside_run(1)
    rng = np.random.default_rng(0)
    found = []
    for i in range(count):
        arrays = {"w": shift + rng.normal(size=(3, 2)), "b": rng.normal(size=2)}
        record = ArrayRecord({k: Array(v.astype(np.float32)) for k, v in arrays.items()})
        metrics = MetricRecord({"num-examples": 10, "loss": float(i)})
        asked = Message(RecordDict(), dst_node_id=123, message_type="train")
        content = RecordDict({"arrays": record, "metrics": metrics})
        found.append(Message(content, reply_to=asked))
    return found


MULTI = {"num_malicious_nodes": 1, "num_nodes_to_select": 4}
PEERS = [
    ("FedAvg", StableFedAvg, {}, {}),
    ("FedMedian", strategies.FedMedian, {}, {}),
    ("FedTrimmedAvg", strategies.FedTrimmedAvg, {"beta": 0.2}, {"beta": 0.2}),
    ("Krum", strategies.Krum, {"num_malicious_nodes": 1}, {"num_malicious_nodes": 1}),
    ("MultiKrum", strategies.MultiKrum, MULTI, MULTI),
]


@pytest.mark.parametrize(("name", "ours", "mine", "theirs"), PEERS, ids=[p[0] for p in PEERS])
def test_a_fresh_strategy_combines_as_flowers_does(name, ours, mine, theirs):
    expected, told = getattr(flower, name)(**theirs).aggregate_train(1, replies())
    strategy = ours(**mine)
    for _ in range(2):  # it is fresh until a round is configured
        arrays, metrics = strategy.aggregate_train(1, replies())
        assert list(arrays) == list(expected)
        for key in expected:
            np.testing.assert_allclose(arrays[key].numpy(), expected[key].numpy(), rtol=1e-5)
            assert arrays[key].numpy().dtype == np.float32
    if name == "FedAvg":
        assert metrics["loss"] == pytest.approx(told["loss"])


def test_replies_with_errors_are_rejected_and_a_round_of_errors_changes_nothing():
    bad = Message(Error(2, "boom"), reply_to=replies(1)[0])
    strategy = StableFedAvg()
    arrays, _ = strategy.aggregate_train(1, [bad, *replies()])
    assert arrays is not None
    assert [r.reason for r in strategy.outcome.cohort.rejections] == ["client-error"]
    with pytest.raises(ConfigError, match="no reply holds a model; call configure_train first"):
        StableFedAvg().aggregate_train(1, [bad])


@pytest.mark.parametrize(
    ("stages", "named"),
    [
        ([Clip(1.0)], "'clip'"),
        ([ServerAdam()], "'fedadam'"),
        ([Validate(max_norm=3.0)], "'validate'"),
        ([Robust("norm_bounded")], "'robust'"),
        ([Robust("centered_clipping"), ServerAdam()], "'robust', the stage 'fedadam'"),
    ],
)
def test_stages_that_need_the_start_say_so(stages, named):
    with pytest.raises(
        ConfigError, match=rf"no client was asked, and the stage {named}.*LocalGrid"
    ):
        StableFedAvg(stages=stages).aggregate_train(1, replies())
    with pytest.raises(ConfigError, match="client_api='legacy'"):
        StableFedAvg(client_api="legacy").aggregate_train(1, replies())


EXACT = [rule for rule in RULES if rule not in ("fltrust", "mean") and not RULES[rule].anchored]


@pytest.mark.parametrize("before", [None, "bucketing", "nnm"])
@pytest.mark.parametrize("rule", EXACT)
def test_these_rules_do_not_depend_on_where_a_round_began(rule, before):
    """Shift all updates: the model shifts by as much, so that zeros are as good a start as any."""
    first, second = (
        RobustFedAvg(rule=rule, num_byzantine=1, before=before).aggregate_train(
            1, replies(15, shift)
        )[0]
        for shift in (0.0, 16.0)
    )
    moved = second["w"].numpy() - first["w"].numpy()
    np.testing.assert_allclose(moved, 16.0, atol=1e-4)
    np.testing.assert_allclose(second["b"].numpy(), first["b"].numpy(), atol=1e-4)


def test_a_fresh_strategy_evaluates():
    inside_run(1)
    found = []
    for loss, count in ((1.0, 1), (4.0, 2)):
        asked = Message(RecordDict(), dst_node_id=123, message_type="evaluate")
        metrics = MetricRecord({"num-examples": count, "loss": loss})
        found.append(Message(RecordDict({"metrics": metrics}), reply_to=asked))
    assert StableFedAvg().aggregate_evaluate(1, found)["loss"] == pytest.approx(3.0)
    assert StableFedAvg(stages=[Clip(1.0)]).aggregate_evaluate(1, found)["loss"] == 3.0
