"""One masked sum while it goes on: what each client is asked, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from qsfl_flower.crypto.roster import Roster
from qsfl_flower.errors import COMPLAINTS, RejectedUpdate
from qsfl_flower.rounds.admission import check_willing, declined
from qsfl_flower.rounds.context import RoundContext, task_content
from qsfl_flower.rounds.update import Rejection, Sender, Update, catch
from qsfl_flower.secure.pairwise import server
from qsfl_flower.secure.pairwise.masks import Ring
from qsfl_flower.secure.pairwise.terms import Terms
from qsfl_flower.wire import (
    from_record,
    records_of,
)
from qsfl_flower.wire.keys import MASKED_SUM


@dataclass
class Run:
    """One sum while it goes on."""

    roster: Roster
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
        self._leave_out_stranded()

    def ask_to_check(self) -> None:
        """Have everybody try its packets, and part those of whom one complains about the other."""
        terms = self.agreed
        parted: set[tuple[int, int]] = set()

        def read(name: str, content: RecordDict) -> None:
            bad = _told(content).get("bad")
            if not isinstance(bad, list):
                raise RejectedUpdate("malformed", "the answer does not say whose packets are bad")
            parted.update(self._complain(name, bad))

        self._ask("check", self._relays(), read)
        self.deals = {p: d for p, d in self.deals.items() if terms.seats[p] not in self.lost}
        self.terms = replace(terms, parted=frozenset(parted))
        self._leave_out_stranded()
        left = {pair for pair in parted if self.deals.keys() >= set(pair)}
        self.terms = replace(terms, parted=frozenset(left))

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

        told = {"pairs": terms.write_parted()} if terms.parted else {}
        relays = {name: {**relay, **told} for name, relay in self._relays().items()}
        self._ask("mask", relays, read)
        few = server.too_few(terms, self.lockers)
        self._bar(server.at_fault(terms, few, len(self.lockers)))
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
            self._bar(found.short)

    def _relays(self) -> dict[str, dict[str, bytes]]:
        """Return what everybody that dealt is told of the others' packets."""
        terms = self.agreed
        return {
            terms.seats[place]: {"relay": server.relay(terms, self.deals, place)}
            for place in self.deals
        }

    def _leave_out_stranded(self) -> None:
        """Go on without those who lack too many edges to be in this sum."""
        for place in server.stranded(self.agreed, self.deals):
            del self.deals[place]
            self._leave_out(self.agreed.seats[place])
        server.check_enough(self.agreed, self.deals)

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
        told = _told(content)
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

    def _complain(self, name: str, dealers: object) -> set[tuple[int, int]]:
        """Keep a client apart from those whose packets it says that it cannot use."""
        terms, pairs = self.agreed, set()
        place = terms.places[name]
        for dealer in dealers if isinstance(dealers, list) else ():
            other = terms.places.get(str(dealer))
            if other in self.deals and other in terms.neighbours(place):
                self._keep_apart(name, str(dealer))
                pairs.add((min(place, other), max(place, other)))
        return pairs

    def _bar(self, places: Collection[int]) -> None:
        """Keep clients apart from everybody."""
        for name in (self.agreed.seats[place] for place in places):
            for other in self.agreed.names:
                if other != name:
                    self._keep_apart(name, other)

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
            self.roster,
            self.now,
        )


def _told(content: RecordDict) -> ConfigRecord:
    return records_of(content, ConfigRecord).get(MASKED_SUM) or ConfigRecord()


def _bytes(content: RecordDict, name: str) -> bytes:
    value = _told(content).get(name)
    if not isinstance(value, bytes):
        raise RejectedUpdate("malformed", f"the answer has no {name!r}")
    return value
