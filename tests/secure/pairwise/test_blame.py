"""Who is to blame when a sum cannot be opened: whom signed bytes convict, and nobody else."""

import secrets

import numpy as np
import pytest

from qsfl_flower.crypto.codec import Writer
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.errors import CryptoError, Refusal, RejectedUpdate
from qsfl_flower.secure.pairwise import client, server
from qsfl_flower.secure.pairwise.graph import complete_graph, sparse_graph
from qsfl_flower.secure.pairwise.server import SumAbandoned
from qsfl_flower.secure.pairwise.terms import Terms


def random_key(*given):
    return Secret(secrets.token_bytes(32))


def with_liar(run, liar, monkeypatch, name, lie):
    """Deal, the liar with one function of the protocol replaced."""
    for place in range(len(run.terms.names)):
        with monkeypatch.context() as patch:
            if place == liar:
                patch.setattr(client, name, lie)
            data = run.deal(place)
        run.take_deal(place, data)


def finish(run, lost=()):
    for place in sorted(set(run.deals) - set(lost)):
        run.take_masked(place, *run.mask(place))
    for place in sorted(run.lockers):
        run.take_release(place, run.release(place))
    return run.total()


@pytest.mark.parametrize("liar", [0, 7])
def test_a_dealer_is_convicted_of_an_edge_key_that_is_not_its_own(make_sum, monkeypatch, liar):
    """It vouches for a wrong edge key, and is gone; the victim masks and locks by that key."""
    run, honest = make_sum(8), client.edge_key

    def wrong(key, place):
        return random_key() if place == 3 else honest(key, place)

    with_liar(run, liar, monkeypatch, "edge_key", wrong)
    with pytest.raises(SumAbandoned, match="wrong-edge-key") as caught:
        finish(run, lost={liar})
    assert caught.value.culprit == run.terms.seats[liar]
    assert run.found.apart == set()


def test_an_edge_key_that_was_not_vouched_for_is_noticed_before_masking(make_sum, monkeypatch):
    run, honest = make_sum(4), client.commit_dealt

    def other(owner, holder, self_share, pair_share, edge):
        return honest(owner, holder, self_share, pair_share, random_key())

    with_liar(run, 2, monkeypatch, "commit_dealt", other)
    with pytest.raises(client.BadPacket, match="is not what it vouches for") as caught:
        run.mask(0)
    assert caught.value.dealers == (run.terms.seats[2],)


def test_a_complaint_names_everybody_it_is_about(make_sum, monkeypatch):
    run = make_sum(5)
    for place in range(5):
        with monkeypatch.context() as patch:
            if place in (1, 3):
                patch.setattr(client, "commit_dealt", lambda *_: bytes(48))
            run.take_deal(place, run.deal(place))
    with pytest.raises(client.BadPacket) as caught:
        run.mask(0)
    assert caught.value.dealers == (run.terms.seats[1], run.terms.seats[3])


def test_the_sender_of_a_wrong_locker_is_convicted(make_sum):
    """It holds the edge key that the lost dealer vouched for, and locks by another one."""
    run = make_sum(6)
    for place in range(6):
        run.take_deal(place, run.deal(place))
    for place in range(5):
        vector, lockers = run.mask(place)
        run.take_masked(place, vector, bytes(len(lockers)) if place == 2 else lockers)
    for place in range(5):
        run.take_release(place, run.release(place))
    with pytest.raises(SumAbandoned, match="wrong-locker") as caught:
        run.total()
    assert caught.value.culprit == run.terms.seats[2]


@pytest.mark.parametrize("liar", [1, 4])
def test_wrong_openers_convict_nobody_and_set_the_pairs_apart(make_sum, monkeypatch, liar):
    """Either end may have lied about the key between them; the sum is whole without it."""
    run = make_sum(6)
    for place in range(6):
        run.take_deal(place, run.deal(place))
    for place in range(6):
        run.take_masked(place, *run.mask(place))
    for place in range(6):
        with monkeypatch.context() as patch:
            if place == liar:
                patch.setattr(client, "opener", random_key)
            run.take_release(place, run.release(place))
    total, faults = run.total()
    np.testing.assert_array_equal(total, run.plain())
    assert {place: fault.reason for place, fault in faults.items()} == {liar: "locked"}
    assert run.found.apart
    assert all(liar in pair for pair in run.found.apart)


def test_nobody_masks_with_who_answers_another_instruction(make_sum):
    run = make_sum(4)
    for place in range(4):
        run.instruction = bytes(32) if place == 3 else bytes(range(32))
        data = run.deal(place)
        run.deals[place] = server.read_deal(
            run.terms, place, data, run.instruction, run.roster, 1_800_000_000
        )
    for place in range(4):
        with pytest.raises(Refusal, match=r"policy-terms: .* was asked for something else"):
            run.mask(place)


def test_the_server_rejects_who_vouches_for_another_instruction(make_sum):
    run = make_sum(4)
    run.instruction = bytes(32)
    with pytest.raises(RejectedUpdate, match="other-instruction"):
        run.take_deal(1, run.deal(1))


# Pairs that share no edge.


def apart(make_sum, n, *pairs):
    names = make_sum(n).terms.names
    return tuple(sorted((names[a], names[b]) for a, b in pairs))


@pytest.mark.parametrize("dropouts", [{}, {"no_mask": {1}}, {"no_deal": {4}}, {"no_release": {2}}])
def test_the_sum_is_exact_without_some_edges(make_sum, dropouts):
    run = make_sum(8, apart=apart(make_sum, 8, (0, 1), (0, 5), (2, 7)))
    total, faults = run.run(**dropouts)
    np.testing.assert_array_equal(total, run.plain())
    assert not faults
    a, b = (run.terms.places[name] for name in run.terms.apart[0])
    assert b not in run.terms.neighbours(a)
    assert all(a not in deal.packets for place, deal in run.deals.items() if place == b)


def test_terms_travel_with_the_pairs_and_the_previous_format_is_refused_by_name(make_sum):
    terms = make_sum(6, apart=apart(make_sum, 6, (1, 2))).terms
    data = terms.encode()
    assert Terms.decode(data) == terms
    assert Terms.decode(data).seats == terms.seats
    with pytest.raises(RejectedUpdate, match=r"starts with b.QMASK.x01."):
        Terms.decode(b"QMASK\x01" + data[6:])


def test_a_server_cannot_cut_a_client_off_from_the_others(make_sum):
    """With fewer than the threshold left, honest clients could fall apart into smaller sums."""
    n = 7
    pairs = apart(make_sum, n, (0, 1), (0, 2), (0, 3))
    terms = make_sum(n, apart=pairs[:2]).terms
    assert not terms.isolated()
    cut = Terms(1, 1, terms.names, terms.degree, terms.threshold, apart=pairs)
    with pytest.raises(CryptoError, match="has fewer than 4 neighbours"):
        Terms.decode(cut.encode())


@pytest.mark.parametrize("pairs", [[(1, 1)], [(2, 1)], [(1, 2), (1, 2)], [(0, 9)]])
def test_pairs_that_are_none_are_refused(make_sum, pairs):
    plain = make_sum(6).terms.encode()
    out = Writer(plain[:-4]).uint(len(pairs), 4)
    for a, b in pairs:
        out.uint(a, 2).uint(b, 2)
    with pytest.raises(RejectedUpdate, match="malformed"):
        Terms.decode(out.done())


@pytest.mark.parametrize("n", [5, 9, 16])
@pytest.mark.parametrize("colluding", [0.0, 0.2])
def test_honest_clients_stay_connected_whatever_edges_a_server_leaves_out(n, colluding):
    """Any graph in which everybody has t neighbours: take out c clients, and one piece is left."""
    graph, generator = complete_graph(n, colluding), np.random.default_rng(n)
    c = int(colluding * n)
    for _ in range(100):
        edges = np.ones((n, n), bool) & ~np.eye(n, dtype=bool)
        for a, b in generator.permutation([(i, j) for i in range(n) for j in range(i)]):
            if min(edges[a].sum(), edges[b].sum()) > graph.threshold:
                edges[a, b] = edges[b, a] = False
        honest = generator.permutation(n)[c:]
        left = edges[np.ix_(honest, honest)]
        reached = np.linalg.matrix_power(left + np.eye(len(honest), dtype=int), len(honest)) > 0
        assert reached.all()


def test_a_sparse_graph_without_some_edges(make_sum):
    graph = sparse_graph(20, 0.0, 0.1)
    run = make_sum(20, graph=graph, apart=apart(make_sum, 20, (0, 1), (3, 4)))
    total, _ = run.run()
    np.testing.assert_array_equal(total, run.plain())
