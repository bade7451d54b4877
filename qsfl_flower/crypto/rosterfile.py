"""The roster on disk, with a memory of the newest one that was accepted."""

from __future__ import annotations

import json
from pathlib import Path

from qsfl_flower.crypto.errors import KeyFileError
from qsfl_flower.crypto.files import locked, read_file, write_file
from qsfl_flower.crypto.identity import AuthorityKey
from qsfl_flower.crypto.roster import Roster, Seen, open_roster
from qsfl_flower.crypto.suite import DEFAULT_SUITE, Suite

_FORMAT = "qsfl-flower roster memory"


def accept_roster(
    data: bytes,
    authority: AuthorityKey,
    memory: Path,
    *,
    accepted: tuple[Suite, ...] = (DEFAULT_SUITE,),
) -> Roster:
    """Return the roster in `data`, and remember it; a lower serial than remembered is refused.

    Parameters
    ----------
    data : bytes
        A signed roster, from a file or from the wire.
    authority : AuthorityKey
        The trusted authority.
    memory : Path
        File that holds the serial number and digest of the newest accepted roster. It is created on
        the first use; deleting it forgets what was seen.
    accepted : tuple of Suite
        As for `open_roster`.

    Raises
    ------
    Rejected
        As `open_roster`.
    KeyFileError
        If the memory cannot be read or written: without it there is no protection, so no roster.
    """
    with locked(memory):
        seen = _read(memory, authority) if memory.exists() else None
        roster = open_roster(data, authority, seen=seen, accepted=accepted)
        if roster.seen != seen:
            content = {
                "format": _FORMAT,
                "authority": authority.key.key_id.hex(),
                "serial": roster.seen.serial,
                "digest": roster.seen.digest.hex(),
            }
            text = json.dumps(content, indent=2) + "\n"
            write_file(memory, text.encode(), private=True, overwrite=True)
    return roster


def _read(memory: Path, authority: AuthorityKey) -> Seen:
    try:
        content = json.loads(read_file(memory, private=True))
        if content["format"] != _FORMAT:
            raise ValueError("wrong format")
        seen = Seen(int(content["serial"]), bytes.fromhex(content["digest"]))
        owner = content["authority"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise KeyFileError(
            f"{memory} is not a roster memory: restore it, or delete it to start anew"
        ) from None
    if owner != authority.key.key_id.hex():
        raise KeyFileError(f"{memory} belongs to another authority than {authority.name}")
    return seen
