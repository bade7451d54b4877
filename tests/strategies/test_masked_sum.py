"""Pairwise-mask sums over real messages and the real mods: exact, and nothing else arrives."""

import base64
import json
import time
from functools import partial

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord

from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.errors import CompositionError, TooFewReplies
from qsfl_flower.mechanisms.compression.core import Mask
from qsfl_flower.node import steps
from qsfl_flower.secure.pairwise import client as protocol
from qsfl_flower.secure.pairwise.ring import RingCode
from qsfl_flower.stages import (
    Authenticate,
    Combined,
    CombineStage,
    MaskedSum,
    Phase,
    SharedMask,
    VectorStage,
)
from qsfl_flower.strategies import SecAggFedAvg, StableFedAvg
from qsfl_flower.wire import QSFL_RECORD, from_record, to_record
from qsfl_flower.wire.keys import MASKED_SUM, PLAN_KEY, TASK_KEY

from .masked import (
    MODEL,
    NAMES,
    NOW,
    Add,
    Device,
    Recorder,
    refusal,
    run_federation,
    task_of,
    vanish,
)


@pytest.fixture(scope="module")
def keys():
    return create_federation(NAMES, now=NOW)


@pytest.fixture
def roster(keys):
    return open_roster(keys.roster, keys.authority)


@pytest.fixture
def federation(fake_grid, keys, roster):
    return partial(run_federation, fake_grid, keys, roster)


def expected(members, rounds=1, max_examples=1000):
    """Integers of the ring in plain Python: the mean step of some clients, in two dtypes."""
    code = RingCode(8.0, len(NAMES))
    weights = {n: min(100 * (n + 1) / max_examples, 1.0) for n in members}
    weights = {n: round(w * 2**20) / 2**20 for n, w in weights.items()}
    means = []
    for dtype in (np.float32, np.float64):
        total = sum(
            round(float(np.asarray(0.1 * (n + 1), dtype)) * w * 2**code.bits)
            for n, w in weights.items()
        )
        means.append(total / 2**code.bits / sum(weights.values()))
    return means


def test_the_mean_is_that_of_the_integers(federation):
    run = federation(rounds=1)
    w, b = expected(range(6))
    arrays = from_record(run.result.arrays)
    np.testing.assert_array_equal(arrays["b"], np.full(2, b))
    np.testing.assert_array_equal(arrays["w"], np.full((2, 3), np.float32(w)))
    metrics = run.result.train_metrics_clientapp[1]
    assert set(metrics) == {"train-loss"}
    assert metrics["train-loss"] == pytest.approx(70 / 21, rel=1e-5)


@pytest.mark.parametrize("select", ["randomk", "topk"])
def test_the_sum_of_public_coordinates(federation, select):
    """With a shared mask of half of the coordinates four of eight move, by the same integers."""
    mask = SharedMask(Mask(select, 0.5, feedback=False), seed=3)
    run = federation(rounds=1, stages=[mask])
    arrays = from_record(run.result.arrays)
    moved = np.concatenate([arrays["w"].reshape(-1), arrays["b"]])
    assert np.count_nonzero(moved) == 4
    scale = 2.0 if select == "randomk" else 1.0
    w, _ = expected(range(6))
    np.testing.assert_allclose(moved[moved != 0], scale * w, rtol=1e-5)
    assert not run.rounds[0].skipped


def test_four_exchanges_first_and_three_from_then_on(federation):
    run = federation(rounds=3)
    assert [r.stages[MASKED_SUM]["exchanges"] for r in run.rounds] == [4, 3, 3]
    assert run.rounds[0].stages[MASKED_SUM]["degree"] == 5
    assert [r.rejected for r in run.rounds] == [{}] * 3


def test_weights_are_capped(federation):
    run = federation(rounds=1, max_examples=200)
    np.testing.assert_array_equal(
        from_record(run.result.arrays)["b"], np.full(2, expected(range(6), max_examples=200)[1])
    )


@pytest.mark.parametrize(
    ("task", "in_the_sum", "reason"),
    [("train", False, "no-reply"), ("deal", False, "no-reply"), ("mask", False, "no-reply"),
     ("release", True, None)],
)  # fmt: skip
def test_a_client_may_vanish_at_every_step(federation, task, in_the_sum, reason):
    run = federation(rounds=1, attacks={2: vanish(task)})
    members = [n for n in range(6) if n != 2 or in_the_sum]
    np.testing.assert_array_equal(
        from_record(run.result.arrays)["b"], np.full(2, expected(members)[1])
    )
    assert run.rounds[0].rejected == ({reason: 1} if reason else {})


def test_clients_may_vanish_after_they_have_dealt_with_the_training_reply(federation):
    """In the second round shares come early; a client lost in training costs nothing extra."""
    run = federation(rounds=2, attacks={1: vanish("train", rounds=(2,)),
                                        4: vanish("mask", rounds=(2,))})  # fmt: skip
    assert [r.accepted for r in run.rounds] == [6, 4]
    assert run.rounds[1].stages[MASKED_SUM]["exchanges"] == 3
    first, second = expected(range(6))[1], expected([0, 2, 3, 5])[1]
    np.testing.assert_allclose(from_record(run.result.arrays)["b"], first + second, rtol=1e-15)


def test_shares_are_dealt_anew_if_too_many_are_lost_in_training(federation):
    attacks = {n: vanish("train", rounds=(2,)) for n in (0, 1, 2)}
    run = federation(rounds=2, attacks=attacks)
    assert run.rounds[1].stages[MASKED_SUM]["exchanges"] == 4
    assert run.rounds[1].stages[MASKED_SUM]["degree"] == 2
    assert run.rounds[1].accepted == 3
    assert run.rounds[1].skipped is None


def test_too_many_lost_leave_the_model_and_the_next_round_works(federation):
    attacks = {n: vanish("mask", rounds=(1,)) for n in (0, 1, 2)}
    run = federation(rounds=2, attacks=attacks)
    assert run.rounds[0].skipped.startswith("too-few-clients: 3 of 6 clients are left")
    assert run.rounds[1].skipped is None
    np.testing.assert_array_equal(
        from_record(run.result.arrays)["b"], np.full(2, expected(range(6))[1])
    )


# What the server sees.


def test_nothing_of_one_client_reaches_the_server(federation):
    """A recorder on every reply: no update, no count, no metric, no norm, in any byte order."""
    run = federation(rounds=2)
    assert leaks(run) == []


def test_the_recorder_notices_a_leak(federation, monkeypatch):
    honest = steps.STEPS[MASKED_SUM]

    def leaky(update, parameters, context):
        norm = float(np.linalg.norm(update.vector))
        answer = honest(update, parameters, context)
        payload = ArrayRecord({**answer.payload, "norm": Array(np.array([norm]))})
        return protocol.replace(answer, payload=payload)

    monkeypatch.setitem(steps.STEPS, MASKED_SUM, leaky)
    assert leaks(federation(rounds=1))


def leaks(run):
    """Search everything that was sent for what belongs to one client."""
    found = []
    for device in run.devices.values():
        n = device.context.node_config["partition-id"]
        step = 0.1 * (n + 1)
        numbers = [step, step * (n + 1) / 10, np.sqrt(8) * step, 100 * (n + 1), (n + 1) / 10]
        numbers += [float(n)] if n > 1 else []
        secrets = {
            np.asarray(x, dtype).tobytes()
            for x in numbers
            for dtype in ("<f4", "<f8", ">f8", "<f2")
            if np.asarray(x, dtype).tobytes().strip(b"\0")
        }
        for reply in device.replies:
            for name, record in reply.content.items():
                if name == "qsfl-auth":
                    continue
                for key, value in record.items():
                    if isinstance(value, Array):
                        data = value.numpy().tobytes()
                        if key == "norm" or (value.numpy().dtype.kind == "f"):
                            found.append((n, name, key))
                    elif isinstance(value, bytes):
                        data = value
                    else:
                        data = b""
                        allowed = {"client", "form", "encoding"}
                        if isinstance(value, float | int) or key not in allowed:
                            found.append((n, name, key))
                    found += [(n, name, key) for s in secrets if len(s) >= 8 and s in data]
    return found


def test_masked_vectors_of_equal_updates_have_nothing_in_common(federation):
    run = federation(rounds=1)
    vectors = [
        np.asarray(from_record(reply.content.array_records["masked"])["masked"])
        for device in run.devices.values()
        for reply in device.replies
        if "masked" in reply.content.array_records
    ]
    assert len(vectors) == 6
    assert len({v.tobytes() for v in vectors}) == 6
    assert len(set(vectors[0][:8].tolist())) == 8, "equal coordinates are masked differently"


def test_one_client_at_two_nodes_counts_once(fake_grid, keys, roster):
    devices = {100 + int(n): Device(n, keys.clients[n], roster) for n in NAMES}
    devices[200] = Device("5", keys.clients["5"], roster)
    devices[200].context.node_id = 200
    server, recorder = Credentials(keys.server, roster), Recorder()
    gate = Authenticate(server, clock=lambda: NOW)
    masked = MaskedSum(server, clock=lambda: NOW, colluding=0.0)
    strategy = StableFedAvg(fraction_evaluate=0.0, stages=[gate, masked], observer=recorder)
    result = strategy.start(fake_grid(devices), to_record(MODEL), num_rounds=1, timeout=1)
    assert recorder.rounds[1].rejected == {"wrong-node": 1}
    np.testing.assert_allclose(from_record(result.arrays)["b"], expected(range(6))[1], rtol=1e-7)


# Servers that lie.


def test_a_client_answers_one_list_of_survivors_only(federation, keys, roster):
    """The server asks for both shares of client 5: alive in one list, lost in the other."""
    told = []

    def both(message, answer):
        if task_of(message) != "release":
            return answer(message)
        first = answer(message)
        record = message.content.config_records[MASKED_SUM]
        other = bytes([record["survivors"][0] ^ 1])
        told.append(refusal(message, {"survivors": other}, devices["device"], keys, roster))
        return first

    devices = {}

    def attack(message, answer):
        devices["device"] = answer.__self__
        return both(message, answer)

    run = federation(rounds=1, attacks={0: attack})
    assert told == ["policy-second-answer"]
    assert run.rounds[0].skipped is None


@pytest.mark.parametrize("task", ["deal", "mask"])
def test_an_update_is_masked_only_once(federation, keys, roster, task):
    """After the vector is gone, neither new shares nor another mask can be had for it."""
    told = []

    def attack(message, answer):
        reply = answer(message)
        if task_of(message) == task == "mask":
            record = dict(message.content.config_records[MASKED_SUM])
            told.append(refusal(message, record, answer.__self__, keys, roster))
        if task_of(message) == "release" and task == "deal":
            message.content.config_records[QSFL_RECORD][TASK_KEY] = "masked_sum.deal"
            told.append(refusal(message, {"terms": b"x"}, answer.__self__, keys, roster))
        return reply

    federation(rounds=1, attacks={0: attack})
    assert told == ["policy-second-answer"]


def test_a_client_refuses_a_cohort_below_its_own_minimum(federation):
    with pytest.raises(TooFewReplies, match="policy-cohort"):
        federation(rounds=1, config={"qsfl-min-cohort": 7})


def test_a_client_refuses_a_threshold_that_its_own_assumption_forbids(federation):
    with pytest.raises(TooFewReplies, match="policy-threshold"):
        federation(rounds=1, config={"qsfl-max-colluding": 0.4})


def test_a_sum_of_another_round_is_refused(federation):
    def attack(message, answer):
        if task_of(message) == "deal":
            device = answer.__self__
            record = dict(device.context.state.config_records["qsfl-masked-sum"])
            device.context.state["qsfl-masked-sum"] = ConfigRecord({**record, "round": 7})
        return answer(message)

    run = federation(rounds=1, attacks={3: attack})
    assert run.rounds[0].rejected == {"client-error": 1}, "the state is bound to its round"
    assert run.rounds[0].skipped is None


# Clients that misbehave.


def garble(task, change):
    def attack(message, answer):
        reply = answer(message)
        if task_of(message) == task and not reply.has_error():
            change(reply.content)
        return reply

    return attack


def test_what_was_changed_on_the_way_is_not_let_in(federation):
    def change(content):
        vector = from_record(content.array_records["masked"])["masked"]
        content["masked"] = to_record({"masked": vector + np.uint32(1)})

    run = federation(rounds=1, attacks={1: garble("mask", change)})
    assert run.rounds[0].accepted == 5
    assert list(run.rounds[0].rejected) == ["malformed"] or run.rounds[0].rejected
    np.testing.assert_array_equal(
        from_record(run.result.arrays)["b"], np.full(2, expected([0, 2, 3, 4, 5])[1])
    )


def bad_task(monkeypatch, task, change):
    """Replace what a client's own code answers, before it is signed."""
    honest = steps.TASKS[f"{MASKED_SUM}.{task}"]

    def answer(context):
        content = honest(context)
        if context.context.node_config["partition-id"] == 3:
            change(content)
        return content

    monkeypatch.setitem(steps.TASKS, f"{MASKED_SUM}.{task}", answer)


def shorten(content):
    content["masked"] = to_record({"masked": np.zeros(3, np.uint32)})


def lengthen(name):
    def change(content):
        record = content.config_records[MASKED_SUM]
        record[name] += b"x"

    return change


def drop(content):
    del content[MASKED_SUM]


@pytest.mark.parametrize(
    ("task", "change"),
    [("deal", lengthen("deal")), ("deal", drop), ("mask", shorten), ("mask", lengthen("lockers"))],
)
def test_a_malformed_answer_is_named_and_does_no_harm(federation, monkeypatch, task, change):
    bad_task(monkeypatch, task, change)
    run = federation(rounds=1)
    assert run.rounds[0].rejected == {"malformed": 1}
    np.testing.assert_array_equal(
        from_record(run.result.arrays)["b"], np.full(2, expected([0, 1, 2, 4, 5])[1])
    )


def test_a_wrong_release_is_named_and_the_sum_is_whole(federation, monkeypatch):
    def change(content):
        record = content.config_records[MASKED_SUM]
        record["release"] = record["release"][:-40] + bytes(40)

    bad_task(monkeypatch, "release", change)
    run = federation(rounds=1)
    assert run.rows[0]["3"].status == "inconsistent-release"
    np.testing.assert_array_equal(
        from_record(run.result.arrays)["b"], np.full(2, expected(range(6))[1])
    )


def test_a_dealer_whose_shares_open_nothing_is_named_and_excluded(federation, monkeypatch):
    """The first sum fails; from then on everybody else goes on without it."""
    honest, split = steps.TASKS[f"{MASKED_SUM}.deal"], protocol.split_seed

    def unequal(seed, threshold, points, randomness=None):
        return {point: split(seed, threshold, points)[point] for point in points}

    def deal(context):
        if context.context.node_config["partition-id"] != 3:
            return honest(context)
        with monkeypatch.context() as patch:
            patch.setattr(protocol, "split_seed", unequal)
            return honest(context)

    monkeypatch.setitem(steps.TASKS, f"{MASKED_SUM}.deal", deal)
    run = federation(rounds=3)
    assert run.rounds[0].skipped.startswith("inconsistent-shares: 3 dealt shares")
    assert [r.skipped for r in run.rounds[1:]] == [None, None]
    assert [r.accepted for r in run.rounds[1:]] == [5, 5]
    assert run.strategy.states[MASKED_SUM]["excluded"] == {"3": "inconsistent-shares"}
    step = expected([0, 1, 2, 4, 5])[1]
    np.testing.assert_allclose(from_record(run.result.arrays)["b"], 2 * step, rtol=1e-15)


def test_the_state_survives_a_checkpoint(federation):
    state = federation(rounds=1).strategy.states[MASKED_SUM]
    assert json.loads(json.dumps(state)) == state
    assert state["names"] == {str(100 + n): str(n) for n in range(6)}


def test_a_client_out_of_range_stays_out_and_is_named(federation, monkeypatch):
    monkeypatch.setattr(
        Add,
        "fit",
        lambda self, p, c: ([x + (9.0 if self.number == 3 else 1.0) for x in p], 1000, {}),
    )
    run = federation(rounds=1)
    assert run.rounds[0].accepted == 5
    assert run.rounds[0].rejected == {"client-error": 1}
    np.testing.assert_array_equal(from_record(run.result.arrays)["b"], np.ones(2))


def test_a_poisoned_vector_that_cannot_be_a_sum_leaves_the_model(federation, monkeypatch):
    """A client that masks what no honest encoder writes is caught if the sum leaves the range."""
    honest = steps.STEPS[MASKED_SUM]

    def step(update, parameters, context):
        if context.context.node_config["partition-id"] == 3:
            parameters = {**parameters, "clients": 1}
            update.vector[:] = 7.99
            update = protocol.replace(update, metrics={"num-examples": 1000})
        return honest(update, parameters, context)

    monkeypatch.setitem(steps.STEPS, MASKED_SUM, step)
    run = federation(rounds=2, attacks={n: vanish("train", rounds=(1,)) for n in (0, 1, 2)})
    assert run.rounds[0].skipped.startswith("out-of-range")


# Composition.


class Select(CombineStage):
    name = "krum"

    def combine(self, cohort, state, context):
        return Combined(cohort, None, state)


class Double(VectorStage):
    name = "double"
    phase = Phase.PRIVATIZE

    def apply(self, vector, state, context):
        return 2 * vector, state, {}


def test_selection_rules_are_refused_with_a_reason(keys, roster):
    server = Credentials(keys.server, roster)
    with pytest.raises(CompositionError, match="pairwise masks cancel only in the sum over"):
        StableFedAvg(stages=[Authenticate(server), MaskedSum(server), Select()])


def test_without_authenticated_keys_it_is_refused(keys, roster):
    with pytest.raises(CompositionError, match="masked_sum needs authenticate"):
        StableFedAvg(stages=[MaskedSum(Credentials(keys.server, roster))])


def test_stages_on_the_sum_go_on_working(federation):
    run = federation(rounds=1, stages=[Double()])
    np.testing.assert_array_equal(
        from_record(run.result.arrays)["b"], np.full(2, 2 * expected(range(6))[1])
    )


def test_the_ready_strategy_takes_flowers_arguments(fake_grid):
    keys = create_federation(NAMES, now=int(time.time()))
    roster = open_roster(keys.roster, keys.authority)
    devices = {100 + int(n): Device(n, keys.clients[n], roster, clock=time.time) for n in NAMES}
    strategy = SecAggFedAvg(
        credentials=Credentials(keys.server, roster), clip_norm=0.5, min_train_nodes=3,
        min_available_nodes=6, masks={"colluding": 0.0},
    )  # fmt: skip
    result = strategy.start(fake_grid(devices), to_record(MODEL), num_rounds=2, timeout=1)
    steps_of_clients = [min(0.1 * (n + 1), 0.5 / np.sqrt(8)) for n in range(6)]
    mean = np.average(steps_of_clients, weights=range(1, 7))
    np.testing.assert_allclose(from_record(result.arrays)["w"], 2 * mean, rtol=1e-5)
    assert not result.evaluate_metrics_clientapp


def test_the_plan_is_small_and_json(federation):
    run = federation(rounds=2)
    plans = [
        json.loads(m.content.config_records[QSFL_RECORD][PLAN_KEY])
        for m in run.grid.pushed
        if PLAN_KEY in m.content.config_records.get(QSFL_RECORD, {})
    ]
    terms = [plan["steps"][0]["parameters"]["terms"] for plan in plans]
    assert [bool(t) for t in terms] == [False] * 6 + [True] * 6
    assert all(len(base64.b64decode(t)) < 100 for t in terms)
