"""What every stage has whose updates only a committee of clients together could open."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from flwr.app import ArrayRecord, RecordDict
from numpy.typing import NDArray

from qsfl_flower.crypto.roster import Roster
from qsfl_flower.errors import ConfigError, QSFLError, RejectedUpdate
from qsfl_flower.mechanisms.secure_sum.attempt import Abandoned, Attempt
from qsfl_flower.mechanisms.secure_sum.options import Committee, SharingOptions
from qsfl_flower.mechanisms.secure_sum.session import (
    Sealed,
    Seats,
    Session,
    appoint,
    read_payload,
)
from qsfl_flower.numerics import Layout, Vector
from qsfl_flower.rounds.admission import check_encoding
from qsfl_flower.rounds.context import RoundContext, State, Steps
from qsfl_flower.rounds.facts import Facts, HiddenSum, Sentences, Topic
from qsfl_flower.rounds.stages import Combined, CombineStage, Stage
from qsfl_flower.rounds.update import Cohort, Sender, Update, Weighting
from qsfl_flower.secure.decoding import Inconsistent
from qsfl_flower.secure.field import Elements
from qsfl_flower.secure.sizes import fewest_clients
from qsfl_flower.secure.statistics import Statistics
from qsfl_flower.secure.tally import Tally
from qsfl_flower.secure.terms import Terms
from qsfl_flower.traits import Trait
from qsfl_flower.wire import PAYLOAD_RECORD, ClientPhase, Form, PlanItem, content_bytes, records_of
from qsfl_flower.wire.keys import SHARES
from qsfl_flower.wire.kinds import Purpose

log = logging.getLogger("qsfl_flower")


class CommitteeStage(CombineStage, SharingOptions):
    """What `SecureSum` and `SecureKrum` have in common; the fields are those of their options."""

    hides = True
    overlaps = True
    volatile = True
    needs_norms = False
    distances = False

    committee: Committee
    bound: float | None
    weighted: bool
    weighted_by: str
    clock: Callable[[], float]

    _roster: ClassVar[Roster | None] = None
    _opened: ClassVar[tuple[str, ...] | None] = None
    _noisy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Raise what would otherwise end the first round."""
        vars(self)["committee"] = self.committee or Committee()
        super().__post_init__()
        self._least(Weighting()).check_size(1)

    @property
    def largest(self) -> float:
        """Largest magnitude of a coordinate."""
        return self.clip_norm if self.bound is None else self.bound

    @cached_property
    def tally(self) -> Tally:
        """What is summed behind the update."""
        return Tally(self.max_examples, self.metrics, self.weighted_by)

    @property
    def facts(self) -> Facts:
        """The bounds, and what is opened."""
        opened = HiddenSum(
            min_clients=self.committee.min_clients,
            bound=self.largest,
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
            _noisy=any(Trait.SHARES_NOISE in s.traits for s in stages),
        )

    def explain(self, layout: Layout, rounds: int) -> Sentences:
        """Say what is opened, and who could open more."""
        m, t = self.committee.members, self.committee.threshold
        counted = ", of their numbers of examples" if self.weighted else ""
        told = self.metrics if self._opened is None else self._opened
        metrics = f" and of {', '.join(told)}" if told else ""
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
            terms = replace(
                terms,
                run=context.run_id,
                round=context.server_round,
                extras=extras,
                purpose=context.purpose,
                fixed=context.purpose is not Purpose.TRAIN and not self._noisy,
            )
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
            "terms": None if terms is None else terms.told,
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
            step, metrics, statistics = attempt.run(int(self.clock()))
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
        # Another committee does not remember who was added up with whom: its sums are refused.
        lost = set() if terms.fixed else session.lost.keys() | session.liars | suspects
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
            bound=float(self.largest),
            clip_norm=float(self.clip_norm),
            extras=self.tally.size,
            distances=self.distances,
            norms=self.enforce_norm,
            weights=weights,
        )
