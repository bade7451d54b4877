from __future__ import annotations

import json
import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qsfl_flower.asynchrony import Ledger, Verdict
from qsfl_flower.errors import CheckpointError, QSFLError


def test_an_answer_counts_once():
    ledger, task = Ledger().assign(7, version=3, now=1.0)
    assert (task.client, task.version, task.sent_at) == (7, 3, 1.0)
    ledger, settled, verdict = ledger.settle(task.number)
    assert (settled, verdict) == (task, Verdict.COUNTS)
    assert ledger.settle(task.number) == (ledger, None, Verdict.DUPLICATE)


def test_a_number_that_was_never_given_out_is_unknown():
    ledger, _ = Ledger().assign(7, 0, 0.0)
    for number in (1, 99, -1):
        assert ledger.settle(number)[2] is Verdict.UNKNOWN


def test_a_client_has_one_task_at_a_time():
    ledger, task = Ledger().assign(7, 0, 0.0)
    with pytest.raises(QSFLError, match="client 7 has a task already"):
        ledger.assign(7, 1, 1.0)
    ledger, *_ = ledger.settle(task.number)
    ledger.assign(7, 1, 1.0)


def test_an_answer_after_the_deadline_does_not_count_but_frees_its_client():
    ledger, task = Ledger().assign(7, 0, 0.0, patience=10.0)
    assert ledger.expire(9.9) == (ledger, ())
    ledger, missed = ledger.expire(10.0)
    assert missed == (task,)
    assert ledger.busy == {7}
    ledger, _, verdict = ledger.settle(task.number)
    assert verdict is Verdict.LATE
    assert ledger.busy == frozenset()
    assert ledger.settle(task.number)[2] is Verdict.DUPLICATE


def test_a_silent_client_rests_ever_longer_and_is_forgiven_when_heard():
    ledger, rests, now = Ledger(), [], 0.0
    for _ in range(9):
        ledger, task = ledger.assign(7, 0, now, patience=10.0)
        ledger, (missed,) = ledger.expire(task.deadline)
        assert missed == task
        rests.append(ledger.next_deadline - task.deadline)
        now = ledger.next_deadline
        ledger, missed = ledger.expire(now)
        assert missed == ()
        assert ledger.busy == frozenset()
    assert rests == [20, 40, 80, 160, 320, 640, 640, 640, 640]
    ledger, task = ledger.assign(7, 0, now, patience=10.0)
    ledger, *_ = ledger.settle(task.number)
    assert not ledger.misses


def test_clients_that_are_gone_lose_their_tasks_at_once():
    ledger, first = Ledger().assign(1, 0, 0.0, patience=10.0)
    ledger, _ = ledger.expire(10.0)
    ledger, second = ledger.assign(2, 0, 10.0)
    ledger, third = ledger.assign(3, 0, 10.0)
    ledger, lost = ledger.release([1, 2])
    assert lost == (second,)
    assert ledger.busy == {3}
    for task in (first, second):
        assert ledger.settle(task.number)[2] is Verdict.DUPLICATE
    assert ledger.settle(third.number)[2] is Verdict.COUNTS


@pytest.mark.parametrize("damage", [{"open": 3}, {"given": "many"}, {"overdue": [[1, 2]]}])
def test_a_damaged_ledger_is_refused(damage):
    with pytest.raises(CheckpointError, match="ledger"):
        Ledger.from_dict({**Ledger().to_dict(), **damage})


class Coordinator(RuleBasedStateMachine):
    """Whatever happens in whatever order: each task counts at most once, and none gets lost."""

    def __init__(self):
        super().__init__()
        self.ledger, self.now = Ledger(), 0.0
        self.counted, self.over = [], set()

    @rule(client=st.integers(0, 5), patience=st.sampled_from([1.0, 5.0, math.inf]))
    def assign(self, client, patience):
        if client not in self.ledger.busy:
            self.ledger, _ = self.ledger.assign(client, 0, self.now, patience)

    @rule(number=st.integers(-1, 30))
    def answer(self, number):
        self.ledger, task, verdict = self.ledger.settle(number)
        if verdict is Verdict.COUNTS:
            self.counted.append(number)
            self.over.add(number)
        assert (task is not None) == (verdict in (Verdict.COUNTS, Verdict.LATE))

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds):
        self.now += seconds
        self.ledger, missed = self.ledger.expire(self.now)
        self.over |= {task.number for task in missed}

    @rule(client=st.integers(0, 5))
    def leave(self, client):
        self.ledger, lost = self.ledger.release([client])
        self.over |= {task.number for task in lost}

    @rule()
    def save_and_restore(self):
        self.ledger = Ledger.from_dict(json.loads(json.dumps(self.ledger.to_dict())))

    @invariant()
    def every_task_is_open_or_over_and_counted_once(self):
        assert len(self.counted) == len(set(self.counted))
        assert set(self.ledger.open) | self.over == set(range(self.ledger.given))
        assert not set(self.ledger.open) & self.over
        held = [*self.ledger.open.values(), *self.ledger.overdue.values()]
        assert len(self.ledger.busy) == len(held)  # one task a client


TestCoordinator = Coordinator.TestCase
TestCoordinator.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
