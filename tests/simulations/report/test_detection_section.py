from __future__ import annotations

import json
from pathlib import Path

from qsfl_flower.simulations.report.sections.detection import detection
from qsfl_flower.simulations.runs import Run


def run(folder: Path, rows: list[dict]) -> Run:
    (folder / "config.yaml").write_text("name: trial\n")
    (folder / "clients.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Run.open(folder)


def row(server_round: int, client: str, anomaly: float, flag: str = "", status: str = "accepted"):
    return {
        "round": server_round,
        "client": client,
        "status": status,
        "anomaly": anomaly,
        "reputation": 1 - anomaly / 2,
        "flag": flag,
    }


def test_suspects_are_told_with_scores_reasons_and_quarantine(tmp_path):
    rows = [
        row(1, "3", 0.9, "norm 97 times the median", "flagged"),
        row(1, "<b>", 0.1),
        row(2, "3", 1.0, "cosine to the centre -0.80", "quarantined"),
        row(2, "<b>", 0.6, "density 0.10"),
    ]
    section = detection(run(tmp_path, rows))
    assert section is not None
    page = section.html()
    assert "2 clients of 2 were flagged" in page
    assert "cosine to the centre -0.80" in page
    assert "norm 97" not in page
    assert page.index("cosine to the centre") < page.index("density")
    assert "<b>" not in page
    (plot,) = section.plots
    assert "client 3 1.00" in plot.alt


def test_calm_runs_say_so_and_runs_without_detection_nothing(tmp_path):
    calm = detection(run(tmp_path, [row(1, "0", 0.2), row(1, "1", 0.3)]))
    assert calm is not None
    assert "0 clients of 2" in calm.html()
    assert not calm.plots
    assert detection(run(tmp_path, [{"round": 1, "client": "0", "status": "accepted"}])) is None
