"""The ledger of privacy budgets: what was granted, reserved and spent, on disk.

Accounts are paths such as ``hospitals/north/clinic-3``: federation, organization, client, as deep
as needed. What is charged to an account is charged to every account above it, so an organization's
total holds for a person whose data lies with several of its clients. Each account may have a
budget over its lifetime and a rate limit over a period.

A charge is reserved before anything is computed and committed after. A reservation that is left
over (a crash, a killed process) counts as spent: nobody knows how far that round got. So a budget
is never under-counted; releasing a reservation is an explicit statement that nothing left.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from qsfl_flower.crypto.sources import unix_time
from qsfl_flower.errors import BudgetExceeded, ConfigError, QSFLError
from qsfl_flower.privacy.calibration import repeats_within
from qsfl_flower.privacy.events import AnyEvent, event_from_dict
from qsfl_flower.privacy.gaussian import check_delta
from qsfl_flower.privacy.histories import Histories, History

_FORECAST = 10_000

WARN_AT = 0.9
"""Share of a budget from which the ledger warns."""

_TABLES = (
    """CREATE TABLE IF NOT EXISTS accounts (
        path VARCHAR NOT NULL PRIMARY KEY,
        epsilon FLOAT NOT NULL,
        delta FLOAT NOT NULL,
        method VARCHAR NOT NULL,
        period_epsilon FLOAT,
        period_seconds FLOAT
    )""",
    """CREATE TABLE IF NOT EXISTS charges (
        id INTEGER NOT NULL PRIMARY KEY,
        release INTEGER NOT NULL,
        path VARCHAR NOT NULL,
        run VARCHAR NOT NULL,
        round INTEGER NOT NULL,
        event VARCHAR NOT NULL,
        status VARCHAR NOT NULL,
        time FLOAT NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS ix_charges_path ON charges (path)",
    "CREATE INDEX IF NOT EXISTS ix_charges_release ON charges (release)",
)
_COUNTED = (
    "SELECT id, event FROM charges WHERE path = ? AND status NOT IN ('cancelled', 'excluded')"
)

_IMPOSSIBLE = (
    "SELECT id FROM charges WHERE id < 1 OR typeof(release) <> 'integer'"
    " OR release NOT BETWEEN 1 AND id OR event NOT LIKE '[{%}]' LIMIT 1"
)


@dataclass(frozen=True)
class Budget:
    """What an account may spend.

    Parameters
    ----------
    epsilon, delta : float
        Over its lifetime; epsilon > 0, 0 < delta < 1.
    period_epsilon, period_seconds : float or None
        At most so much within any window of so many seconds. A rate limit only: what is spent stays
        spent, and the lifetime budget goes on filling up.
    """

    epsilon: float
    delta: float = 1e-5
    period_epsilon: float | None = None
    period_seconds: float | None = None

    def __post_init__(self) -> None:
        check_delta(self.delta)
        if (self.period_epsilon is None) != (self.period_seconds is None):
            raise ConfigError("a rate limit needs both period_epsilon and period_seconds")
        for name in ("epsilon", "period_epsilon", "period_seconds"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < math.inf:
                raise ConfigError(f"{name} must be positive and finite, found {limit!r}")


@dataclass(frozen=True)
class Status:
    """Where an account stands.

    `reserved` is the number of charges that were never committed, which count as spent;
    `releases_left` how many more releases like the last one the lifetime budget allows, at most
    10,000; None without a budget or a charge.
    """

    path: str
    spent: float
    reserved: int
    budget: Budget | None
    period_spent: float | None
    releases_left: int | None

    @property
    def warning(self) -> bool:
        """Whether at least 90 % of the budget is spent."""
        return self.budget is not None and self.spent >= WARN_AT * self.budget.epsilon


class Ledger:
    """Budgets and charges in one SQLite file.

    Parameters
    ----------
    path : Path
        The file; it is created if it does not exist. Several processes may share it.

    Notes
    -----
    Every change is one transaction that has reached the disk when the call returns
    (``synchronous=FULL``), and a reservation checks and writes under the database's write lock, so
    two processes cannot spend the same remainder.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._lock = Lock()  # between threads; SQLite's own is between connections
        self._histories = Histories()
        self._totals: dict[str, tuple[int, History]] = {}
        self._ahead: list[History] = []  # what the last reservation leads to is needed next
        self._forecasts: dict[tuple[bytes, Budget, str], int] = {}
        with self._readable():
            self._connection = sqlite3.connect(
                path, timeout=60, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
        with self._transaction() as connection:
            for statement in _TABLES:
                connection.execute(statement)
            if (row := connection.execute(_IMPOSSIBLE).fetchone()) is not None:
                raise ValueError(f"charge {row['id']}")

    def grant(self, path: str, budget: Budget) -> None:
        """Set the budget of an account; what was spent stays spent."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO accounts"
                " (path, method, epsilon, delta, period_epsilon, period_seconds)"
                " VALUES (?, 'pld', ?, ?, ?, ?)",
                (_checked(path), *astuple(budget)),
            )
        self._totals.clear()

    def reserve(
        self,
        paths: Iterable[str],
        events: Sequence[AnyEvent],
        *,
        run: str,
        server_round: int,
        planned: Sequence[AnyEvent] = (),
    ) -> int:
        """Reserve a release for accounts and everything above them, all or nothing.

        An account is charged once per release, however many of its members take part: the unit of
        protection is one member.

        Parameters
        ----------
        paths : iterable of str
            The accounts.
        events : sequence of Event or PureEvent
            What the release costs each of them.
        run, server_round : str, int
            What it belongs to.
        planned : sequence of Event or PureEvent
            What the run is still going to charge, so that adding up is prepared for it.

        Returns
        -------
        int
            Number of the release, for `commit` or `cancel`.

        Raises
        ------
        BudgetExceeded
            If an account would overspend; nothing is reserved then.
        """
        return self._reserve(paths, events, run, server_round, planned, exclude=False)[0]

    def reserve_within(
        self,
        paths: Iterable[str],
        events: Sequence[AnyEvent],
        *,
        run: str,
        server_round: int,
        planned: Sequence[AnyEvent] = (),
    ) -> tuple[int, dict[str, BudgetExceeded]]:
        """Reserve a release for the accounts that have a budget for it, without the others.

        Which ones have none follows from budgets, charges and the time, never from data. An account
        is excluded if one above it has no budget; what is above excluded accounts alone is not
        charged. The history of an excluded account shows the release as ``excluded``.

        Parameters
        ----------
        paths, events, run, server_round, planned
            As in `reserve`.

        Returns
        -------
        int
            Number of the release, for `commit` or `cancel`.
        dict of str to BudgetExceeded
            The excluded accounts, and why.

        Raises
        ------
        BudgetExceeded
            If no account has a budget for it; nothing is reserved then.
        """
        return self._reserve(paths, events, run, server_round, planned, exclude=True)

    def _reserve(
        self,
        paths: Iterable[str],
        events: Sequence[AnyEvent],
        run: str,
        server_round: int,
        planned: Sequence[AnyEvent],
        *,
        exclude: bool,
    ) -> tuple[int, dict[str, BudgetExceeded]]:
        now = unix_time()
        text = json.dumps([event.to_dict() for event in events])
        upwards = {path: _upwards(path) for path in paths}
        with self._transaction() as connection:
            budgets = self._budgets(connection)
            over, ahead = {}, []
            for path in sorted({part for parts in upwards.values() for part in parts}):
                if (budget := budgets.get(path)) is None:
                    continue
                for history, limit, period in self._limits(connection, path, budget, now, planned):
                    ahead.append(after := self._histories.after(history, [text]))
                    epsilon = after.accountant.epsilon(budget.delta)
                    if epsilon > limit * (1 + 1e-9):
                        over[path] = BudgetExceeded(path, epsilon, limit, period)
            self._ahead = ahead
            excluded = {
                path: over[first]
                for path, parts in upwards.items()
                if (first := next((part for part in parts if part in over), None)) is not None
            }
            if excluded and (not exclude or len(excluded) == len(upwards)):
                raise over[min(over)]
            charged = {p for path, parts in upwards.items() if path not in excluded for p in parts}
            (last,) = connection.execute("SELECT max(release) FROM charges").fetchone()
            release = int(last or 0) + 1
            connection.executemany(
                "INSERT INTO charges (release, path, run, round, event, status, time)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (release, path, run, server_round, text, status, now)
                    for status, group in (("reserved", charged), ("excluded", excluded))
                    for path in sorted(group)
                ],
            )
        return release, excluded

    def commit(self, release: int) -> None:
        """Say that a reserved release has happened."""
        self._settle(release, "committed")

    def cancel(self, release: int) -> None:
        """Give a reservation back: only if nothing that depends on the data has left."""
        self._settle(release, "cancelled")
        self._totals.clear()

    def status(self, path: str) -> Status:
        """Return where an account stands."""
        with self._transaction() as connection:
            budget = self._budgets(connection).get(_checked(path))
            used = budget or Budget(1.0)
            spent = self._total(connection, path).accountant.epsilon(used.delta)
            (reserved,) = connection.execute(
                "SELECT count(*) FROM charges WHERE path = ? AND status = 'reserved'", (path,)
            ).fetchone()
            period = left = None
            if budget is not None:
                if budget.period_seconds is not None:
                    since = unix_time() - budget.period_seconds
                    recent = self._since(connection, path, since).accountant
                    period = recent.epsilon(budget.delta)
                latest = connection.execute(
                    f"{_COUNTED} ORDER BY id DESC LIMIT 1", (path,)
                ).fetchone()
                left = latest and self._left(connection, path, budget, latest["event"])
            return Status(path, spent, reserved, budget, period, left)

    def releases_left(self, path: str, events: Sequence[AnyEvent]) -> int | None:
        """Return how often `events` fit into an account's budget and all budgets above it.

        At most 10,000; None without any budget. Limits within a period are not looked at.
        """
        text = json.dumps([event.to_dict() for event in events])
        with self._transaction() as connection:
            budgets = self._budgets(connection)
            limited = [part for part in _upwards(path) if part in budgets]
            left = [self._left(connection, part, budgets[part], text) for part in limited]
            return min(left, default=None)

    def paths(self) -> list[str]:
        """Return all accounts that have a budget or a charge."""
        with self._transaction() as connection:
            rows = connection.execute("SELECT path FROM accounts UNION SELECT path FROM charges")
            return sorted(path for (path,) in rows)

    def history(self, path: str) -> list[dict[str, Any]]:
        """Return every charge of an account, oldest first."""
        query = "SELECT * FROM charges WHERE path = ? ORDER BY id"
        with self._transaction() as connection:
            rows = connection.execute(query, (_checked(path),))
            return [{**dict(row), "event": json.loads(row["event"])} for row in rows]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Read and change the ledger in one step."""
        with self._lock, self._readable():
            self._connection.execute("BEGIN IMMEDIATE")
            with self._connection:  # commits, or takes everything back if an error passes through
                yield self._connection

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Say that the file is damaged if it cannot be understood."""
        try:
            yield
        except (
            sqlite3.Error,
            ArithmeticError,
            ValueError,
            TypeError,
            KeyError,
            RecursionError,
        ) as error:
            raise QSFLError(
                f"the ledger {self._path} cannot be used ({type(error).__name__}); it is damaged "
                "or no ledger: restore it from a copy, since a new one would forget what was spent"
            ) from error

    def _settle(self, release: int, status: str) -> None:
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE charges SET status = ? WHERE release = ? AND status = 'reserved'",
                (status, release),
            )
        if changed.rowcount == 0:
            raise QSFLError(f"release {release} is not reserved, so it cannot be {status}")

    def _budgets(self, connection: sqlite3.Connection) -> dict[str, Budget]:
        rows = connection.execute(
            "SELECT path, epsilon, delta, period_epsilon, period_seconds FROM accounts"
        )
        return {path: Budget(*limits) for path, *limits in rows}

    def _limits(
        self,
        connection: sqlite3.Connection,
        path: str,
        budget: Budget,
        now: float,
        planned: Sequence[AnyEvent],
    ) -> Iterator[tuple[History, float, bool]]:
        """Yield what an account has spent, what it may spend, and whether in a period only."""
        yield self._total(connection, path, planned), budget.epsilon, False
        if budget.period_seconds is not None and budget.period_epsilon is not None:
            recent = self._since(connection, path, now - budget.period_seconds)
            yield recent, budget.period_epsilon, True

    def _total(
        self, connection: sqlite3.Connection, path: str, planned: Sequence[AnyEvent] = ()
    ) -> History:
        """Return an account's history, brought up to date by the charges since last time."""
        seen, history = self._totals.get(path, (0, None))
        rows = connection.execute(f"{_COUNTED} AND id > ? ORDER BY id", (path, seen)).fetchall()
        history = self._histories.after(history, [row["event"] for row in rows], planned)
        self._totals[path] = (rows[-1]["id"] if rows else seen), history
        return history

    def _left(self, connection: sqlite3.Connection, path: str, budget: Budget, event: str) -> int:
        """Return how many more releases with these events fit into an account's budget."""
        history = self._total(connection, path)
        key = history.digest, budget, event
        if key not in self._forecasts:
            events = [event_from_dict(values) for values in json.loads(event)]
            self._forecasts[key] = repeats_within(
                budget.epsilon,
                budget.delta,
                events,
                after=history.accountant.events,
                most=_FORECAST,
            )
        return self._forecasts[key]

    def _since(self, connection: sqlite3.Connection, path: str, start: float) -> History:
        rows = connection.execute(f"{_COUNTED} AND time > ? ORDER BY id", (path, start))
        return self._histories.after(None, [row["event"] for row in rows])


def _upwards(path: str) -> list[str]:
    parts = _checked(path).split("/")
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _checked(path: str) -> str:
    if not all(part.strip() == part != "" for part in path.split("/")):
        raise ConfigError(
            f"account {path!r} is not a path of non-empty names separated by single slashes"
        )
    return path
