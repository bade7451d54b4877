"""A lying server searches: what single devices send, and what members open, beyond what they may.

`QSFL_SEARCH=20000 pytest tests/adversary/test_search.py` searches longer; docs/threat-model.md says
when that was done and what it found.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsfl_flower import testing
from qsfl_flower.clients import qsfl_mod
from qsfl_flower.mechanisms.masked_sum import client as masked_sum
from qsfl_flower.testing import LocalFederation
from qsfl_flower.wire import Plan, PlanItem

from . import devices, masks, members, rounds
from .devices import EXAMPLES, POLICIES, Demand, ask, leaks
from .judge import fewest


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
    return federations_in(tmp_path_factory.mktemp("nodes"))


def federations_in(folder):
    """Return one device for each policy; the policy is a file on the node."""
    made = {}
    for name, text in POLICIES.items():
        path = folder / f"{name}.toml"
        path.write_text(text)
        config = {"qsfl-policy": str(path)}
        # Noise is measured (a factor of 1.6 beyond chance: < 1e-10), or a copy is looked for.
        size = 512 if name == "private" else 128
        made[name] = LocalFederation(
            4,
            size,
            node_config=lambda n, config=config: config,
            mods=(qsfl_mod, devices.tell),
        )
    return made


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_device_sends_nothing_that_its_policy_forbids(federations, policy):
    federation, answered = federations[policy], []

    @search(50)
    @given(devices.demands(policy))
    def lie(demands):
        federation.forget()
        answers = [(demand, ask(federation, 0, demand)) for demand in demands]
        for demand, content in answers:
            assert leaks(federation, 0, content) is None, demand
        given = [one for one in answers if not isinstance(one[1], str)]
        trained = sum(devices.is_training(demand) for demand, _ in given)
        assert policy != "counted" or trained <= devices.RELEASES
        if policy == "private":
            spent = sum(devices.noise_of(federation, 0, *one) ** -2 for one in given)
            assert spent <= 1.6 * devices.NOISE**-2, "512 coordinates measure it this well"
        answered.append(bool(given))

    lie()
    assert 2 * sum(answered) >= len(answered), "a search in which little is answered finds little"


def test_the_search_sees_what_leaks():
    """Without a policy the same device sends its update, and the judge says so."""
    federation = LocalFederation(2)
    content = ask(federation, 0, Demand("train.lora", None, 1))
    assert leaks(federation, 0, content) == "the update"
    clipped = Plan((PlanItem("clip", {"clip_norm": 1.0}),))
    assert leaks(federation, 0, ask(federation, 0, Demand("train", clipped, 2))) == "the update"
    honest = devices.valid_steps(1, 3.0, 1)
    noisy = Plan(tuple(PlanItem(n, honest[n]) for n in devices.ACCEPTED["private"][0]))
    demand = Demand("train", noisy, 3)
    content = ask(federation, 0, demand)
    assert leaks(federation, 0, content) is None
    assert devices.noise_of(federation, 0, demand, content) == pytest.approx(3.0, rel=0.3)


@pytest.fixture(scope="module")
def committees(tmp_path_factory):
    return committees_in(tmp_path_factory.mktemp("nodes"))


def committees_in(folder):
    """Return a committee for each window, in rounds, of the nodes' policy."""
    made = {1: members.Members()}
    path = folder / "policy.toml"
    path.write_text(f"window = {members.ROUNDS}\nweights = true\n")
    return {**made, members.ROUNDS: members.Members({"qsfl-policy": str(path)})}


@pytest.mark.parametrize("window", [1, members.ROUNDS])
def test_members_open_one_sum_a_round_and_no_secret(committees, window):
    opened = []

    @search(50)
    @given(members.scripts(window))
    def lie(script):
        rows, squares = committees[window].play(script)
        rounds = {action.server_round for action in script.actions if is_release(action)}
        assert testing.solves(rows, members.KNOWN) == []
        assert testing.rank(rows) <= len(rounds)
        honest = members.LEAST - 1
        assert fewest(rows, members.KNOWN, honest) == honest
        assert all(len(answers) == 1 for answers in squares.values()), "a second question"
        opened.append(len(rows) > 0)

    lie()
    assert 2 * sum(opened) >= len(opened), "a search in which little is opened finds little"


def is_release(action):
    return isinstance(action, members.Release)


def test_an_honest_round_opens_its_sum(committees):
    script = members.honest(members.Variant(), [1])
    rows, _ = committees[1].play(script)
    assert testing.rank(rows) == 1
    np.testing.assert_allclose(rows[0], [1] * 6 + [0] * 12, atol=1e-4)


def test_the_search_sees_what_members_without_a_memory_open(committees):
    """A round once more without one client, asked of members that have forgotten the first."""
    script = members.honest(members.Variant(), [1])
    again = [members.among(action, members.EVERYBODY[1:]) for action in script.actions]
    script = replace(script, actions=(*script.actions, *again), helpers=members.COMMITTEE)
    rows, _ = committees[1].play(script)
    assert testing.rank(rows) == 2
    assert testing.solves(rows, members.KNOWN) == [0]
    assert fewest(rows, members.KNOWN, 2) == 1


@pytest.fixture(scope="module")
def devices_that_mask():
    return masks.Masks()


def test_masks_open_no_sum_of_few(devices_that_mask):
    opened = []

    @search(25)
    @given(masks.scripts())
    def lie(script):
        rows, dead = devices_that_mask.play(script)
        least = masks.LEAST - 1  # and the helping client
        assert fewest(rows, dead, least) == least
        opened.append(len(rows) > 0)

    lie()
    assert 2 * sum(opened) >= len(opened), "a search in which little is opened finds little"


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize(
    ("lost", "parted"), [((), ()), ((0,), ()), ((masks.COLLUDER,), ()), ((), ((0, 1), (2, 3)))]
)
def test_honest_masks_open_their_sum(devices_that_mask, early, lost, parted):
    rows, dead = devices_that_mask.play(masks.honest(masks.Offer(), early, lost, parted))
    (row,) = rows / rows[0][-1]
    np.testing.assert_allclose(row, [n not in lost for n in masks.HONEST], atol=1e-9)
    assert not dead


def test_the_search_sees_what_masks_without_a_memory_open(devices_that_mask, monkeypatch):
    """A round once more without one client, asked of devices that have forgotten the first."""
    monkeypatch.setattr(masked_sum, "_take", lambda *told: None)
    again = masks.honest(masks.Offer(clients=masks.EVERYBODY[1:], nonce=1), True)
    rows, dead = devices_that_mask.play((*masks.honest(masks.Offer(), True), *again))
    assert testing.rank(rows) == 2
    assert testing.solves(rows, dead) == [0]
    assert fewest(rows, dead, 2) == 1


def test_whole_rounds_end_and_tell_nothing_of_one_client():
    @search(10)
    @given(
        st.sampled_from(sorted(rounds.MECHANISMS)),
        st.lists(rounds.tricks, min_size=1, max_size=6).map(tuple),
        st.sampled_from([1, 1, rounds.ROUNDS]),
    )
    def lie(mechanism, script, count):
        network = rounds.Network(script)
        outcome = network.run(mechanism, count)
        assert network.faults == []
        assert "internal" not in outcome.rejected
        assert testing.learned(rounds.SECRETS, network.sent()) == []
        sums = testing.coefficients(rounds.SECRETS, network.steps(outcome))
        assert fewest(sums, (), rounds.LEAST) == rounds.LEAST

    lie()


@pytest.mark.parametrize("mechanism", sorted(rounds.MECHANISMS))
def test_without_lies_whole_rounds_end(mechanism):
    network = rounds.Network()
    outcome = network.run(mechanism, 1)
    assert outcome.error is None
    sums = testing.coefficients(rounds.SECRETS, network.steps(outcome))
    assert testing.rank(sums) == (mechanism in rounds.HIDING)


def test_the_search_sees_updates_in_the_clear():
    network = rounds.Network()
    outcome = network.run(None, 1)
    assert testing.learned(rounds.SECRETS, network.sent()) == list(range(6))
    assert outcome.error is None
