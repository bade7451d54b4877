"""A whole federation's keys at once, for simulations and tests."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from qsfl_flower.crypto.identity import AuthorityKey, Identity, create_authority, create_identity
from qsfl_flower.crypto.roster import DAY, Entry, Roster, sign_roster
from qsfl_flower.crypto.suite import DEFAULT_SUITE, Suite


@dataclass(frozen=True)
class Federation:
    """Every party's keys in one place, which only a simulation may have.

    Parameters
    ----------
    authority : AuthorityKey
        The public half; the secret one was used once and forgotten.
    roster : bytes
        The signed roster of all parties.
    server : Identity
        The server.
    clients : dict from str to Identity
        The clients by name.
    """

    authority: AuthorityKey
    roster: bytes
    server: Identity
    clients: dict[str, Identity]


def create_federation(
    clients: Iterable[str],
    *,
    now: int,
    server: str = "server",
    organisation: str = "simulation",
    valid_for: int = 30 * DAY,
    suite: Suite = DEFAULT_SUITE,
) -> Federation:
    """Return fresh keys for a server and clients of the given names, and their signed roster.

    The keys come from the operating system's random numbers and from no seed.
    """
    authority = create_authority("authority", suite.signature)
    parties = {
        name: create_identity(name, now=now, organisation=organisation, suite=suite)
        for name in clients
    }
    hub = create_identity(server, now=now, role="server", organisation=organisation, suite=suite)
    entries = [Entry(party.public(), now, now + valid_for) for party in (hub, *parties.values())]
    entries.sort(key=lambda entry: (entry.identity.name, entry.key_id))
    roster = Roster(1, now, now + valid_for, tuple(entries))
    return Federation(authority.public, sign_roster(roster, authority), hub, parties)
