"""Hidden updates over asynchronous buffers: the steps are those in the clear, each counts once."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, replace
from unittest.mock import patch

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsfl_flower.asynchrony import (
    Adaptive,
    Constant,
    Device,
    Polynomial,
    StalenessWeight,
    VirtualClock,
    integer_weights,
)
from qsfl_flower.errors import CompositionError, ConfigError
from qsfl_flower.mechanisms.compression.core import Mask
from qsfl_flower.secure.desk import Desk
from qsfl_flower.secure.terms import Terms
from qsfl_flower.stages import Clip, Committee, MaskedSum, SecureKrum, SecureSum, SharedMask
from qsfl_flower.strategies import BufferedAsync, FedAsync
from qsfl_flower.testing import VirtualTime
from qsfl_flower.wire import to_record
from qsfl_flower.wire.keys import HELLO_TASK, RELEASE_TASK, SECURE_RECORD, TAKE_TASK

from .conftest import MODEL, NOW, Recorder, refusal_of, task_of, update_of


@dataclass(frozen=True)
class Sixteenths(StalenessWeight):
    """Weights that integers hold exactly."""

    def weight(self, staleness, version):
        return max(1, 16 - 5 * staleness) / 16


def secure_sum(**options):
    committee = options.pop("committee", Committee(min_clients=2))
    return SecureSum(4.0, committee, clock=lambda: NOW, max_examples=1000, **options)


def secure_krum(f=1, **options):
    committee = options.pop("committee", Committee(min_clients=2))
    return SecureKrum(4.0, f, committee, clock=lambda: NOW, **options)


def run(grid, seconds, stages, rounds=8, timeout=100.0, **options):
    seen, models = Recorder(), []
    options = {"buffer_size": 3, "max_staleness": 5, **options}
    strategy = BufferedAsync(
        fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=len(seconds), seed=5,
        clock=VirtualClock([Device(s) for s in seconds], patience=1.0), observer=seen,
        stages=stages, max_failed_rounds=9, **options,
    )  # fmt: skip
    with VirtualTime().for_strategies():
        strategy.start(
            grid, to_record(MODEL), num_rounds=rounds, timeout=timeout,
            evaluate_fn=lambda _, arrays: models.append(flat(arrays)),
        )  # fmt: skip
    return models, seen, strategy


def flat(arrays):
    return np.concatenate([arrays["w"].numpy().reshape(-1), arrays["b"].numpy()])


SPEEDS = (1.0, 1.3, 1.7, 2.9, 4.1, 7.3)


def rows_of(seen, *fields):
    return [
        (number, *(getattr(row, name) for name in fields))
        for number, rows in enumerate(seen.rows)
        for row in rows.values()
    ]


@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_buffered_strategy_in_the_clear(federation, weighted):
    """Step by step, with updates of several versions in most buffers, to the fixed point's unit."""

    def examples(n):
        return 500 + 30 * n if weighted else 400

    stages = [federation.gate, secure_sum(weighted=weighted)]
    grid, _ = federation(6, pull=0.3, examples=examples)
    hidden, seen, strategy = run(grid, SPEEDS, stages)
    grid, _ = federation(6, pull=0.3, examples=examples)
    clip = [federation.gate, Clip(4.0)]
    plain, plain_seen, _ = run(grid, SPEEDS, clip, staleness_weight=Constant())
    for ours, theirs in zip(hidden, plain, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    fields = ("client", "staleness", "status", "sent_s", "arrived_s")
    assert rows_of(seen, *fields) == rows_of(plain_seen, *fields)
    # The definition: x + 1/K sum over the buffer of the differences to what was sent.
    mixed = 0
    for number in range(1, 9):
        step, total = np.zeros(8), 0.0
        for row in seen.rows[number].values():
            if row.status != "accepted":
                continue
            origin, n = hidden[number - 1 - row.staleness], int(row.client)
            delta = update_of(n).astype(np.float64) - 0.3 * origin
            step += examples(n) * delta
            total += examples(n)
            mixed += row.staleness > 0
        accepted = seen.rounds[number].accepted
        step *= accepted / 3 / total
        np.testing.assert_allclose(hidden[number], hidden[number - 1] + step, atol=1e-6)
    assert mixed >= 5
    assert strategy.weighting.by_staleness == (1, 1, 1, 1, 1, 1)


def test_hidden_krum_selects_among_updates_of_several_versions(federation):
    """The liar is never selected; a step is that of Multi-Krum on unweighted differences."""
    poison = {4: np.full(8, 0.9, np.float32)}
    grid, _ = federation(8, updates=poison, pull=0.2)
    seconds = (1.0, 1.1, 1.2, 1.3, 1.0, 2.3, 2.9, 3.7)
    models, seen, _ = run(grid, seconds, [federation.gate, secure_krum()], buffer_size=6, rounds=10)
    heard = stale = 0
    for number in range(1, 11):
        rows = [r for r in seen.rows[number].values() if r.status in ("accepted", "not-selected")]
        deltas = []
        for row in rows:
            n, origin = int(row.client), models[number - 1 - row.staleness]
            deltas.append((poison.get(n, update_of(n)) - 0.2 * origin).astype(np.float64))
        heard += any(row.client == "4" for row in rows)
        count = len(rows)
        apart = np.array([[((a - b) ** 2).sum() for b in deltas] for a in deltas])
        scores = np.sort(apart, axis=1)[:, 1 : count - 2].sum(axis=1)
        best = set(np.argsort(scores)[: count - 3])
        assert {i for i, row in enumerate(rows) if row.status == "accepted"} == best
        assert "4" not in {rows[i].client for i in best}
        stale += sum(rows[i].staleness > 0 for i in best)
        step = sum(deltas[i] for i in best) / 3
        np.testing.assert_allclose(models[number] - models[number - 1], step, atol=1e-6)
    assert heard >= 5
    assert stale >= 3


def test_every_update_counts_once(federation):
    """Over the whole run no share is taken twice, and no member releases two sums of a buffer."""
    grid, devices = federation(6, pull=0.3)
    _, seen, _ = run(grid, SPEEDS, [federation.gate, secure_sum()], rounds=12)
    for node in range(100, 105):
        tasks = [m for m in grid.pushed if m.metadata.dst_node_id == node]
        taken = [h for m in tasks if task_of(m) == TAKE_TASK for h in headers_of(m)]
        assert len(taken) == len(set(taken)) == sum(r.accepted for r in seen.rounds)
        assert sum(task_of(m) == RELEASE_TASK for m in tasks) == 12
        # What a member remembers does not grow with the run.
        memory = devices[node].context.state["qsfl-memory"]["committee/1/memory"]
        assert min(use.until for use in Desk.recall(memory).uses.values()) >= 12
    assert sum(task_of(m) == HELLO_TASK for m in grid.pushed) == 5


def headers_of(message):
    return message.content[SECURE_RECORD]["headers"]


def ask_again(devices, strategy, message, **changes):
    """Send a member one more task that the server has signed."""
    node = message.metadata.dst_node_id
    told = {**message.content[SECURE_RECORD], **changes}
    kept = {k: v for k, v in message.content.items() if k not in ("qsfl-auth", SECURE_RECORD)}
    content = RecordDict({**kept, SECURE_RECORD: ConfigRecord(told)})
    held = strategy.rounds._assignments.held
    exchange = replace(held[max(held)].exchange, inside=True)
    contents, strategy.engine.states = strategy.chain.instruct(
        {node: content}, strategy.states, exchange
    )
    return devices[node](Message(contents[node], node, "train"))


def with_round(message, number):
    """Return the terms of a task with another round."""
    values = json.loads(message.content[SECURE_RECORD]["terms"])
    return json.dumps({**values, "round": number}, sort_keys=True, separators=(",", ":"))


def test_a_server_that_replays_shares_gets_nothing(federation):
    """It shows a member shares of the last buffers under the terms of the next round."""
    grid, devices = federation(6, pull=0.3)
    _, _, strategy = run(grid, SPEEDS, [federation.gate, secure_sum()], rounds=6)
    last = [m for m in grid.pushed if task_of(m) == TAKE_TASK and m.metadata.dst_node_id == 100][-1]
    assert "no way back" in refusal_of(ask_again(devices, strategy, last))
    replayed = ask_again(devices, strategy, last, terms=with_round(last, 7))
    complaints = replayed.content[SECURE_RECORD]["complaints"]
    assert {"already-taken"} <= set(complaints) <= {"already-taken", "stale-round"}
    # Shares that are complained of cannot be released.
    release = [m for m in grid.pushed if task_of(m) == RELEASE_TASK]
    last = [m for m in release if m.metadata.dst_node_id == 100][-1]
    assert "no valid share" in refusal_of(ask_again(devices, strategy, last, round=7))
    # Nor can the rounds go back, beyond what the member remembers.
    taken = [m for m in grid.pushed if task_of(m) == TAKE_TASK and m.metadata.dst_node_id == 100]
    far = ask_again(devices, strategy, taken[-1], terms=with_round(taken[-1], 50))
    assert set(far.content[SECURE_RECORD]["complaints"]) == {"stale-round"}
    back = ask_again(devices, strategy, taken[-1], terms=with_round(taken[-1], 7))
    assert "round 50 has begun" in refusal_of(back)


def test_a_member_that_forgets_is_replaced_and_what_it_held_is_rejected(federation):
    """It refuses; the next committee is another one, under which older shares do not count."""
    seen_by = {"takes": 0}

    def forget(message, answer):
        if task_of(message) == TAKE_TASK:
            seen_by["takes"] += 1
            if seen_by["takes"] == 3:
                devices[101].context.state = RecordDict({
                    k: v
                    for k, v in devices[101].context.state.items()
                    if k not in ("qsfl-committee", "qsfl-memory")
                })  # fmt: skip
        return answer(message)

    grid, devices = federation(7, {1: forget}, pull=0.3)
    stage = secure_sum(committee=Committee(5, 3, min_clients=2))
    seconds = (*SPEEDS, 5.0)
    _, seen, strategy = run(grid, seconds, [federation.gate, stage], rounds=10)
    assert seen.rounds[3].stages["secure_sum"]["member 1"] == 0.0
    assert seen.rounds[3].accepted == 3  # the other four are enough
    assert "1" not in strategy.states["secure_sum"]["seats"].members
    rejected = [row for row in rows_of(seen, "status", "detail") if row[1] == "other-committee"]
    assert rejected
    assert min(number for number, *_ in rejected) == 4
    assert "not those of the committee of round 4" in rejected[0][2]
    assert all(r.accepted for r in seen.rounds[4:])


def test_an_answer_for_another_version_than_the_one_asked_is_rejected(federation):
    """A client deals under the terms of an older round that it remembers."""
    decode = Terms.decode.__func__

    def older(cls, values):
        terms = decode(cls, values)
        return replace(terms, round=terms.round - 1) if terms.round > 3 else terms

    def attack(message, answer):
        if task_of(message) != "train":
            return answer(message)
        with patch.object(Terms, "decode", classmethod(older)):
            return answer(message)

    grid, _ = federation(6, {5: attack})
    _, seen, _ = run(grid, (1.0, 1.1, 1.2, 1.3, 1.4, 1.0), [federation.gate, secure_sum()])
    statuses = {row[2] for row in rows_of(seen, "client", "status") if row[1] == "5"}
    assert "wrong-round" in statuses
    assert all(r.accepted for r in seen.rounds[1:])


def test_too_stale_shares_are_rejected_before_they_are_read(federation):
    grid, _ = federation(6)
    _, seen, _ = run(
        grid, (1.0, 1.1, 1.2, 1.3, 1.4, 9.0), [federation.gate, secure_sum()], rounds=20,
        max_staleness=2,
    )  # fmt: skip
    statuses = [row[2] for row in rows_of(seen, "client", "status") if row[1] == "5"]
    assert statuses
    assert set(statuses) == {"too-stale"}


def test_public_coordinates_are_the_same_within_an_epoch(federation):
    stages = [federation.gate, secure_krum(), SharedMask(Mask(ratio=0.5), seed=1, epoch=6)]
    grid, _ = federation(6, pull=0.3)
    seconds = (1.0, 1.1, 1.2, 1.3, 1.4, 3.3)
    models, seen, _ = run(grid, seconds, stages, rounds=18, buffer_size=5)
    steps = [np.flatnonzero(b - a) for a, b in itertools.pairwise(models)]
    supports = [set(np.concatenate(steps[i : i + 6])) for i in (0, 6, 12)]
    assert [len(s) for s in supports] == [4, 4, 4]
    assert len(set(map(frozenset, supports))) > 1
    late = [number for number, status in rows_of(seen, "status") if status == "other-support"]
    assert late
    assert set(late) <= {7, 8, 9, 13, 14, 15}
    assert any(
        status == "accepted" and staleness
        for _, status, staleness in rows_of(seen, "status", "staleness")
    )


@given(seconds=st.lists(st.floats(0.5, 9.0), min_size=6, max_size=6), limit=st.integers(0, 4))
@settings(
    max_examples=8, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_the_speeds_the_steps_are_those_of_the_definition(federation, seconds, limit):
    stages = [federation.gate, secure_sum(weighted=False)]
    grid, _ = federation(6, pull=0.3)
    models, seen, _ = run(grid, seconds, stages, rounds=5, max_staleness=limit)
    for number in range(1, 6):
        rows = [r for r in seen.rows[number].values() if r.status == "accepted"]
        assert max((r.staleness for r in rows), default=0) <= limit
        step = np.zeros(8)
        for row in rows:
            delta = update_of(int(row.client)) - 0.3 * models[number - 1 - row.staleness]
            step += delta / 3
        if len(rows) >= 2:
            np.testing.assert_allclose(models[number] - models[number - 1], step, atol=1e-6)
        else:
            assert np.array_equal(models[number], models[number - 1])


@pytest.mark.parametrize(
    ("error", "says", "stages", "options"),
    [
        (ConfigError, "buffer_size: Krum with 1 Byz.* at least 5", [secure_krum()], {}),
        (
            ConfigError,
            "a buffer of 5 lets 2 updates into a sum",
            [secure_krum(committee=Committee(min_clients=3))],
            {"buffer_size": 5},
        ),
        (
            ConfigError,
            "a buffer of 1 lets 1 updates",
            [secure_sum()],
            {"buffer_size": 1},
        ),
        (
            ConfigError,
            "the weights of Adaptive change",
            [secure_sum()],
            {"staleness_weight": Adaptive(10)},
        ),
        (
            ConfigError,
            "the field has 61",
            [secure_sum(bits=52)],
            {"buffer_size": 10, "staleness_weight": Polynomial()},
        ),
        (
            ConfigError,
            "epoch is 5, but updates may be 5 versions old",
            [secure_sum(), SharedMask(epoch=5)],
            {},
        ),
    ],
)
def test_impossible_chains_are_refused(federation, error, says, stages, options):
    options = {"buffer_size": 3, "max_staleness": 5, **options}
    with pytest.raises(error, match=says):
        BufferedAsync(fraction_evaluate=0.0, stages=[federation.gate, *stages], **options)


def test_masks_and_single_updates_are_still_refused(federation):
    masked = [federation.gate, MaskedSum(federation.credentials, bound=4.0)]
    with pytest.raises(CompositionError, match="masked_sum hides single updates"):
        BufferedAsync(fraction_evaluate=0.0, stages=masked)
    with pytest.raises(ConfigError, match="a buffer of 1"):
        FedAsync(fraction_evaluate=0.0, stages=[federation.gate, secure_sum()])
    with pytest.raises(ConfigError, match="epoch is 2, but the coordinates"):
        SharedMask(Mask(select="topk"), epoch=2)
    with pytest.raises(ConfigError, match="epoch is 0"):
        SharedMask(epoch=0)


def test_weights_of_a_rule_become_small_integers():
    assert integer_weights(Constant(), 4) == (1, 1, 1, 1, 1)
    assert integer_weights(Polynomial(0.5), 5) == (16, 11, 9, 8, 7, 7)
    assert integer_weights(Polynomial(1.0), 3) == (16, 8, 5, 4)
    assert integer_weights(Polynomial(9.0), 2) == (16, 1, 1)


class Busy:
    """A grid on which answers take so many looks, and on which nobody may be asked twice at once.

    Flower's simulation would start both from the same client state.
    """

    def __init__(self, grid, looks, never=()):
        self.grid, self.looks, self.never, self.run = grid, looks, never, grid.run
        self.owes, self.left = {}, {}

    def __getattr__(self, name):
        return getattr(self.grid, name)

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            node = message.metadata.dst_node_id
            assert node not in self.owes.values(), f"node {node} is asked while it is at work"
        ids = self.grid.push_messages(messages)
        for name, message in zip(ids, messages, strict=True):
            self.owes[name] = message.metadata.dst_node_id
            self.left[name] = self.looks(message)
        return ids

    def pull_messages(self, ids):
        for name in ids:
            if name in self.left:
                self.left[name] -= 1
        found = self.grid.pull_messages([i for i in ids if self.left.get(i, 0) <= 0])
        for message in found:
            del self.owes[message.metadata.reply_to_message_id]
        return found


def test_members_at_work_are_asked_when_they_have_answered(federation):
    """Whatever the real duration of their work: the same models, bit for bit."""
    stages = [federation.gate, secure_sum()]
    plain, *_ = run(federation(6, pull=0.3)[0], SPEEDS, stages)
    for looks in (1, 7):
        slow = Busy(
            federation(6, pull=0.3)[0],
            lambda m, looks=looks: looks * (1 + m.metadata.dst_node_id % 3),
        )
        models, seen, _ = run(slow, SPEEDS, [federation.gate, secure_sum()])
        assert np.array_equal(models, plain)
        assert all(r.accepted == 3 for r in seen.rounds[1:])


def test_a_member_that_stays_at_work_is_given_up(federation):
    def looks(message):
        node, train = message.metadata.dst_node_id, task_of(message) == "train"
        return 10**9 if node == 102 and train else 1

    grid = Busy(federation(7)[0], looks)
    seconds = (1.0, 1.3, 4.0, 1.4, 1.5, 1.6, 1.7)
    _, seen, strategy = run(grid, seconds, [federation.gate, secure_sum()], rounds=2, timeout=2.0)
    assert seen.rounds[1].stages["secure_sum"]["member 2"] == 0.0
    assert seen.rounds[1].accepted == 3
    assert "2" not in strategy.states["secure_sum"]["seats"].members
