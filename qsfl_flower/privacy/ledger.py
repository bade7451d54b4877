"""The ledger of privacy budgets: what was granted, reserved and spent, on disk.

Accounts are paths such as ``hospitals/north/clinic-3``: federation, organisation, client, as deep
as needed. What is charged to an account is charged to every account above it, so an organisation's
total holds for a person whose data lies with several of its clients. Each account may have a
budget over its lifetime and a rate limit over a period.

A charge is reserved before anything is computed and committed after. A reservation that is left
over (a crash, a killed process) counts as spent: nobody knows how far that round got. So a budget
is never under-counted; releasing a reservation is an explicit statement that nothing left.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sql

from qsfl_flower.errors import BudgetExceeded, ConfigError, QSFLError
from qsfl_flower.privacy.accountant import Accountant
from qsfl_flower.privacy.calibration import repeats_within
from qsfl_flower.privacy.events import AnyEvent, event_from_dict
from qsfl_flower.privacy.gaussian import check_delta

_FORECAST = 10_000

WARN_AT = 0.9
"""Share of a budget from which the ledger warns."""

_TABLES = sql.MetaData()
_accounts = sql.Table(
    "accounts",
    _TABLES,
    sql.Column("path", sql.String, primary_key=True),
    sql.Column("epsilon", sql.Float, nullable=False),
    sql.Column("delta", sql.Float, nullable=False),
    sql.Column("method", sql.String, nullable=False),
    sql.Column("period_epsilon", sql.Float),
    sql.Column("period_seconds", sql.Float),
)
_charges = sql.Table(
    "charges",
    _TABLES,
    sql.Column("id", sql.Integer, primary_key=True, autoincrement=True),
    sql.Column("release", sql.Integer, nullable=False, index=True),
    sql.Column("path", sql.String, nullable=False, index=True),
    sql.Column("run", sql.String, nullable=False),
    sql.Column("round", sql.Integer, nullable=False),
    sql.Column("event", sql.String, nullable=False),
    sql.Column("status", sql.String, nullable=False),
    sql.Column("time", sql.Float, nullable=False),
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
        self._engine = sql.create_engine(f"sqlite:///{path}", connect_args={"timeout": 60})
        sql.event.listen(self._engine, "connect", _prepare)
        sql.event.listen(self._engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
        self._path = path
        self._totals: dict[str, tuple[int, Accountant]] = {}
        with self._transaction() as connection:
            _TABLES.create_all(connection)

    def grant(self, path: str, budget: Budget) -> None:
        """Set the budget of an account; what was spent stays spent."""
        values = {
            "epsilon": budget.epsilon,
            "delta": budget.delta,
            "method": "pld",
            "period_epsilon": budget.period_epsilon,
            "period_seconds": budget.period_seconds,
        }
        with self._transaction() as connection:
            connection.execute(sql.delete(_accounts).where(_accounts.c.path == _checked(path)))
            connection.execute(sql.insert(_accounts).values(path=path, **values))
        self._totals.clear()

    def reserve(
        self, paths: Iterable[str], events: Sequence[AnyEvent], *, run: str, server_round: int
    ) -> int:
        """Reserve a release for accounts and everything above them, all or nothing.

        An account is charged once per release, however many of its members take part: the unit of
        protection is one member.

        Returns
        -------
        int
            Number of the release, for `commit` or `cancel`.

        Raises
        ------
        BudgetExceeded
            If an account would overspend; nothing is reserved then.
        """
        now = time.time()
        text = json.dumps([event.to_dict() for event in events])
        charged = sorted({part for path in paths for part in _upwards(path)})
        with self._transaction() as connection:
            budgets = self._budgets(connection)
            for path in charged:
                if (budget := budgets.get(path)) is not None:
                    self._check(connection, path, budget, events, now)
            last = connection.execute(sql.select(sql.func.max(_charges.c.release))).scalar()
            release = (last or 0) + 1
            common = {"release": release, "run": run, "round": server_round, "event": text}
            rows = [{**common, "path": path, "status": "reserved", "time": now} for path in charged]
            if rows:
                connection.execute(sql.insert(_charges), rows)
        return release

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
            spent = self._total(connection, path, used).epsilon(used.delta)
            count = sql.select(sql.func.count()).where(
                _charges.c.path == path, _charges.c.status == "reserved"
            )
            period = None
            if budget is not None and budget.period_seconds is not None:
                since = time.time() - budget.period_seconds
                period = self._since(connection, path, budget, since).epsilon(budget.delta)
            reserved = int(connection.execute(count).scalar() or 0)
            left = None if budget is None else self._left(connection, path, budget)
            return Status(path, spent, reserved, budget, period, left)

    def paths(self) -> list[str]:
        """Return all accounts that have a budget or a charge."""
        with self._transaction() as connection:
            query = sql.union(sql.select(_accounts.c.path), sql.select(_charges.c.path))
            return sorted(row[0] for row in connection.execute(query))

    def history(self, path: str) -> list[dict[str, Any]]:
        """Return every charge of an account, oldest first."""
        query = (
            sql.select(_charges).where(_charges.c.path == _checked(path)).order_by(_charges.c.id)
        )
        with self._transaction() as connection:
            rows = connection.execute(query).mappings().all()
            return [{**row, "event": json.loads(row["event"])} for row in rows]

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[sql.Connection]:
        """Read and change the ledger in one step, or say that the file is damaged."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except (sql.exc.SQLAlchemyError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise QSFLError(
                f"the ledger {self._path} cannot be used ({type(error).__name__}); it is damaged "
                "or no ledger: restore it from a copy, since a new one would forget what was spent"
            ) from error

    def _settle(self, release: int, status: str) -> None:
        with self._transaction() as connection:
            changed = connection.execute(
                sql.update(_charges)
                .where(_charges.c.release == release, _charges.c.status == "reserved")
                .values(status=status)
            )
        if changed.rowcount == 0:
            raise QSFLError(f"release {release} is not reserved, so it cannot be {status}")

    def _budgets(self, connection: sql.Connection) -> dict[str, Budget]:
        rows = connection.execute(sql.select(_accounts)).mappings()
        return {
            row["path"]: Budget(**{k: v for k, v in row.items() if k not in ("path", "method")})
            for row in rows
        }

    def _check(
        self,
        connection: sql.Connection,
        path: str,
        budget: Budget,
        events: Sequence[AnyEvent],
        now: float,
    ) -> None:
        total = self._total(connection, path, budget)
        limits = [(total, budget.epsilon, False)]
        if budget.period_seconds is not None and budget.period_epsilon is not None:
            recent = self._since(connection, path, budget, now - budget.period_seconds)
            limits.append((recent, budget.period_epsilon, True))
        for accountant, limit, period in limits:
            after = accountant
            for event in events:
                after = after.with_event(event)
            if (epsilon := after.epsilon(budget.delta)) > limit * (1 + 1e-9):
                raise BudgetExceeded(path, epsilon, limit, period)

    def _total(self, connection: sql.Connection, path: str, budget: Budget) -> Accountant:
        """Return an account's accountant, brought up to date by the charges since last time."""
        seen, accountant = self._totals.get(path, (0, Accountant()))
        query = _counted(path).where(_charges.c.id > seen)
        for row in connection.execute(query):
            seen = row.id
            _add(accountant, row.event)
        self._totals[path] = seen, accountant
        return accountant

    def _left(self, connection: sql.Connection, path: str, budget: Budget) -> int | None:
        """Return how many more releases like the last one fit."""
        latest = _counted(path).order_by(None).order_by(_charges.c.id.desc()).limit(1)
        if (row := connection.execute(latest).first()) is None:
            return None
        events = [event_from_dict(values) for values in json.loads(row.event)]
        seen = self._total(connection, path, budget).events
        return repeats_within(budget.epsilon, budget.delta, events, after=seen, most=_FORECAST)

    def _since(
        self, connection: sql.Connection, path: str, budget: Budget, start: float
    ) -> Accountant:
        accountant = Accountant()
        for row in connection.execute(_counted(path).where(_charges.c.time > start)):
            _add(accountant, row.event)
        return accountant


def _counted(path: str) -> sql.Select[Any]:
    return (
        sql.select(_charges.c.id, _charges.c.event)
        .where(_charges.c.path == path, _charges.c.status != "cancelled")
        .order_by(_charges.c.id)
    )


def _add(accountant: Accountant, text: str) -> None:
    for values in json.loads(text):
        accountant.add(event_from_dict(values))


def _upwards(path: str) -> list[str]:
    parts = _checked(path).split("/")
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _checked(path: str) -> str:
    if not all(part.strip() == part != "" for part in path.split("/")):
        raise ConfigError(
            f"account {path!r} is not a path of non-empty names separated by single slashes"
        )
    return path


def _prepare(connection: Any, record: object) -> None:
    del record
    connection.isolation_level = None  # SQLAlchemy begins transactions itself, see `Ledger`
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()
