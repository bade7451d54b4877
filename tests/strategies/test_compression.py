"""Compression through the real strategy, mods, messages and client state, in one process."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_to_proto

import qsfl_flower.mechanisms.compression.client as client_side
from qsfl_flower.clients import qsfl_mod
from qsfl_flower.errors import CompositionError, RejectedUpdate
from qsfl_flower.mechanisms.compression.client import MEMORY_RECORD
from qsfl_flower.mechanisms.compression.core import Mask, Memory, Scheme, decode_record, derive_seed
from qsfl_flower.mechanisms.privacy.server import CentralDP, LocalDP
from qsfl_flower.node.steps import STEPS
from qsfl_flower.numerics import Layout, Vector
from qsfl_flower.stages import (
    Chain,
    ClientPhase,
    Clip,
    Combined,
    CombineStage,
    Compress,
    Robust,
    RoundContext,
    SharedMask,
    Update,
)
from qsfl_flower.strategies import CompressedFedAvg, StableFedAvg
from qsfl_flower.testing import LocalGrid
from qsfl_flower.wire import Form, PlanItem, content_bytes, from_record, to_blobs, to_record

SHAPES = {"a.weight": (40, 25), "a.bias": (40,)}
SIZE = 1040


def model_arrays(shapes=SHAPES):
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def an_app(seen=None, extra=None):
    """Clients that move every weight by noise of their own, which differs in every round."""
    app = ClientApp(mods=[qsfl_mod])

    @app.train()
    def train(message, context):
        server_round = message.content["config"]["server-round"]
        rng = np.random.default_rng((context.node_id, server_round))
        arrays = {}
        for name, array in from_record(message.content["arrays"]).items():
            step = rng.standard_normal(array.shape).astype(np.float32)
            arrays[name] = array + step if array.dtype.kind == "f" else array + 1
        if seen is not None:
            seen.append((context.node_id, server_round, arrays, message.content["arrays"]))
        metrics = MetricRecord({"num-examples": 10, "train-loss": 1.0})
        return Message(
            RecordDict({"arrays": to_record(arrays), "metrics": metrics}), reply_to=message
        )

    return app


class Recorder(LocalGrid):
    """Keeps the replies as they leave the clients."""

    def pull_messages(self, ids):
        replies = list(super().pull_messages(ids))
        self.replies = [*getattr(self, "replies", ()), *replies]
        return replies


def run(strategy, rounds, app=None, arrays=None, clients=3):
    grid = Recorder(app or an_app(), clients)
    result = strategy.start(grid, to_record(arrays or model_arrays()), num_rounds=rounds, timeout=5)
    return grid, from_record(result.arrays)


def flat(arrays):
    return np.concatenate([a.reshape(-1) for a in arrays.values() if a.dtype.kind == "f"])


def test_the_model_is_the_mean_of_what_the_records_say():
    scheme = Scheme("topk", 0.05, values="int4")
    seen = []
    grid, model = run(
        CompressedFedAvg(scheme=scheme, fraction_evaluate=0, min_available_nodes=3),
        2,
        an_app(seen),
    )
    expected, memories = np.zeros(SIZE, np.float32), {n: Memory.empty(SIZE) for n in (1, 2, 3)}
    for server_round in (1, 2):
        total = np.zeros(SIZE)
        for node, this_round, arrays, sent in seen:
            if this_round != server_round:
                continue
            before = flat(from_record(sent))
            np.testing.assert_allclose(before, expected, atol=1e-6)
            delta = flat(arrays).astype(np.float64) - before
            memory = memories[node].correct(delta)
            seed = derive_seed(derive_seed(0, "compress"), server_round, str(node - 1))
            chosen = scheme.choose(memory.residual, server_round, seed)
            _, taken, read = scheme.encode(memory.residual[chosen], SIZE, chosen, seed)
            memories[node] = memory.after(chosen, taken, read)
            total[chosen] += read / 3
        expected = (expected + total).astype(np.float32)
    np.testing.assert_allclose(flat(model), expected, atol=1e-6)
    for node, memory in memories.items():
        kept = from_record(grid.contexts[node - 1].state[MEMORY_RECORD])
        np.testing.assert_array_equal(kept["residual"], memory.residual)
        assert kept["residual"].nbytes == 8 * SIZE  # the stated size of the client state


def test_without_feedback_nothing_is_kept():
    scheme = Scheme("topk", 0.05, feedback=False)
    grid, _ = run(
        StableFedAvg(fraction_evaluate=0, min_available_nodes=3, stages=[Compress(scheme)]), 1
    )
    assert all(MEMORY_RECORD not in context.state for context in grid.contexts)


def test_momentum_keeps_a_velocity():
    scheme = Scheme("topk", 0.05, momentum=0.5)
    grid, _ = run(CompressedFedAvg(scheme=scheme, fraction_evaluate=0, min_available_nodes=3), 1)
    kept = from_record(grid.contexts[0].state[MEMORY_RECORD])
    assert sum(a.nbytes for a in kept.values()) == 16 * SIZE


def test_one_percent_is_less_than_one_percent_of_the_bytes_of_the_reply():
    """On the real message: Flower's protocol buffers, metrics and names included."""
    shapes = {"w": (600, 500)}
    options = {"fraction_evaluate": 0, "min_available_nodes": 3}
    dense, _ = run(StableFedAvg(**options), 1, arrays=model_arrays(shapes))
    few, _ = run(CompressedFedAvg(**options), 1, arrays=model_arrays(shapes))
    for measured in (content_bytes, lambda c: recorddict_to_proto(c).ByteSize()):
        whole, small = (max(measured(r.content) for r in g.replies) for g in (dense, few))
        assert small <= 0.01 * whole
        assert small <= 0.0055 * whole


def test_the_same_run_has_the_same_bits():
    scheme = Scheme("randomk", 0.05, values="int2", feedback=False)
    options = {"fraction_evaluate": 0, "min_available_nodes": 3, "seed": 5}
    (_, one), (_, two) = (run(CompressedFedAvg(scheme=scheme, **options), 3) for _ in range(2))
    np.testing.assert_array_equal(flat(one), flat(two))
    _, other = run(CompressedFedAvg(scheme=scheme, **{**options, "seed": 6}), 3)
    assert np.any(flat(one) != flat(other))


def test_counters_travel_beside_the_record():
    arrays = {**model_arrays(), "n": np.array(4, np.int64)}
    _, model = run(CompressedFedAvg(fraction_evaluate=0, min_available_nodes=3), 1, arrays=arrays)
    assert int(model["n"]) == 5


def test_what_is_bounded_is_what_is_sent():
    """Clipping comes after the choice: the norm of each record is at most the bound (or a step)."""
    strategy = StableFedAvg(
        fraction_evaluate=0,
        min_available_nodes=3,
        stages=[Clip(0.5), Compress(Scheme("topk", 0.05, values="float32"))],
    )
    grid, model = run(strategy, 1)
    for reply in grid.replies:
        data = reply.content["qsfl-payload"]["record"].data
        out = np.empty(SIZE)
        decode_record(data, SIZE).read(0, SIZE, out)
        assert np.linalg.norm(out) == pytest.approx(0.5, rel=1e-6)
        assert np.count_nonzero(out) == 52
    assert np.linalg.norm(flat(model)) <= 0.5 * (1 + 1e-6)


def test_hostile_payloads_are_rejected_by_name_and_the_round_goes_on():
    hostile = {
        1: to_blobs({"record": b"QSC\x01" + bytes(16)}),
        2: ArrayRecord({"record": Array(np.zeros(3, np.uint8))}),
    }

    class Hostile(LocalGrid):
        def pull_messages(self, ids):
            replies = list(super().pull_messages(ids))
            for reply in replies:
                node = reply.metadata.src_node_id
                if node in hostile:
                    reply.content["qsfl-payload"] = hostile[node]
            return replies

    strategy = CompressedFedAvg(fraction_evaluate=0, min_available_nodes=3)
    result = strategy.start(
        Hostile(an_app(), 3), to_record(model_arrays()), num_rounds=1, timeout=5
    )
    assert strategy.outcome.cohort.reasons() == {"bad-record": 1, "malformed": 1}
    assert np.isfinite(flat(from_record(result.arrays))).all()


def context_of(size=1000, server_round=1):
    layout = Layout(("w",), ((size,),), ("float32",))
    return RoundContext(server_round, layout, Vector.dense(np.zeros(size, np.float32)))


def test_a_client_cannot_send_more_or_other_than_asked():
    values = np.random.default_rng(0).standard_normal(1000)
    stage = Compress(Scheme("topk", 0.01))
    for scheme, words in [
        (Scheme("topk", 0.02), "20 values; at most 10 of 1000"),
        (Scheme("topk", 0.01, values="float32"), "expected is int8"),
    ]:
        chosen = scheme.choose(values, 1, 0)
        record, *_ = scheme.encode(values[chosen], 1000, chosen, 0)
        with pytest.raises(RejectedUpdate, match=words):
            stage.decode(to_blobs({"record": record}), context_of())
    warm = Compress(Scheme("topk", 0.01, warmup_rounds=2))
    chosen = warm.scheme.choose(values, 1, 0)
    record, *_ = warm.scheme.encode(values[chosen], 1000, chosen, 0)
    assert warm.decode(to_blobs({"record": record}), context_of()).size == 1000
    with pytest.raises(RejectedUpdate, match="100 values; at most 10"):
        warm.decode(to_blobs({"record": record}), context_of(server_round=2))


class Hidden(CombineStage):
    name = "hidden"
    hides = True

    def combine(self, cohort, state, context):
        raise NotImplementedError


def test_hidden_updates_need_a_shared_mask():
    with pytest.raises(CompositionError, match="use shared_mask"):
        Chain([Compress(), Hidden()])


@pytest.mark.parametrize("select", ["randomk", "topk"])
@pytest.mark.parametrize("feedback", [True, False])
def test_a_shared_mask_is_the_same_for_all_and_changes_from_round_to_round(select, feedback):
    mask = Mask(select, 0.05, values="float32", feedback=feedback)
    stage = SharedMask(mask, seed=1)
    strategy = StableFedAvg(fraction_evaluate=0, min_available_nodes=3, stages=[stage])
    seen = []
    grid, model = run(strategy, 3, an_app(seen))
    models = [flat(from_record(sent)) for node, _, _, sent in seen if node == 1]
    supports = []
    for before, after in zip(models, [*models[1:], flat(model)], strict=True):
        supports.append(np.flatnonzero(before != after))
        assert supports[-1].size == 52
    assert len({tuple(s) for s in supports}) == 3
    if select == "topk":  # half of the coordinates stay where the last step was largest
        step = np.abs(models[1] - models[0])
        largest = np.argsort(-step, kind="stable")[:26]
        assert set(largest) <= set(supports[1])
    for reply in grid.replies:
        assert len(reply.content["qsfl-payload"]["record"].data) == 20 + 4 * 52
    kept = grid.contexts[0].state.get(MEMORY_RECORD)
    if feedback:
        residual = from_record(kept)["residual"]
        assert np.all(residual[supports[-1]] == 0)
        assert np.count_nonzero(residual) > 900
    else:
        assert kept is None


def test_a_mask_without_feedback_is_right_in_expectation():
    """The mean over 400 rounds of a model that is asked to move by one each round.

    Each coordinate is drawn in a share of 0.25 of the rounds; its mean times 4 has the standard
    error sqrt(3 / 400) = 0.087. Six of them over 1,040 coordinates fail with probability 2e-6.
    """
    mask = Mask("randomk", 0.25, values="float32", feedback=False)
    total = np.zeros(SIZE)
    for seed in range(400):
        support = mask.support(np.empty(0, np.int64), SIZE, derive_seed("mean", seed))
        total[support] += mask.scale(SIZE)
    assert np.abs(total / 400 - 1).max() < 6 * 0.087


def test_local_noise_needs_a_shared_mask():
    with pytest.raises(CompositionError, match="use shared_mask"):
        Chain([Compress(), LocalDP(1.0, 1.0)])
    Chain([SharedMask(), LocalDP(1.0, 1.0)])


def test_updates_on_a_mask_can_be_hidden(monkeypatch):
    """A stand-in for secure sums: it sees k coordinates, and gives back a step of k.

    Nothing is encoded that it replaces.
    """
    encoded = []
    monkeypatch.setattr(client_side, "encode_record", lambda *a, **k: encoded.append(a))

    class Sum(CombineStage):
        name = "sum"
        hides = True

        def client_steps(self, state, context):
            return [(ClientPhase.ENCODE, PlanItem("test-hide"))]

        def read(self, sender, content, context):
            values = from_record(content["qsfl-payload"])["v"]
            return Update(sender, 1.0, Vector(()), Form.ENCODED, sealed=values)

        def combine(self, cohort, state, context):
            total = np.mean([u.sealed for u in cohort.updates], axis=0)
            return Combined(cohort, total.astype(np.float64), state)

    def hide(update, parameters, context):
        assert update.vector.shape == (52,)
        payload = to_record({"v": update.vector})
        return replace(update, payload=payload, encoding="test-hide", hidden=True)

    STEPS["test-hide"] = hide
    try:
        stages = [SharedMask(Mask("topk", 0.05)), Sum()]
        strategy = StableFedAvg(fraction_evaluate=0, min_available_nodes=3, stages=stages)
        _, model = run(strategy, 2)
    finally:
        del STEPS["test-hide"]
    assert strategy.outcome.skipped is None
    assert not encoded
    assert 52 < np.count_nonzero(flat(model)) <= 104


def test_per_layer_clipping_needs_layers():
    with pytest.raises(CompositionError, match="belong to no layer"):
        Chain([SharedMask(), Clip(1.0, per_layer=True)])
    Chain([SharedMask(), Clip(1.0)])


def test_a_robust_rule_sees_the_masked_coordinates():
    """Krum picks one client; the model moves on its 52 coordinates and nowhere else."""
    stages = [SharedMask(Mask("randomk", 0.05, values="float32")), Robust("krum", 0)]
    options = {"fraction_evaluate": 0, "min_available_nodes": 3}
    seen = []
    _, model = run(StableFedAvg(stages=stages, **options), 1, an_app(seen))
    moved = flat(model)
    chosen = np.flatnonzero(moved)
    assert chosen.size == 52
    assert any(np.array_equal(moved[chosen], flat(arrays)[chosen]) for _, _, arrays, _ in seen)


def test_central_noise_falls_on_the_masked_coordinates_only():
    stages = [SharedMask(Mask("randomk", 0.05)), Clip(1.0), CentralDP(1.0, 3, seed=1)]
    strategy = StableFedAvg(fraction_evaluate=0, min_available_nodes=3, stages=stages)
    _, model = run(strategy, 1)
    assert np.count_nonzero(flat(model)) == 52
    told = strategy.outcome.measured["central_dp"]
    assert told["expected_noise_norm"] == pytest.approx(told["noise_std"] * 52**0.5)
