from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from qsfl_flower.errors import BudgetExceeded, ConfigError, QSFLError
from qsfl_flower.privacy.calibration import epsilon_of_events, rounds_for
from qsfl_flower.privacy.events import Event
from qsfl_flower.privacy.ledger import Budget, Ledger
from qsfl_flower.privacy.pld import LossDistribution

EVENT = Event(10.0)


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.db")
    yield ledger
    ledger.close()


def spend(ledger, *paths, event=EVENT, server_round=1):
    release = ledger.reserve(paths, [event], run="r", server_round=server_round)
    ledger.commit(release)


def test_a_budget_is_used_to_the_last_round_and_never_over(ledger):
    ledger.grant("fed", Budget(1.0))
    allowed = rounds_for(1.0, 1e-5, EVENT.noise_multiplier)
    for server_round in range(allowed):
        spend(ledger, "fed/a", server_round=server_round)
    with pytest.raises(BudgetExceeded, match="'fed' would reach") as error:
        spend(ledger, "fed/a")
    assert error.value.requested > error.value.available == 1.0
    status = ledger.status("fed")
    assert 0.9 < status.spent <= 1.0
    assert status.warning
    assert status.spent == pytest.approx(epsilon_of_events([Event(10.0, count=allowed)], 1e-5))


def test_the_forecast_is_how_many_rounds_there_will_be(ledger):
    ledger.grant("fed", Budget(1.0))
    assert ledger.status("fed").releases_left is None
    spend(ledger, "fed/a", event=Event(20.0, 0.5))
    spend(ledger, "fed/a")
    assert ledger.status("fed/a").releases_left is None
    left = ledger.status("fed").releases_left
    for _ in range(left):
        spend(ledger, "fed/a")
    assert ledger.status("fed").releases_left == 0
    with pytest.raises(BudgetExceeded):
        spend(ledger, "fed/a")


def test_a_charge_reaches_everything_above_once_per_release(ledger):
    spend(ledger, "fed/north/1", "fed/north/2", "fed/south/1")
    counts = {path: len(ledger.history(path)) for path in ledger.paths()}
    assert counts == {
        "fed": 1,
        "fed/north": 1,
        "fed/north/1": 1,
        "fed/north/2": 1,
        "fed/south": 1,
        "fed/south/1": 1,
    }


def test_one_account_without_room_stops_the_whole_release(ledger):
    ledger.grant("fed/south", Budget(0.01))
    with pytest.raises(BudgetExceeded, match="fed/south"):
        ledger.reserve(["fed/north/1", "fed/south/1"], [EVENT], run="r", server_round=1)
    assert ledger.history("fed/north/1") == []


def test_accounts_without_room_are_excluded_and_the_others_charged(ledger):
    ledger.grant("fed/north/1", Budget(0.01))
    ledger.grant("fed/south", Budget(0.01))
    paths = ["fed/north/1", "fed/north/2", "fed/south/1"]
    release, excluded = ledger.reserve_within(paths, [EVENT], run="r", server_round=1)
    ledger.commit(release)
    assert {path: error.path for path, error in excluded.items()} == {
        "fed/north/1": "fed/north/1",
        "fed/south/1": "fed/south",  # what is above may be what has no budget
    }
    rows = {path: [row["status"] for row in ledger.history(path)] for path in ledger.paths()}
    assert rows == {
        "fed": ["committed"],
        "fed/north": ["committed"],
        "fed/north/1": ["excluded"],
        "fed/north/2": ["committed"],
        "fed/south": [],  # nobody below it took part
        "fed/south/1": ["excluded"],
    }
    assert ledger.status("fed/north/1").spent == 0  # what is excluded is not charged
    ledger.grant("fed/north/1", Budget(1.0))
    _, excluded = ledger.reserve_within(paths, [EVENT], run="r", server_round=2)
    assert set(excluded) == {"fed/south/1"}


def test_a_release_of_which_everybody_is_excluded_does_not_take_place(ledger):
    ledger.grant("fed", Budget(0.01))
    with pytest.raises(BudgetExceeded, match="'fed' would reach"):
        ledger.reserve_within(["fed/1", "fed/2"], [EVENT], run="r", server_round=1)
    assert ledger.paths() == ["fed"]


def test_the_forecast_of_an_account_is_in_how_many_releases_it_will_be(ledger):
    for number, epsilon in enumerate((0.5, 1.0, 2.0)):
        ledger.grant(f"fed/{number}", Budget(epsilon))
    paths = [f"fed/{number}" for number in range(4)]
    forecast = [ledger.releases_left(path, [EVENT]) for path in paths]
    assert forecast[3] is None
    for _ in range(forecast[2]):
        release, _ = ledger.reserve_within(paths, [EVENT], run="r", server_round=1)
        ledger.commit(release)
    counts = [sum(row["status"] == "committed" for row in ledger.history(path)) for path in paths]
    assert counts == [*forecast[:3], forecast[2]]
    assert [ledger.status(path).releases_left for path in paths] == [0, 0, 0, None]
    assert ledger.releases_left("fed/0/more", [EVENT]) == 0  # a budget above counts


def test_accounts_with_the_same_charges_are_added_up_once(ledger, monkeypatch):
    composed = []
    whole = LossDistribution.add
    monkeypatch.setattr(
        LossDistribution, "add", lambda self, event: composed.append(event) or whole(self, event)
    )
    paths = [f"fed/{number}" for number in range(50)]
    for path in paths:
        ledger.grant(path, Budget(8.0))
    events = [Event(1.0 + 0.01 * r, 0.05) for r in range(20)]
    for r, event in enumerate(events):
        release = ledger.reserve(paths, [event], run="r", server_round=r, planned=events[r:])
        ledger.commit(release)
    assert len(composed) == len(events)


def test_reservations_count_until_they_are_given_back(ledger):
    release = ledger.reserve(["a"], [EVENT], run="r", server_round=1)
    reserved = ledger.status("a")
    assert (reserved.spent > 0, reserved.reserved) == (True, 1)
    ledger.cancel(release)
    assert ledger.status("a").spent == 0
    with pytest.raises(QSFLError, match="not reserved"):
        ledger.commit(release)


def test_a_period_is_a_rate_limit_and_no_refund(ledger, monkeypatch):
    now = [1e9]
    monkeypatch.setattr("qsfl_flower.privacy.ledger.unix_time", lambda: now[0])
    one = epsilon_of_events([EVENT], 1e-5)
    ledger.grant("a", Budget(100.0, period_epsilon=1.2 * one, period_seconds=86_400))
    spend(ledger, "a")
    with pytest.raises(BudgetExceeded, match="this period"):
        spend(ledger, "a")
    now[0] += 86_401
    spend(ledger, "a")
    status = ledger.status("a")
    assert status.period_spent == pytest.approx(one)
    assert status.spent > one  # the lifetime total has grown


def test_a_killed_process_has_spent_what_it_reserved(tmp_path):
    program = """
        import os, sys
        from pathlib import Path
        from qsfl_flower.privacy.events import Event
        from qsfl_flower.privacy.ledger import Ledger
        ledger = Ledger(Path(sys.argv[1]))
        for r in range(1, 100):
            release = ledger.reserve(["fed/a"], [Event(10.0)], run="r", server_round=r)
            print(r, flush=True)
            if r == 7:
                sys.stdin.read()
            ledger.commit(release)
    """
    path = tmp_path / "ledger.db"
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(path)],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
    )
    while process.stdout.readline().strip() != "7":
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    ledger = Ledger(path)
    status = ledger.status("fed")
    assert status.spent == pytest.approx(epsilon_of_events([Event(10.0, count=7)], 1e-5))
    assert status.reserved == 1
    assert [row["status"] for row in ledger.history("fed")] == ["committed"] * 6 + ["reserved"]


def test_many_at_once_cannot_spend_the_same_remainder(tmp_path):
    path = tmp_path / "ledger.db"
    Ledger(path).grant("fed", Budget(1.0))
    allowed = rounds_for(1.0, 1e-5, 5.0)

    def work(worker: int) -> int:
        ledger, done = Ledger(path), 0
        for server_round in range(allowed):
            try:
                spend(ledger, f"fed/{worker}", event=Event(5.0), server_round=server_round)
                done += 1
            except BudgetExceeded:
                break
        return done

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(work, range(4))) == allowed
    assert Ledger(path).status("fed").spent <= 1.0


def test_threads_may_share_a_ledger(ledger):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: spend(ledger, f"fed/{n}", server_round=n), range(24)))
    charges = ledger.history("fed")
    assert {row["status"] for row in charges} == {"committed"}
    assert len({row["release"] for row in charges}) == len(charges) == 24


def test_ledgers_of_the_first_release_are_read_and_continued(tmp_path):
    """Written by 0.1.0 through SQLAlchemy: two releases committed, one reserved, one cancelled."""
    dump = Path(__file__).parents[1] / "vectors" / "ledger" / "v1" / "ledger.sql"
    old = sqlite3.connect(tmp_path / "ledger.db")
    old.executescript(dump.read_text())
    tables = old.execute("SELECT name FROM sqlite_master ORDER BY name").fetchall()
    ledger = Ledger(tmp_path / "ledger.db")
    status = ledger.status("fed")
    assert status.budget == Budget(8.0, 1e-6, 4.0, 1e10)
    assert (status.spent, status.reserved) == (pytest.approx(0.360941, rel=1e-5), 1)
    assert [row["status"] for row in ledger.history("fed")] == [
        "committed", "committed", "reserved", "cancelled",
    ]  # fmt: skip
    ledger.commit(3)
    assert ledger.reserve(["fed/north"], [EVENT], run="new", server_round=1) == 5
    assert old.execute("SELECT name FROM sqlite_master ORDER BY name").fetchall() == tables
    ledger.close()
    old.close()


def test_accounts_and_budgets_are_checked(ledger):
    for path in ("", "a//b", " a", "a/"):
        with pytest.raises(ConfigError, match="path"):
            ledger.grant(path, Budget(1.0))
    for bad in (
        {"epsilon": 0.0},
        {"epsilon": 1.0, "delta": 2.0},
        {"epsilon": 1.0, "period_epsilon": 1.0},
    ):
        with pytest.raises(ConfigError):
            Budget(**bad)


@pytest.mark.parametrize(
    "change",
    ["event = '[]'", "event = '5'", "id = -5", "release = 9223372036854775807", "release = 'x'"],
)
def test_a_charge_that_the_ledger_cannot_have_written_is_never_counted_as_nothing(tmp_path, change):
    path = tmp_path / "budgets.db"
    first = Ledger(path)
    first.reserve(["x"], [Event(5.0, 1.0, 1)], run="r", server_round=1)
    first.close()
    with closing(sqlite3.connect(path)) as file, file:
        file.execute(f"UPDATE charges SET {change}")
    with pytest.raises(QSFLError, match="damaged or no ledger"):
        Ledger(path).status("x")
