"""The public terms of a pairwise-mask sum, and what a client insists on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from qsfl_flower.crypto.binding import Binding
from qsfl_flower.crypto.codec import Reader, Writer, check_identifier
from qsfl_flower.crypto.sources import random_bytes
from qsfl_flower.errors import ConfigError, Refusal
from qsfl_flower.secure.pairwise.graph import MAX_CLIENTS, Graph

PURPOSE = "masked-sum-share"
TRAIN = "train"
_MAGIC = b"QMASK\x02"
_OTHER_MAGIC = b"QMASK\x03"
"""Of sums for another purpose than training, which is named behind it."""


@dataclass(frozen=True)
class Terms:
    """What a sum is about; every client checks it, and everything in the sum is bound to it.

    Parameters
    ----------
    run, round : int
        Where it belongs.
    names : tuple of str
        The clients that take part, sorted.
    degree, threshold : int
        As in `Graph`.
    nonce : bytes
        16 bytes that tell sums of one round apart.
    apart : tuple of (str, str)
        Sorted pairs of these names that share no edge: one of the two has lied about the other
        before, and nothing proves which.
    purpose : str
        What the sum is for; nothing of it serves a sum for another purpose.
    parted : frozenset of (int, int)
        Pairs of places, the lower one first, of which one complains about what the other dealt;
        they share no edge from then on. Not part of the encoding: the clients are told after they
        dealt, and `agreed` covers it.
    """

    run: int
    round: int
    names: tuple[str, ...]
    degree: int
    threshold: int
    nonce: bytes = field(default_factory=lambda: random_bytes(16, "sum nonce"))
    apart: tuple[tuple[str, str], ...] = ()
    purpose: str = TRAIN
    parted: frozenset[tuple[int, int]] = frozenset()

    def __post_init__(self) -> None:
        check_identifier(self.purpose, "purpose of a sum")
        if list(self.names) != sorted(set(self.names)):
            raise ConfigError("masked sum: the names must be sorted and distinct")
        for name in self.names:
            check_identifier(name, "client")
        self.graph  # noqa: B018  # raises where there is none of this degree and threshold
        known = frozenset(self.names)
        if list(self.apart) != sorted(set(self.apart)) or any(
            not (a < b and a in known and b in known) for a, b in self.apart
        ):
            raise ConfigError(
                "masked sum: the pairs without an edge must be sorted and of its names"
            )

    @cached_property
    def graph(self) -> Graph:
        """Who masks with whom, by place."""
        return Graph(len(self.names), self.degree, self.threshold)

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that stand for these terms."""
        return hashlib.sha256(self.encode()).digest()

    @cached_property
    def seats(self) -> tuple[str, ...]:
        """The names in the order of their places on the ring: random, and the same for all."""
        return tuple(
            sorted(self.names, key=lambda n: hashlib.sha256(self.digest + n.encode()).digest())
        )

    @cached_property
    def places(self) -> Mapping[str, int]:
        """The place of every name."""
        return {name: place for place, name in enumerate(self.seats)}

    @cached_property
    def _barred(self) -> Mapping[int, frozenset[int]]:
        barred: defaultdict[int, set[int]] = defaultdict(set)
        before = {(self.places[a], self.places[b]) for a, b in self.apart}
        for a, b in before | self.parted:
            barred[a].add(b)
            barred[b].add(a)
        return {place: frozenset(others) for place, others in barred.items()}

    def neighbours(self, place: int) -> tuple[int, ...]:
        """Return the places that share an edge with `place`, in ascending order."""
        barred = self._barred.get(place, frozenset())
        return tuple(other for other in self.graph.neighbours(place) if other not in barred)

    @property
    def thinned(self) -> frozenset[int]:
        """The places that lack an edge which the graph would give them."""
        return frozenset(
            place
            for place, barred in self._barred.items()
            if barred.intersection(self.graph.neighbours(place))
        )

    def isolated(self) -> list[str]:
        """Return who has too few neighbours because of `apart`, the worst first."""
        left = {place: len(self.neighbours(place)) for place in sorted(self._barred)}
        few = sorted(left, key=left.__getitem__)
        return [self.seats[place] for place in few if left[place] < self.threshold]

    def encode(self) -> bytes:
        """Return the canonical encoding."""
        at = {name: index for index, name in enumerate(self.names)}
        train = self.purpose == TRAIN
        out = Writer(_MAGIC) if train else Writer(_OTHER_MAGIC).text(self.purpose)
        out.uint(self.run, 8).uint(self.round, 8)
        out.fixed(self.nonce, 16).uint(self.degree, 2).uint(self.threshold, 2)
        out.uint(len(self.names), 2)
        for name in self.names:
            out.text(name)
        out.uint(len(self.apart), 4)
        for a, b in self.apart:
            out.uint(at[a], 2).uint(at[b], 2)
        return out.done()

    @classmethod
    def decode(cls, data: bytes) -> Terms:
        """Return what `encode` wrote; anything else is `Malformed`."""
        reader = Reader(data, "terms of a masked sum")
        purpose = TRAIN
        if data.startswith(_OTHER_MAGIC):
            reader.expect(_OTHER_MAGIC)
            if (purpose := reader.identifier("purpose")) == TRAIN:
                raise reader.fail("training is named where another purpose should be")
        else:
            reader.expect(_MAGIC)
        run, round_, nonce = reader.uint(8), reader.uint(8), reader.fixed(16)
        degree, threshold, count = reader.uint(2), reader.uint(2), reader.uint(2)
        if not 2 <= count <= MAX_CLIENTS:
            raise reader.fail(f"{count} clients, allowed are 2 to {MAX_CLIENTS}")
        names = tuple(reader.identifier("client") for _ in range(count))
        pairs = [(reader.uint(2), reader.uint(2)) for _ in range(reader.uint(4))]
        reader.finish()
        if any(max(pair) >= count for pair in pairs):
            raise reader.fail(f"a pair beyond the {count} clients")
        try:
            apart = tuple((names[a], names[b]) for a, b in pairs)
            terms = cls(run, round_, names, degree, threshold, nonce, apart, purpose)
            alone = terms.isolated()
        except ConfigError as error:
            raise reader.fail(str(error)) from None
        if alone:
            raise reader.fail(f"{alone[0]} has fewer than {threshold} neighbours")
        return terms

    def write_parted(self) -> bytes:
        """Return the encoding of `parted`."""
        out = Writer().uint(len(self.parted), 4)
        for a, b in sorted(self.parted):
            out.uint(a, 2).uint(b, 2)
        return out.done()

    def read_parted(self, data: bytes) -> Terms:
        """Return these terms with the pairs that `write_parted` wrote, or raise `Malformed`."""
        reader = Reader(data, "pairs without an edge")
        pairs = [(reader.uint(2), reader.uint(2)) for _ in range(reader.uint(4))]
        reader.finish()
        if pairs != sorted(set(pairs)) or any(not a < b < len(self.names) for a, b in pairs):
            raise reader.fail(f"not sorted pairs of the {len(self.names)} places")
        return replace(self, parted=frozenset(pairs))

    def binding(self, sender: int, receiver: int) -> Binding:
        """What the packet between two places is bound to."""
        seats = self.seats
        what = PURPOSE if self.purpose == TRAIN else f"{PURPOSE}-{self.purpose}"
        return Binding(self.run, self.round, seats[sender], seats[receiver], what)

    def fewest_neighbours(self, places: Collection[int]) -> int:
        """Return how many neighbours among `places` the worst placed of them has."""
        return min(self.degrees(places).values())

    def degrees(self, places: Collection[int]) -> dict[int, int]:
        """Return how many neighbours among `places` each of them has."""
        among = frozenset(places)
        return {place: len(among.intersection(self.neighbours(place))) for place in among}

    def agreed(self, view: Collection[int], survivors: Collection[int] = ()) -> bytes:
        """Return the digest of what a client was told: who dealt, is parted, and survived."""
        out = Writer().fixed(self.digest, 32)
        write_places(out, view, len(self.names))
        write_places(out, survivors, len(self.names))
        if self.parted:
            out.blob(self.write_parted())
        return hashlib.sha256(out.done()).digest()


@dataclass(frozen=True)
class Policy:
    """What a client insists on, whatever the server asks.

    Parameters
    ----------
    colluding : float
        Share of the clients that may help the server, in [0, 1).
    min_clients : int
        No sum of fewer clients is released, >= 2.
    """

    colluding: float = 0.1
    min_clients: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.colluding < 1 or self.min_clients < 2:
            raise ConfigError(
                f"masked sum: colluding {self.colluding!r} must be in [0, 1) and min_clients "
                f"{self.min_clients!r} at least 2"
            )

    def check(self, terms: Terms, left: int) -> None:
        """Refuse a sum over `left` clients that is none that this client takes part in.

        Raises
        ------
        Refusal
            ``policy-cohort`` or ``policy-threshold``.
        """
        if left < self.min_clients:
            raise Refusal(
                "policy-cohort",
                f"a sum of {left} clients; at least {self.min_clients} are required here",
            )
        try:
            terms.graph.check(self.colluding, lost=len(terms.names) - left)
        except ConfigError as error:
            raise Refusal("policy-threshold", str(error)) from None


def write_places(out: Writer, places: Collection[int], count: int) -> None:
    """Append a set of places as a bit map."""
    out.uint(sum(1 << place for place in places), (count + 7) // 8)


def read_places(reader: Reader, count: int) -> frozenset[int]:
    """Read what `write_places` wrote."""
    bits = reader.uint((count + 7) // 8)
    if bits >> count:
        raise reader.fail(f"a place beyond the {count} of this sum")
    return frozenset(place for place in range(count) if bits >> place & 1)
