"""The scenario and the report section of personal models, on digits and few rounds."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

from qsfl_flower.clients.data import load_dataset
from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.config import experiment_from_dict
from qsfl_flower.simulations.report.sections.personalization import personalization as section
from qsfl_flower.simulations.runs import Run
from qsfl_flower.simulations.scenarios import personalization as scenario

torch.set_num_threads(1)  # a second thread only waits on models this small
DATA = load_dataset("digits")


def test_devices_know_two_classes_and_hold_examples_out():
    for device in scenario.skewed_devices(DATA, 14, 0):
        assert len(np.unique(device.y_train)) <= 3
        assert len(device.y_test) == round(0.3 * (len(device.y_train) + len(device.y_test)))
    named = scenario.named_devices(DATA, 14, 0)
    assert {tuple(np.unique(d.y_train)) for d in named} == {(0, 1)}


def test_personal_models_beat_the_common_one_and_keep_most_of_it():
    devices = scenario.skewed_devices(DATA, 14, 0)
    for name in ("reptile", "fedrep"):
        federation = scenario.Federation(devices, scenario.SKEWED[name], 7, 0)
        federation.advance(15)
        found = scenario.evaluate(federation)
        assert found["gain"] > 0.05
        assert found["kept"] > 0.8
        assert 0 <= found["worst decile, personal"] <= found["personal"] <= 1


def test_private_names_need_examples():
    devices = scenario.named_devices(DATA, 14, 0)
    federation = scenario.Federation(devices[:10], scenario.NAMED["fedavg"], 5, 0)
    federation.advance(10)
    curve = scenario.few_shot_curve(federation, devices[10:])
    assert curve["0"] == [curve["0"][0]] * 6
    assert curve["10"][5] > curve["10"][0] + 0.15


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"personalization": {"method": "fedper"}}, "head"),
    ],
)
def test_contradictions_are_named(bad, named):
    with pytest.raises(ConfigError, match=named):
        experiment_from_dict(bad)


def test_the_report_compares_common_and_personal_models(tmp_path):
    rounds = [
        {"round": r, "client_metrics": {"accuracy": 0.5, "personal-accuracy": 0.5 + r / 10}}
        for r in (1, 2)
    ]
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": 1}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rounds))
    found = section(Run.open(folder))
    assert "+20.0 points in round 2" in str(found.html())
    (folder / "metrics.jsonl").write_text('{"round": 1}\n')
    assert section(Run.open(folder)) is None
