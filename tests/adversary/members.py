"""A server with a valid key, and one client, that try to open more than one sum a round.

Hypothesis writes terms, models, rosters, orders and repetitions. What members answer is opened in
every way there is, and judged: which combinations of the clients' secrets are known now?
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from hypothesis import strategies as st

from qsfl_flower import testing
from qsfl_flower.errors import ConfigError, QSFLError
from qsfl_flower.secure.decoding import open_vectors
from qsfl_flower.secure.terms import Terms
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
from qsfl_flower.wire.keys import (
    HELLO_TASK,
    RELEASE_TASK,
    SECURE_RECORD,
    SECURE_SHARES,
    SHARES,
    TAKE_TASK,
)

CLIENTS, SIZE, ROUNDS, LEAST = 6, 32, 3, 3
COMMITTEE, COLLUDER = (0, 1, 2), 5
_P = (1 << 61) - 1


def secret_of(client: int, server_round: int) -> np.ndarray:
    """The update of a client in a round: independent of all others."""
    values = np.random.default_rng([client, server_round]).normal(size=SIZE)
    return 0.5 * values / np.linalg.norm(values)


def train(client: int, server_round: int, model: np.ndarray) -> np.ndarray:
    """Learn something from the model of the round, and nothing from a dead one."""
    return model + secret_of(client, server_round) if model[0] == 0 else model


SECRETS = np.stack([secret_of(c, r) for r in range(1, ROUNDS + 1) for c in range(CLIENTS)])
KNOWN = [(r - 1) * CLIENTS + COLLUDER for r in range(1, ROUNDS + 1)]


@dataclass(frozen=True)
class Variant:
    """Terms of one round that the server proposes, around honest ones."""

    server_round: int = 1
    quorum: int = 3
    min_clients: int = LEAST
    weights: tuple[int, ...] = (1,)
    distances: bool = False


@dataclass(frozen=True)
class Take:
    """Shares that are given to some members, under terms that may be others."""

    members: tuple[int, ...]
    told: Variant
    deals: tuple[tuple[int, Variant, bool], ...]


@dataclass(frozen=True)
class Release:
    """A sum that is asked of some members."""

    members: tuple[int, ...]
    server_round: int
    clients: tuple[int, ...]


variants = st.builds(
    Variant,
    server_round=st.integers(1, ROUNDS),
    quorum=st.sampled_from([3, 3, 3, 2]),
    min_clients=st.sampled_from([3, 3, 4, 6]),
    weights=st.sampled_from([(1,), (1,), (1, 1), (1, 1, 1)]),
    distances=st.sampled_from([False, False, True]),
)
some_members = st.sampled_from([(0, 1, 2)] * 4 + [(0, 1), (1, 2), (0, 2), (0,), (2,)])
some_clients = st.lists(st.integers(0, CLIENTS - 1), max_size=CLIENTS + 1).map(tuple)
EVERYBODY = tuple(range(CLIENTS))


@st.composite
def scripts(draw: st.DrawFn) -> list[Take | Release]:
    """What the server does: honest rounds with departures from them."""
    usual = draw(variants)
    # A device deals once a round: on one model, under one variant of the terms.
    dealt = {
        (client, r): (replace(draw(st.sampled_from([usual, usual, usual, draw(variants)])),
                              server_round=r), draw(st.sampled_from([True, True, True, False])))
        for r in range(1, ROUNDS + 1)
        for client in range(CLIENTS)
    } if draw(st.booleans()) else {
        (client, r): (replace(usual, server_round=r), True)
        for r in range(1, ROUNDS + 1)
        for client in range(CLIENTS)
    }  # fmt: skip
    script: list[Take | Release] = []
    for _ in range(draw(st.integers(1, 6))):
        told = replace(usual, server_round=draw(st.integers(1, ROUNDS)))
        if draw(st.sampled_from([False, False, True])):
            told = draw(variants)
        r = draw(st.sampled_from([told.server_round, told.server_round, *range(1, ROUNDS + 1)]))
        clients = draw(st.sampled_from([EVERYBODY, EVERYBODY[:-1], EVERYBODY[1:], ()]))
        if draw(st.booleans()):
            clients = draw(some_clients)
        deals = []
        for client in clients:
            variant, real = dealt[client, r]
            if client == COLLUDER:  # it deals as often and on whatever it likes
                variant, real = replace(told, server_round=r), draw(st.booleans())
            deals.append((client, variant, real))
        members = draw(some_members)
        if draw(st.sampled_from([True, True, True, False])):
            script.append(Take(members, told, tuple(deals)))
        if draw(st.sampled_from([True, True, False])):
            asked = draw(st.sampled_from([clients, clients, draw(some_clients)]))
            script.append(Release(draw(some_members), told.server_round, asked))
    return script


@dataclass
class Members:
    """A committee in a federation, and everything that it has answered."""

    federation: LocalFederation = field(
        default_factory=lambda: LocalFederation(CLIENTS, SIZE, train=train)
    )

    def __post_init__(self) -> None:
        self._deals: dict[tuple[int, Variant, bool], RecordDict] = {}
        seats = []
        for member in COMMITTEE:
            reply = self._ask(member, task(HELLO_TASK))
            seats.append(str(reply.config_records[SECURE_RECORD]["seat"]))
        self._seats = tuple(seats)
        self._fresh = [dict(context.state) for context in self.federation.contexts]

    def terms(self, variant: Variant) -> Terms | None:
        """Return the terms of a variant, or None if they contradict themselves."""
        try:
            return self._terms(variant)
        except ConfigError:
            return None

    def _terms(self, variant: Variant) -> Terms:
        return Terms(
            run=1, round=variant.server_round, members=tuple(f"client-{n}" for n in COMMITTEE),
            seats=self._seats, threshold=2, quorum=variant.quorum, min_clients=variant.min_clients,
            max_clients=8, bits=20, bound=1.0, clip_norm=1.0, weights=variant.weights,
            distances=variant.distances, extras=1,
        )  # fmt: skip

    def play(self, script: list[Take | Release]) -> tuple[np.ndarray, dict]:
        """Return the opened combinations of secrets, and what was opened of squares by question."""
        for context, state in zip(self.federation.contexts, self._fresh, strict=True):
            context.state.clear()
            context.state.update(state)
        sums: list[tuple[int, np.ndarray]] = []
        squares: dict[tuple[int, int], set[bytes]] = {}
        for action in script:
            for member in action.members:
                if isinstance(action, Take):
                    answer = self._ask(member, self._take(action, member))
                    told = answer.config_records[SECURE_RECORD] if answer else {}
                    if told.get("distances"):
                        asked = (member, action.told.server_round)
                        squares.setdefault(asked, set()).add(bytes(told["distances"]))
                else:
                    names = [f"client-{n}" for n in action.clients]
                    told = {"round": action.server_round, "clients": names}
                    content = task(RELEASE_TASK, **{SECURE_RECORD: ConfigRecord(told)})
                    answer = self._ask(member, content)
                    if answer:
                        total = from_record(answer.array_records[SECURE_RECORD])["sum"]
                        sums.append((member + 1, total))
        return testing.coefficients(SECRETS, np.array(list(opened(sums)))), squares

    def _ask(self, client: int, content: RecordDict | None) -> RecordDict | None:
        reply = None if content is None else self.federation.ask(client, content)
        return None if reply is None or reply.has_error() or not reply.content else (
            reply.content if SECURE_RECORD in reply.content else None
        )  # fmt: skip

    def _take(self, action: Take, member: int) -> RecordDict | None:
        deals = [self._deal(*deal) for deal in action.deals]
        terms = self.terms(action.told)
        if terms is None or any(deal is None for deal in deals):
            return None
        told = {
            "terms": terms.encode(),
            "size": SIZE + 1,  # and the hidden weight
            "headers": [deal["header"].data for deal in deals],
        }
        payloads = {str(i): deal[str(member + 1)] for i, deal in enumerate(deals)}
        return task(
            TAKE_TASK,
            **{SECURE_RECORD: ConfigRecord(told), SECURE_SHARES: ArrayRecord(payloads)},
        )

    def _deal(self, client: int, variant: Variant, real: bool) -> ArrayRecord | None:
        """Let a client deal; what it dealt is kept: it does not depend on what came before."""
        key, terms = (client, variant, real), self.terms(variant)
        if terms is None:
            return None
        if key not in self._deals:
            context = self.federation.contexts[client]
            state = dict(context.state)
            context.state.clear()
            parameters = {
                "terms": asdict(terms), "max_examples": 1, "metrics": [],
                "weighted_by": "num-examples", "weighted": False,
            }  # fmt: skip
            plan = Plan((PlanItem("clip", {"clip_norm": 1.0}), PlanItem(SHARES, parameters)))
            content = RecordDict(
                {
                    "arrays": to_record({"w": np.full(SIZE, 0.0 if real else 1.0)}),
                    "config": ConfigRecord({"server-round": variant.server_round}),
                    QSFL_RECORD: ConfigRecord({PLAN_KEY: plan.encode()}),
                }
            )
            reply = self.federation.ask(client, content, server_round=variant.server_round)
            good = reply is not None and reply.has_content()
            self._deals[key] = reply.content.array_records.get(PAYLOAD_RECORD) if good else None
            context.state.clear()
            context.state.update(state)
        return self._deals[key]


def task(name: str, **records) -> RecordDict:
    return RecordDict({QSFL_RECORD: ConfigRecord({TASK_KEY: name}), **records})


def opened(sums: list[tuple[int, np.ndarray]]):
    """Yield what answers of different members open together, in every way, as numbers."""
    for count in (2, 3):
        for chosen in itertools.combinations(sums[:16], count):
            answers = dict(chosen)
            if len(answers) == count and len({v.size for v in answers.values()}) == 1:
                try:
                    found = open_vectors(answers, count - 1).vector
                except QSFLError:
                    continue
                centred = np.where(found > _P // 2, -((_P - found).astype(float)), found)
                yield centred[:SIZE].astype(float) / 2.0**20
