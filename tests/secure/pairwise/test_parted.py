"""Pairs of which one complains of the other's packet: told between dealing and masking."""

from dataclasses import replace

import numpy as np
import pytest

from qsfl_flower.crypto.codec import Writer
from qsfl_flower.errors import CryptoError, Refusal, RejectedUpdate
from qsfl_flower.secure.pairwise import client, server

PAIRS = (0, 1), (0, 5), (2, 7)


def dealt(run):
    for place in range(len(run.terms.names)):
        run.take_deal(place, run.deal(place))
    return run


@pytest.mark.parametrize("dropouts", [{}, {"no_mask": {1}}, {"no_deal": {4}}, {"no_release": {2}}])
def test_the_sum_is_exact_without_the_edges_of_who_complained(make_sum, dropouts):
    run = make_sum(8)
    before = run.terms.digest, run.terms.seats
    total, faults = run.run(**dropouts, parted=PAIRS)
    np.testing.assert_array_equal(total, run.plain())
    assert not faults
    assert (run.terms.digest, run.terms.seats) == before, "the places stay as they were dealt"
    assert 1 not in run.terms.neighbours(0)
    assert run.terms.thinned == {0, 1, 2, 5, 7}


def test_without_complaints_clients_agree_on_what_the_release_before_does(make_sum):
    """It knows no such pairs; only a round with complaints needs clients that do."""
    terms = make_sum(6).terms
    assert terms.agreed(range(6)) == replace(terms, parted=frozenset()).agreed(range(6))
    assert terms.agreed(range(6)) != replace(terms, parted=frozenset({(0, 1)})).agreed(range(6))
    run = dealt(make_sum(6))
    run.mask(0)
    assert client.Client.decode(run.clients[0]).encode() == run.clients[0]


def test_a_check_names_whose_packets_are_bad_and_ends_with_the_mask(make_sum, monkeypatch):
    run = make_sum(7)
    for place in range(7):
        with monkeypatch.context() as patch:
            if place in (1, 3):
                patch.setattr(client, "commit_dealt", lambda *_: bytes(48))
            run.take_deal(place, run.deal(place))
    relayed = server.relay(run.terms, run.deals, 0)
    assert run.check(0) == (run.terms.seats[1], run.terms.seats[3])
    run.part((0, 1), (0, 3))
    assert run.check(0, relayed) == (run.terms.seats[1], run.terms.seats[3]), "any number of times"
    run.mask(0)
    with pytest.raises(Refusal, match="policy-second-answer"):
        run.check(0, relayed)


def test_clients_that_are_told_of_different_pairs_open_nothing_together(make_sum):
    """Half of the clients hear of a pair, the others do not: no release is for the other story."""
    run = dealt(make_sum(8))
    told = run.terms, replace(run.terms, parted=frozenset({(0, 1)}))
    for place in range(8):
        run.terms = told[place % 2]
        run.take_masked(place, *run.mask(place))
    for place in range(8):
        run.terms = told[place % 2]
        data = run.release(place)
        run.terms = told[1 - place % 2]
        with pytest.raises(RejectedUpdate, match="wrong-survivors"):
            run.take_release(place, data)
        if place % 2:
            run.terms = told[1]
            run.take_release(place, data)
    run.terms = told[1]
    with pytest.raises(server.SumAbandoned, match="recovery-failed"):
        run.total()


def test_a_client_masks_only_with_enough_neighbours_left(make_sum):
    """The server could part it from everybody honest."""
    run = dealt(make_sum(8))
    assert run.terms.threshold == 4
    run.part((0, 1), (0, 2), (0, 3))
    run.mask(0)
    run.part((4, 5), (4, 6), (4, 7), (1, 4))
    with pytest.raises(Refusal, match="policy-terms: 3 neighbours dealt shares"):
        run.mask(4)


def test_a_client_releases_only_if_everybody_has_enough_neighbours_left(make_sum):
    """Or else two halves between which there is no edge would be two sums."""
    run = dealt(make_sum(8))
    run.part(*((a, b) for a in range(4) for b in range(4, 8) if (a, b) != (3, 4)))
    with pytest.raises(Refusal, match="policy-terms: 3 neighbours"):
        run.mask(0)
    run = dealt(make_sum(8))
    run.part((0, 1), (0, 2), (0, 3))
    run.take_masked(7, *run.mask(7))
    with pytest.raises(Refusal, match="a survivor has 3 surviving neighbours, not 4"):
        run.release(7, survivors=[0, 1, 2, 3, 4, 5, 7])


@pytest.mark.parametrize(
    "pairs", [[(1, 1)], [(2, 1)], [(1, 2), (1, 2)], [(0, 9)], [(2, 3), (0, 1)]]
)
def test_pairs_that_are_none_are_refused(make_sum, pairs):
    out = Writer().uint(len(pairs), 4)
    for a, b in pairs:
        out.uint(a, 2).uint(b, 2)
    with pytest.raises(CryptoError, match="not sorted pairs of the 6 places"):
        make_sum(6).terms.read_parted(out.done())


def test_who_has_too_few_edges_leaves_and_everybody_else_stays(make_sum):
    """Two liars against six: whatever they complain of, honest clients keep each other."""
    terms = replace(make_sum(8).terms, parted=frozenset({(0, n) for n in range(2, 7)} | {(1, 2)}))
    assert server.stranded(terms, range(8)) == {0}
    assert server.stranded(terms, range(7)) == {0}
    assert server.stranded(make_sum(8).terms, range(3)) == set(), "too few are nobody's fault"
