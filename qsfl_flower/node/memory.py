"""What a node must not forget: written and synced before the reply that depends on it leaves.

Releases, rounds that were answered and questions that were taken are facts. With ``qsfl-state`` in
the node's configuration they are in a SQLite file of that folder, which outlives the process and is
locked while one process reads and changes it. Without, they are in Flower's client state, and the
node promises nothing that outlives the SuperNode's process.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, MutableMapping
from contextlib import closing, contextmanager
from pathlib import Path

from flwr.app import ConfigRecord, Context

from qsfl_flower.errors import ConfigError
from qsfl_flower.wire import config_of

STATE_FOLDER = "qsfl-state"
"""Entry of the node's configuration: the folder of its durable memory."""

_RECORD = "qsfl-memory"
_FILE = "memory.sqlite"
_WAIT = 10.0  # seconds for another process to finish

Facts = MutableMapping[str, bytes]
"""Facts by name. A name begins with the mechanism that owns it (``committee/``)."""


@contextmanager
def facts_of(context: Context) -> Iterator[Facts]:
    """Read and change a node's facts in one step; they are durable when the block has ended.

    Nothing is changed if the block raises. Other processes wait meanwhile.

    Raises
    ------
    ConfigError
        If the folder cannot be used.
    """
    folder = context.node_config.get(STATE_FOLDER)
    if folder is None:
        before = _in_state(context)
        facts = dict(before)
        yield facts
        if facts != before:
            context.state[_RECORD] = ConfigRecord({**facts})
        return
    if not isinstance(folder, str) or not Path(folder).is_absolute():
        raise ConfigError(f"node config: {STATE_FOLDER} is {folder!r}; give an absolute path")
    with _in_file(Path(folder), str(context.node_config.get("partition-id", ""))) as kept:
        yield kept


def is_durable(context: Context) -> bool:
    """Tell whether this node's facts outlive its process."""
    return STATE_FOLDER in context.node_config


def _in_state(context: Context) -> dict[str, bytes]:
    record = config_of(context.state, _RECORD)
    return {name: value for name, value in record.items() if isinstance(value, bytes)}


@contextmanager
def _in_file(folder: Path, owner: str) -> Iterator[Facts]:
    path = folder / _FILE
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        with closing(sqlite3.connect(path, timeout=_WAIT, isolation_level=None)) as database:
            database.execute("PRAGMA synchronous = EXTRA")
            database.execute("BEGIN IMMEDIATE")
            database.execute(
                "CREATE TABLE IF NOT EXISTS facts "
                "(owner TEXT, name TEXT, value BLOB NOT NULL, PRIMARY KEY (owner, name))"
            )
            before: dict[str, bytes] = dict(
                database.execute("SELECT name, value FROM facts WHERE owner = ?", (owner,))
            )
            facts = dict(before)
            yield facts
            database.executemany(
                "DELETE FROM facts WHERE owner = ? AND name = ?",
                [(owner, name) for name in before.keys() - facts.keys()],
            )
            database.executemany(
                "INSERT OR REPLACE INTO facts VALUES (?, ?, ?)",
                [(owner, n, v) for n, v in facts.items() if before.get(n) != v],
            )
            database.execute("COMMIT")
    except (sqlite3.Error, OSError) as error:
        raise ConfigError(
            f"the node's memory {path} cannot be used: {error}; nothing is answered without it"
        ) from error
