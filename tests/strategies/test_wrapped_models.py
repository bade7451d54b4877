"""Clients that send the state_dict of a wrapped or compiled model."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st

from qsfl_flower.clients import qsfl_mod
from qsfl_flower.numerics import Layout
from qsfl_flower.stages import Clip, Robust
from qsfl_flower.strategies import RunObserver, StableFedAvg
from qsfl_flower.testing import LocalGrid
from qsfl_flower.wire import from_record, to_record

MODEL = {
    "body.weight": np.zeros((2, 3), np.float32),
    "body.bias": np.zeros(2, np.float32),
    "norm.running_var": np.ones(2, np.float32),
    "norm.num_batches_tracked": np.array(3, np.int64),
}
PREFIXES = ("_module.", "_orig_mod.", "module.", "_orig_mod._module.")


class Rows(RunObserver):
    def __init__(self):
        self.rows = []

    def on_round(self, record, clients):
        self.rows.append(clients)


def app(prefix, mods=()):
    made = ClientApp(mods=list(mods))

    @made.train()
    def train(message, context):
        arrays = from_record(message.content["arrays"])
        names = list(arrays)
        moved = {
            prefix + n.removeprefix(prefix): arrays[n] + arrays[n].dtype.type(1) for n in names
        }
        content = {"arrays": to_record(moved), "metrics": MetricRecord({"num-examples": 10})}
        return Message(RecordDict(content), reply_to=message)

    return made


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("mods", [[], [qsfl_mod]], ids=["plain", "mod"])
@pytest.mark.parametrize("stages", [[], [Clip(9.0)], [Robust("median", 1)]])
def test_prefixes_of_wrappers_are_matched(prefix, mods, stages):
    rows = Rows()
    strategy = StableFedAvg(stages=stages, fraction_evaluate=0.0, observer=rows)
    result = strategy.start(LocalGrid(app(prefix, mods), 3), to_record(MODEL), 1, timeout=9.0)
    assert [row.status for row in rows.rows[-1]] == ["accepted"] * 3
    arrays = from_record(result.arrays)
    assert list(arrays) == list(MODEL)
    np.testing.assert_allclose(arrays["body.weight"], 1.0)
    assert arrays["norm.num_batches_tracked"] == 4


def test_names_that_differ_in_more_are_named():
    wrong = {"_module.body.weight": np.zeros(1), "_module.other": np.zeros(1)}
    layout = Layout.of(MODEL)
    assert layout.renamed(wrong) is wrong
    assert layout.renamed(MODEL) is MODEL


NAMES = st.sampled_from(["a", "module.a", "_module.a", "b", "_orig_mod.b", "_module._module.a"])


@given(st.lists(NAMES, unique=True, min_size=1), st.lists(NAMES, unique=True))
@settings(max_examples=60)
def test_renaming_never_loses_or_mixes_arrays(own, sent):
    layout = Layout.of({name: np.zeros(1) for name in own})
    arrays = {name: number for number, name in enumerate(sent)}
    renamed = layout.renamed(arrays)
    assert sorted(renamed.values()) == sorted(arrays.values())
    if set(renamed) <= set(own):
        assert all(name not in own or renamed.get(name) == arrays[name] for name in sent) or not (
            set(sent) <= set(own)
        )
