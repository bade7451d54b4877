"""One masked sum while it goes on: what each client is asked, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
            self.roster,
            self.now,
        )


def _bytes(content: RecordDict, name: str) -> bytes:
    value = (records_of(content, ConfigRecord).get(MASKED_SUM) or ConfigRecord()).get(name)
    if not isinstance(value, bytes):
        raise RejectedUpdate("malformed", f"the answer has no {name!r}")
    return value
