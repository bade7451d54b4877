"""The measured memory model, and how work follows from it."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsfl_flower.clients import workload
from qsfl_flower.clients.device import DeviceClass
from qsfl_flower.clients.models import build_model
from qsfl_flower.clients.train_config import TrainConfig
from qsfl_flower.clients.workload import MemoryModel, Workload, measure_memory, remembered
from qsfl_flower.errors import ConfigError

SHAPE = (1, 28, 28)


def cnn():
    return build_model("mnist-cnn", SHAPE, 10, 0)


@pytest.mark.parametrize("batch", [8, 64])
def test_the_line_predicts_other_batch_sizes(batch):
    config = TrainConfig(momentum=0.9)
    predicted = measure_memory(cnn, SHAPE, config).needed(batch)
    assert predicted == pytest.approx(workload._peak(cnn(), batch, SHAPE, config), rel=0.1)


def test_optimizers_with_state_need_more():
    """Adam keeps two numbers for each of the 46,730 parameters; plain SGD keeps none."""
    plain, adam = (
        measure_memory(cnn, SHAPE, TrainConfig(optimizer=name)) for name in ("sgd", "adam")
    )
    assert adam.fixed - plain.fixed > 1.9 * 4 * 46_730
    assert plain.per_example > 4 * (16 * 24 * 24)  # at least the first layer's output


def test_measuring_is_quiet_and_loads_no_compiler(capfd):
    before = set(sys.modules)
    measure_memory(cnn, SHAPE, TrainConfig())
    assert capfd.readouterr() == ("", "")
    assert "torch._dynamo" not in set(sys.modules) - before


@given(st.floats(0, 1e9), st.floats(0, 1e6), st.floats(1e-3, 1e4), st.integers(1, 4096))
def test_what_is_chosen_fits_and_is_not_needlessly_small(fixed, each, memory_mb, wanted):
    model = MemoryModel(fixed, each)
    batch = model.largest_batch(memory_mb, wanted)
    assert 0 <= batch <= wanted
    if batch:
        assert model.needed(batch) <= memory_mb * 1e6
    if batch < wanted:
        assert model.needed(2 * batch + 1) > memory_mb * 1e6


def test_a_measurement_is_remembered_on_disk(tmp_path, monkeypatch):
    known = MemoryModel(1.0, 2.0)
    assert remembered("k" * 64, tmp_path, lambda: known) == known
    monkeypatch.setattr(workload, "_known", {})
    assert remembered("k" * 64, tmp_path, pytest.fail) == known
    (path,) = tmp_path.iterdir()
    path.write_text("[")
    monkeypatch.setattr(workload, "_known", {})
    assert remembered("k" * 64, tmp_path, lambda: known) == known


def test_epochs_by_class():
    work = Workload(epochs={DeviceClass.HIGH: 1, DeviceClass.MID: 0.6, DeviceClass.LOW: 0.2})
    assert [work.epochs_of(c, 5) for c in DeviceClass] == [5, 3, 1]
    assert work.epochs_of(DeviceClass.LOW, 1) == 1


@pytest.mark.parametrize("bad", [{"epochs": {DeviceClass.LOW: 1.0}}, {"deadline": 0.0}])
def test_bad_workloads_are_refused(bad):
    with pytest.raises(ConfigError):
        Workload(**bad)
