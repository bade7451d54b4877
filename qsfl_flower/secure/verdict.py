"""The server's part: who has lied, and what the answers open to.

Who sees what: the server sees the members' check values (uniformly random), where agreed the
squared distances and norms, and one sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qsfl_flower.secure.decoding import Inconsistent, find_liars


@dataclass(frozen=True)
class Check:
    """One member's first answer, in the order of the clients that it was sent.

    Parameters
    ----------
    complaints : sequence of str
        Per client ``""``, or why its share was not acceptable.
    values : sequence of int
        Per client the check value; of no meaning where there is a complaint.
    """

    complaints: Sequence[str]
    values: Sequence[int]


@dataclass(frozen=True)
class Verdict:
    """Who is out.

    Parameters
    ----------
    clients : mapping of int to str
        Positions of the clients whose shares do not fit, each with the reason.
    members : frozenset of int
        Members whose answers are not used: they contradict the others about most clients.
    """

    clients: Mapping[int, str]
    members: frozenset[int]


def judge(checks: Mapping[int, Check], count: int, threshold: int) -> Verdict:
    """Compare the members' check values.

    A member that stands alone against the others about more than half of the clients lies, as long
    as most clients are honest. Any other disagreement is held against the client: a share that one
    member cannot use makes the sum unusable, whoever is to blame.

    Parameters
    ----------
    checks : mapping of int to Check
        By member, in 1 .. m.
    count : int
        Number of clients.
    threshold : int
        t.
    """
    disputes = [_dispute(checks, client, threshold) for client in range(count)]
    against = {member: sum(d is not None and member in d for d in disputes) for member in checks}
    liars = frozenset(member for member, times in against.items() if 2 * times > count)
    clients: dict[int, str] = {}
    for client, members in enumerate(disputes):
        if members is None:
            clients[client] = "its shares are not on one polynomial"
        elif left := sorted(members - liars):
            complaints = {checks[m].complaints[client] for m in left} - {""}
            why = ", ".join(sorted(complaints)) or "does not fit the others"
            clients[client] = f"its share for member {', '.join(map(str, left))}: {why}"
    return Verdict(clients, liars)


def _dispute(checks: Mapping[int, Check], client: int, threshold: int) -> frozenset[int] | None:
    """Return the members that cannot use a client's share, or None if nobody can tell."""
    complaining = frozenset(m for m, c in checks.items() if c.complaints[client])
    values = {m: c.values[client] for m, c in checks.items() if m not in complaining}
    try:
        return complaining | find_liars(values, threshold - 1)
    except Inconsistent:
        return None
