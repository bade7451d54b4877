"""A whole pairwise-mask sum in one process, with a hook at every step."""

from dataclasses import replace

import numpy as np
import pytest

from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.secure.pairwise import client, server
from qsfl_flower.secure.pairwise.graph import complete_graph
from qsfl_flower.secure.pairwise.terms import Policy, Terms

NOW = 1_800_000_000
INSTRUCTION = bytes(range(32))


class Sum:
    """The clients and the server of one sum; `steps` can be taken one by one.

    Clients are named by their place on the ring. Everything goes through bytes.
    """

    def __init__(self, keys, n, graph=None, size=50, policy=None, seed=0, apart=()):
        names = tuple(sorted(keys.clients)[:n])
        self.roster = open_roster(keys.roster, keys.authority)
        graph = graph or complete_graph(n, 0.0)
        self.terms = Terms(1, 1, names, graph.degree, graph.threshold, apart=apart)
        self.policy = policy or Policy(colluding=0.0)
        self.parties = {
            place: Credentials(keys.clients[name], self.roster)
            for name, place in self.terms.places.items()
        }
        generator = np.random.default_rng(seed)
        self.values = generator.integers(0, 2**32, (n, size), dtype=np.uint32)
        self.clients, self.deals, self.lockers, self.releases = {}, {}, {}, {}
        self.masked = {}
        self.instruction = INSTRUCTION

    def deal(self, place):
        state, data = client.deal(
            self.terms, self.instruction, self.parties[place], self.policy, NOW
        )
        self.clients[place] = state.encode()
        return data

    def take_deal(self, place, data):
        self.deals[place] = server.read_deal(self.terms, place, data, INSTRUCTION, self.roster, NOW)

    def mask(self, place, relayed=None):
        relayed = server.relay(self.terms, self.deals, place) if relayed is None else relayed
        vector = self.values[place].copy()
        state, lockers = client.mask(
            client.Client.decode(self.clients[place]), relayed, vector, self.parties[place],
            self.policy, NOW, self.terms.write_parted() if self.terms.parted else b"",
        )  # fmt: skip
        self.clients[place] = state.encode()
        return vector, lockers

    def check(self, place, relayed=None):
        relayed = server.relay(self.terms, self.deals, place) if relayed is None else relayed
        state = client.Client.decode(self.clients[place])
        return client.check(state, relayed, self.parties[place], NOW)

    def part(self, *pairs):
        """Part pairs of places after all have dealt."""
        self.terms = replace(self.terms, parted=frozenset(pairs))

    def take_masked(self, place, vector, lockers):
        self.lockers[place] = server.read_lockers(self.terms, self.deals, place, lockers)
        self.masked[place] = vector

    def release(self, place, survivors=None):
        told = server.survivor_list(self.terms, self.lockers if survivors is None else survivors)
        state, data = client.release(client.Client.decode(self.clients[place]), told, self.policy)
        self.clients[place] = state.encode()
        return data

    def take_release(self, place, data):
        self.releases[place] = server.read_release(
            self.terms, self.deals, self.lockers, place, data
        )

    def total(self):
        total = np.zeros(self.values.shape[1], np.uint32)
        for vector in self.masked.values():
            total += vector
        self.found = server.Findings()
        server.unmask(self.terms, self.deals, self.lockers, self.releases, total, self.found)
        return total, self.found.faults

    def plain(self):
        return self.values[sorted(self.lockers)].sum(axis=0, dtype=np.uint32)

    def run(self, no_deal=(), no_mask=(), no_release=(), parted=()):
        """Take all steps without those that drop out, and return the sum and the faults."""
        places = range(len(self.terms.names))
        for place in places:
            if place not in no_deal:
                self.take_deal(place, self.deal(place))
        self.part(*parted)
        for place in sorted(self.deals):
            if place not in no_mask:
                self.take_masked(place, *self.mask(place))
        for place in sorted(self.lockers):
            if place not in no_release:
                self.take_release(place, self.release(place))
        return self.total()


@pytest.fixture(scope="session")
def keys():
    return create_federation([f"client-{i:02d}" for i in range(24)], now=NOW)


@pytest.fixture
def make_sum(keys):
    return lambda n, **options: Sum(keys, n, **options)
