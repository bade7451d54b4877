from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from qsfl_flower.crypto.errors import Rejected
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.errors import RejectedUpdate
from qsfl_flower.secure.committee import check_value, products, receive
from qsfl_flower.secure.dealing import Dealt, deal, read_header
from qsfl_flower.secure.desk import Desk
from qsfl_flower.secure.sizes import least_quorum
from qsfl_flower.secure.terms import Terms
from qsfl_flower.secure.verdict import Check

NOW = int(time.time())
BASE = Terms(
    run=7,
    round=3,
    members=tuple(f"c{i}" for i in range(5)),
    seats=tuple(f"s{i}" for i in range(5)),
    threshold=3,
    quorum=4,
    min_clients=2,
    max_clients=12,
    bits=24,
    bound=4.0,
    clip_norm=4.0,
)


@dataclass
class Room:
    """A federation of clients c0 .. c11 in one process; c0, c1 .. are the committee."""

    federation: object
    roster: object
    terms: Terms = BASE
    asked: bytes = bytes(32)
    desks: dict[int, Desk] = field(default_factory=dict)

    def under(self, **changes) -> Room:
        if "members" in changes:
            members, threshold = len(changes["members"]), changes.get("threshold", 3)
            changes["seats"] = tuple(f"s{i}" for i in range(members))
            changes.setdefault("quorum", least_quorum(members, threshold))
        asked = changes.pop("asked", self.asked)
        return Room(self.federation, self.roster, replace(self.terms, **changes), asked)

    def deal(self, values, client: int, integers=()) -> Dealt:
        terms = self.terms
        keys = [self.roster.encryption_key(name, NOW) for name in terms.members]
        name = f"c{client}"
        signing = self.federation.clients[name].keys[0].signing
        values = np.asarray(values, float)
        return deal(values, integers, terms, name, signing, keys, self.asked)

    def header(self, dealt: Dealt):
        return read_header(dealt.header, self.terms, self.roster, NOW)

    def receive(self, dealt: Dealt, member: int):
        keys = self.federation.clients[self.terms.members[member - 1]].decryption_keys
        return receive(self.header(dealt), dealt.sealed[member - 1], self.terms, member, keys)

    def check(self, dealt: list[Dealt], members) -> dict[int, Check]:
        """The first exchange: every member takes what it can use."""
        answers = {}
        for member in members:
            held, complaints, values = [], [], []
            for one in dealt:
                try:
                    got = self.receive(one, member)
                except (Rejected, RejectedUpdate) as error:
                    complaints.append(error.reason)
                    values.append(0)
                    continue
                size = self.header(one).size
                held.append(got)
                complaints.append("")
                values.append(check_value(got, size))
            desk = self.desks.get(member) or Desk(seat=self.terms.seats[member - 1])
            self.desks[member] = desk.take(self.terms, size, held, member)
            answers[member] = Check(complaints, values)
        return answers

    def products(self, member: int):
        desk = self.desks[member]
        return products(desk.held, desk.size, self.terms, member)

    def release(self, clients, members):
        answers = {}
        for member in members:
            answers[member], self.desks[member] = self.desks[member].release(
                self.terms.round, clients, member
            )
        return answers


@pytest.fixture(scope="session")
def parties():
    federation = create_federation([f"c{i}" for i in range(12)], now=NOW)
    return federation, open_roster(federation.roster, federation.authority, seen=None)


@pytest.fixture
def room(parties) -> Room:
    return Room(*parties)
