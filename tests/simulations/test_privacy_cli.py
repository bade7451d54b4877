from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from qsfl_flower.privacy.events import Event
from qsfl_flower.privacy.ledger import Ledger
from qsfl_flower.simulations.cli import app


def qsfl(*arguments):
    return CliRunner().invoke(app, ["privacy", *map(str, arguments)])


def test_a_plan_tells_what_epsilon_buys():
    result = qsfl("plan", "--clients", 1000, "--parameters", 1000, "--rounds", 10, "--json")
    rows = json.loads(result.output)
    assert [row["epsilon"] for row in rows] == [0.1, 0.5, 1.0, 2.0, 4.0, 8.0]
    noises = [row["noise_multiplier"] for row in rows]
    assert noises == sorted(noises, reverse=True)
    assert rows[2]["noise_to_signal"] == pytest.approx(noises[2] * 1000**0.5 / 1000)
    assert "noise to signal" in qsfl("plan", "--clients", 10, "--parameters", 10).output


def test_a_plan_is_drawn(tmp_path):
    picture = tmp_path / "plan.png"
    result = qsfl("plan", "--clients", 1000, "--parameters", 1000, "--plot", picture)
    assert result.exit_code == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_budgets_are_granted_spent_and_listed(tmp_path):
    file = tmp_path / "ledger.db"
    assert qsfl("grant", file, "fed", 1.0).exit_code == 0
    ledger = Ledger(file)
    ledger.commit(ledger.reserve(["fed/a"], [Event(5.0)], run="7", server_round=3))
    told = qsfl("status", file).output
    assert "fed/a" in told
    assert "0.7" in told
    (row,) = map(json.loads, qsfl("history", file, "fed").output.splitlines())
    assert (row["status"], row["run"], row["round"]) == ("committed", "7", 3)
    assert row["event"][0]["noise_multiplier"] == 5.0
