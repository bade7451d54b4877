"""What a server that asks whatever it likes can open, with clients and members on its side.

The sentence to hold: with c colluding clients at most c quadratic equations about each honest
update per round.
"""

from __future__ import annotations

import numpy as np
import pytest

from qsfl_flower.errors import Refusal, RejectedUpdate
from qsfl_flower.secure.committee import products, receive
from qsfl_flower.secure.dealing import read_header
from qsfl_flower.secure.decoding import open_vectors
from qsfl_flower.secure.desk import Desk
from qsfl_flower.secure.fixed_point import signed
from qsfl_flower.secure.krum import pairs

from .conftest import NOW, Room

SIZE, TRIES = 8, 12


class Coalition:
    """A server, t - 1 members that answer everything, and clients that deal as often as it likes.

    It keeps each value that any member gives it, and opens what it has enough values of.
    """

    def __init__(self, room: Room, honest: int, clients: list[int]) -> None:
        self.room, self.terms = room, room.terms
        self.rng = np.random.default_rng(7)
        self.updates = {f"c{i}": self.rng.normal(size=SIZE) / 4 for i in range(honest)}
        self.dealt = [room.deal(v, int(name[1:])) for name, v in self.updates.items()]
        self.probes = {}
        self.fresh = {
            f"c{c}": [self._probe(c, v) for v in self.rng.normal(size=(TRIES, SIZE)) / 4]
            for c in clients
        }
        self.members = len(self.terms.members)
        self.desks = {j: Desk(seat=self.terms.seats[j - 1]) for j in range(1, self.members + 1)}
        self.values: dict[tuple[str, bytes], dict[int, int]] = {}
        self.refusals = 0
        self._opened_shares = {}

    def _probe(self, client, vector):
        dealt = self.room.deal(vector, client)
        self.probes[self.room.header(dealt).digest] = vector
        return dealt

    def held(self, dealt, member):
        key = dealt.header, member
        if key not in self._opened_shares:
            header = read_header(dealt.header, self.terms, self.room.roster, NOW)
            keys = self.room.federation.clients[self.terms.members[member - 1]].decryption_keys
            self._opened_shares[key] = receive(
                header, dealt.sealed[member - 1], self.terms, member, keys
            )
        return self._opened_shares[key]

    def ask(self, member, batch, corrupt=False):
        """Send `take` to a member, and keep its answers about pairs of honest and own headers."""
        held = [self.held(d, member) for d in batch]
        try:
            if not corrupt:
                desk = self.desks[member].take(self.terms, SIZE, held, member)
                self.desks[member] = Desk.recall(desk.memory())  # a restart forgets nothing
        except Refusal as refusal:
            self.refusals += refusal.reason == "policy-second-answer"
            return
        told = products(held, SIZE, self.terms, member)[0]
        for value, i, j in zip(told.tolist(), *pairs(len(held)), strict=True):
            a, b = sorted((held[i], held[j]), key=lambda h: h.digest in self.probes)
            if a.digest not in self.probes and b.digest in self.probes:
                self.values.setdefault((a.client, b.digest), {})[member] = value

    def equations(self, client):
        """Return the gradients of the distances to a client's update that it can open."""
        unit = 2.0**self.terms.bits
        x, found = np.rint(self.updates[client] * unit), []
        for (name, digest), told in self.values.items():
            if name != client or len(told) < 2 * self.terms.threshold - 1:
                continue
            truth = int(((x - np.rint(self.probes[digest] * unit)).astype(object) ** 2).sum())
            points = {j: np.array([v], np.uint64) for j, v in told.items()}
            if int(open_vectors(points, len(points) - 1).vector[0]) == truth:
                found.append(self.updates[client] - self.probes[digest])
        return np.array(found).reshape(-1, SIZE)


@pytest.mark.parametrize(
    ("members", "threshold", "corrupt"), [(5, 3, 0), (5, 3, 2), (8, 3, 2), (10, 3, 0), (5, 2, 1)]
)
def test_c_colluding_clients_get_c_equations_about_each_honest_update(
    parties, members, threshold, corrupt
):
    """However it asks: the same members again, disjoint groups of them, other sets of clients.

    With (8, 3) and two members on its side, two groups of three honest members would each complete
    the five values that a distance of degree four takes; with (10, 3), two groups of five alone.
    """
    names = tuple(f"c{i}" for i in range(members))
    room = Room(*parties).under(
        members=names, threshold=threshold, distances=True, min_clients=3, bits=20
    )
    mallory = Coalition(room, 4, [10, 11])
    honest = [j for j in range(1, members + 1) if j > corrupt]
    for attempt in range(TRIES):
        batch = [*mallory.dealt, *(fresh[attempt] for fresh in mallory.fresh.values())]
        half = honest[: len(honest) // 2] if attempt % 2 else honest[len(honest) // 2 :]
        group = half if attempt < TRIES // 2 else honest
        for member in group:
            mallory.ask(member, batch)
            mallory.ask(member, batch[1:])  # and without one client
        for member in range(1, corrupt + 1):
            mallory.ask(member, batch, corrupt=True)
    assert mallory.refusals >= len(honest) * (TRIES // 2)
    for client in mallory.updates:
        assert np.linalg.matrix_rank(mallory.equations(client)) <= 2
    # What the announced rule needs is opened when all are asked for the same.
    fair = Coalition(room, 4, [10, 11])
    batch = [*fair.dealt, *(fresh[0] for fresh in fair.fresh.values())]
    for member in range(1, members + 1):
        fair.ask(member, batch)
    assert all(np.linalg.matrix_rank(fair.equations(client)) == 2 for client in fair.updates)


def test_the_same_question_gets_the_same_answer(room):
    """A reply that was lost may be asked for again, also after a restart in between."""
    room = room.under(distances=True)
    dealt = [room.deal(v, i) for i, v in enumerate(np.eye(3))]
    checks = room.check(dealt, [1])
    first = room.products(1)[0]
    room.desks[1] = Desk.recall(room.desks[1].memory())
    assert room.check(dealt, [1]) == checks
    assert np.array_equal(room.products(1)[0], first)
    for other in (dealt[:2], dealt[::-1], [*dealt[:2], room.deal(np.eye(3)[2], 2)]):
        with pytest.raises(Refusal, match="policy-second-answer"):
            room.check(other, [1])


def test_one_instruction_for_all_that_were_dealt_in_a_round(room):
    """Otherwise all but one may have been asked for updates that the server knows."""
    mine, theirs = (room.under(asked=bytes([n]) * 32) for n in (1, 2))
    dealt = [mine.deal(np.ones(3), 0), *(theirs.deal(np.zeros(3), n) for n in (1, 2, 3))]
    with pytest.raises(Refusal, match="policy-other-instruction"):
        room.check(dealt, [1])
    room.check(dealt[1:], [1])


def test_rounds_of_dealing_may_have_an_instruction_each(room):
    now = room.under(round=4, weights=(1, 1))
    before = now.under(round=3, asked=b"o" * 32)
    dealt = [before.deal(np.ones(3), n) for n in range(2)]
    dealt += [now.deal(np.ones(3), n) for n in range(2, 5)]
    now.check(dealt, [1])


@pytest.mark.parametrize("wipe", ["empty", "other-terms", "later"])
def test_shares_are_remembered_as_long_as_their_terms_allow(room, wipe):
    """Whatever a member is asked in between, old shares are summed once."""
    old = room.under(weights=(1, 1, 1, 1))
    dealt = [old.deal(np.eye(4)[i], i) for i in range(4)]
    old.check(dealt, [1])
    _, desk = old.desks[1].release(3, [f"c{i}" for i in range(4)], 1)
    middle = {
        "empty": room.under(round=4),
        "other-terms": room.under(round=4, weights=(1,)),
        "later": room.under(round=5, weights=(1, 1, 1, 1)),
    }[wipe]
    given = [] if wipe == "empty" else [middle.deal(np.ones(4), n) for n in (8, 9)]
    held = [middle.receive(one, 1) for one in given]
    desk = Desk.recall(desk.take(middle.terms, 4, held, 1).memory())
    later = old.under(round=6)
    for one in dealt[:-1]:
        header = later.header(one)
        with pytest.raises(RejectedUpdate, match="already-taken"):
            desk.check_new(header, later.terms)
    held = [later.receive(one, 1) for one in dealt[:-1]]
    with pytest.raises(Refusal, match="were taken before"):
        desk.take(later.terms, 4, held, 1)
    # When they could not be used any more, they need not be remembered.
    end = room.under(round=9)
    desk = desk.take(end.terms, 4, [end.receive(end.deal(np.ones(4), 7), 1)], 1)
    assert desk.uses.keys() == {("c7", 9)}


def test_a_weight_of_few_clients_is_not_released(room):
    """Modulo the weight of the others, such a sum is that of the few."""
    base = room.under(round=4, weights=(64, 1), min_clients=3, max_clients=9, bits=10)
    before = base.under(round=3)
    few = [before.deal(np.full(3, 0.01), n) for n in range(2)]
    many = [base.deal(np.full(3, 0.5), n) for n in range(2, 6)]
    base.check([*few, *many], [1])
    desk = base.desks[1]
    with pytest.raises(Refusal, match="policy-weights: round 4: 2 of the clients"):
        desk.release(4, [f"c{n}" for n in range(6)], 1)
    with pytest.raises(Refusal, match="at least 5 are needed"):
        desk.release(4, [f"c{n}" for n in range(2, 6)], 1, least_cohort=5)
    desk.release(4, [f"c{n}" for n in range(2, 6)], 1)
    # Why: the residue is the sum of the two.
    total = 64 * 4 * round(0.5 * 1024) + 2 * round(0.01 * 1024)
    assert signed(np.array([total], np.uint64))[0] % 64 == 2 * 10
