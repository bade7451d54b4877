"""Client, members and server together, without Flower."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from qsfl_flower.crypto.errors import Rejected
from qsfl_flower.errors import ConfigError, CryptoError, Refusal, RejectedUpdate
from qsfl_flower.secure import dealing
from qsfl_flower.secure.committee import receive
from qsfl_flower.secure.decoding import Inconsistent, open_vectors
from qsfl_flower.secure.desk import Desk, Use
from qsfl_flower.secure.field import P, gram
from qsfl_flower.secure.fixed_point import signed
from qsfl_flower.secure.krum import distances_of_gram, scores, select
from qsfl_flower.secure.verdict import Check, Verdict, judge

from .conftest import Room

ALL = range(1, 6)


def updates(n, size=6, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, size))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def exact_sum(vectors, weights=None):
    weights = [1] * len(vectors) if weights is None else weights
    return sum(
        w * np.rint(v * 2.0**24).astype(np.int64) for v, w in zip(vectors, weights, strict=True)
    )


@pytest.mark.parametrize("quorum", [4, 5])
def test_every_subset_that_suffices_opens_the_exact_sum(room, quorum):
    room = room.under(quorum=quorum)
    vectors = updates(4)
    dealt = [room.deal(v, i) for i, v in enumerate(vectors)]
    checks = room.check(dealt, ALL)
    assert judge(checks, 4, 3) == Verdict({}, frozenset())
    answers = room.release(["c0", "c2", "c3"], ALL)
    expected = exact_sum(vectors[[0, 2, 3]])
    for subset in itertools.combinations(ALL, quorum):
        opened = open_vectors({j: answers[j] for j in subset}, quorum - 1)
        assert np.array_equal(signed(opened.vector), expected)
    for subset in itertools.combinations(ALL, quorum - 1):
        opened = open_vectors({j: answers[j] for j in subset}, quorum - 2)
        assert not np.any(signed(opened.vector) == expected)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_vector_as_long_as_a_seed_is_no_seed(room, size):
    """With what checks it, a vector of three numbers has the 32 bytes of a seed."""
    vectors = updates(3, size)
    dealt = [room.deal(v, i) for i, v in enumerate(vectors)]
    assert judge(room.check(dealt, ALL), 3, 3) == Verdict({}, frozenset())
    opened = open_vectors(room.release(["c0", "c1", "c2"], ALL), 3)
    assert np.array_equal(signed(opened.vector), exact_sum(vectors))


@pytest.mark.parametrize(("m", "t"), [(2, 2), (3, 2), (7, 4), (12, 3)])
def test_other_committees(parties, m, t):
    names = tuple(f"c{i}" for i in range(m))
    room = Room(*parties).under(members=names, threshold=t)
    vectors = updates(3, size=2)
    checks = room.check([room.deal(v, i) for i, v in enumerate(vectors)], range(1, m + 1))
    assert judge(checks, 3, t) == Verdict({}, frozenset())
    answers = room.release(["c0", "c1", "c2"], range(1, m + 1))
    opened = open_vectors(answers, room.terms.quorum - 1)
    assert np.array_equal(signed(opened.vector), exact_sum(vectors))


@pytest.mark.parametrize("quorum", [4, 5])
def test_shares_of_several_rounds_come_together_with_the_weights_of_their_age(room, quorum):
    """Only the update is weighed; the integers behind it are added up as they are."""
    room = room.under(round=9, weights=(9, 4, 1), quorum=quorum, extras=2)
    vectors, rounds = updates(6), [9, 7, 8, 7, 9, 8]
    tails = [[1, -5], [10, 5], [100, 7], [1000, 0], [10000, 0], [100000, 0]]
    dealt = [
        room.under(round=at).deal(v, i, tail)
        for i, (v, at, tail) in enumerate(zip(vectors, rounds, tails, strict=True))
    ]
    assert judge(room.check(dealt, ALL), 6, 3) == Verdict({}, frozenset())
    answers = room.release([f"c{i}" for i in range(6)], ALL)
    total = signed(open_vectors(answers, quorum - 1).vector)
    assert np.array_equal(total[:6], exact_sum(vectors, [9, 1, 4, 1, 9, 4]))
    assert total[6:].tolist() == [111111, 7]


def test_distances_are_those_of_the_updates_without_weights(room):
    room = room.under(round=9, weights=(9, 4, 1), distances=True)
    vectors = updates(4)
    dealt = [room.under(round=9 - i % 3).deal(v, i) for i, v in enumerate(vectors)]
    room.check(dealt, ALL)
    opened = open_vectors({j: room.products(j)[0] for j in ALL}, 4).vector
    encoded = [room.terms.fixed_point.encode(v) for v in vectors]
    assert np.array_equal(opened, distances_of_gram(gram(encoded)))


def test_shares_outside_the_window_or_of_other_terms_are_not_taken(room):
    room = room.under(round=9, weights=(2, 2, 1))
    for at, reason in ((6, "stale-round"), (10, "future-round")):
        with pytest.raises(RejectedUpdate, match=reason):
            room.header(room.under(round=at).deal(updates(1)[0], 0))
    for changes in ({"weights": (2, 1, 1)}, {"weights": (2, 2)}, {"seats": tuple("abcde")}):
        with pytest.raises(RejectedUpdate, match="other-terms"):
            room.header(room.under(round=8, **changes).deal(updates(1)[0], 0))
    # The header says in which round the payload was sealed: another round does not open it.
    old = room.under(round=8).deal(updates(1)[0], 0)
    forged = replace(room.header(old), round=9)
    keys = room.federation.clients["c0"].decryption_keys
    with pytest.raises(CryptoError):
        receive(forged, old.sealed[0], room.terms, 1, keys)


def test_no_share_is_taken_for_two_rounds(room):
    """As long as it could count; and what was not released counts as taken, too."""
    first, second = (room.under(round=r, weights=(4, 2, 1)) for r in (4, 5))
    dealt = [first.deal(v, i) for i, v in enumerate(updates(4))]
    first.check(dealt[:3], ALL)
    second.desks = first.desks
    for chosen in ([0, 1], [2], [3]):
        for i in chosen:
            header = second.header(dealt[i])
            if i == 3:
                second.desks[1].check_new(header, second.terms)
                continue
            with pytest.raises(RejectedUpdate, match="already-taken"):
                second.desks[1].check_new(header, second.terms)
    with pytest.raises(Refusal, match="shares of c0 were taken before"):
        second.check(dealt, [1])
    second.check(dealt[3:], [1])
    taken = {("c0", 4): 4, ("c1", 4): 4, ("c2", 4): 4, ("c3", 4): 5}
    assert second.desks[1].uses == {key: Use(at, 6) for key, at in taken.items()}
    # A round back would let what has been forgotten in again.
    last = room.under(round=7, weights=(4, 2, 1))
    last.desks = second.desks
    last.check([last.deal(updates(1)[0], 4)], [1])
    assert last.desks[1].uses == {("c4", 7): Use(7, 9)}
    second.desks = last.desks
    with pytest.raises(Refusal, match="round 7 has begun"):
        second.check(dealt, [1])


def test_a_member_without_its_memory_takes_nothing_that_was_dealt_before(room):
    dealt = [room.deal(v, i) for i, v in enumerate(updates(3))]
    held = [room.receive(one, 1) for one in dealt]
    for seat in ("", "s1", "another"):
        with pytest.raises(Refusal, match="another memory"):
            Desk(seat=seat).take(room.terms, 6, held, 1)
    Desk(seat="s0").take(room.terms, 6, held, 1)


@pytest.mark.parametrize("members", [5, 6, 7])
def test_hidden_distances_are_those_of_the_encoded_updates_and_select_the_same(parties, members):
    names = tuple(f"c{i}" for i in range(members))
    room = Room(*parties).under(members=names, distances=True, norms=True, extras=2)
    vectors = updates(9, size=40)
    vectors[6:] = -3 * vectors[6]
    dealt = [room.deal(v, i, [1 << 40, -(1 << 41)]) for i, v in enumerate(vectors)]
    every = range(1, members + 1)
    room.check(dealt, every)
    answers = {j: room.products(j) for j in every}
    encoded = [room.terms.fixed_point.encode(v) for v in vectors]
    plain = gram(encoded)
    for subset in itertools.combinations(every, 5):
        distances = open_vectors({j: answers[j][0] for j in subset}, 4).vector
        assert np.array_equal(distances, distances_of_gram(plain))
        norms = open_vectors({j: answers[j][1] for j in subset}, 4).vector
        assert np.array_equal(norms, np.diagonal(plain))
    found = select(scores(distances, 9, 3), 4)
    whole = [signed(e).astype(object) for e in encoded]
    brute = [sorted(((a - b) ** 2).sum() for b in whole)[1:5] for a in whole]
    ranks = sorted(range(9), key=lambda i: (sum(brute[i]), i))
    assert found == tuple(sorted(ranks[:4]))


# --- what clients may do -------------------------------------------------------------------------


def tampered(room, monkeypatch, client, member, change):
    """A deal in which the share of one member has been changed before sealing."""
    share = dealing.share

    def bad(secret, sharing, seeds=None, out=None):
        shares = share(secret, sharing, seeds, out)
        change(shares.vectors[member - sharing.threshold])
        return shares

    monkeypatch.setattr(dealing, "share", bad)
    dealt = room.deal(updates(1)[0], client)
    monkeypatch.undo()
    return dealt


def one_more(vector):
    vector[2] ^= np.uint64(1)


@pytest.mark.parametrize("member", [3, 4, 5])
def test_a_client_whose_shares_do_not_fit_is_named(room, monkeypatch, member):
    honest = [room.deal(v, i) for i, v in enumerate(updates(3))]
    bad = tampered(room, monkeypatch, 3, member, one_more)
    verdict = judge(room.check([*honest, bad], ALL), 4, 3)
    assert verdict.members == frozenset()
    assert list(verdict.clients) == [3]
    assert f"member {member}" in verdict.clients[3]
    # With one value more than needed it is still found out, with none it is not.
    checks = room.check([*honest, bad], [1, 2, 3, 4])
    assert (3 in judge(checks, 4, 3).clients) == (member != 5)


def test_values_outside_the_field_and_foreign_bytes(room, monkeypatch):
    def too_large(vector):
        vector[0] = P

    bad = tampered(room, monkeypatch, 1, 4, too_large)
    with pytest.raises(RejectedUpdate, match="outside the field"):
        room.receive(bad, 4)
    honest = room.deal(updates(1)[0], 0)
    for change in (lambda s: s[:-1], lambda s: bytes([s[0] ^ 1]) + bytes(s[1:])):
        broken = replace(honest, sealed=(*honest.sealed[:4], change(honest.sealed[4])))
        with pytest.raises(RejectedUpdate):
            room.receive(broken, 5)
    # Another member's payload, and the same one under another client's header.
    with pytest.raises(RejectedUpdate):
        room.receive(replace(honest, sealed=honest.sealed[::-1]), 5)
    other = room.deal(updates(1)[0], 2)
    with pytest.raises(RejectedUpdate, match="altered"):
        room.receive(replace(other, sealed=honest.sealed), 5)


def test_seeds_for_shares_of_zero_must_be_the_stated_ones(room, monkeypatch):
    room = room.under(distances=True)
    honest = room.deal(updates(1)[0], 0)
    digests = []
    real = dealing.Header.encode

    def lie(self):
        digests.extend(self.commitments)
        return real(replace(self, commitments=(bytes(32), *self.commitments[1:])))

    monkeypatch.setattr(dealing.Header, "encode", lie)
    bad = room.deal(updates(1)[0], 0)
    monkeypatch.undo()
    assert len(digests) == 10
    room.receive(honest, 5)
    with pytest.raises(RejectedUpdate, match="bad-seed"):
        room.receive(bad, 5)


def test_terms_and_signature_are_checked(room):
    dealt = room.deal(updates(1)[0], 0)
    with pytest.raises(RejectedUpdate, match="other-terms"):
        room.under(min_clients=3).header(dealt)
    altered = bytearray(dealt.header)
    altered[120] ^= 1
    with pytest.raises(Rejected):
        room.header(replace(dealt, header=bytes(altered)))


def test_an_update_that_cannot_be_encoded_is_not_dealt(room):
    for bad, reason in ((np.nan, "not-finite"), (4.1, "out-of-range")):
        with pytest.raises(RejectedUpdate, match=reason):
            room.deal([0.0, bad], 0)
    with pytest.raises(ConfigError, match="squared distance"):
        room.under(distances=True, bits=30).deal([0.0], 0)


# --- what members may do -------------------------------------------------------------------------


def test_a_member_that_lies_about_most_clients_is_found_and_the_clients_are_kept():
    def line(a, b):
        return {j: (a + b * j + 3 * j * j) % P for j in ALL}

    truth = [line(5, 6), line(7, 1), line(2, 2)]
    checks = {j: Check(["", "", ""], [t[j] if j != 2 else t[j] + 9 for t in truth]) for j in ALL}
    assert judge(checks, 3, 3) == Verdict({}, frozenset({2}))
    complaining = {**checks, 2: Check(["broken"] * 3, [0, 0, 0])}
    assert judge(complaining, 3, 3) == Verdict({}, frozenset({2}))
    # About one client only: the client cannot be used, whoever is to blame.
    once = {**checks, 2: Check(["", "no", ""], [t[2] for t in truth])}
    verdict = judge(once, 3, 3)
    assert verdict.members == frozenset()
    assert verdict.clients == {1: "its share for member 2: no"}
    # One value more than needed: a contradiction, but nobody can tell whose.
    verdict = judge({j: checks[j] for j in (1, 2, 3, 4)}, 3, 3)
    assert set(verdict.clients) == {0, 1, 2}


@pytest.mark.parametrize("liar", ALL)
def test_garbage_in_a_release_is_corrected_with_two_spare_members(room, liar):
    every = range(1, 8)
    room = room.under(members=tuple(f"c{i}" for i in range(7)))
    vectors = updates(3)
    room.check([room.deal(v, i) for i, v in enumerate(vectors)], every)
    answers = room.release(["c0", "c1", "c2"], every)
    answers[liar] = np.roll(answers[liar], 1)
    opened = open_vectors(answers, 4)
    assert opened.liars == {liar}
    assert np.array_equal(signed(opened.vector), exact_sum(vectors))
    del answers[next(j for j in every if j != liar)]
    with pytest.raises(Inconsistent):
        open_vectors(answers, 4)


def test_a_member_refuses_everything_but_one_sum_of_enough_clients(room):
    room = room.under(min_clients=3)
    dealt = [room.deal(v, i) for i, v in enumerate(updates(4))]
    room.check(dealt, [1])
    desk = room.desks[1]
    for clients, says in [
        (["c0", "c1"], "at least 3"),
        (["c0", "c1", "c1"], "2 different clients"),
        (["c0", "c1", "c2", "c2"], "3 different clients"),
        (["c0", "c1", "c9"], "no valid share of c9"),
    ]:
        with pytest.raises(Refusal, match=says):
            desk.release(3, clients, 1)
    three = ["c0", "c1", "c2"]
    for other in (2, 4):
        with pytest.raises(Refusal, match="no shares are held"):
            desk.release(other, three, 1)
    _, after = desk.release(3, three, 1)
    assert (after.closed, after.terms, after.held) == (3, None, ())
    # Not even the same subset again, and no fresh copy of the shares of a closed round.
    with pytest.raises(Refusal, match="once"):
        after.release(3, three, 1)
    held = [room.receive(d, 1) for d in dealt]
    with pytest.raises(Refusal, match="one per round"):
        after.take(room.terms, 6, held, 1)
    with pytest.raises(Refusal, match="round 3 has begun"):
        after.take(replace(room.terms, round=2), 6, held, 1)
    fresh = Desk(seat="s0")
    with pytest.raises(Refusal, match="twice"):
        fresh.take(room.terms, 6, [held[0], held[0]], 1)
    with pytest.raises(Refusal, match="terms are for 3"):
        fresh.take(replace(room.terms, max_clients=3), 6, held, 1)


def test_with_a_quorum_answers_to_two_subsets_do_not_combine(room):
    """Two colluders and a server that asks members for different subsets get neither sum."""
    room = room.under(quorum=4)
    vectors = updates(3)
    room.check([room.deal(v, i) for i, v in enumerate(vectors)], ALL)
    backup = dict(room.desks)
    whole = room.release(["c0", "c1", "c2"], [1, 2, 3, 4])
    room.desks = backup
    part = room.release(["c0", "c1"], [1, 2, 5])
    # Members 1 and 2 collude and answer both; of the honest ones, 3 and 4 answer one and 5 the
    # other question. The first opens, the second lacks a value.
    assert np.array_equal(signed(open_vectors(whole, 3).vector), exact_sum(vectors))
    mixed = {**part, 3: whole[3]}
    wrong = open_vectors(mixed, 3).vector
    assert not np.any(signed(wrong) == exact_sum(vectors[:2]))
