"""Files of questions: errors that name the place, explanation, tables, report."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from qsfl_flower.clients.tables import read_table
from qsfl_flower.errors import ConfigError, DataError
from qsfl_flower.simulations.config import load_experiment, shipped_configs
from qsfl_flower.simulations.inquiry.config import asks_questions, load_inquiry, reference
from qsfl_flower.simulations.inquiry.explain import explain_inquiry
from qsfl_flower.simulations.inquiry.report import write_page
from qsfl_flower.simulations.inquiry.run import run_inquiry
from qsfl_flower.simulations.inquiry.tables import table_of

ROOT = Path(__file__).parents[2]
CSV = "age,name\n31,anna\n54,bob\n28,carla\n47,anna\n"
FILE = """\
tables: ages.csv
clients: 4
questions:
  - {kind: mean, column: age, low: 0, high: 120}
privacy:
  epsilon: 1.0
sum: {members: 3, threshold: 2}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ages.csv").write_text(CSV)
    return tmp_path


def asked(text=FILE, *overrides):
    Path("q.yaml").write_text(text)
    return load_inquiry("q.yaml", overrides)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("low: 0, high", "low: 130, high", "q.yaml:4: questions.0: mean of 'age': low is 130"),
        ("high: 120", "high: tall", "q.yaml:4: questions.0.high: must be a number, got 'tall'"),
        ("low: 0, ", "", "q.yaml:4: questions.0.low: needed; a number"),
        ("high: 120", "heigh: 120", "questions.0.heigh: unknown key; did you mean 'high'?"),
        ("kind: mean", "kind: mode", "questions.0.kind: must be one of mean, variance"),
        ("epsilon: 1.0", "epsilon: 0", "q.yaml:6: privacy.epsilon: must be a number > 0"),
        ("epsilon: 1.0", "epsilon: .nan", "privacy.epsilon: must be a number > 0"),
        ("epsilon: 1.0", "unit: person", "privacy.unit: must be one of record, client"),
        ("clients: 4\n", "", "clients: needed with one table"),
        ("clients: 4", "clients: 1", "clients: must be a whole number >= 2 or null, got 1"),
        ("tables: ages.csv", "tables: [a.csv, b.csv, c.csv]", "clients: is 4, there are 3 tables"),
        ("tables: ages.csv", "tables: []", "tables: there must be at least one"),
        ("privacy:\n  epsilon: 1.0\n", "", "privacy: needed"),
        ("questions:", "questions: 3\nother:", "questions: must be a list of questions, got 3"),
        ("{members", "{min_clients: 5, members", "min_clients: is 5, there are 4 clients"),
        ("threshold: 2", "threshold: 6", "threshold is 6; allowed are 2 to 3"),
        ("members: 3", "members: 5", "sum.members: is 5, there are 4 clients; take a smaller"),
    ],
)
def test_errors_name_file_line_key_and_what_is_allowed(here, old, new, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        asked(FILE.replace(old, new))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("name\nanna\n", "table ages.csv has no column 'age'; it has 'name'"),
        ("age\n31\nold\n", "column 'age' must hold finite numbers; row 2 has 'old' (1 such rows"),
        ("age\n31\n\n,\n", "line 4 has 2 values, the first line names 1 columns"),
        ('age,name\n31,a\n"",b\n', "column 'age' must hold finite numbers; row 2 has no value"),
        ("age\nnan\n", "column 'age' must hold finite numbers; row 1 has 'nan'"),
        ("age\ninf\n", "row 1 has 'inf'"),
        ("age\n", "table ages.csv has no rows"),
        ("", "has no column 'age'; it has none"),
        ("age,age\n1,2\n", "has 2 columns 'age'"),
        (b"age\n\xff1\n", "table ages.csv is not UTF-8 text: byte 0xff; save it as UTF-8"),
        ('age\n"31', "cannot be read"),
        (None, "table ages.csv does not exist"),
        ("age\n1\n2\n", "has 2 rows for 4 clients"),
    ],
)
def test_errors_of_tables_name_file_column_and_row_before_anybody_is_asked(here, content, told):
    if content is None:
        Path("ages.csv").unlink()
    else:
        Path("ages.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=re.escape(told)):
        run_inquiry(asked())
    assert sorted(p.name for p in here.iterdir() if p.name not in ("q.yaml", "ages.csv")) == []


def test_tables_of_all_kinds(here):
    needs = {"age": float, "name": str}
    np.savez("ages.npz", age=np.array([31, 54]), name=np.array(["anna", "bob"]))
    for name in ("ages.csv", "ages.npz"):
        found = read_table(Path(name), needs)
        assert found["age"][:2].tolist() == [31.0, 54.0]
        assert found["name"][:2].tolist() == ["anna", "bob"]
    np.savez("bad.npz", age=np.array([[31.0]]), name=np.array([1, 2]))
    for needed, told in (
        ({"age": float}, "has shape (1, 1); it must have one dimension"),
        ({"other": float}, "has no column 'other'; it has 'age', 'name'"),
    ):
        with pytest.raises(DataError, match=re.escape(told)):
            read_table(Path("bad.npz"), needed)
    np.savez("long.npz", age=np.zeros(3), name=np.array(["a", "b"]))
    with pytest.raises(DataError, match="differ in length"):
        read_table(Path("long.npz"), needs)
    Path("broken.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match="not a readable npz archive"):
        read_table(Path("broken.npz"), needs)
    with pytest.raises(DataError, match=r"must end in \.csv, \.parquet, \.npz"):
        read_table(Path("q.txt"), needs)


def test_rows_of_one_table_are_dealt_in_turn(here):
    whole = [table_of(("ages.csv",), 2, n, {"age": float})["age"].tolist() for n in (0, 1)]
    assert whole == [[31.0, 28.0], [54.0, 47.0]]


def test_the_explanation_says_what_is_opened_and_what_to_expect():
    told = explain_inquiry(load_inquiry("analytics"))
    for part in (
        "one noisy sum over at least 7 clients",
        "(4, 1e-06)-differential privacy for one row",
        "% of the rows in rank at 569 rows",
        "quantiles of mean area: epsilon",
    ):
        assert part in " ".join(told.split())


def test_the_explanation_says_what_it_cannot_expect_without_the_number_of_rows(here):
    words = "  - {kind: heavy_hitters, column: name, max_length: 3}\nprivacy:"
    masked = FILE.replace("privacy:", words).replace("{members: 3, threshold: 2}", "{kind: masks}")
    told = " ".join(explain_inquiry(asked(masked)).split())
    assert "masks of the clients for each other" in told
    assert "2 questions to 4 clients, 3 rounds" in told
    assert "give expected_rows to be told the error" in told
    told = " ".join(explain_inquiry(asked(masked, "expected_rows=1000")).split())
    assert "rows, below which a text is not found at 1,000 rows" in told


def test_a_file_of_questions_is_told_from_an_experiment(here):
    assert asks_questions("analytics")
    assert not asks_questions("quickstart")
    assert "analytics" not in shipped_configs()
    with pytest.raises(ConfigError, match="run it with `qsfl analytics`"):
        load_experiment("analytics")
    assert load_inquiry("analytics", ["privacy.epsilon=2", "clients=10"]).count == 10


def test_a_report_has_every_answer(here):
    estimate = {"value": 1.0, "low": 0.5, "high": 1.5}
    answers = [
        {"name": "rows", "kind": "rows", "rows": estimate},
        {"name": "<b>", "kind": "counts", "values": [{"text": None, **estimate}] * 2},
        {"name": "words", "kind": "heavy_hitters", "words": [
            {"text": "ann", "whole": False, **estimate}, {"text": "bob", "whole": True, **estimate},
        ]},
        {"name": "pairs", "kind": "correlation", "pairs": [
            {"columns": ["a", "b"], "value": None, "low": -1.0, "high": 1.0},
        ]},
    ]  # fmt: skip
    page = write_page(
        here,
        {
            "name": "n", "clients": 4, "fewest_in_a_sum": 3, "unit": "record", "seconds": 1.0,
            "answers": answers, "epsilon": 1.0, "delta": 1e-6, "level": 0.95, "cohorts": [4],
            "bytes_up": 10, "bytes_down": 20,
        },
    ).read_text()  # fmt: skip
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "a and b" in page
    assert "ann…" in page
    assert (here / "plots" / "answer-1.png").is_file()


def test_the_page_of_the_docs_has_every_key():
    """If not: put ``python -m qsfl_flower.simulations.inquiry`` behind its last heading."""
    assert reference() in (ROOT / "docs" / "analytics.md").read_text()


@pytest.mark.slow
def test_the_shipped_questions_are_answered_on_ray(tmp_path):
    """Eight clients; the noise hides the truth from an interval in 1e-9 of runs at this level."""
    overrides = [f"output={tmp_path}", "level=0.999999999"]
    folder, answers = run_inquiry(load_inquiry("analytics", overrides))
    assert json.loads((folder / "answers.json").read_text()) == answers
    assert (folder / "report.html").is_file()
    told = {answer["name"]: answer for answer in answers["answers"]}
    rows = told["rows"]["rows"]
    assert rows["low"] <= 569 <= rows["high"]
    malignant = told["counts of target"]["values"][0]
    assert malignant["low"] <= 212 <= malignant["high"]
    assert answers["epsilon"] <= 4.0
