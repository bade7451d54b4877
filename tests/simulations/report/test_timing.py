"""The section on time: staleness and timeline."""

from __future__ import annotations

import json

import pytest

from qsfl_flower.simulations.report.sections.timing import timing
from qsfl_flower.simulations.runs import Run


def row(client, start, end, staleness=0, status="accepted"):
    return {
        "round": 1, "client": client, "status": status, "staleness": staleness,
        "sent_s": start, "arrived_s": end,
    }  # fmt: skip


@pytest.fixture
def run_of(tmp_path):
    def make(rows, config="timing: {classes: [{seconds: 1.0}]}\n"):
        (tmp_path / "config.yaml").write_text(config)
        (tmp_path / "clients.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        (tmp_path / "metrics.jsonl").write_text('{"round": 1}\n')
        return Run.open(tmp_path)

    return make


def test_says_how_long_tasks_take_and_how_old_updates_are(run_of):
    rows = [row("0", 10 * n, 10 * n + 10, n % 2) for n in range(8)]
    rows += [row("1", 0.0, 60.0, 7), row("2", 0.0, 30.0, status="too-stale", staleness=None)]
    section = timing(run_of(rows))
    text = str(section.html())
    assert "10.0 s with the fastest client and 60.0 s with the slowest" in text
    assert "1.2 versions old on average, at most 7" in text
    assert [plot.name for plot in section.plots] == ["staleness", "timeline"]
    assert "4 of age 0, 4 of age 1, 1 of age 7" in section.plots[0].alt
    assert "10 tasks in the whole run" in section.plots[1].alt


def test_synchronous_rounds_in_simulated_time_have_a_timeline_only(run_of):
    section = timing(run_of([row(str(n), 0.0, 1.0 + n) for n in range(3)]))
    assert [plot.name for plot in section.plots] == ["timeline"]


def test_ordinary_runs_say_nothing(run_of):
    assert timing(run_of([row("0", 0.0, 1.0)], config="rounds: 3\n")) is None
    assert timing(run_of([])) is None


def test_thousands_of_clients_and_damaged_rows(run_of):
    rows = [row(str(n), 0.0, 1.0 + n, n % 5) for n in range(3000)]
    rows += [row("x", 5.0, 1.0), row("y", None, 3.0), row("z", "never", {}), {"round": 1}]
    section = timing(run_of(rows))
    assert "each of 24 clients" in section.plots[1].alt
