from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qsfl_flower.errors import RunError
from qsfl_flower.simulations.report import compare, write_comparison

Builder = Callable[..., Path]


def make(folder: Path, config: str, *accuracies: Any, **summary: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    metrics = [
        {"round": n, "eval_accuracy": a, "bytes_up": 1000 if n else 0, "elapsed_s": 2.0 * n}
        for n, a in enumerate(accuracies)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_settings_that_differ_and_the_way_to_the_best_common_accuracy(tmp_path: Path) -> None:
    a = make(tmp_path / "a", "seed: 1\nx: {y: 1, z: 5}\n", 0.1, 0.5, 0.9, 0.8, status="finished")
    b = make(tmp_path / "b", "seed: 1\nx: {y: 2, z: 5}\nw: [1]\n", 0.1, 0.85, 0.7)
    table, rows = compare([a, b])
    assert [row["config"] for row in rows] == [
        {"x.y": 1, "w": "(not set)"},
        {"x.y": 2, "w": [1]},
    ]
    assert [row["target"] for row in rows] == [0.85, 0.85]
    assert [row["rounds_to_target"] for row in rows] == [2, 1]
    assert [row["bytes_up_to_target"] for row in rows] == [2000, 1000]
    assert [row["seconds_to_target"] for row in rows] == [4.0, 2.0]
    assert [row["accuracy"] for row in rows] == [0.8, 0.7]
    assert [row["status"] for row in rows] == ["finished", "unfinished"]
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["a", "b"]
    assert lines[1] == ["x.y", "1", "2"]
    assert lines[2] == ["w", "(not", "set)", "[1]"]
    assert ["accuracy", "80.0", "%", "70.0", "%"] in lines
    assert ["rounds", "to", "85.0", "%", "2", "1"] in lines
    assert not [line for line in lines if line[0] in {"seed", "x.z", "epsilon", "loss"}]
    json.dumps(rows)


def test_a_run_without_accuracy_leaves_no_common_one(tmp_path: Path) -> None:
    a = make(tmp_path / "a", "seed: 1\n", 0.1, 0.5)
    b = make(tmp_path / "b", "seed: 1\n", None, None)
    table, rows = compare([a, b])
    assert [row["rounds_to_target"] for row in rows] == [None, None]
    assert " to " not in table.replace("sent to", "")


def test_one_run_is_compared_with_itself(tmp_path: Path) -> None:
    _, rows = compare([make(tmp_path / "a", "seed: 1\n", 0.1, 0.5)])
    assert rows[0]["config"] == {}
    assert rows[0]["rounds_to_target"] == 1


def test_hostile_values_stay_on_their_line(tmp_path: Path) -> None:
    evil = json.dumps("<script>\n\x1b[31m" + "x" * 100)
    a = make(tmp_path / "a", f"seed: {evil}\n", 0.1, 0.5)
    b = make(tmp_path / "b", "seed: 1\n", 0.1, 0.5)
    table, _ = compare([a, b])
    assert "\x1b" not in table
    assert max(map(len, table.splitlines())) < 100
    page = write_comparison([a, b], tmp_path / "out.html").read_text()
    assert "<script>" not in page


def test_the_page(tmp_path: Path, build_run: Builder) -> None:
    folders = [build_run(tmp_path / f"run-{n}", clients=3, rounds=3, seed=n) for n in range(9)]
    out = write_comparison(folders, tmp_path / "new" / "comparison.html")
    page = out.read_text()
    assert page.count("data:image/png;base64,") == 4
    assert sorted(path.name for path in (tmp_path / "new" / "comparison-plots").iterdir()) == [
        "accuracy-bytes.png",
        "accuracy-time.png",
        "accuracy.png",
        "loss.png",
    ]
    assert "run-<wbr>8" in page


def test_runs_without_rounds(tmp_path: Path) -> None:
    folders = [make(tmp_path / name, "seed: 1\n") for name in "ab"]
    assert "<img" not in write_comparison(folders, tmp_path / "out.html").read_text()


def test_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="at least one run folder"):
        compare([])
    with pytest.raises(RunError, match="no such folder"):
        compare([tmp_path / "none"])
