"""What one party needs at run time: its own keys, and a roster it has checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qsfl_flower.crypto.files import read_file
from qsfl_flower.crypto.identity import Identity
from qsfl_flower.crypto.keyfile import load_authority_key, load_identity
from qsfl_flower.crypto.roster import Roster
from qsfl_flower.crypto.rosterfile import accept_roster
from qsfl_flower.crypto.secret import Secret


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
