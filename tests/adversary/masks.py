"""A server with a valid key, and one client, that try to open more than one sum under masks.

Hypothesis begins with valid rounds and departs from them: any step of any client in any order, with
other terms, rosters, survivors, models and packets. Whatever devices answer is put together by a
server that uses every share, key and locker it can open, and judged: over which updates do masked
vectors add up to something without an unknown mask?
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import ConfigRecord, RecordDict
from hypothesis import strategies as st

from qsfl_flower.crypto.codec import Reader, Writer
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.errors import QSFLError
from qsfl_flower.secure.pairwise import client as protocol
from qsfl_flower.secure.pairwise import seeds, server
from qsfl_flower.secure.pairwise.recovery import join_shares
from qsfl_flower.secure.pairwise.terms import Policy, Terms
from qsfl_flower.testing import LocalFederation
from qsfl_flower.wire import (
    PAYLOAD_RECORD,
    PLAN_KEY,
    QSFL_RECORD,
    TASK_KEY,
    Plan,
    PlanItem,
    from_record,
    to_record,
)
from qsfl_flower.wire.keys import MASKED_SUM

CLIENTS, SIZE, LEAST, COLLUDER = 6, 32, 4, 5
EVERYBODY = tuple(range(CLIENTS))
NODE = {"qsfl-min-cohort": LEAST, "qsfl-max-colluding": 0.2}


@dataclass(frozen=True)
class Offer:
    """Terms that the server proposes, around honest ones: six clients of which one may collude."""

    round: int = 1
    clients: tuple[int, ...] = EVERYBODY
    degree: int = 0
    threshold: int = 0
    apart: tuple[tuple[int, int], ...] = ()
    nonce: int = 0

    def terms(self) -> Terms | None:
        """Return the terms, or None if they contradict themselves."""
        names = tuple(sorted({f"client-{n}" for n in self.clients}))
        degree = self.degree or len(names) - 1
        threshold = self.threshold or (len(names) - 1 + len(names) // 5) // 2 + 1
        apart = tuple((f"client-{a}", f"client-{b}") for a, b in self.apart)
        try:
            made = Terms(1, self.round, names, degree, threshold, bytes([self.nonce] * 16), apart)
            return Terms.decode(made.encode())
        except QSFLError:
            return None


@dataclass(frozen=True)
class Train:
    """Ask clients to train; those of `dead` on a model from which nothing is learned."""

    clients: tuple[int, ...]
    offer: Offer | None
    round: int = 1
    dead: tuple[int, ...] = ()


@dataclass(frozen=True)
class Deal:
    """Ask clients that have trained to deal shares."""

    clients: tuple[int, ...]
    offer: Offer


@dataclass(frozen=True)
class Mask:
    """Tell clients who has dealt; each gets the packets of its own last terms.

    `first` gives those of the first time that a neighbour dealt under these terms, not of the last;
    `parted` are the pairs that are said to have complained.
    """

    clients: tuple[int, ...]
    view: tuple[int, ...]
    first: tuple[int, ...] = ()
    parted: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Check(Mask):
    """Ask clients whose packets they cannot use."""


@dataclass(frozen=True)
class Release:
    """Tell clients who has survived."""

    clients: tuple[int, ...]
    survivors: tuple[int, ...]


Action = Train | Deal | Mask | Release
PARTED = ((), (), ((0, 1),), ((0, 5),), ((0, 1), (2, 3)), ((0, 1), (2, 3), (4, 5)))
HONEST = tuple(n for n in EVERYBODY if n != COLLUDER)


def honest(
    offer: Offer,
    early: bool,
    lost: Iterable[int] = (),
    parted: tuple[tuple[int, int], ...] = (),
) -> tuple[Action, ...]:
    """Return a round as the strategy plays it; the lost ones send no masked vector."""
    left = tuple(n for n in offer.clients if n not in set(lost))
    train = Train(HONEST, offer if early else None, offer.round)
    deal = () if early else (Deal(offer.clients, offer),)
    check = (Check(offer.clients, offer.clients),) if parted else ()
    asked = Mask(left, offer.clients, parted=parted)
    return (train, *deal, *check, asked, Release(left, left))


_some = st.sampled_from(
    [HONEST, HONEST[1:], HONEST[:-1], (0, 1, 2), (2, 3, 4), (0, 1, 2, 5), (1, 2, 3, 4, 5), (3,),
     (0, 1), EVERYBODY]
)  # fmt: skip


@st.composite
def scripts(draw: st.DrawFn) -> tuple[Action, ...]:
    """Honest rounds with departures from them."""
    actions: list[Action] = []
    for r in draw(st.sampled_from([(1,), (1,), (1,), (1, 2)])):
        offer = Offer(r)
        if draw(st.sampled_from([False, False, False, True])):
            offer = _another(draw, offer)
        lost = draw(st.sampled_from([(), (), (), (0,), (3,), (5,)]))
        parted = () if lost else draw(st.sampled_from(PARTED))  # or too few edges are left
        actions += honest(offer, draw(st.booleans()), lost, parted)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 2, 3]))):
        _depart(draw, actions)
    return tuple(actions)


def _another(draw: st.DrawFn, offer: Offer) -> Offer:
    return replace(offer, **draw(st.sampled_from([
        {"clients": EVERYBODY[1:]}, {"clients": (0, 1, 2, 5)}, {"clients": (0, 1, 2)},
        {"clients": (2, 3, 4, 5)}, {"threshold": 1}, {"threshold": 2}, {"threshold": 3},
        {"threshold": 5}, {"degree": 4}, {"degree": 2, "threshold": 2}, {"apart": ((0, 1),)},
        {"apart": ((0, 1), (0, 2))}, {"apart": ((0, 5), (1, 5))}, {"nonce": 1}, {"round": 1},
        {"round": 2}, {"round": 3},
    ])))  # fmt: skip


def _depart(draw: st.DrawFn, actions: list[Action]) -> None:
    """Change one thing of what the server does."""
    at = draw(st.integers(0, len(actions) - 1))
    action = actions[at]
    later = draw(st.sampled_from([at, at + 1, at + 1, len(actions), len(actions)]))
    what = draw(st.sampled_from(["repeat", "repeat", "smaller", "smaller", "smaller", "again",
                                 "again", "offer", "offer", "model", "first", "split",
                                 "move"]))  # fmt: skip
    if what == "repeat":
        actions.insert(later, action)
    elif what == "smaller":  # ask the same again about others
        actions.insert(later, _about(draw, action))
    elif what == "split":  # tell some clients something else
        some = draw(_some)
        first = replace(action, clients=tuple(n for n in action.clients if n in some))
        rest = replace(action, clients=tuple(n for n in action.clients if n not in some))
        actions[at : at + 1] = [first, _about(draw, rest)]
    elif what == "move":
        actions.insert(draw(st.integers(0, len(actions) - 1)), actions.pop(at))
    elif what == "again":
        actions += honest(Offer(draw(st.integers(1, 2)), draw(_some)), draw(st.booleans()))
    elif what == "offer" and isinstance(action, Deal | Train):
        offer = action.offer or Offer(draw(st.integers(1, 2)))
        again = replace(action, offer=_another(draw, offer))
        low, high = draw(st.sampled_from([(at, at + 1), (at + 1, at + 1), (len(actions),) * 2]))
        actions[low:high] = [again]
    elif what == "model" and isinstance(action, Train):
        actions[at] = replace(action, dead=draw(_some))
    elif what == "first" and isinstance(action, Mask):
        actions[at] = replace(action, first=draw(_some))


def _about(draw: st.DrawFn, action: Action) -> Action:
    """Return the same question about others, or to others."""
    others = draw(_some)
    if isinstance(action, Mask):
        if draw(st.booleans()):
            return replace(action, parted=draw(st.sampled_from((*PARTED, ((0, 1), (0, 2))))))
        return replace(action, view=others)
    if isinstance(action, Release):
        return replace(action, survivors=others)
    if isinstance(action, Deal):
        return replace(action, offer=_another(draw, action.offer))
    return replace(action, clients=others, dead=draw(st.sampled_from([(), others])))


Place = int
Dealt = tuple[Terms, Place, int]
"""The terms, who dealt, and how often it had dealt under these terms before."""
Kept = Mapping[Place, int]
"""Whose packets a client got, by how often they had dealt before."""


@dataclass(frozen=True)
class Masked:
    """A masked vector: whose, of which training, and with which packets."""

    training: int
    own: Dealt
    told: Terms
    kept: Kept


@dataclass(frozen=True)
class Released:
    """What one client has released, and about which survivors."""

    own: Dealt
    told: Terms
    kept: Kept
    survivors: frozenset[Place]
    data: bytes


@dataclass
class Notes:
    """What the server has written down.

    A training is a client, a round, and whether the model was that of the others: the same model
    again gives the same update.
    """

    trainings: list[tuple[int, int, bool]] = field(default_factory=list)
    deals: dict[tuple[Terms, Place], list[server.Deal]] = field(default_factory=dict)
    masked: list[Masked] = field(default_factory=list)
    released: list[Released] = field(default_factory=list)
    last: dict[int, tuple[Dealt, int]] = field(default_factory=dict)
    views: dict[int, tuple[Dealt, Terms, Kept]] = field(default_factory=dict)
    trained: dict[int, int] = field(default_factory=dict)
    own: dict[Terms, protocol.Client] = field(default_factory=dict)


class Masks:
    """Devices in a federation, and a server that asks them."""

    def __init__(self) -> None:
        self.federation = LocalFederation(
            CLIENTS, SIZE, node_config=lambda n: NODE, train=self._train
        )
        names = self.federation.names
        self.colluder = Credentials(
            self.federation.keys.clients[names[COLLUDER]], self.federation.roster
        )

    @staticmethod
    def _train(client: int, server_round: int, model: np.ndarray) -> np.ndarray:
        return model + 0.01 * (client + 1) if model[0] == 0 else model

    def play(self, script: Sequence[Action]) -> tuple[np.ndarray, list[int]]:
        """Return what was opened, as coefficients of all trainings, and which of them are dead."""
        self.federation.forget()
        notes = Notes()
        for action in script:
            for client in action.clients:
                if isinstance(action, Train):
                    self._ask_to_train(notes, client, action)
                elif isinstance(action, Deal):
                    self._ask_to_deal(notes, client, action.offer)
                elif isinstance(action, Mask):
                    self._ask_to_mask(notes, client, action)
                else:
                    self._ask_to_release(notes, client, action)
        dead = [n for n, (*_, real) in enumerate(notes.trainings) if not real]
        return opened(notes, self.colluder, int(self.federation.grid_time())), dead

    def _ask(self, client: int, content: RecordDict) -> RecordDict | None:
        reply = self.federation.ask(client, content)
        return reply.content if reply is not None and reply.has_content() else None

    def _task(self, client: int, name: str, told: Mapping[str, bytes]) -> dict[str, object]:
        record = ConfigRecord({**told})
        asked = ConfigRecord({TASK_KEY: f"{MASKED_SUM}.{name}"})
        answer = self._ask(client, RecordDict({QSFL_RECORD: asked, MASKED_SUM: record}))
        return dict(answer.config_records.get(MASKED_SUM) or {}) if answer else {}

    def _ask_to_train(self, notes: Notes, client: int, action: Train) -> None:
        terms = action.offer.terms() if action.offer else None
        real = client not in action.dead
        if client == COLLUDER:
            self._collude(notes, terms)
            return
        parameters = {
            "round": action.round, "clients": CLIENTS, "bound": 4.0, "min_clients": LEAST,
            "terms": base64.b64encode(terms.encode()).decode() if terms else "", "metrics": [],
            "max_examples": 100, "weighted_by": "num-examples",
        }  # fmt: skip
        plan = Plan((PlanItem("clip", {"clip_norm": 4.0}), PlanItem(MASKED_SUM, parameters)))
        content = RecordDict(
            {
                "arrays": to_record({"w": np.full(SIZE, 0.0 if real else 1.0)}),
                "config": ConfigRecord({"server-round": action.round}),
                QSFL_RECORD: ConfigRecord({PLAN_KEY: plan.encode()}),
            }
        )
        answer = self._ask(client, content)
        record = answer and answer.array_records.get(PAYLOAD_RECORD)
        if not record:
            return
        training = client, action.round, real
        if training not in notes.trainings:
            notes.trainings.append(training)
        notes.trained[client] = notes.trainings.index(training)
        notes.last.pop(client, None)
        if data := from_record(record)["deal"].tobytes():
            assert terms is not None
            self._note_deal(notes, client, terms, data)

    def _ask_to_deal(self, notes: Notes, client: int, offer: Offer) -> None:
        terms = offer.terms()
        if client == COLLUDER:
            self._collude(notes, terms)
        elif terms is not None:
            told = self._task(client, "deal", {"terms": terms.encode()})
            if "deal" in told:
                self._note_deal(notes, client, terms, told["deal"])

    def _note_deal(self, notes: Notes, client: int, terms: Terms, data: bytes) -> None:
        self._collude(notes, terms)
        place = terms.places[f"client-{client}"]
        deals = notes.deals.setdefault((terms, place), [])
        deals.append(self._read(terms, place, data))
        notes.last[client] = (terms, place, len(deals) - 1), notes.trained[client]

    def _read(self, terms: Terms, place: Place, data: bytes) -> server.Deal:
        """Read what was dealt, in answer to whatever instruction."""
        roster, now = self.federation.roster, int(self.federation.grid_time())
        statement = Reader(data, "shares").blob(protocol.MAX_STATEMENT)
        signed, _ = roster.verify(statement, protocol.STATEMENT, "client", now)
        promise = protocol.read_statement(signed.body, terms, place)
        return server.read_deal(terms, place, data, promise.instruction, roster, now)

    def _collude(self, notes: Notes, terms: Terms | None) -> None:
        """Let the helping client deal under any terms."""
        name = self.colluder.identity.name
        if terms is None or name not in terms.places or terms in notes.own:
            return
        now, lax = int(self.federation.grid_time()), _Lax()
        notes.own[terms], data = protocol.deal(terms, bytes(32), self.colluder, lax, now)
        notes.deals[terms, terms.places[name]] = [self._read(terms, terms.places[name], data)]

    def _ask_to_mask(self, notes: Notes, client: int, action: Mask) -> None:
        if client not in notes.last:
            return
        own, training = notes.last[client]
        terms, place, _ = own
        kept, deals = {}, {}
        for n in action.view:
            at = terms.places.get(f"client-{n}")
            dealt = notes.deals.get((terms, at), []) if at is not None else []
            if dealt:
                kept[at] = 0 if n in action.first else len(dealt) - 1
                deals[at] = dealt[kept[at]]
        mine = notes.own.get(terms)
        if mine is not None and mine.place in deals:
            asked = notes.deals[terms, place][own[2]].promise.instruction
            deals[mine.place] = self._vouch(mine, deals[mine.place], asked)
        pairs = {tuple(sorted(terms.places[f"client-{n}"] for n in pair)) for pair in action.parted
                 if terms.places.keys() >= {f"client-{n}" for n in pair}}  # fmt: skip
        told = replace(terms, parted=frozenset(pairs))
        if isinstance(action, Check):
            self._task(client, "check", {"relay": server.relay(terms, deals, place)})
            return
        relay = {"relay": server.relay(told, deals, place)}
        if pairs:
            relay["pairs"] = told.write_parted()
        if "lockers" in self._task(client, "mask", relay):
            notes.masked.append(Masked(training, own, told, kept))
            notes.views[client] = own, told, kept

    def _as_asked(
        self,
        notes: Notes,
        terms: Terms,
        place: Place,
        own: Dealt,
        deals: Mapping[Place, server.Deal],
    ) -> dict[Place, server.Deal]:
        """Let the helping client vouch for the instruction that this client was given."""
        mine = notes.own.get(terms)
        if mine is None or mine.place not in deals:
            return dict(deals)
        asked = notes.deals[terms, place][own[2]].promise.instruction
        return {**deals, mine.place: self._vouch(mine, deals[mine.place], asked)}

    def _vouch(self, mine: protocol.Client, dealt: server.Deal, instruction: bytes) -> server.Deal:
        promise = dealt.promise
        body = Writer().fixed(mine.terms.digest, 32).fixed(instruction, 32)
        body.fixed(promise.self_seed, 32).fixed(promise.pair_key, 32)
        body.blob(b"".join(promise.digests))
        keys = self.colluder.roster.own_keys(
            self.colluder.identity, int(self.federation.grid_time())
        )
        name = self.colluder.identity.name
        statement = protocol.sign_statement(protocol.STATEMENT, name, keys.signing, body.done())
        return replace(
            dealt, statement=statement, promise=replace(promise, instruction=instruction)
        )

    def _ask_to_release(self, notes: Notes, client: int, action: Release) -> None:
        if client not in notes.views:
            return
        own, seen, kept = notes.views[client]
        places = own[0].places
        named = [places.get(f"client-{n}") for n in action.survivors]
        survivors = frozenset(place for place in named if place is not None)
        told = {"survivors": server.survivor_list(own[0], survivors)}
        answer = self._task(client, "release", told)
        if "release" in answer:
            notes.released.append(Released(own, seen, kept, survivors, answer["release"]))


class _Lax(Policy):
    """What the helping client insists on: nothing."""

    def check(self, terms: Terms, left: int) -> None:
        del terms, left


def opened(notes: Notes, colluder: Credentials, now: int) -> np.ndarray:
    """Return the combinations of trainings that masked vectors open, shape (k, trainings)."""
    secrets = known_seeds(notes, colluder, now)

    def pair(dealt: Dealt) -> bool:
        own = notes.own.get(dealt[0])
        return (dealt, b"pair") in secrets or (own is not None and own.place == dealt[1])

    free: set[tuple[Dealt, Place, bytes]] = set()
    for event in notes.masked:
        terms, place, _ = event.own
        for other, nth in event.kept.items():
            if place < other and (pair(event.own) or pair((terms, other, nth))):
                free.add((event.own, other, event.told.agreed(event.kept)))
    masks: list[dict[object, int]] = []
    for event in notes.masked:
        terms, place, _ = event.own
        agreed, columns = event.told.agreed(event.kept), {}
        if (event.own, b"self") not in secrets:
            columns[event.own] = 1
        for other in set(event.told.neighbours(place)) & set(event.kept):
            upper = (terms, other, event.kept[other])
            seed = (event.own, other, agreed) if place < other else (upper, place, agreed)
            if not (seed in free or pair(event.own if place < other else upper)):
                columns[seed] = 1 if place < other else -1
        masks.append(columns)
    unknown = list(dict.fromkeys(key for columns in masks for key in columns))
    matrix = np.array([[columns.get(key, 0) for key in unknown] for columns in masks], float)
    matrix = matrix.reshape(len(masks), len(unknown))
    vectors = np.zeros((len(masks), len(notes.trainings)))
    vectors[np.arange(len(masks)), [event.training for event in notes.masked]] = 1.0
    if matrix.size == 0:
        return vectors
    left, values, _ = np.linalg.svd(matrix)
    used = int((values > 1e-9).sum())
    return left[:, used:].T @ vectors


def known_seeds(notes: Notes, colluder: Credentials, now: int) -> dict[tuple[Dealt, bytes], Secret]:
    """Return the seeds that enough shares open, by who dealt them and their kind."""
    shares: dict[tuple[Dealt, bytes], dict[int, bytes]] = {}

    def note(owner: Dealt, kind: bytes, holder: Place, share: bytes) -> None:
        shares.setdefault((owner, kind), {})[holder + 1] = share

    locks: dict[Dealt, Secret] = {}
    for (terms, place), deals in notes.deals.items():
        own = notes.own.get(terms)
        if own is None or own.place == place:
            continue
        for nth, deal in enumerate(deals):
            if own.place not in deal.packets:
                continue
            mine = replace(own, instruction=deal.promise.instruction)
            packet = Writer().blob(deal.statement).blob(deal.packets[own.place])
            packet.fixed(deal.commitments[own.place], protocol.COMMITMENTS_SIZE)
            reader = Reader(packet.done(), "packet")
            _, held = protocol._open_packet(mine, place, reader, colluder, now)
            locks[terms, place, nth] = held.lock
            note((terms, place, nth), b"self", own.place, held.self_share)
            note((terms, place, nth), b"pair", own.place, held.pair_share)
    groups: dict[tuple[Terms, bytes], dict[Place, Released]] = {}
    for one in notes.released:
        agreed = one.told.agreed(one.kept, one.survivors)
        groups.setdefault((one.own[0], agreed), {})[one.own[1]] = one
    for (terms, agreed), group in groups.items():
        releases = {
            place: server.read_release(
                one.told, dict.fromkeys(one.kept), one.survivors, place, one.data
            )
            for place, one in group.items()
        }
        own = notes.own.get(terms)
        if own is not None:
            openers = {
                place: seeds.opener(
                    seeds.shared_lock(own.lock_key(place), locks[one.own], own.place < place),
                    place,
                    agreed,
                )
                for place, one in group.items()
                if one.own in locks
            }
            releases[own.place] = server.Release(openers, {}, b"")
        for place, one in group.items():
            try:
                found = server._opened(terms, releases, place, server.Findings())
            except (QSFLError, KeyError):
                continue
            for owner, share in found.items():
                kind = b"self" if owner in one.survivors else b"pair"
                note((terms, owner, one.kept[owner]), kind, place, share)
    joined = {}
    for key, held in shares.items():
        terms = key[0][0]
        if len(held) >= terms.threshold:
            joined[key] = join_shares(dict(list(held.items())[: terms.threshold]))
    return joined
