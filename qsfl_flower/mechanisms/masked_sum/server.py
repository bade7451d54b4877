"""Secure sums without a committee: the clients mask their updates for each other."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.roster import Roster
from qsfl_flower.crypto.sources import unix_time
from qsfl_flower.errors import COMPLAINTS, ConfigError, RejectedUpdate
from qsfl_flower.mechanisms.authentication.server import SERVER
from qsfl_flower.mechanisms.masked_sum.options import MaskedSumOptions
from qsfl_flower.numerics import Layout, Vector
from qsfl_flower.rounds.admission import check_encoding, check_willing, declined
from qsfl_flower.rounds.composition import Trait
from qsfl_flower.rounds.context import RoundContext, State, Steps, task_content
from qsfl_flower.rounds.facts import Facts, HiddenSum, Sentences, Topic
from qsfl_flower.rounds.stages import Combined, CombineStage, Stage
from qsfl_flower.rounds.update import Cohort, Rejection, Sender, Update, Weighting, catch
from qsfl_flower.secure.pairwise import server
from qsfl_flower.secure.pairwise.graph import complete_graph, sparse_graph
from qsfl_flower.secure.pairwise.masks import Ring
from qsfl_flower.secure.pairwise.ring import LIMBS, RingCode, decode_scalars
from qsfl_flower.secure.pairwise.terms import Terms
from qsfl_flower.secure.statistics import Statistics
from qsfl_flower.secure.tally import Tally
from qsfl_flower.wire import (
    PAYLOAD_RECORD,
    ClientPhase,
    Form,
    PlanItem,
    content_bytes,
    from_record,
    records_of,
)
from qsfl_flower.wire.keys import MASKED_SUM

_MAX_TERMS = 32 * 1024


@dataclass(frozen=True, eq=False, repr=False)
class MaskedSum(CombineStage, MaskedSumOptions):
    r"""Combine updates that are masked so that only their sum can be read.

    .. math:: \Delta = \sum_i w_i \Delta_i \Big/ \sum_i w_i, \qquad
              w_i = \min(n_i / n_{\max}, 1)

    Both sums, and the metrics, are taken under the masks; weights are hidden like updates. The sum
    is exact in fixed point of 2^-f, the finest that 4 bytes per coordinate and the number of
    clients allow (f = 24 for 10 clients and a bound of 8).

    Parameters
    ----------
    credentials : Credentials or Path or str
        The server's keys and roster, as for `Authenticate`, which the chain needs too; the clients
        need `auth_mod`.
    bound : float
        Largest magnitude of a coordinate of a difference, > 0. A client with a larger one does not
        take part; `Clip` with a norm of at most `bound` excludes that.
    min_clients : int
        Least number of clients in a sum, >= 2; the clients release no other, nor one of fewer than
        their own least cohort, which is 3 unless a node says otherwise.
    max_examples : int
        No client counts for more examples than this, >= 1.
    metrics : Sequence[str]
        Metrics that are averaged under the masks; all others stay on the devices.
    weighted_by : str
        Name of the metric that counts the examples.
    colluding : float
        Share of the clients that may help the server, in [0, 1).
    sparse : bool
        Use a sparse graph: k masks per client instead of n - 1. It protects against an honest but
        curious server only; the complete graph also against a server that lies.
    dropouts : float
        For a sparse graph: share of the clients that may drop out after the shares were dealt.
    clock : Callable[[], float]
        Unix time in seconds.

    Notes
    -----
    Who sees what: the server learns the sum over the survivors, and who dropped out when. So does
    whoever is given the model. A client learns nothing about the others but their names. With
    `colluding` of the clients on its side, the server still learns no more than the sum over all
    others. Buffers of floats are part of the sum, whatever `Clip` says; all clients count alike
    there, and one can move them far. All clients in a sum have answered one instruction, or none of
    them masks anything.

    A client cannot be stopped from adding garbage of its own. One that makes a sum fail takes no
    part in later rounds if bytes that it has signed prove it. If one of two clients lies about the
    other and nothing proves which, the two never share an edge again, and nobody is excluded.

    References
    ----------
    K. Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning",
    2017. doi:10.1145/3133956.3133982.
    J. H. Bell, K. Bonawitz, A. Gascon, T. Lepoint, M. Raykova, "Secure single-server aggregation
    with (poly)logarithmic overhead", 2020. doi:10.1145/3372297.3417885.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation, learned
    >>> federation = LocalFederation(clients=5, size=32)
    >>> view = federation.watch()  # what the server sees
    >>> masked = MaskedSum(federation.credentials, bound=1.0, clock=federation.grid_time)
    >>> outcome = federation.run([Clip(1.0), masked])
    >>> learned(federation.updates, view.bytes_up())
    []
    """

    name = MASKED_SUM
    hides = True
    sums_statistics = True
    needs_norms = False
    declares = frozenset({Trait.TRUSTS_KEYS, Trait.NEEDS_EVERYBODY})

    credentials: Credentials | Path | str
    _: KW_ONLY
    weighted_by: str = "num-examples"
    clock: Callable[[], float] = unix_time

    _opened: ClassVar[tuple[str, ...] | None] = None

    def __post_init__(self) -> None:
        """Raise what would otherwise end the first round."""
        self.roster  # noqa: B018  # reads a folder
        super().__post_init__()
        self.tally  # noqa: B018  # checks the metrics
        RingCode(self.bound, 2)

    @cached_property
    def roster(self) -> Roster:
        """Who is enrolled."""
        return Credentials.given(self.credentials, "server", SERVER).roster

    @cached_property
    def tally(self) -> Tally:
        """What is summed behind the update."""
        return Tally(self.max_examples, self.metrics, self.weighted_by)

    @property
    def facts(self) -> Facts:
        """What is opened."""
        opened = HiddenSum(
            min_clients=self.min_clients,
            bound=self.bound,
            bits=lambda clients: RingCode(self.bound, clients).bits,
            metrics=self.tally.metrics,
        )
        return Facts(sum=opened)

    def bind(self, stages: Sequence[Stage]) -> Self:
        """Find which metrics the other stages let leave the devices."""
        return self.knowing(_opened=Facts.left_of(self.tally.metrics, [s.facts for s in stages]))

    def explain(self, layout: Layout, rounds: int) -> Sentences:
        """Say what is opened, and who could open more."""
        opened = self.metrics if self._opened is None else self._opened
        metrics = f" and {', '.join(opened)}" if opened else ""
        return {
            Topic.SERVER: [
                f"one sum a round, of the updates{Statistics(layout).told}, numbers of examples"
                f"{metrics} of all clients that stayed to the end"
            ],
            Topic.CLIENT: [
                f"who else takes part; {self.colluding:.0%} of the clients and the server together "
                "learn no more than the sum over all others"
            ],
            Topic.NETWORK: ["updates only if both X25519 and ML-KEM-768 are broken"],
            Topic.LIARS: [
                f"no coordinate of an update is larger than {self.bound:g}, or its own client "
                "refuses; an attacker can spoil a sum with garbage"
            ],
        }

    def upload(self, size: int, clients: int) -> int:
        """Return the bytes of the masked vector, and of the shares for the others."""
        return 4 * (size + self.tally.size) + 4000 * (clients - 1)

    def least_clients(self, weighting: Weighting) -> int:
        """Return how many clients the smallest sum has."""
        del weighting
        return self.min_clients

    def init(self, layout: Layout) -> State:
        """Start without knowing who is at which node."""
        del layout
        return {"names": {}, "terms": "", "excluded": {}, "apart": []}

    def prepare(self, state: State, context: RoundContext) -> State:
        """Fix the terms of the sum before training, if everybody's name is known already."""
        names = [state["names"].get(str(sender.node_id)) for sender in context.senders]
        names = [name for name in names if name not in state["excluded"]]
        terms, apart = "", _pairs(state)
        if None not in names and len(set(names)) == len(names):
            with suppress(server.SumAbandoned):
                terms = base64.b64encode(self._terms(names, apart, context).encode()).decode()
        return {**state, "terms": terms if len(terms) <= _MAX_TERMS else ""}

    def client_steps(self, state: State, context: RoundContext) -> Steps:
        """Ask for encoded updates, and for shares if the terms are known."""
        parameters = {
            "round": context.server_round,
            "terms": state["terms"],
            "clients": len(context.senders),
            "bound": self.bound,
            "min_clients": self.min_clients,
            "max_examples": self.tally.max_examples,
            "metrics": list(self.tally.metrics),
            "weighted_by": self.tally.weighted_by,
        }
        return [(ClientPhase.ENCODE, PlanItem(self.name, parameters))]

    def read(self, sender: Sender, content: RecordDict, context: RoundContext) -> Update:
        """Read a reply that holds shares for the neighbours, or nothing yet."""
        del context
        check_encoding(content, self.name)
        record = records_of(content, ArrayRecord).get(PAYLOAD_RECORD)
        array = None if record is None else from_record(record).get("deal")
        if array is None or array.dtype != np.uint8:
            raise RejectedUpdate("malformed", "the reply has no shares")
        return Update(
            sender,
            num_examples=1.0,
            vector=Vector(()),
            form=Form.DELTA,
            bytes_up=content_bytes(content),
            sealed=array.tobytes(),
        )

    def combine(self, cohort: Cohort, state: State, context: RoundContext) -> Combined:
        """Have the clients deal shares, mask, and release; read the sum."""
        excluded = dict(state["excluded"])
        # Authentication lets each name in once.
        names = {str(u.sender.node_id): u.sender.name for u in cohort.updates}
        updates = {u.sender.name: u for u in cohort.updates if u.sender.name not in excluded}
        senders = {name: update.sender for name, update in updates.items()}
        run = _Run(self, context, senders, int(self.clock()), _pairs(state))
        step, metrics, skipped = None, None, None
        statistics: Mapping[str, NDArray[Any]] = {}
        try:
            step, metrics, statistics = self._sum(run, state["terms"], updates, context)
        except (server.SumAbandoned, RejectedUpdate) as error:
            skipped = str(error)
            excluded |= run.proven
            if isinstance(error, server.SumAbandoned) and error.culprit is not None:
                excluded[error.culprit] = error.reason
        barred = [
            Rejection(u.sender, "excluded", f"for {excluded[u.sender.name]}, which is proven")
            for u in cohort.updates
            if u.sender.name not in updates
        ]
        kept = tuple(
            replace(u, status=run.faults.get(name, u.status))
            for name, u in updates.items()
            if name not in run.lost
        )
        measured = {"clients": float(len(kept)), "exchanges": float(run.exchanges)}
        if run.terms is not None:
            measured["degree"] = float(run.terms.degree)
            measured["threshold"] = float(run.terms.threshold)
        cohort = Cohort(kept, (*cohort.rejections, *barred, *run.lost.values()))
        state = {
            "names": {**state["names"], **names},
            "terms": "",
            "excluded": excluded,
            "apart": sorted([*pair] for pair in run.apart),
        }
        return Combined(cohort, step, state, measured, skipped, metrics, statistics)

    def _sum(
        self,
        run: _Run,
        terms: str,
        updates: Mapping[str, Update],
        context: RoundContext,
    ) -> tuple[NDArray[np.float64], Mapping[str, float], Mapping[str, NDArray[Any]]]:
        dealt = Terms.decode(base64.b64decode(terms)) if terms else None
        if dealt is None or not run.dealt_enough(dealt, updates):
            left = [name for name in updates if name not in run.lost]
            run.ask_to_deal(self._terms(left, run.apart, context))
        size = context.layout.size if context.support is None else context.support.size
        hidden = Statistics(context.layout)
        total = run.ask_to_mask(size + LIMBS * (self.tally.size + hidden.size))
        if len(run.lockers) < self.min_clients:
            raise server.SumAbandoned(
                "too-few-clients", f"{len(run.lockers)} are left, a sum needs {self.min_clients}"
            )
        run.ask_to_release(total)
        clients = len(run.lockers)
        code = RingCode(self.bound, len(context.senders))
        integers = decode_scalars(total[size:])
        weight, metrics = self.tally.read(integers[: self.tally.size].tolist(), clients)
        step = code.decode(total[:size], clients)
        step /= context.weighting.denominator or weight
        return step, metrics, hidden.read(integers[self.tally.size :], clients, context.carried)

    def _terms(
        self, names: Sequence[str], apart: Set[tuple[str, str]], context: RoundContext
    ) -> Terms:
        """Return terms for all of these clients but those who are apart from too many others."""
        left = sorted(names)
        while len(left) >= self.min_clients:
            n = len(left)
            try:
                graph = (
                    sparse_graph(n, self.colluding, self.dropouts)
                    if self.sparse
                    else complete_graph(n, self.colluding)
                )
            except ConfigError as error:
                raise server.SumAbandoned("too-few-clients", str(error)) from None
            pairs = tuple(sorted(pair for pair in apart if set(pair) <= set(left)))
            where = context.run_id, context.server_round
            terms = Terms(*where, tuple(left), graph.degree, graph.threshold, apart=pairs)
            if not (alone := terms.isolated()):
                return terms
            left.remove(alone[0])
        raise server.SumAbandoned(
            "too-few-clients",
            f"{len(left)} of {len(names)} clients can share edges, a sum needs {self.min_clients}",
        )


@dataclass
class _Run:
    """One sum while it goes on."""

    stage: MaskedSum
    context: RoundContext
    senders: Mapping[str, Sender]
    now: int
    apart: set[tuple[str, str]]
    terms: Terms | None = None
    deals: dict[int, server.Deal] = field(default_factory=dict)
    lockers: dict[int, dict[int, bytes]] = field(default_factory=dict)
    lost: dict[str, Rejection] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)
    proven: dict[str, str] = field(default_factory=dict)
    exchanges: int = 1

    @property
    def agreed(self) -> Terms:
        """The terms, once they are fixed."""
        if self.terms is None:
            raise server.SumAbandoned("no-terms", "no client has dealt shares")
        return self.terms

    def dealt_enough(self, terms: Terms, updates: Mapping[str, Update]) -> bool:
        """Take the shares that came with the training replies; tell whether they suffice."""
        self.terms = terms
        alone = {name for pair in self.apart for name in pair}
        if not terms.places.keys() | alone >= updates.keys():
            return False
        for name, update in updates.items():
            if name not in terms.places:
                self._leave_out(name)
            elif isinstance(update.sealed, bytes):
                self._take(name, partial(self._read_deal, name, update.sealed))
        try:
            server.check_enough(terms, self.deals)
        except server.SumAbandoned:
            return False
        return True

    def ask_to_deal(self, terms: Terms) -> None:
        """Have everybody who has trained deal shares for these terms."""
        self.terms, self.deals = terms, {}
        for name in self.senders.keys() - self.lost.keys() - terms.places.keys():
            self._leave_out(name)
        self._ask(
            "deal",
            {name: {"terms": terms.encode()} for name in terms.names},
            lambda name, content: self._read_deal(name, _bytes(content, "deal")),
        )
        server.check_enough(terms, self.deals)

    def ask_to_mask(self, size: int) -> Ring:
        """Collect the masked vectors and return their sum."""
        terms, total = self.agreed, np.zeros(size, np.uint32)

        def read(name: str, content: RecordDict) -> None:
            place = terms.places[name]
            record = records_of(content, ArrayRecord).get("masked")
            vector = None if record is None else from_record(record).get("masked")
            if vector is None or vector.dtype != np.uint32 or vector.shape != (size,):
                raise RejectedUpdate("malformed", f"there are not {size} masked words")
            self.lockers[place] = server.read_lockers(
                terms, self.deals, place, _bytes(content, "lockers")
            )
            np.add(total, vector, out=total)

        relays = {
            terms.seats[place]: {"relay": server.relay(terms, self.deals, place)}
            for place in self.deals
        }
        self._ask("mask", relays, read)
        server.check_enough(terms, self.lockers)
        return total

    def ask_to_release(self, total: Ring) -> None:
        """Collect what unmasks the sum, and unmask it in place."""
        terms, releases = self.agreed, {}

        def read(name: str, content: RecordDict) -> None:
            place = terms.places[name]
            releases[place] = server.read_release(
                terms, self.deals, self.lockers, place, _bytes(content, "release")
            )

        told = server.survivor_list(terms, self.lockers)
        survivors = {terms.seats[place]: {"survivors": told} for place in self.lockers}
        lost = dict(self.lost)
        self._ask("release", survivors, read)
        # Who answers no more is in the sum nevertheless.
        self.faults = {n: r.reason for n, r in self.lost.items() if n not in lost}
        self.lost = lost
        found = server.Findings()
        try:
            server.unmask(terms, self.deals, self.lockers, releases, total, found)
        finally:
            for place, fault in found.faults.items():
                self.faults[terms.seats[place]] = fault.reason
                if fault.reason in server.PROVEN:
                    self.proven[terms.seats[place]] = fault.reason
            for a, b in found.apart:
                self._keep_apart(terms.seats[a], terms.seats[b])

    def _ask(
        self,
        task: str,
        told: Mapping[str, Mapping[str, bytes]],
        read: Callable[[str, RecordDict], None],
    ) -> None:
        nodes = {self.senders[name].node_id: name for name in told}
        answers = self.context.ask(
            {
                node: task_content(
                    f"{MASKED_SUM}.{task}", **{MASKED_SUM: ConfigRecord({**told[name]})}
                )
                for node, name in nodes.items()
            }
        )
        self.exchanges += 1
        for node, name in nodes.items():
            answer = answers[node]
            if isinstance(answer, Rejection):
                self.lost[name] = replace(answer, sender=self.senders[name])
                continue
            sender, content = answer
            self._take(name, partial(self._read, name, sender, content, read))

    def _read(
        self,
        name: str,
        sender: Sender,
        content: RecordDict,
        read: Callable[[str, RecordDict], None],
    ) -> None:
        if sender.name != name:
            raise RejectedUpdate("wrong-node", f"{sender.name} answers in the place of {name}")
        check_willing(content)
        told = records_of(content, ConfigRecord).get(MASKED_SUM) or ConfigRecord()
        if "refused" in told:
            self._complain(name, told.get("about"))
            raise declined(told["refused"], told.get("detail", ""), COMPLAINTS)
        read(name, content)

    def _take(self, name: str, read: Callable[[], None]) -> None:
        found = catch(self.senders[name], read)
        if isinstance(found, Rejection):
            self.lost[name] = found
            if found.reason in server.PROVEN:
                self.proven[name] = found.reason

    def _complain(self, name: str, dealers: object) -> None:
        """Keep a client apart from those whose packets it says that it cannot use."""
        places = self.agreed.places
        for dealer in dealers if isinstance(dealers, list) else ():
            other = places.get(str(dealer))
            if other in self.deals and other in self.agreed.neighbours(places[name]):
                self._keep_apart(name, str(dealer))

    def _keep_apart(self, a: str, b: str) -> None:
        self.apart.add((min(a, b), max(a, b)))

    def _leave_out(self, name: str) -> None:
        others = sum(name in pair for pair in self.apart)
        detail = f"it is kept apart from {others} others; nothing proves which of them is malicious"
        self.lost[name] = Rejection(self.senders[name], "apart", detail)

    def _read_deal(self, name: str, data: bytes) -> None:
        place = self.agreed.places[name]
        self.deals[place] = server.read_deal(
            self.agreed,
            place,
            data,
            self.context.instructions.get(self.context.server_round, b""),
            self.stage.roster,
            self.now,
        )


def _pairs(state: State) -> set[tuple[str, str]]:
    return {(a, b) for a, b in state.get("apart", ())}


def _bytes(content: RecordDict, name: str) -> bytes:
    value = (records_of(content, ConfigRecord).get(MASKED_SUM) or ConfigRecord()).get(name)
    if not isinstance(value, bytes):
        raise RejectedUpdate("malformed", f"the answer has no {name!r}")
    return value
