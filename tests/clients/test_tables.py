"""What a node does with questions about its table, before noise and sum: read, check, refuse."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from flwr.app import Context, Message, RecordDict

from qsfl_flower.clients.analytics import TABLE_FILE, answered_by_mods, comparison_mod, table_mod
from qsfl_flower.clients.tables import read_table
from qsfl_flower.errors import ConfigError, DataError, Refusal
from qsfl_flower.mechanisms.analytics.client import Opened, opening, questions_step
from qsfl_flower.mechanisms.analytics.core.plan import Plan
from qsfl_flower.mechanisms.analytics.options import CANDIDATE, CURRENT, DIFFERENCE, Mean
from qsfl_flower.node.steps import ClientUpdate, StepContext
from qsfl_flower.numerics import Layout, Vector
from qsfl_flower.privacy.policy import MinimumPolicy
from qsfl_flower.wire import QSFL_RECORD, REFUSED_KEY, to_record

NEEDS = {"age": float}
ASK = Plan((Mean(column="age", low=0, high=100),)).ask(1, {})
TOLD = {"size": ASK.size, "questions": ASK.encode(), "most_rows": 100.0}
LEAST = MinimumPolicy(epsilon=1.0)


def context(**node_config):
    return Context(1, 1, node_config, RecordDict(), {})


def step(told, columns=None, message_type="query.analytics", table=True):
    about = StepContext(context(), RecordDict(), message_type, Vector(()))
    update = ClientUpdate(np.zeros(2), Layout.of({"counted": np.zeros(2)}))
    if not table:
        return questions_step(update, told, about)
    with opening(Opened(lambda needs: {"age": np.array([20.0, 60.0])}, columns)):
        return questions_step(update, told, about)


def test_a_node_adds_up_its_rows():
    made = step(TOLD)
    np.testing.assert_allclose(made.vector, ASK.vector({"age": np.array([20.0, 60.0])}, 100.0))
    assert made.metrics["dp-sum-norm"] == 100.0


@pytest.mark.parametrize(
    ("change", "options", "told"),
    [
        ({}, {"table": False}, "no table"),
        ({}, {"message_type": "query"}, "no table"),
        ({}, {"columns": ["name"]}, "column 'age' is not open"),
        ({"questions": "{}"}, {}, "cannot be read"),
        ({"size": 7}, {}, "7 sums of up to 100 rows are asked for, the questions make 2"),
        ({"most_rows": 0.5}, {}, "of at least 1"),
        ({"most_rows": 1e300}, {}, "of at least 1"),
    ],
)
def test_a_node_refuses_what_it_does_not_answer(change, options, told):
    with pytest.raises(Refusal, match=told) as refused:
        step(TOLD | change, **options)
    assert refused.value.reason == "policy-questions"


def test_the_table_is_the_one_that_the_nodes_configuration_names(tmp_path, inside_run):
    file = tmp_path / "ages.csv"
    file.write_text("age\n31\n54\n")
    mod, message = table_mod(LEAST), Message(RecordDict(), 1, "query.analytics")
    found = mod._read(message, context(**{TABLE_FILE: str(file)}), NEEDS)
    assert found["age"].tolist() == [31.0, 54.0]
    for wrong in ({}, {TABLE_FILE: "ages.csv"}, {TABLE_FILE: 3}):
        with pytest.raises(ConfigError, match="give the absolute path of a table"):
            mod._read(message, context(**wrong), NEEDS)


def test_scores_are_paired_record_by_record(inside_run):
    models = {CURRENT: np.array([1.0, 0.0]), CANDIDATE: np.array([1.0, 1.0])}
    content = RecordDict({name: to_record({"w": array}) for name, array in models.items()})
    needs = {DIFFERENCE: float}
    mod = comparison_mod(LEAST, lambda arrays, context: arrays["w"])
    found = mod._read(Message(content, 1, "query.analytics"), context(), needs)
    assert found[DIFFERENCE].tolist() == [0.0, 1.0]
    with pytest.raises(ConfigError, match="comes with the models current and candidate"):
        mod._read(Message(RecordDict(), 1, "query.analytics"), context(), needs)
    odd = comparison_mod(LEAST, lambda arrays, context: arrays["w"][arrays["w"] > 0])
    with pytest.raises(DataError, match=r"the shapes \(2,\) and \(1,\); they must agree"):
        odd._read(Message(content, 1, "query.analytics"), context(), needs)


def test_an_app_without_the_mod_refuses(inside_run):
    reply = answered_by_mods(Message(RecordDict(), 1, "query.analytics"), context())
    assert reply.content.config_records[QSFL_RECORD][REFUSED_KEY] == "policy-questions"


def test_parquet_is_read_as_pandas_reads_it(tmp_path, monkeypatch):
    """Whatever engine pandas has, or none."""
    file = tmp_path / "ages.parquet"
    file.write_bytes(b"")
    frame = pd.DataFrame({"age": [31, 54], "name": ["anna", None]})
    monkeypatch.setattr(pd, "read_parquet", lambda path: frame)
    assert read_table(file, NEEDS)["age"].tolist() == [31.0, 54.0]
    with pytest.raises(DataError, match="column 'name' must hold texts; row 2 has no value"):
        read_table(file, {"name": str})
    errors = {
        "needs the package pyarrow": ImportError("no engine"),
        "cannot be read: ValueError: damaged": ValueError("damaged"),
    }
    for told, error in errors.items():

        def fail(path: Path, error=error):
            raise error

        monkeypatch.setattr(pd, "read_parquet", fail)
        with pytest.raises(DataError, match=re.escape(told)):
            read_table(file, NEEDS)
