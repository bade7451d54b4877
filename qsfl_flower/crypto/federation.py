"""A whole federation's keys at once, for simulations, tests and trials."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qsfl_flower.crypto.credentials import AUTHORITY_FILE, ROSTER_FILE
from qsfl_flower.crypto.errors import KeyFileError
from qsfl_flower.crypto.files import write_file
from qsfl_flower.crypto.identity import AuthorityKey, Identity, create_authority, create_identity
from qsfl_flower.crypto.keyfile import save_authority_key, save_identity
from qsfl_flower.crypto.roster import DAY, Entry, Roster, sign_roster
from qsfl_flower.crypto.suite import DEFAULT_SUITE, Suite


@dataclass(frozen=True)
class Federation:
    """Every party's keys in one place, which only a simulation or a trial may have.

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

    def save(self, folder: Path) -> None:
        """Write a key folder for every party, as `Credentials.in_folder` reads it.

        Parameters
        ----------
        folder : Path
            A new or empty folder; that of each party has its name.

        Raises
        ------
        KeyFileError
            If there is something in `folder`, or it cannot be written.
        """
        if folder.exists() and any(folder.iterdir()):
            raise KeyFileError(f"{folder} is not empty; name a new folder for the keys")
        for party in (self.server, *self.clients.values()):
            own = folder / party.name
            own.mkdir(mode=0o700, parents=True)
            save_identity(own / f"{party.name}.key", party)
            save_authority_key(own / AUTHORITY_FILE, self.authority)
            write_file(own / ROSTER_FILE, self.roster, private=False)


def create_federation(
    clients: Iterable[str],
    *,
    now: int,
    server: str = "server",
    organization: str = "simulation",
    valid_for: int = 30 * DAY,
    suite: Suite = DEFAULT_SUITE,
) -> Federation:
    """Return fresh keys for a server and clients of the given names, and their signed roster.

    The keys come from the operating system's random numbers and from no seed.
    """
    authority = create_authority("authority", suite.signature)
    parties = {
        name: create_identity(name, now=now, organization=organization, suite=suite)
        for name in clients
    }
    hub = create_identity(server, now=now, role="server", organization=organization, suite=suite)
    entries = [Entry(party.public(), now, now + valid_for) for party in (hub, *parties.values())]
    entries.sort(key=lambda entry: (entry.identity.name, entry.key_id))
    roster = Roster(1, now, now + valid_for, tuple(entries))
    return Federation(authority.public, sign_roster(roster, authority), hub, parties)
