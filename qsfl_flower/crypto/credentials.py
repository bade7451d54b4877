"""What one party needs at run time: its own keys, and a roster it has checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qsfl_flower.crypto.errors import KeyFileError
from qsfl_flower.crypto.files import read_file
from qsfl_flower.crypto.identity import Identity, PartyRole
from qsfl_flower.crypto.keyfile import load_authority_key, load_identity
from qsfl_flower.crypto.roster import Roster
from qsfl_flower.crypto.rosterfile import accept_roster
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.errors import ConfigError

ROSTER_FILE, AUTHORITY_FILE = "roster.qsfl", "authority.pub"


@dataclass(frozen=True)
class Credentials:
    """A party's own keys and its view of the federation.

    Parameters
    ----------
    identity : Identity
        The party itself, with its secret keys.
    roster : Roster
        Who belongs to the federation, checked against the authority.
    """

    identity: Identity
    roster: Roster

    def of(self, role: PartyRole, where: str) -> Credentials:
        """Return these credentials if they are those of a party of this role.

        Parameters
        ----------
        role : {"client", "server"}
            Who needs them.
        where : str
            What gave them, for the error.

        Raises
        ------
        ConfigError
            If they are another role's.
        """
        if self.identity.role != role:
            raise ConfigError(
                f"{where} are the keys of {self.identity.role} {self.identity.name!r}, and keys of "
                f"a {role} are needed; name the {role}'s own key folder"
            )
        return self

    @classmethod
    def given(cls, value: object, role: PartyRole, party: str) -> Credentials:
        """Return what a user gives for credentials: these, or the folder that holds them.

        Parameters
        ----------
        value : object
            `Credentials`, or a path as for `in_folder`.
        role : {"client", "server"}
            Who needs them.
        party : str
            As for `in_folder`.

        Raises
        ------
        ConfigError
            If it is something else, or another role's.
        """
        where = "credentials"
        if not isinstance(value, Credentials):
            where = f"credentials={str(value)!r:.200}"
            if not isinstance(value, str | Path):
                raise ConfigError(f"{where}: give Credentials, or the path of a key folder")
            value = cls.in_folder(value, party)
        return value.of(role, where)

    @classmethod
    def load(
        cls,
        key: Path,
        roster: Path,
        authority: Path,
        *,
        passphrase: Secret | None = None,
    ) -> Credentials:
        """Read the files that ``qsfl keys`` writes.

        The serial number of the newest roster that was accepted is remembered beside the secret
        key, so that an older roster is refused.

        Parameters
        ----------
        key : Path
            The party's secret keys.
        roster : Path
            The signed roster.
        authority : Path
            The authority's public key, from a trusted path.
        passphrase : Secret, optional
            For an encrypted key file.

        Raises
        ------
        KeyFileError
            If a file is missing, damaged, or readable by others.
        Rejected
            If the roster is not the authority's, has ended, or is older than one seen before.
        """
        trusted = load_authority_key(authority)
        identity = load_identity(key, passphrase)
        memory = key.with_name(f"{key.name}.seen")
        return cls(identity, accept_roster(read_file(roster, private=False), trusted, memory))

    @classmethod
    def in_folder(
        cls, folder: Path | str, party: str = "", *, passphrase: Secret | None = None
    ) -> Credentials:
        """Read a key folder: one ``NAME.key``, ``roster.qsfl`` and ``authority.pub``.

        Parameters
        ----------
        folder : Path or str
            The folder; ``~`` is the home of the user. A relative path counts from the folder in
            which the process was started.
        party : str
            If the folder holds one of this name, that one is read: a simulation keeps the folders
            of all parties in one place (``qsfl keys federation``).
        passphrase : Secret, optional
            For an encrypted key file.

        Raises
        ------
        KeyFileError
            If there is not exactly one key, or as for `load`.
        Rejected
            As for `load`.
        """
        place = Path(folder).expanduser().resolve()
        if party and (place / party).is_dir():
            place /= party
        keys = sorted(place.glob("*.key"))
        if len(keys) != 1:
            found = ", ".join(key.name for key in keys) or "none"
            own = f", or a folder {party} with these," if party else ""
            raise KeyFileError(
                f"{place}: a key folder holds one NAME.key{own} with {ROSTER_FILE} and "
                f"{AUTHORITY_FILE} beside it; keys found: {found}; see `qsfl keys --help`"
            )
        return cls.load(keys[0], place / ROSTER_FILE, place / AUTHORITY_FILE, passphrase=passphrase)
