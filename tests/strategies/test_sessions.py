"""Sums for other purposes than training: the same mechanisms, with answers of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from qsfl_flower.clients import policy_mod, qsfl_mod
from qsfl_flower.node.policy import NodePolicy
from qsfl_flower.node.steps import PARAMETERS, SOURCES, STEPS
from qsfl_flower.privacy.policy import MinimumPolicy
from qsfl_flower.rounds.session import Session, query
from qsfl_flower.stages import Clip, Committee, DistributedDP, MaskedSum, SecureSum
from qsfl_flower.strategies import StableFedAvg
from qsfl_flower.testing import LocalFederation, Tap, drop
from qsfl_flower.wire import PlanItem
from qsfl_flower.wire.kinds import Purpose

CLIENTS, SIZE = 6, 5
KINDS = ("committee", "masks")


@dataclass(frozen=True)
class _Sized:
    size: int


def own_numbers(client: int) -> np.ndarray:
    """What client n counts: quarters, so that sums are exact."""
    return np.array([1, 2 * client, client % 3, 0.25 * client, 4]) / 64


def count_step(update, parameters, context):
    client = int(context.context.node_config["partition-id"])
    return replace(update, vector=own_numbers(client), metrics={"num-examples": 2**53})


@pytest.fixture(autouse=True)
def source(monkeypatch):
    monkeypatch.setitem(STEPS, "own-numbers", count_step)
    monkeypatch.setitem(SOURCES, "own-numbers", False)
    monkeypatch.setitem(PARAMETERS, "own-numbers", _Sized)


NUMBERS = PlanItem("own-numbers", {"size": SIZE})


def stages(federation, kind, *more, bound=1.0):
    if kind == "masks":
        masked = MaskedSum(
            federation.credentials, bound=bound, clock=federation.grid_time, metrics=()
        )
        return [Clip(1.0), masked, *more]
    options = {"weighted": False, "metrics": (), "bound": bound, "clock": federation.grid_time}
    return [SecureSum(1.0, Committee(3, 2), **options), *more]


def session_of(federation, kind, *more, purpose=Purpose.ANALYTICS, bound=1.0):
    strategy = StableFedAvg(fraction_evaluate=0.0, stages=[federation.authenticate()])
    return Session(strategy.engine, purpose, stages(federation, kind, *more, bound=bound))


def ask(federation, session, number=1, **options):
    with federation.grid.time.for_strategies():
        return session.ask(federation.grid, number, NUMBERS, SIZE, **options)


def total(clients=range(CLIENTS)):
    return np.sum([own_numbers(n) for n in clients], axis=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("purpose", [Purpose.ANALYTICS, Purpose.QUERY])
def test_the_sum_of_what_devices_count_is_exact_and_hides_each(kind, purpose):
    federation = LocalFederation(CLIENTS)
    view = federation.watch()
    session = session_of(federation, kind, purpose=purpose)
    for number in (1, 2):
        released = ask(federation, session, number)
        assert released.clients == CLIENTS
        assert released.skipped is None
        assert released.std == 0
        assert released.sums.tolist() == total().tolist()
    sent = b"".join(view.bytes_up())
    assert not any(own_numbers(n)[1:].tobytes() in sent for n in range(1, CLIENTS))


def test_noise_in_shares_covers_the_sum_and_is_charged():
    federation = LocalFederation(CLIENTS)
    noise = DistributedDP(2.0, expected_cohort=CLIENTS, rounds=2)
    session = session_of(federation, "committee", noise, bound=200.0)
    released = ask(federation, session)
    assert released.epsilon > 0
    # Shares are for the three of the smallest sum; six add theirs. 7 sigma: 1e-11 by chance.
    assert released.std == pytest.approx(2.0 * np.sqrt(CLIENTS / 3), rel=1e-3)
    assert 0 < np.abs(released.sums - total()).max() < 7 * released.std
    assert ask(federation, session, 2).epsilon > released.epsilon


@pytest.mark.parametrize("lost", [0, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_an_exact_sum_over_one_client_less_is_refused_by_the_devices(kind, lost):
    """The difference would be that client's numbers, a committee member's or another's."""
    federation = LocalFederation(CLIENTS)
    session = session_of(federation, kind)
    assert ask(federation, session).clients == CLIENTS
    federation.grid.taps[100 + lost] = Tap(down=drop)
    assert ask(federation, session, 2).sums is None
    federation.grid.taps.clear()
    assert ask(federation, session, 3).sums.tolist() == total().tolist()


def test_with_noise_cohorts_may_differ():
    federation = LocalFederation(CLIENTS)
    session = session_of(federation, "committee", DistributedDP(1.0, CLIENTS), bound=200.0)
    assert ask(federation, session).clients == CLIENTS
    federation.grid.taps[105] = Tap(down=drop)
    assert ask(federation, session, 2).clients == CLIENTS - 1


# What follows is a server that lies; its instructions are signed with the server's key.


def instruction(federation, asked, number=1, source=True, **changes):
    """What a session would tell its clients in a round, with other terms."""
    session = session_of(federation, "committee", purpose=asked)
    told = []
    with federation.grid.time.for_strategies():
        session.open(federation.grid, number, NUMBERS, SIZE, None, {})
    opened = session.inner.opened
    (content,) = {id(o.assignment.content): o.assignment.content for o in opened.values()}.values()
    plan = json.loads(content["qsfl"]["plan"])
    for step in plan["steps"]:
        if step["name"] == "shares-2":
            step["parameters"]["terms"] |= changes
            told.append(step)
    if not source:
        plan["steps"] = told
    plan = json.dumps(plan, sort_keys=True, separators=(",", ":"))
    return RecordDict({**content, "qsfl": ConfigRecord({"plan": plan})})


def answer(federation, content, kind, number=1, client=1):
    reply = federation.ask(client, content, kind, number)
    if reply.has_error():
        return f"error {reply.error.reason}"
    told = reply.content.config_records.get("qsfl", {})
    return told.get("refused", "answered")


def test_one_question_for_each_round_and_purpose():
    federation = LocalFederation(CLIENTS)
    analytics = instruction(federation, Purpose.ANALYTICS)
    query = instruction(federation, Purpose.QUERY)
    assert answer(federation, analytics, "query.analytics") == "answered"
    assert answer(federation, analytics, "query.analytics") == "policy-second-answer"
    assert answer(federation, query, "query") == "answered"
    assert answer(federation, query, "query") == "policy-second-answer"


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        ({}, "query", "policy-terms"),  # terms of another purpose than the message
        ({"purpose": "train"}, "query.analytics", "policy-terms"),
        ({"fixed": False}, "query.analytics", "policy-terms"),  # exact, with other cohorts
        ({"min_clients": 2}, "query.analytics", "policy-cohort"),
        ({"source": False}, "query.analytics", "policy-plan"),
        ({}, "train", "policy-plan"),  # a source is no step of training
    ],
)
def test_nothing_of_one_purpose_serves_another(content, kind, reason):
    federation = LocalFederation(CLIENTS)
    told = instruction(federation, Purpose.ANALYTICS, **content)
    assert answer(federation, told, kind) == reason


def test_each_purpose_has_its_own_least_cohort_and_account(tmp_path):
    (tmp_path / "policy.toml").write_text("[analytics]\nleast_cohort = 4\n")
    folder = {"qsfl-policy": str(tmp_path / "policy.toml")}
    federation = LocalFederation(CLIENTS, node_config=lambda client: folder)
    told = instruction(federation, Purpose.ANALYTICS)
    assert answer(federation, told, "query.analytics") == "policy-cohort"
    told = instruction(federation, Purpose.QUERY)
    assert answer(federation, told, "query") == "answered"

    strict = NodePolicy(
        privacy=MinimumPolicy(epsilon=1.0), evaluate=NodePolicy(privacy=MinimumPolicy(epsilon=0.5))
    )
    assert strict.of(Purpose.EVALUATE).account == "evaluate"
    assert strict.of(Purpose.QUERY) is strict  # training's account and limit
    both = strict.and_also(NodePolicy(privacy=MinimumPolicy(epsilon=0.8)))
    assert both.of(Purpose.EVALUATE).privacy.epsilon == 0.5
    assert both.of(Purpose.EVALUATE).account == "train"  # the other counts both in one


def app(message, context, call_next):
    metrics = MetricRecord({"num-examples": 1, "version": 3})
    return Message(RecordDict({"told": metrics}), reply_to=message)


@pytest.mark.parametrize(
    ("policy", "kind", "found"),
    [
        (NodePolicy(), "query.version", "answered"),
        (NodePolicy(hidden_only=True), "query.version", "policy-in-the-clear"),
        (NodePolicy(hidden_only=True, queries=("version",)), "query.version", "answered"),
        (NodePolicy(hidden_only=True, queries=("version",)), "query.data", "policy-query"),
        (NodePolicy(queries=("version",)), "evaluate", "policy-query"),
        (NodePolicy(queries=()), "query.version", "policy-query"),
        (NodePolicy(), "query.analytics", "policy-in-the-clear"),
    ],
)
def test_a_typed_policy_decides_which_queries_the_app_may_answer(policy, kind, found):
    mods = (policy_mod(policy), qsfl_mod, app)
    federation = LocalFederation(1, mods=mods)
    assert answer(federation, RecordDict({"c": ConfigRecord({"a": 1})}), kind, client=0) == found


def test_the_apps_query_handlers_are_asked_under_signatures_and_each_node_decides():
    own = {0: {"qsfl-min-cohort": 3}}  # implies hidden_only
    federation = LocalFederation(3, mods=(qsfl_mod, app), node_config=lambda n: own.get(n, {}))
    strategy = StableFedAvg(fraction_evaluate=0.0, stages=[federation.authenticate()])
    content = RecordDict({"c": ConfigRecord({"a": 1})})
    with federation.grid.time.for_strategies():
        found = query(strategy.engine, federation.grid, 1, content, "version")
    refused, *answered = [answer for _, answer in found]
    assert refused.reason == "policy-in-the-clear"
    assert [answer["told"]["version"] for answer in answered] == [3, 3]
    assert [sender.identity for sender, _ in found] == ["client-0", "client-1", "client-2"]
