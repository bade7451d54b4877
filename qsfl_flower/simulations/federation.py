"""Keys for the virtual clients of a simulation, made on the fly and kept for the next run.

They are drawn from the operating system's random numbers, never from the experiment's seed. In a
deployment every party makes its own keys with ``qsfl keys``; a simulation may hold all of them.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from flwr.app import Context

from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.files import write_file
from qsfl_flower.crypto.identity import Identity, KeySet, create_identity
from qsfl_flower.crypto.keyfile import load_identity, save_authority_key, save_identity
from qsfl_flower.crypto.roster import DAY, Roster
from qsfl_flower.crypto.sources import unix_time
from qsfl_flower.errors import RunError
from qsfl_flower.mechanisms import AUTHENTICATE
from qsfl_flower.simulations.config import Experiment

_SERVER, _ROSTER, _AUTHORITY = "server.key", "roster", "authority.pub"
_RENEW_BEFORE = 7 * DAY


def authenticates(experiment: Experiment) -> bool:
    """Return whether the experiment has the stage ``authenticate``."""
    return any(stage.stage == AUTHENTICATE.name for stage in experiment.strategy.stages)


def server_credentials(experiment: Experiment) -> Credentials:
    """Return the server's keys; all keys of the federation are made if they are not there."""
    folder = _folder(experiment)
    now = int(unix_time())
    if folder.exists():
        credentials = _load(folder, _SERVER)
        if credentials.roster.not_after - now > _RENEW_BEFORE:
            return credentials
        shutil.rmtree(folder)
    _make(folder, experiment.clients.count, now)
    return _load(folder, _SERVER)


def client_credentials(experiment: Experiment, context: Context, impostor: bool) -> Credentials:
    """Return the keys of the client of a SuperNode, or those that somebody else would have.

    Parameters
    ----------
    experiment : Experiment
        What is run.
    context : Context
        The client's context; its partition is its name.
    impostor : bool
        True for keys that nobody has enrolled, under the client's name.
    """
    name = str(context.node_config["partition-id"])
    credentials = _load(_folder(experiment), f"client-{name}.key")
    if not impostor:
        return credentials
    roster = credentials.roster
    lawless = _Lawless(**{f.name: getattr(roster, f.name) for f in dataclasses.fields(roster)})
    return Credentials(create_identity(name, now=int(unix_time())), lawless)


class _Lawless(Roster):
    """A roster whose owner signs with whatever keys it has."""

    def own_keys(self, identity: Identity, now: int) -> KeySet:
        del now
        return identity.keys[0]


@lru_cache(maxsize=2)
def _roster(folder: Path) -> Roster:
    """Check the roster once in a process, not for every client: they share one file here."""
    return Credentials.load(folder / _SERVER, folder / _ROSTER, folder / _AUTHORITY).roster


@lru_cache(maxsize=1024)
def _load(folder: Path, key: str) -> Credentials:
    return Credentials(load_identity(folder / key), _roster(folder))


def _folder(experiment: Experiment) -> Path:
    root = Path(experiment.output.folder).expanduser()
    return root / ".keys" / f"{experiment.clients.count}-clients"


def _make(folder: Path, count: int, now: int) -> None:
    """Write all files beside the folder first, so that it exists only when it is complete."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent))
    except OSError as error:
        raise RunError(f"the keys cannot be written to {folder}: {error.strerror}") from error
    federation = create_federation((str(n) for n in range(count)), now=now)
    save_authority_key(made / _AUTHORITY, federation.authority)
    write_file(made / _ROSTER, federation.roster, private=False)
    save_identity(made / _SERVER, federation.server)
    for name, identity in federation.clients.items():
        save_identity(made / f"client-{name}.key", identity)
    made.rename(folder)
    _load.cache_clear()
    _roster.cache_clear()
