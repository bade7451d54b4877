"""A lying server searches: what single devices send, and what members open, beyond what they may.

`QSFL_SEARCH=20000 pytest tests/adversary/test_search.py` searches longer; docs/threat-model.md says
when that was done and what it found.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsfl_flower import testing
from qsfl_flower.testing import LocalFederation
from qsfl_flower.wire import Plan, PlanItem

from . import devices, members
from .devices import EXAMPLES, POLICIES, Demand, ask, leaks


def search(few):
    """Return settings; the few examples of the default tests are always the same."""
    return settings(
        max_examples=EXAMPLES or few,
        derandomize=not EXAMPLES,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def federations(tmp_path_factory):
    """Return one device for each policy; the policy is a file on the node."""
    made = {}
    for name, text in POLICIES.items():
        path = tmp_path_factory.mktemp("node") / "policy.toml"
        path.write_text(text)
        config = {"qsfl-policy": str(path)}
        made[name] = LocalFederation(4, node_config=lambda n, config=config: config)
    return made


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_device_sends_nothing_that_its_policy_forbids(federations, policy):
    federation, answered = federations[policy], []

    @search(100)
    @given(st.lists(devices.demands(policy), min_size=1, max_size=3))
    def lie(demands):
        federation.forget()
        for demand in demands:
            content = ask(federation, 0, demand)
            if content is not None:
                answered.append(demand)
                assert leaks(federation, 0, content) is None, demand

    lie()
    assert answered, "a search in which nothing is ever answered finds nothing"


def test_the_search_sees_what_leaks():
    """Without a policy the same device sends its update, and the judge says so."""
    federation = LocalFederation(2)
    content = ask(federation, 0, Demand("train.lora", None, 1))
    assert leaks(federation, 0, content) == "the update"
    clipped = Plan((PlanItem("clip", {"clip_norm": 1.0}),))
    assert leaks(federation, 0, ask(federation, 0, Demand("train", clipped, 2))) == "the update"


@pytest.fixture(scope="module")
def committee():
    return members.Members()


def test_members_open_one_sum_a_round_and_no_secret(committee):
    @search(40)
    @given(members.scripts())
    def lie(script):
        rows, squares = committee.play(script)
        rounds = {action.server_round for action in script if isinstance(action, members.Release)}
        assert testing.solves(rows, members.KNOWN) == []
        assert testing.rank(rows) <= len(rounds)
        for row in rows:
            honest = np.delete(np.abs(row), members.KNOWN)
            assert (honest > 1e-3).sum() >= members.LEAST - 1
        assert all(len(answers) == 1 for answers in squares.values()), "a second question"

    lie()


def test_an_honest_round_opens_its_sum(committee):
    usual = members.Variant()
    deals = tuple((client, usual, True) for client in members.EVERYBODY)
    script = [
        members.Take((0, 1, 2), usual, deals),
        members.Release((0, 1, 2), 1, members.EVERYBODY),
    ]
    rows, _ = committee.play(script)
    assert testing.rank(rows) == 1
    np.testing.assert_allclose(rows[0], [1] * 6 + [0] * 12, atol=1e-4)
