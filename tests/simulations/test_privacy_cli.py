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


@pytest.mark.parametrize("command", ["status", "history"])
def test_an_account_that_the_ledger_does_not_know_is_named(tmp_path, command):
    assert qsfl("grant", tmp_path / "ledger.db", "fed", 1.0).exit_code == 0
    result = qsfl(command, tmp_path / "ledger.db", "nobody")
    assert result.exit_code == 2
    assert "has no account 'nobody'" in " ".join(result.output.replace("│", " ").split())


def test_a_choice_is_made_from_a_released_run_and_explained(tmp_path):
    (tmp_path / "config.yaml").write_text("name: proxy\n")
    rounds = range(1, 11)
    metrics = [{"round": r, "update_norm": 1.0, "eval_accuracy": 1 - 0.8**r} for r in rounds]
    clients = [{"round": r, "client": str(c), "norm": 2.0 + c} for r in rounds for c in range(5)]
    for name, rows in (("metrics", metrics), ("clients", clients)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    result = qsfl("choose", tmp_path, "--clients", 5000, "--parameters", 1000)
    plan = json.loads(result.output)
    assert 2.0 <= plan["clip_norm"] <= 6.0
    assert 1 <= plan["rounds"] <= 10
    assert "clip norm" in " ".join(plan["because"])


def test_a_choice_needs_norms(tmp_path):
    (tmp_path / "config.yaml").write_text("name: proxy\n")
    (tmp_path / "metrics.jsonl").write_text('{"round": 1, "eval_accuracy": 0.5}\n')
    result = qsfl("choose", tmp_path, "--clients", 10, "--parameters", 10)
    assert result.exit_code == 2
    assert "norms" in result.output


def test_an_account_that_nobody_knows_is_named(tmp_path):
    file = tmp_path / "ledger.db"
    qsfl("grant", file, "fed", 1.0)
    result = qsfl("status", file, "fde")
    assert result.exit_code == 2
    assert "no account 'fde'" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["fed", "0"], "epsilon must be positive"),
        (["fed", "nan"], "epsilon must be positive"),
        (["a//b", "1"], "not a path"),
        (["fed", "1", "--delta", "2"], "delta must be between 0 and 1"),
        (["fed", "1", "--period-days", "3"], "needs both"),
        (["fed", "1", "--period-days", "0", "--period-epsilon", "1"], "period_seconds must be"),
    ],
)
def test_a_grant_that_makes_no_sense_is_refused_in_one_line(tmp_path, arguments, why):
    result = qsfl("grant", tmp_path / "ledger.db", *arguments)
    assert result.exit_code == 2
    assert why in " ".join(result.output.replace("│", " ").split())


@pytest.mark.parametrize("command", ["status", "history", "grant"])
def test_what_is_no_ledger_is_named_in_one_line(tmp_path, command):
    path = tmp_path / "garbage"
    path.write_text("garbage, and no database")
    more = {"status": [], "history": ["a"], "grant": ["a", "1.0"]}[command]
    shown = qsfl(command, path, *more)
    assert shown.exit_code == 2
    assert "cannot be used" in shown.output
