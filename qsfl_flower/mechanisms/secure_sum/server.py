"""Sums, and Multi-Krum, over updates that only a committee of clients together could open."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from qsfl_flower.crypto.roster import Roster
from qsfl_flower.crypto.sources import unix_time
from qsfl_flower.errors import ConfigError, QSFLError, RejectedUpdate
from qsfl_flower.mechanisms.secure_sum.attempt import Abandoned, Attempt
from qsfl_flower.mechanisms.secure_sum.session import (
    Sealed,
    Seats,
    Session,
    appoint,
    read_payload,
)
from qsfl_flower.numerics import Layout, Vector
from qsfl_flower.rounds.admission import check_encoding
from qsfl_flower.rounds.composition import Trait
from qsfl_flower.rounds.context import RoundContext, State, Steps
from qsfl_flower.rounds.facts import Facts, HiddenSum, Sentences, Topic
from qsfl_flower.rounds.stages import Combined, CombineStage, Stage
from qsfl_flower.rounds.update import Cohort, Sender, Update, Weighting
from qsfl_flower.secure.decoding import Inconsistent
from qsfl_flower.secure.field import Elements
from qsfl_flower.secure.krum import check_size, scores, select
from qsfl_flower.secure.shamir import MAX_MEMBERS
from qsfl_flower.secure.sizes import fewest_clients, least_quorum
from qsfl_flower.secure.statistics import Statistics
from qsfl_flower.secure.tally import Tally
from qsfl_flower.secure.terms import MAX_CLIENTS, Terms
from qsfl_flower.wire import PAYLOAD_RECORD, ClientPhase, Form, PlanItem, content_bytes, records_of
from qsfl_flower.wire.keys import SHARES

log = logging.getLogger("qsfl_flower")


@dataclass(frozen=True)
class Committee:
    """How many members there are, and when they answer.

    Parameters
    ----------
    members : int
        m, in [2, 16]: how many clients serve.
    threshold : int
        t: that many members open a sum; t - 1 and the server learn nothing of one client.
    quorum : int, optional
        q, in [t, m]: how many members must answer alike before a sum opens; ``m - q`` may vanish.
        By default, and at least, so many that a server which asks members for different sums gets
        one, also with t - 1 members on its side: ``2 q > m + t - 1``.
    min_clients : int
        Least number of clients in a sum, >= 2; each of them knows its own update.

    Examples
    --------
    >>> committee = Committee(members=7, threshold=3, quorum=5)
    >>> committee.quorum
    5
    """

    members: int = 5
    threshold: int = 3
    quorum: int | None = None
    min_clients: int = 3

    def __post_init__(self) -> None:
        self._check("members", 2, MAX_MEMBERS)
        self._check("threshold", 2, self.members)
        if self.quorum is not None:
            why = "; of fewer, a server with threshold - 1 of them could open two different sums"
            self._check("quorum", least_quorum(self.members, self.threshold), self.members, why)
        self._check("min_clients", 2, MAX_CLIENTS)

    def _check(self, name: str, low: int, high: int, why: str = "") -> None:
        value = getattr(self, name)
        if type(value) is not int or not low <= value <= high:
            raise ConfigError(
                f"committee: {name} is {value!r}; allowed are {low} to {high} in a committee of "
                f"{self.members!r} with threshold {self.threshold!r}{why}"
            )

    @property
    def least(self) -> int:
        """The quorum, chosen or by default."""
        if self.quorum is not None:
            return self.quorum
        return least_quorum(self.members, self.threshold)


class SecureSum(CombineStage):
    r"""Combine updates that are shared among a committee of clients, t of which open their sum.

    .. math:: \Delta = \sum_i w_i \Delta_i \Big/ \sum_i w_i, \qquad
              w_i = \min(n_i / n_{\max}, 1)

    Each client shares its clipped update, weight and metrics in fixed point among m members of a
    committee (Shamir, threshold t), sealed to their roster keys. The members check the shares
    together, then release one sum. The sum is exact in fixed point; whoever deals shares that do
    not fit, or answers with garbage, is named.

    Parameters
    ----------
    clip_norm : float
        Largest L2 norm of an update, > 0; the clients clip to it.
    committee : Committee
        Sizes and limits.
    bound : float, optional
        Largest magnitude of a coordinate; by default `clip_norm`. Noise needs more.
    bits : int
        Fractional bits, 2^-24 by default.
    max_examples : int
        No client counts for more examples than this, >= 1.
    metrics : Sequence[str]
        Metrics that are averaged under the same protection; all others stay on the devices.
    weighted_by : str
        Name of the metric that counts the examples.
    weighted : bool
        Weigh by examples; if False all clients count alike.
    enforce_norm : bool
        Have the committee open every client's squared norm, and drop clients beyond `clip_norm`.
        The server then learns every norm, and the committee needs ``m >= 2 t - 1``.
    clock : Callable[[], float]
        Unix time in seconds.

    Notes
    -----
    In an asynchronous strategy a buffer holds shares of several versions, under the same committee;
    the sum is :math:`\sum_i q_i w_i \Delta_i / (q_0 \sum_i w_i)` times the share of the buffer that
    is full, with the public weight q of an update's staleness. Shares that an earlier committee
    holds are rejected (``other-committee``).

    Who sees what: the server learns the sum over the clients that took part, of updates, weights
    and metrics, and with `enforce_norm` each norm. Members learn nothing. t - 1 members together
    with the server learn no more than the server; t learn everything. A client can still add any
    vector that is clipped; or, without `enforce_norm`, any that keeps the sum within its range and
    the mean within `clip_norm`. Weights are claims, also where they are hidden. Buffers of floats
    are part of the sum, outside of the clip norm: all clients count alike there, and one can move
    them far. With `enforce_norm`, where no client may, they stay on each device (role ``local``).

    References
    ----------
    A. Shamir, "How to share a secret", 1979. doi:10.1145/359168.359176 (docs/secure-aggregation.md
    describes the protocol).

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation, learned
    >>> federation = LocalFederation(clients=5, size=32)
    >>> view = federation.watch()  # what the server sees
    >>> outcome = federation.run([SecureSum(1.0, Committee(3, 2), clock=federation.grid_time)])
    >>> learned(federation.updates, view.bytes_up())
    []
    """

    name = "secure_sum"
    hides = True
    overlaps = True
    volatile = True
    needs_norms = False
    distances = False
    declares = frozenset({Trait.TRUSTS_KEYS})

    def __init__(
        self,
        clip_norm: float,
        committee: Committee | None = None,
        *,
        bound: float | None = None,
        bits: int = 24,
        max_examples: int = 1000,
        metrics: Sequence[str] = ("train-loss", "train-accuracy"),
        weighted_by: str = "num-examples",
        weighted: bool = True,
        enforce_norm: bool = False,
        clock: Callable[[], float] = unix_time,
    ) -> None:
        self.clip_norm = clip_norm
        self.committee = committee or Committee()
        self.bound = clip_norm if bound is None else bound
        self.bits = bits
        self.tally = Tally(max_examples, tuple(metrics), weighted_by)
        self.weighted = weighted
        self.enforce_norm = enforce_norm
        self._clock = clock
        self._roster: Roster | None = None
        self._opened = tuple(self.tally.metrics)
        # Raises what would otherwise end the first round.
        self._least(Weighting()).check_size(1)

    @property
    def facts(self) -> Facts:
        """The bounds, and what is opened."""
        opened = HiddenSum(
            min_clients=self.committee.min_clients,
            bound=self.bound,
            bits=lambda clients: self.bits,
            metrics=self.tally.metrics,
            alike=not (self.weighted or self.enforce_norm),
        )
        return Facts(clip_norm=lambda states: self.clip_norm, sum=opened)

    @property
    def sums_statistics(self) -> bool:
        """Whether nothing but clients bounds an update: else one could set them."""
        return not (self.enforce_norm or self.distances)

    def bind(self, stages: Sequence[Stage]) -> Self:
        """Take the roster from the stage that proves who is who."""
        facts = [s.facts for s in stages]
        return self.knowing(
            _roster=next(filter(None, (f.roster for f in facts)), None),
            _opened=Facts.left_of(self.tally.metrics, facts),
        )

    def explain(self, layout: Layout, rounds: int) -> Sentences:
        """Say what is opened, and who could open more."""
        m, t = self.committee.members, self.committee.threshold
        counted = ", of their numbers of examples" if self.weighted else ""
        metrics = f" and of {', '.join(self._opened)}" if self._opened else ""
        opened = [
            f"one sum a round, of the updates{Statistics(layout).told}{counted}{metrics} of at "
            f"least {self.committee.min_clients} clients"
        ]
        if self.distances:
            opened.append(
                "how far apart every two updates are, which determines them up to rotation and "
                "shift, and which clients the rule selects"
            )
        if self.enforce_norm:
            opened.append("the norm of every update")
        return {
            Topic.SERVER: opened,
            Topic.MEMBER: [
                f"numbers that look random: fewer than {t} of the {m} members, even together with "
                f"the server, learn no more than it does; {t} of them learn every update"
            ],
            Topic.NETWORK: ["updates only if both X25519 and ML-KEM-768 are broken"],
            Topic.LIARS: self._liars(),
        }

    def _liars(self) -> list[str]:
        held = "the committee checks it" if self.enforce_norm else "its own client sees to that"
        return [
            f"an update is clipped to {self.clip_norm:g}: {held}; wrong shares and wrong answers "
            "of members are noticed and named"
        ]

    def upload(self, size: int, clients: int) -> int:
        """Return the bytes of the shares."""
        m, t = self.committee.members, self.committee.threshold
        return 8 * (m - t + 1) * (size + self.tally.size) + 1300 * m

    def init(self, layout: Layout) -> State:
        """Start without knowing who is at which node."""
        del layout
        return {"seats": Seats(), "terms": None, "told": {}, "unready": None}

    def check_buffer(self, weighting: Weighting) -> None:
        """Refuse buffers that are too small for a sum, and weights that there is no room for."""
        size = weighting.buffer_size or 0
        if (most := self.counted(size)) < self.committee.min_clients:
            raise ConfigError(
                f"{self.name}: a buffer of {size} lets {most} updates into a sum, its committee "
                f"releases none of fewer than {self.committee.min_clients} (min_clients); raise "
                "buffer_size"
            )
        self._least(weighting).check_size(1)

    def counted(self, size: int) -> int:
        """Return how many updates make a whole step, of a full buffer of `size`."""
        return size

    def least_clients(self, weighting: Weighting) -> int:
        """Return how many clients have to be there: the members, and those of the smallest sum."""
        if weighting.buffer_size is not None:  # the buffer has been checked
            return self.committee.members
        return self._fewest()

    def _fewest(self) -> int:
        return fewest_clients(self.committee.members, self.committee.min_clients)

    def unready(self, state: State) -> str | None:
        """Return why nobody can deal shares in this round."""
        why: str | None = state["unready"]
        return why

    def prepare(self, state: State, context: RoundContext) -> State:
        """Appoint the committee and fix the terms.

        Raises
        ------
        ConfigError
            If the first round has fewer clients than any sum needs.
        """
        weighting, terms = context.weighting, None
        there, least = len(context.senders), self.least_clients(weighting)
        few = f"{self.name}: {there} clients are there, the smallest federation has {least}"
        if there < least and context.server_round == 1:
            raise ConfigError(f"{few}: connect more clients, or {self._smaller()}")
        seats = appoint(state["seats"], self.committee.members, context)
        unready = few if there < least else seats.empty or None
        if unready is None:
            terms = self._terms(
                seats.members,
                [seats.drawn[node] for node in seats.nodes],
                weighting.buffer_size or len(context.senders),
                weighting.by_staleness,
            )
            extras = self.tally.size + Statistics(context.layout).size
            terms = replace(terms, run=context.run_id, round=context.server_round, extras=extras)
            terms.check_size(context.layout.size)
        oldest = context.server_round - len(weighting.by_staleness)
        told = {at: old for at, old in state["told"].items() if at > oldest}
        told[context.server_round] = terms
        return {"seats": seats, "terms": terms, "told": told, "unready": unready}

    def _smaller(self) -> str:
        return "take fewer committee members (members) and smaller sums (min_clients)"

    def joins(self, state: State, origin: int) -> None:
        """Refuse shares that were dealt to another committee."""
        terms: Terms | None = state["terms"]
        if terms is not None and state["told"].get(origin) != terms.of_round(origin):
            raise RejectedUpdate(
                "other-committee",
                f"the shares of round {origin} are not those of the committee of round "
                f"{terms.round}: {', '.join(terms.members)}",
            )

    def client_steps(self, state: State, context: RoundContext) -> Steps:
        """Ask for clipped updates, shared among the committee."""
        del context
        terms: Terms | None = state["terms"]
        parameters: dict[str, Any] = {
            "terms": None if terms is None else asdict(terms),
            "max_examples": self.tally.max_examples,
            "metrics": list(self.tally.metrics),
            "weighted_by": self.tally.weighted_by,
            "weighted": self.weighted,
        }
        clip = PlanItem("clip", {"clip_norm": self.clip_norm})
        return [(ClientPhase.CLIP, clip), (ClientPhase.ENCODE, PlanItem(SHARES, parameters))]

    def read(self, sender: Sender, content: RecordDict, context: RoundContext) -> Update:
        """Read a reply that holds a signed header and one sealed share per member."""
        del context
        check_encoding(content, SHARES)
        record = records_of(content, ArrayRecord).get(PAYLOAD_RECORD) or ArrayRecord()
        statement = read_payload(record.get("header"), "header")
        payloads = []
        for member in range(1, self.committee.members + 1):
            array = record.get(str(member))
            read_payload(array, f"share for member {member}")
            if array is not None:
                payloads.append(array)
        return Update(
            sender,
            num_examples=1.0,
            vector=Vector(()),
            form=Form.DELTA,
            bytes_up=content_bytes(content),
            sealed=Sealed(statement, tuple(payloads)),
        )

    def combine(self, cohort: Cohort, state: State, context: RoundContext) -> Combined:
        """Have the committee check the shares, and open one sum."""
        seats: Seats = state["seats"]
        terms: Terms | None = state["terms"]
        if terms is None:
            return Combined(cohort, None, state, skipped=self.unready(state))
        if self._roster is None:
            raise QSFLError(f"{self.name} is used outside a chain")
        attempt = Attempt(
            Session(terms, seats.nodes, context),
            self._roster,
            self.tally,
            self.weighted,
            self.choose,
            context,
            cohort,
            0 if (size := context.weighting.buffer_size) is None else self.counted(size),
        )
        step: NDArray[np.float64] | None = None
        metrics, skipped = None, None
        statistics: Mapping[str, NDArray[Any]] = {}
        suspects: set[int] = set()
        try:
            step, metrics, statistics = attempt.run(int(self._clock()))
        except (Abandoned, RejectedUpdate) as error:
            skipped = str(error)
        except Inconsistent as error:
            # Some member lies, nobody can tell who: another committee may have none that does.
            skipped, suspects = str(error), set(range(1, len(terms.members) + 1))
        session = attempt.session
        for member, why in session.lost.items():
            log.warning("committee: member %s is lost: %s", terms.members[member - 1], why)
        for member in session.liars:
            log.warning("committee: member %s answered wrongly", terms.members[member - 1])
        lost = session.lost.keys() | session.liars | suspects
        out = {seats.nodes[member - 1] for member in lost}
        gone = (set(seats.gone) - set(seats.nodes)) | out
        drawn = {node: seat for node, seat in seats.drawn.items() if node not in out}
        seats = replace(seats, gone=tuple(sorted(gone)), drawn=drawn)
        return Combined(
            attempt.cohort,
            step,
            {**state, "seats": seats, "terms": None},
            attempt.measured(),
            skipped,
            metrics,
            statistics,
        )

    def choose(self, distances: Elements, count: int) -> tuple[int, ...]:
        """Return the positions of the clients to add up, of `count` whose shares fit."""
        del distances
        return tuple(range(count))

    def _least(self, weighting: Weighting) -> Terms:
        """Return the terms of the smallest round."""
        members = [f"m{j}" for j in range(self.committee.members)]
        return self._terms(members, members, weighting.buffer_size or 1, weighting.by_staleness)

    def _terms(
        self, members: Sequence[str], seats: Sequence[str], count: int, weights: tuple[int, ...]
    ) -> Terms:
        sizes = self.committee
        return Terms(
            run=0,
            round=0,
            members=tuple(members),
            seats=tuple(seats),
            threshold=sizes.threshold,
            quorum=sizes.least,
            min_clients=sizes.min_clients,
            max_clients=max(count, sizes.min_clients),
            bits=self.bits,
            bound=float(self.bound),
            clip_norm=float(self.clip_norm),
            extras=self.tally.size,
            distances=self.distances,
            norms=self.enforce_norm,
            weights=weights,
        )


class SecureKrum(SecureSum):
    r"""Multi-Krum over hidden updates: the server learns how far apart they are, and one mean.

    The committee opens the squared distances between the clients' encoded updates, exactly; the
    server selects the n - f - 2 updates (or `num_selected`) with the smallest Krum scores, and the
    committee releases the sum of these alone. The selection equals that of plaintext Multi-Krum on
    the encoded updates, bit for bit.

    Parameters
    ----------
    clip_norm : float
        As in `SecureSum`.
    num_byzantine : int
        f: how many of the clients may be anything, >= 0. A round needs ``2 f + 3`` clients.
    committee : Committee
        By default 5 members with threshold 3; ``m - (2 t - 1)`` of them may vanish.
    num_selected : int, optional
        How many updates are averaged.
    **options
        As in `SecureSum`. Selected clients count alike; the metrics are weighted by examples.

    Notes
    -----
    In an asynchronous strategy the distances are those of the unweighted updates; those selected
    count with the weights of their staleness, over the number selected of a full buffer.

    Who sees what: as in `SecureSum`, and the server learns all pairwise distances, which determine
    the updates up to rotation, reflection and translation, and who is selected. Buffers of floats
    stay on each device (role ``local``): no distance is to be told about them, and the rule would
    not cover them otherwise.

    References
    ----------
    P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer, "Machine learning with adversaries:
    Byzantine tolerant gradient descent", 2017. arXiv:1703.02757.
    J. So, B. Guler, A. S. Avestimehr, "Byzantine-resilient secure federated learning", 2021.
    arXiv:2007.11115.

    Examples
    --------
    >>> from qsfl_flower.testing import LocalFederation
    >>> federation = LocalFederation(clients=7)
    >>> krum = SecureKrum(1.0, 1, Committee(3, 2), clock=federation.grid_time)
    >>> outcome = federation.run([krum])
    >>> outcome.rounds[-1].accepted  # n - f - 2
    4
    """

    name = "secure_krum"
    distances = True
    declares = SecureSum.declares | {Trait.OPENS_DISTANCES, Trait.WITHSTANDS_LIARS}

    def __init__(
        self,
        clip_norm: float,
        num_byzantine: int,
        committee: Committee | None = None,
        *,
        num_selected: int | None = None,
        **options: Any,
    ) -> None:
        if num_byzantine < 0:
            raise ConfigError(f"secure_krum: num_byzantine is {num_byzantine}; it must be >= 0")
        if num_selected is not None and num_selected < 1:
            raise ConfigError(f"secure_krum: num_selected is {num_selected}; it must be >= 1")
        self.num_byzantine = num_byzantine
        self.num_selected = num_selected
        super().__init__(clip_norm, committee, **{**options, "weighted": False})
        if num_selected is not None and num_selected < self.committee.min_clients:
            raise ConfigError(
                f"secure_krum: num_selected {num_selected} updates are never added up, since the "
                f"committee releases no sum of fewer than {self.committee.min_clients} "
                "(min_clients); raise the first or lower the second"
            )

    def _fewest(self) -> int:
        sizes, selected = self.committee, self.num_selected
        return fewest_clients(sizes.members, sizes.min_clients, self.num_byzantine, selected)

    def _smaller(self) -> str:
        return f"{super()._smaller()}, or tolerate fewer Byzantine clients (num_byzantine)"

    def check_buffer(self, weighting: Weighting) -> None:
        """Refuse buffers of fewer than ``2 f + 3`` updates."""
        try:
            check_size(weighting.buffer_size or 0, self.num_byzantine)
        except ConfigError as error:
            raise ConfigError(f"{self.name}: buffer_size: {error}") from None
        super().check_buffer(weighting)

    def counted(self, size: int) -> int:
        """Return how many of a full buffer are selected."""
        return self.num_selected or size - self.num_byzantine - 2

    def _liars(self) -> list[str]:
        return [
            *super()._liars(),
            f"Multi-Krum on exact distances selects updates near to one another: it withstands "
            f"{self.num_byzantine} attackers among at least {2 * self.num_byzantine + 3} clients",
        ]

    def choose(self, distances: Elements, count: int) -> tuple[int, ...]:
        """Return the positions of the clients with the smallest Krum scores."""
        try:
            check_size(count, self.num_byzantine)
        except ConfigError as error:
            raise Abandoned(str(error)) from None
        wanted = self.num_selected or count - self.num_byzantine - 2
        return select(scores(distances, count, self.num_byzantine), wanted)
