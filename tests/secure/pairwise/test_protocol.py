"""Sums under pairwise masks: exact with dropouts at every step, and closed to everybody else."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.errors import Malformed
from qsfl_flower.crypto.identity import create_identity
from qsfl_flower.errors import CryptoError, Refusal, RejectedUpdate
from qsfl_flower.secure.pairwise import client, server
from qsfl_flower.secure.pairwise.graph import Graph, complete_graph, sparse_graph
from qsfl_flower.secure.pairwise.recovery import join_shares
from qsfl_flower.secure.pairwise.server import SumAbandoned
from qsfl_flower.secure.pairwise.terms import Policy, Terms

from .conftest import INSTRUCTION, NOW

SHARED = [HealthCheck.function_scoped_fixture]  # the fixture only makes new sums


@pytest.mark.parametrize("n", [2, 3, 4, 7, 12])
def test_the_sum_is_exact(make_sum, n):
    run = make_sum(n, policy=Policy(colluding=0.0, min_clients=2))
    total, faults = run.run()
    np.testing.assert_array_equal(total, run.plain())
    assert not faults


@pytest.mark.parametrize(
    "dropouts", [{"no_deal": {2}}, {"no_mask": {2}}, {"no_release": {2}},
                 {"no_deal": {0}, "no_mask": {7}, "no_release": {3}}, {"no_mask": {0, 4, 7}}],
)  # fmt: skip
def test_clients_may_vanish_at_every_step(make_sum, dropouts):
    run = make_sum(8)
    total, faults = run.run(**dropouts)
    np.testing.assert_array_equal(total, run.plain())
    assert not faults


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_allowed_dropouts(make_sum, data):
    n = data.draw(st.integers(5, 9))
    graph = complete_graph(n, 0.0)
    lost = data.draw(st.lists(st.integers(0, n - 1), max_size=n - 1 - graph.threshold, unique=True))
    steps = [data.draw(st.sampled_from(("no_deal", "no_mask", "no_release"))) for _ in lost]
    dropouts = {s: {p for p, at in zip(lost, steps, strict=True) if at == s} for s in steps}
    run = make_sum(n)
    total, faults = run.run(**dropouts)
    np.testing.assert_array_equal(total, run.plain())
    assert not faults


def test_a_sparse_graph_gives_the_same_sum(make_sum):
    run = make_sum(20, graph=Graph(20, 6, 3))
    total, _ = run.run(no_deal={0}, no_mask={9}, no_release={15})
    np.testing.assert_array_equal(total, run.plain())


@pytest.mark.slow
def test_two_hundred_clients_on_a_sparse_graph():
    from qsfl_flower.crypto.federation import create_federation

    from .conftest import Sum

    keys = create_federation([f"c{i:03d}" for i in range(200)], now=NOW)
    run = Sum(keys, 200, graph=sparse_graph(200, 0.1, 0.1), policy=Policy())
    lost = set(range(0, 200, 10))
    total, _ = run.run(no_deal={p for p in lost if p % 20}, no_mask={p for p in lost if not p % 20})
    np.testing.assert_array_equal(total, run.plain())


def test_a_million_coordinates_at_the_ends_of_the_range(make_sum):
    run = make_sum(3, size=1_000_000)
    run.values[:] = np.array([[0], [2**32 - 1], [2**31]], np.uint32)
    total, _ = run.run()
    np.testing.assert_array_equal(total, run.plain())


def test_too_few_survivors_end_the_sum(make_sum):
    run = make_sum(6)
    for place in range(6):
        run.take_deal(place, run.deal(place))
    for place in range(3):
        run.take_masked(place, *run.mask(place))
    with pytest.raises(SumAbandoned, match="too-few-clients"):
        server.check_enough(run.terms, run.lockers)
    with pytest.raises(Refusal, match="policy-terms: a survivor has 2 surviving neighbours"):
        run.release(0)


def test_too_few_releases_end_the_sum(make_sum):
    with pytest.raises(SumAbandoned, match=r"recovery-failed: 0 shares of .* 4 are needed"):
        make_sum(7).run(no_release={0, 1, 2, 3})


# What nobody may learn.


def test_a_masked_vector_says_nothing(make_sum):
    """Chi-square of the bytes of 20,000 words of constant input; false alarm once in 10^6."""
    run = make_sum(4, size=20_000)
    run.values[:] = 7
    for place in range(4):
        run.take_deal(place, run.deal(place))
    vector, _ = run.mask(0)
    counts = np.bincount(vector.view(np.uint8), minlength=256)
    statistic = ((counts - vector.nbytes / 256) ** 2 / (vector.nbytes / 256)).sum()
    # Chi-square with 255 degrees of freedom: P[X > 376] = 1e-6, P[X < 159] = 1e-7.
    assert 159 < statistic < 376


def test_what_two_lists_of_survivors_release_opens_only_one(make_sum):
    """A server that tells half of the clients another story gets neither a sum nor both shares."""
    run = make_sum(6)
    for place in range(6):
        run.take_deal(place, run.deal(place))
    for place in range(6):
        run.take_masked(place, *run.mask(place))
    everybody, without = set(range(6)), {0, 1, 2, 3, 4}
    told_all = {p: run.release(p, everybody) for p in (3, 4, 5)}
    told_less = {p: run.release(p, without) for p in (0, 1, 2)}
    for stories, survivors in ((told_all, everybody), (told_less, without)):
        releases = {
            p: server.read_release(run.terms, run.deals, survivors, p, data)
            for p, data in stories.items()
        }
        for place in releases:
            with pytest.raises(RejectedUpdate, match="locked"):
                server._opened(run.terms, releases, place, server.Findings())


def test_a_release_mixed_from_two_stories_does_not_open(make_sum):
    run = make_sum(6)
    for place in range(6):
        run.take_deal(place, run.deal(place))
    for place in range(6):
        run.take_masked(place, *run.mask(place))
    honest = {p: run.release(p, range(6)) for p in range(3)}
    other = {p: run.release(p, range(5)) for p in range(3, 5)}
    mixed = {
        p: server.read_release(run.terms, run.deals, range(6), p, honest[p]) for p in honest
    } | {p: server.read_release(run.terms, run.deals, range(5), p, other[p]) for p in other}
    with pytest.raises(RejectedUpdate, match="locked"):
        server._opened(run.terms, mixed, 0, server.Findings())


def test_never_both_shares_of_one_peer(make_sum):
    run = make_sum(5)
    for place in range(5):
        run.take_deal(place, run.deal(place))
    for place in range(5):
        run.take_masked(place, *run.mask(place))
    first = run.release(0, {0, 1, 2, 3})
    assert run.release(0, {0, 1, 2, 3}) == first, "the same question has the same answer"
    with pytest.raises(Refusal, match=r"policy-second-answer: .* released"):
        run.release(0, {0, 1, 2, 3, 4})


def test_a_vector_is_masked_once(make_sum):
    run = make_sum(4)
    for place in range(4):
        run.take_deal(place, run.deal(place))
    run.mask(0)
    with pytest.raises(Refusal, match=r"policy-second-answer: .* masked"):
        run.mask(0)


@pytest.mark.parametrize(
    ("policy", "n", "reason"),
    [
        (Policy(min_clients=6), 5, "at least 6 are required here"),
        (Policy(colluding=0.5), 5, "threshold 3 is too low for 5 clients of which 2"),
    ],
)
def test_a_client_has_a_policy_of_its_own(make_sum, policy, n, reason):
    run = make_sum(n, policy=policy)
    with pytest.raises(Refusal, match=reason):
        run.deal(0)


def test_a_client_refuses_a_sparse_graph_that_does_not_protect_it(make_sum):
    run = make_sum(20, graph=Graph(20, 2, 1), policy=Policy(colluding=0.2))
    with pytest.raises(Refusal, match=r"policy-threshold: .* leave a risk"):
        run.deal(0)


def test_a_client_refuses_a_sum_without_itself(make_sum, keys):
    run = make_sum(4)
    stranger = Credentials(keys.clients["client-10"], run.roster)
    with pytest.raises(Refusal, match="client-10 is not among"):
        client.deal(run.terms, INSTRUCTION, stranger, run.policy, NOW)


@pytest.mark.parametrize("survivors", [{1, 2, 3, 4}, {0, 1, 2, 3, 5}])
def test_impossible_survivors_are_refused(make_sum, survivors):
    run = make_sum(6)
    for place in range(5):
        run.take_deal(place, run.deal(place))
    run.mask(0)
    with pytest.raises(Refusal, match="policy-terms: the list of survivors"):
        run.release(0, survivors)


@pytest.mark.parametrize(
    ("degree", "threshold", "says"),
    [
        (3, 2, "degree 3"),
        (0, 1, "degree 0"),
        (7, 2, "degree 7"),
        (5, 0, "0 with 5"),
        (5, 6, "6 with"),
    ],
)
def test_terms_of_no_graph_are_refused_where_they_are_read(make_sum, degree, threshold, says):
    """A server writes the bytes as it likes: they are no terms, whatever is done with them."""
    terms = make_sum(6).terms
    data = bytearray(terms.encode())
    at = data.index(terms.nonce) + 16
    data[at : at + 4] = degree.to_bytes(2) + threshold.to_bytes(2)
    with pytest.raises(Malformed, match=says):
        Terms.decode(bytes(data))


def test_a_lying_server_cannot_insert_its_own_keys(make_sum, keys):
    """Neither an unknown name, nor packets that somebody else has signed."""
    run = make_sum(4)
    foreign = Terms(1, 1, (*run.terms.names[:3], "mallory"), 3, 2)
    me = Credentials(keys.clients[run.terms.names[0]], run.roster)
    with pytest.raises(RejectedUpdate, match="unknown: mallory is not in roster"):
        client.deal(foreign, INSTRUCTION, me, run.policy, NOW)

    for place in range(4):
        run.take_deal(place, run.deal(place))
    impostor = create_identity(run.terms.seats[1], now=NOW)
    _, forged = client.deal(
        run.terms, INSTRUCTION, Credentials(impostor, Forgiving(run.roster)), run.policy, NOW
    )
    with pytest.raises(RejectedUpdate, match="wrong-key"):
        run.take_deal(1, forged)
    with pytest.raises(RejectedUpdate, match="are signed by"):
        run.take_deal(1, run.deal(2))


class Forgiving:
    """A roster that also lets one use keys that are not in it."""

    def __init__(self, roster):
        self.roster = roster

    def own_keys(self, identity, now):
        return identity.keys[0]

    def encryption_key(self, name, now):
        return self.roster.encryption_key(name, now)


def test_swapped_packets_are_noticed(make_sum):
    run = make_sum(4)
    for place in range(4):
        run.take_deal(place, run.deal(place))
    crossed = dict(run.deals)
    dealt = run.deals[1]
    crossed[1] = server.Deal(
        dealt.statement, dealt.promise, {**dealt.packets, 0: dealt.packets[2]}, dealt.commitments
    )
    with pytest.raises(RejectedUpdate, match=r"bad-packet: .* did not sign this packet"):
        run.mask(0, server.relay(run.terms, crossed, 0))


def test_packets_of_another_sum_are_noticed(make_sum):
    run, other = make_sum(4), make_sum(4)
    for place in range(4):
        run.take_deal(place, run.deal(place))
    name = run.terms.seats[1]
    place = other.terms.places[name]
    with pytest.raises(RejectedUpdate, match="belong to another sum"):
        run.take_deal(1, other.deal(place))


# Clients that misbehave.


def test_a_wrong_share_is_named_and_does_no_harm(make_sum):
    run = make_sum(7)
    for place in range(7):
        run.take_deal(place, run.deal(place))
    for place in range(7):
        run.take_masked(place, *run.mask(place))
    for place in range(7):
        state = client.Client.decode(run.clients[place])
        if place == 3:
            held = state.holdings[5]
            bad = client.Holding(held.lock, held.pair_share, held.self_share)
            state = client.replace(state, holdings={**state.holdings, 5: bad})
            run.clients[place] = state.encode()
        run.take_release(place, run.release(place))
    total, faults = run.total()
    np.testing.assert_array_equal(total, run.plain())
    assert {place: fault.reason for place, fault in faults.items()} == {3: "wrong-share"}
    assert run.terms.seats[3] in faults[3].detail


def test_a_garbled_release_is_named_and_does_no_harm(make_sum):
    run = make_sum(7)
    run.run()
    release = run.releases[2]
    run.releases[2] = server.Release(release.openers, release.locks, bytes(len(release.payload)))
    total, faults = run.total()
    np.testing.assert_array_equal(total, run.plain())
    assert {place: fault.reason for place, fault in faults.items()} == {2: "inconsistent-release"}


def test_shares_that_open_no_seed_name_the_dealer(make_sum, monkeypatch):
    run = make_sum(6)

    def unequal(seed, threshold, points, randomness=None, honest=client.split_seed):
        return {p: honest(seed, threshold, points)[p] for p in points}

    for place in range(6):
        with monkeypatch.context() as patch:
            if place == 4:
                patch.setattr(client, "split_seed", unequal)
            data = run.deal(place)
        run.take_deal(place, data)
    for place in range(6):
        run.take_masked(place, *run.mask(place))
    for place in range(6):
        run.take_release(place, run.release(place))
    with pytest.raises(SumAbandoned, match=f"inconsistent-shares: {run.terms.seats[4]}"):
        run.total()


def test_a_dealer_that_vouches_for_other_shares_is_refused(make_sum, monkeypatch):
    run = make_sum(4)
    with monkeypatch.context() as patch:
        patch.setattr(client, "commit_dealt", lambda *_: bytes(48))
        run.take_deal(0, run.deal(0))
    for place in range(1, 4):
        run.take_deal(place, run.deal(place))
    with pytest.raises(RejectedUpdate, match=r"bad-packet: what .* dealt is not"):
        run.mask(1)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_hostile_bytes_end_in_named_errors(make_sum, messages, data):
    run, (deal, relayed, lockers, release) = messages
    which = data.draw(st.sampled_from(["deal", "relay", "lockers", "release", "state"]))
    good = {"deal": deal, "relay": relayed, "lockers": lockers, "release": release,
            "state": run.clients[0]}[which]  # fmt: skip
    at = data.draw(st.integers(0, max(len(good) - 1, 0)))
    cut = data.draw(st.booleans())
    bad = good[:at] if cut else good[:at] + bytes([good[at] ^ 0x41]) + good[at + 1 :]
    try:
        if which == "deal":
            server.read_deal(run.terms, 0, bad, INSTRUCTION, run.roster, NOW)
        elif which == "relay":
            master = client.Client.decode(run.clients[0]).master
            fresh = client.Client(run.terms, 0, master, INSTRUCTION)
            client.mask(fresh, bad, run.values[0].copy(), run.parties[0], run.policy, NOW)
        elif which == "lockers":
            server.read_lockers(run.terms, run.deals, 0, bad)
        elif which == "release":
            server.read_release(run.terms, run.deals, run.lockers, 0, bad)
        else:
            client.Client.decode(bad)
    except (CryptoError, RejectedUpdate, Refusal):
        pass


@pytest.fixture(scope="module")
def messages(keys):
    from .conftest import Sum

    run = Sum(keys, 4, size=4)
    deals = {place: run.deal(place) for place in range(4)}
    for place, data in deals.items():
        run.take_deal(place, data)
    relayed = server.relay(run.terms, run.deals, 0)
    masked = {place: run.mask(place) for place in range(4)}
    for place, (vector, lockers) in masked.items():
        run.take_masked(place, vector, lockers)
    return run, (deals[0], relayed, masked[0][1], run.release(0))


def test_secrets_do_not_print(make_sum):
    run = make_sum(3)
    for place in range(3):
        run.take_deal(place, run.deal(place))
    run.mask(0)
    state = client.Client.decode(run.clients[0])
    secret = state.master.reveal()
    held = next(iter(state.holdings.values()))
    for thing in (state, held, run.deals[0]):
        assert secret.hex() not in repr(thing)
        assert repr(secret)[2:-1] not in repr(thing)
        assert repr(held.self_share)[2:-1] not in repr(thing)


def test_fewer_than_threshold_holders_open_nothing(make_sum):
    """All pairs of holders of a threshold of three open something, but never the seed."""
    run = make_sum(6)
    for place in range(6):
        run.take_deal(place, run.deal(place))
    for place in range(6):
        run.mask(place)
    states = {place: client.Client.decode(run.clients[place]) for place in range(6)}
    seed = states[0].self_seed
    shares = {place + 1: states[place].holdings[0].self_share for place in range(1, 6)}
    opened = 0
    for points in itertools.combinations(shares, run.terms.threshold):
        opened += join_shares({p: shares[p] for p in points}) == seed
    assert opened == 10
    for points in itertools.combinations(shares, run.terms.threshold - 1):
        try:
            assert join_shares({p: shares[p] for p in points}) != seed
        except RejectedUpdate:
            continue
