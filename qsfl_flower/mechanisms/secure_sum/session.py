"""Who is on the committee, and the two exchanges with it in a round."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.typing import NDArray

from qsfl_flower.errors import RejectedUpdate, plain
from qsfl_flower.rounds.admission import check_willing
from qsfl_flower.rounds.context import RoundContext, task_content
from qsfl_flower.rounds.update import Rejection, Sender, Update, catch
from qsfl_flower.secure.field import Elements, is_canonical
from qsfl_flower.secure.krum import pairs
from qsfl_flower.secure.terms import Terms
from qsfl_flower.secure.verdict import Check
from qsfl_flower.wire import config_of, content_bytes, from_record, records_of
from qsfl_flower.wire.keys import (
    HELLO_TASK,
    RELEASE_TASK,
    SEALED_TYPE,
    SECURE_RECORD,
    SECURE_SHARES,
    TAKE_TASK,
)

T = TypeVar("T")

_LONGEST_COMPLAINT = 40


@dataclass(frozen=True)
class Seats:
    """Who sits where: the committee's nodes in the order of their points, and all known names.

    Parameters
    ----------
    nodes : tuple of int
        Nodes of the members, in order.
    names : mapping of int to str
        Names of nodes, from signatures.
    gone : tuple of int
        Nodes that did not answer as members when they were last asked.
    drawn : mapping of int to str
        What nodes have drawn when they took a seat, see `Terms.seats`.
    empty : str
        Why seats stayed empty, or nothing.
    """

    nodes: tuple[int, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)
    gone: tuple[int, ...] = ()
    drawn: Mapping[int, str] = field(default_factory=dict)
    empty: str = ""

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members, in order."""
        return tuple(self.names[node] for node in self.nodes)


def appoint(seats: Seats, size: int, context: RoundContext) -> Seats:
    """Fill the committee: who sat there stays, who has vanished is replaced.

    Nodes that have not drawn a seat yet are asked to, and the signature names them; those that
    vanished before come last.
    """
    asked = [sender.node_id for sender in context.senders]
    pool = [*(n for n in seats.nodes if n in asked), *(n for n in asked if n not in seats.nodes)]
    pool.sort(key=lambda node: node in seats.gone)
    names, drawn, gone = dict(seats.names), dict(seats.drawn), set(seats.gone)
    nodes: list[int] = []
    silent: dict[str, list[str]] = {}
    while len(nodes) < size and pool:
        chosen, pool = pool[: size - len(nodes)], pool[size - len(nodes) :]
        unknown = [node for node in chosen if node not in drawn]
        hello = task_content(HELLO_TASK)
        answers = context.ask(dict.fromkeys(unknown, hello)) if unknown else {}
        for node in unknown:
            found = _seat_of(answers.get(node))
            if isinstance(found, tuple):
                names[node], drawn[node] = found
                continue
            gone.add(node)
            if found is not None:  # one example of each reason
                alike = silent.setdefault(found.reason, [])
                alike.append(f"{found.sender.label}: {found.reason if alike else _why(found)}")
        nodes += [n for n in chosen if n in drawn and names[n] not in {names[k] for k in nodes}]
    empty = ""
    if len(nodes) < size:
        told = ", ".join(who for alike in silent.values() for who in alike)
        why = f" ({told})" if told else ""
        empty = f"{len(nodes)} of {size} committee members could be appointed{why}"
    return Seats(tuple(nodes), names, tuple(sorted(gone)), drawn, empty)


@dataclass(frozen=True)
class Sealed:
    """What a client's reply holds for the committee: a signed header, one payload per member."""

    statement: bytes
    payloads: tuple[Array, ...]


@dataclass(frozen=True)
class Taken:
    """A member's answer to the first exchange."""

    check: Check
    distances: Elements
    norms: Elements

    def norms_of(self, clients: Sequence[int]) -> Elements:
        """Return the norms of clients by position; the member must have complained of none."""
        return self.norms[self._held(clients)]

    def distances_of(self, clients: Sequence[int]) -> Elements:
        """Return the distances between clients by position, in the order of `krum.pairs`."""
        count = sum(not complaint for complaint in self.check.complaints)
        matrix = np.zeros((count, count), np.uint64)
        matrix[pairs(count)] = self.distances
        held = self._held(clients)
        chosen: Elements = matrix[np.ix_(held, held)][pairs(len(held))]
        return chosen

    def _held(self, clients: Sequence[int]) -> NDArray[np.int64]:
        place = np.cumsum([not complaint for complaint in self.check.complaints]) - 1
        return place[list(clients)]


@dataclass
class Session:
    """The exchanges of one round with the committee, and what became of its members.

    Parameters
    ----------
    terms : Terms
        The round's terms.
    nodes : tuple of int
        Nodes of the members, in order.
    context : RoundContext
        To ask with.
    """

    terms: Terms
    nodes: tuple[int, ...]
    context: RoundContext
    lost: dict[int, str] = field(default_factory=dict)
    liars: set[int] = field(default_factory=set)
    traffic: int = 0

    def take(self, updates: Sequence[Update], size: int) -> dict[int, Taken]:
        """Send every member its shares of the clients' updates; return the answers by member."""
        deals = [sealed_of(update) for update in updates]
        told: dict[str, Any] = {
            "terms": self.terms.encode(),
            "size": size,
            "headers": [deal.statement for deal in deals],
        }
        contents = {}
        for member, node in enumerate(self.nodes, start=1):
            payloads = {str(i): deal.payloads[member - 1] for i, deal in enumerate(deals)}
            contents[node] = RecordDict(
                {
                    **task_content(TAKE_TASK),
                    SECURE_RECORD: ConfigRecord({**told}),
                    SECURE_SHARES: ArrayRecord(payloads),
                }
            )
        return self._ask(contents, lambda content: self._read_taken(content, len(deals)))

    def release(
        self, members: Sequence[int], clients: Sequence[str], size: int
    ) -> dict[int, Elements]:
        """Ask members for their shares of one sum; return them by member."""
        told: dict[str, Any] = {"round": self.terms.round, "clients": list(clients)}
        content = task_content(RELEASE_TASK, **{SECURE_RECORD: ConfigRecord({**told})})
        contents = {self.nodes[member - 1]: content for member in members}
        return self._ask(contents, lambda answer: _read_sum(answer, size))

    def _ask(
        self, contents: Mapping[int, RecordDict], read: Callable[[RecordDict], T]
    ) -> dict[int, T]:
        answers = self.context.ask(contents)
        self.traffic += sum(map(content_bytes, contents.values()))
        found = {}
        for node in contents:
            member = self.nodes.index(node) + 1
            name, answer = self.terms.members[member - 1], answers.get(node)
            if answer is None or isinstance(answer, Rejection):
                self.lost[member] = "no reply" if answer is None else _why(answer)
                continue
            sender, content = answer
            self.traffic += content_bytes(content)
            if sender.name != name:
                self.lost[member] = f"wrong-node: {sender.name} answers in its place"
                continue
            told = catch(sender, partial(_willing, read, content))
            if isinstance(told, Rejection):
                self.lost[member] = _why(told)
            else:
                found[member] = told
        return found

    def _read_taken(self, content: RecordDict, count: int) -> Taken:
        record: Mapping[str, Any] = config_of(content, SECURE_RECORD)
        complaints = record.get("complaints")
        if not (
            isinstance(complaints, list)
            and len(complaints) == count
            and all(isinstance(c, str) and len(c) <= _LONGEST_COMPLAINT for c in complaints)
        ):
            raise RejectedUpdate("malformed", f"not one complaint or none for each of {count}")
        kept = sum(not c for c in complaints)
        values = _elements(record.get("values"), count)
        terms = self.terms
        distances = _elements(
            record.get("distances", b""), kept * (kept - 1) // 2 if terms.distances else 0
        )
        norms = _elements(record.get("norms", b""), kept if terms.norms else 0)
        told = [plain(c, _LONGEST_COMPLAINT) for c in complaints]
        return Taken(Check(told, values.tolist()), distances, norms)


def sealed_of(update: Update) -> Sealed:
    """Return what an update that `SecureSum.read` has made holds."""
    if not isinstance(update.sealed, Sealed):
        raise RejectedUpdate("not-encoded", f"{update.sender.label} sent no shares")
    return update.sealed


def read_payload(array: Array | None, what: str) -> bytes:
    """Return the bytes of a sealed payload or statement.

    Raises
    ------
    RejectedUpdate
        ``malformed`` if it is missing or something else.
    """
    if array is None or array.stype != SEALED_TYPE or array.dtype != "uint8":
        raise RejectedUpdate("malformed", f"there is no {what}")
    return array.data


def _why(rejection: Rejection) -> str:
    return f"{rejection.reason}: {rejection.detail}"


def _willing(read: Callable[[RecordDict], T], content: RecordDict) -> T:
    check_willing(content)
    return read(content)


def _seat_of(
    answer: tuple[Sender, RecordDict] | Rejection | None,
) -> tuple[str, str] | Rejection | None:
    """Return who has taken a seat and what it has drawn, or why it has not."""
    if answer is None or isinstance(answer, Rejection):
        return answer
    sender, content = answer
    seat = catch(sender, partial(_willing, _read_seat, content))
    return seat if isinstance(seat, Rejection) else (sender.name, seat)


def _read_seat(content: RecordDict) -> str:
    record = config_of(content, SECURE_RECORD)
    seat = record.get("seat")
    if not isinstance(seat, str) or not re.fullmatch("[0-9a-f]{32}", seat):
        raise RejectedUpdate("malformed", "there is no seat")
    return seat


def _read_sum(content: RecordDict, size: int) -> Elements:
    record = records_of(content, ArrayRecord).get(SECURE_RECORD)
    total = None if record is None else from_record(record).get("sum")
    if total is None or total.shape != (size,) or not is_canonical(total):
        raise RejectedUpdate("malformed", f"there are not {size} field elements")
    return total


def _elements(data: object, count: int) -> Elements:
    if not isinstance(data, bytes) or len(data) != 8 * count:
        raise RejectedUpdate("malformed", f"there are not {count} field elements")
    elements = np.frombuffer(data, np.uint64)
    if not is_canonical(elements):
        raise RejectedUpdate("malformed", "a value is outside the field")
    return elements
