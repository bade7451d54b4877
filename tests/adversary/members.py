"""A server with a valid key, one client, and perhaps one member, that try to open more than one sum
a round.

Hypothesis begins with valid rounds and departs from them: repetitions, orders, subsets, other
rosters, terms, models and members. What members answer is opened in every way there is, and judged:
which combinations of the clients' secrets are known now?
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

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
COMMITTEE, COLLUDER, HELPER = (0, 1, 2), 5, 2
EVERYBODY = tuple(range(CLIENTS))
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
    """Shares that are given to some members, by who dealt them in which round."""

    members: tuple[int, ...]
    told: Variant
    deals: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Release:
    """A sum that is asked of some members."""

    members: tuple[int, ...]
    server_round: int
    clients: tuple[int, ...]


@dataclass(frozen=True)
class Script:
    """What the server does.

    Parameters
    ----------
    actions : tuple of Take or Release
        In this order.
    dealt : mapping of (int, int) to (Variant, bool)
        Under which terms a client has dealt in a round, and whether on the model of the others. A
        device deals once a round; the helping client does it under whatever it is shown.
    helpers : tuple of int
        Members that help the server: they have no memory and answer whatever they can.
    """

    actions: tuple[Take | Release, ...]
    dealt: Mapping[tuple[int, int], tuple[Variant, bool]]
    helpers: tuple[int, ...] = ()


def honest(usual: Variant, rounds: Sequence[int], ages: Sequence[int] = (0,) * CLIENTS) -> Script:
    """Return rounds as the strategies play them; `ages` says how long ago clients have dealt."""
    actions: list[Take | Release] = []
    for r in rounds:
        deals = tuple((client, r - age) for client, age in enumerate(ages) if age < r)
        actions.append(Take(COMMITTEE, replace(usual, server_round=r), deals))
        actions.append(Release(COMMITTEE, r, tuple(client for client, _ in deals)))
    dealt = {
        (client, r): (replace(usual, server_round=r), True)
        for r in range(1, ROUNDS + 1)
        for client in EVERYBODY
    }
    return Script(tuple(actions), dealt)


Question = tuple[Any, Any]
"""A take or a release, as one member gets it."""


@st.composite
def scripts(draw: st.DrawFn, window: int = 1) -> Script:
    """Honest rounds with departures from them."""
    usual = Variant(
        min_clients=draw(st.sampled_from([3, 3, 4])),
        distances=draw(st.sampled_from([False, False, True])),
        weights=(draw(st.sampled_from([1, 2])) if window > 1 else 1, *(1,) * (window - 1)),
    )
    rounds = draw(
        st.sampled_from([(1,), (1, 2), (1, 2), (2, 3)] if window == 1 else [(2,), (2, 3)])
    )
    ages = [draw(st.integers(0, window - 1)) for _ in EVERYBODY]
    if usual.weights[0] > 1:  # as many with each weight as a sum needs
        ages = [0] * LEAST + [draw(st.integers(0, 1))] * LEAST
    again = window > 1 and draw(st.sampled_from([False, False, True]))
    if again:  # the shares of the first round once more, when their terms end
        rounds, ages = range(1, ROUNDS + 1), [0] * CLIENTS
    script = honest(usual, rounds, ages)
    dealt = dict(script.dealt)
    # Behind a window each round of dealing has a model of its own, which remains trust.
    if window == 1 and draw(st.sampled_from([False, False, True])):
        for client in draw(st.sampled_from([EVERYBODY[1:], (0,), (1, 3), EVERYBODY[:3]])):
            dealt[client, rounds[0]] = (dealt[client, rounds[0]][0], False)
    if draw(st.sampled_from([False, False, True])):
        client, r = draw(st.integers(0, CLIENTS - 1)), draw(st.integers(1, ROUNDS))
        dealt[client, r] = (_another(draw, dealt[client, r][0]), dealt[client, r][1])
    actions = list(script.actions)
    if again:
        clients = draw(_rosters)
        actions[-2:] = [
            replace(actions[-2], deals=tuple((client, 1) for client in clients)),
            replace(actions[-1], clients=clients),
        ]
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 2, 3, 5]))):
        _depart(draw, actions)
    return Script(tuple(actions), dealt, draw(st.sampled_from([(), (HELPER,)])))


def _depart(draw: st.DrawFn, actions: list[Take | Release]) -> None:
    """Change one thing of what the server does."""
    at = draw(st.integers(0, len(actions) - 1))
    action = actions[at]
    what = draw(st.sampled_from(["repeat", "repeat", "smaller", "smaller", "both", "both", "split",
                                 "move", "members", "change", "change"]))  # fmt: skip
    if what == "repeat":
        actions.insert(draw(st.integers(at, len(actions))), action)
    elif what == "smaller":  # ask the same again about others
        actions.insert(draw(st.integers(at, len(actions))), _others(draw, action))
    elif what == "both":  # play a round again, or for the first time, over others
        chosen = [a for a in actions if _round(a) == _round(action)][:2]
        where, clients = draw(st.integers(0, len(actions))), draw(_rosters)
        same = draw(st.booleans())  # another sum of the same shares
        actions[where:where] = [
            one if same and isinstance(one, Take) else among(one, clients) for one in chosen
        ]
    elif what == "split":  # one half of the committee answers another question
        first = draw(st.sampled_from([(0, 1), (1, 2), (0,), (2,)]))
        rest = tuple(set(COMMITTEE) - set(first))
        actions[at : at + 1] = [
            replace(action, members=first),
            _others(draw, replace(action, members=rest)),
        ]
    elif what == "move":
        actions.insert(draw(st.integers(0, len(actions) - 1)), actions.pop(at))
    elif what == "members":
        chosen = draw(st.sampled_from([(0, 1), (1, 2), (0, 2), (2, 1, 0), (0, 0, 1, 2)]))
        actions[at] = replace(action, members=chosen)
    elif isinstance(action, Take) and draw(st.booleans()):
        actions[at] = replace(action, told=_another(draw, action.told))
    elif isinstance(action, Take) and action.deals:
        place, r = draw(st.integers(0, len(action.deals) - 1)), draw(st.integers(1, ROUNDS))
        deals = list(action.deals)
        deals[place] = (deals[place][0], r)
        actions[at] = replace(action, deals=tuple(deals))
    elif isinstance(action, Release):
        actions[at] = replace(action, server_round=draw(st.integers(1, ROUNDS)))


_rosters = st.sampled_from(
    [EVERYBODY[1:], EVERYBODY[:-1], (0, 1, 2), (3, 4, 5), (0, 2, 4, 5), (1, 2), (0, 5), (4,), (),
     (0, 0, 0), (5, 4, 3, 2, 1, 0), (0, 1, 1, 2)]
)  # fmt: skip


def _round(action: Take | Release) -> int:
    return action.told.server_round if isinstance(action, Take) else action.server_round


def among(action: Take | Release, clients: Sequence[int]) -> Take | Release:
    """Return the same question about others."""
    if isinstance(action, Release):
        return replace(action, clients=tuple(clients))
    rounds = dict(action.deals)
    return replace(action, deals=tuple((c, rounds.get(c, _round(action))) for c in clients))


def _others(draw: st.DrawFn, action: Take | Release) -> Take | Release:
    return among(action, draw(_rosters))


def _another(draw: st.DrawFn, told: Variant) -> Variant:
    """Return terms that differ in one point."""
    return replace(told, **draw(st.sampled_from([
        {"server_round": 1}, {"server_round": 2}, {"server_round": 3}, {"quorum": 2},
        {"min_clients": 2}, {"min_clients": 5}, {"min_clients": 6}, {"weights": (1,)},
        {"weights": (1, 1)}, {"weights": (1, 1, 1)}, {"weights": (2, 1)},
        {"distances": not told.distances},
    ])))  # fmt: skip


@dataclass
class Members:
    """A committee in a federation, and everything that it has answered."""

    node_config: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.federation = LocalFederation(
            CLIENTS, SIZE, train=train, node_config=lambda n: self.node_config
        )
        self._deals: dict[tuple[int, Variant, bool], ArrayRecord | None] = {}
        self._known: dict[tuple[int, tuple[Question, ...]], tuple[Any, dict[str, Any]]] = {}
        seats = []
        for member in COMMITTEE:
            reply = self._ask(member, task(HELLO_TASK))
            assert reply is not None
            seats.append(str(reply.config_records[SECURE_RECORD]["seat"]))
        self._seats = tuple(seats)
        self._fresh = [dict(context.state) for context in self.federation.contexts]

    def terms(self, variant: Variant) -> Terms | None:
        """Return the terms of a variant, or None if they contradict themselves."""
        try:
            return Terms(
                run=1, round=variant.server_round, seats=self._seats, threshold=2,
                members=tuple(f"client-{n}" for n in COMMITTEE), quorum=variant.quorum,
                min_clients=variant.min_clients, max_clients=8, bits=20, bound=1.0, clip_norm=1.0,
                weights=variant.weights, distances=variant.distances, extras=1,
            )  # fmt: skip
        except ConfigError:
            return None

    def play(self, script: Script) -> tuple[np.ndarray, dict[tuple[int, int], set[bytes]]]:
        """Return the opened combinations of secrets, and what was opened of squares by question."""
        sums: list[tuple[int, np.ndarray]] = []
        squares: dict[tuple[int, int], set[bytes]] = {}
        pasts: dict[int, tuple[Question, ...]] = dict.fromkeys(COMMITTEE, ())
        for action in script.actions:
            for member in action.members:
                helps, past = member in script.helpers, pasts[member]
                if isinstance(action, Take):
                    question = (action.told, self._dealers(action, script))
                    pasts[member] = past = (question,) if helps else (*past, question)
                    told = self._answer(member, past)
                    if told and told["distances"] and not helps:
                        asked = (member, action.told.server_round)
                        squares.setdefault(asked, set()).add(told["distances"])
                else:
                    past = (*past, (action.server_round, action.clients))
                    pasts[member] = pasts[member] if helps else past
                    if told := self._answer(member, past):
                        sums.append((member + 1, told["sum"]))
        return testing.coefficients(SECRETS, np.array(list(opened(sums)))), squares

    def _dealers(self, action: Take, script: Script) -> tuple[tuple[int, Variant, bool], ...]:
        dealers = []
        for client, r in action.deals:
            variant, real = script.dealt.get((client, r), (action.told, True))
            if client == COLLUDER:
                variant = replace(action.told, server_round=r)
            dealers.append((client, variant, real))
        return tuple(dealers)

    def _answer(self, member: int, past: tuple[Question, ...]) -> dict[str, Any] | None:
        """Return what a member answers last after such questions, or None for a refusal.

        Scripts begin alike: what has been asked is not asked again.
        """
        if (member, past) not in self._known:
            _, state = self._known[member, past[:-1]] if past[1:] else (None, self._fresh[member])
            self._set_state(member, state)
            first, second = past[-1]
            if isinstance(first, Variant):
                answer = self._ask(member, self._take(first, second, member))
                told = answer and {"distances": answer[SECURE_RECORD].get("distances")}
            else:
                names = [f"client-{n}" for n in second]
                asked = ConfigRecord({"round": first, "clients": names})
                answer = self._ask(member, task(RELEASE_TASK, **{SECURE_RECORD: asked}))
                told = answer and {"sum": from_record(answer[SECURE_RECORD])["sum"]}
            self._known[member, past] = told, dict(self.federation.contexts[member].state)
        return self._known[member, past][0]

    def _set_state(self, client: int, state: Mapping[str, Any]) -> None:
        context = self.federation.contexts[client]
        context.state.clear()
        context.state.update(state)

    def _ask(self, client: int, content: RecordDict | None) -> RecordDict | None:
        reply = None if content is None else self.federation.ask(client, content)
        good = reply is not None and reply.has_content() and SECURE_RECORD in reply.content
        return reply.content if good else None

    def _take(
        self, told: Variant, dealers: Sequence[tuple[int, Variant, bool]], member: int
    ) -> RecordDict | None:
        terms, deals = self.terms(told), [self._deal(*dealer) for dealer in dealers]
        if terms is None or any(deal is None for deal in deals):
            return None
        asked = {
            "terms": terms.encode(),
            "size": SIZE + 1,  # and the hidden weight
            "headers": [deal["header"].data for deal in deals],
        }
        payloads = {str(i): deal[str(member + 1)] for i, deal in enumerate(deals)}
        return task(
            TAKE_TASK,
            **{SECURE_RECORD: ConfigRecord(asked), SECURE_SHARES: ArrayRecord(payloads)},
        )

    def _deal(self, client: int, variant: Variant, real: bool) -> ArrayRecord | None:
        """Let a client deal; what it dealt is kept: it does not depend on what came before."""
        key, terms = (client, variant, real), self.terms(variant)
        if terms is None:
            return None
        if key not in self._deals:
            state = dict(self.federation.contexts[client].state)
            self.federation.contexts[client].state.clear()
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
            self._set_state(client, state)
        return self._deals[key]


def task(name: str, **records: ConfigRecord | ArrayRecord) -> RecordDict:
    return RecordDict({QSFL_RECORD: ConfigRecord({TASK_KEY: name}), **records})


def opened(sums: list[tuple[int, np.ndarray]]):
    """Yield what answers of different members open together, in every way, as numbers."""
    different = {(member, total.tobytes()): (member, total) for member, total in sums}
    for count in (2, 3):
        for chosen in itertools.combinations(list(different.values())[:12], count):
            answers = dict(chosen)
            if len(answers) == count and len({v.size for v in answers.values()}) == 1:
                try:
                    found = open_vectors(answers, count - 1).vector
                except QSFLError:
                    continue
                centred = np.where(found > _P // 2, -((_P - found).astype(float)), found)
                yield centred[:SIZE].astype(float) / 2.0**20
