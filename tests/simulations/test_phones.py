"""Simulated phones: the fleet, its days, and a run in which they refuse, pause and report."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from qsfl_flower.clients.device import DeviceClass
from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.config import DevicesSpec, experiment_from_dict
from qsfl_flower.simulations.phones import HOUR, conditions_of, moment_of, phones_of
from qsfl_flower.simulations.report.sections.devices import devices
from qsfl_flower.simulations.runs import Run
from tests.golden.runs import play

DOCS = Path(__file__).parents[2] / "docs" / "personalization.md"

SPEC = DevicesSpec()
FLEET = phones_of(SPEC, 1000, 7)


def test_the_mix_is_exact_and_the_same_for_a_seed():
    kinds = Counter(phone.profile.device_class for phone in FLEET)
    assert kinds == {DeviceClass.HIGH: 300, DeviceClass.MID: 500, DeviceClass.LOW: 200}
    assert phones_of.__wrapped__(SPEC, 1000, 7) == FLEET
    assert phones_of(SPEC, 1000, 8) != FLEET
    assert sum(p.profile.device_class is DeviceClass.HIGH for p in FLEET[:100]) not in (0, 100)


def test_readings_are_possible_and_batteries_go_on_smoothly():
    for phone in FLEET[:20]:
        charges = [phone.habits(60.0 * minute).battery for minute in range(2 * 24 * 60)]
        assert 0 <= min(charges) <= max(charges) <= 1
        assert np.abs(np.diff(charges)).max() < 0.01
        assert charges[:1440] == charges[1440:]


def test_more_phones_can_train_at_night_than_by_day():
    conditions = conditions_of(SPEC)

    def able(hour):
        return sum(conditions.to_start(p.habits(hour * HOUR)).action == "go" for p in FLEET)

    assert able(3) > 900
    assert able(12) < 500
    assert able(20) < able(3)


def test_rounds_have_their_hours():
    spec = DevicesSpec(start_hour=18, round_minutes=30)
    assert [moment_of(spec, r) / HOUR for r in (1, 2, 49)] == [18, 18.5, 42]


@pytest.mark.parametrize(
    "bad", [{"min_battery": 0.1, "stop_battery": 0.2}, {"high": 0, "mid": 0, "low": 0}]
)
def test_contradictions_are_named(bad):
    with pytest.raises(ConfigError, match="devices"):
        experiment_from_dict({"devices": bad})


def write(folder, lines, config):
    import json

    import yaml

    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").write_text('{"round": 0}\n{"round": 1}\n{"round": 2}\n')
    (folder / "clients.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Run.open(folder)


def test_the_report_shows_who_trained_and_why_not(tmp_path):
    lines = [
        {"round": 1, "client": "0", "status": "accepted"},
        {"round": 1, "client": "1", "status": "device-battery-low"},
        {"round": 2, "client": "2", "status": "device-in-use"},
        {"round": 2, "client": "3", "status": "not-finite"},
    ]
    config = {"seed": 7, "clients": {"count": 10}, "devices": {"simulate": True, "start_hour": 20}}
    section = devices(write(tmp_path / "run", lines, config))
    state, trained = section.plots
    assert "could train" in state.alt
    assert "1 trained" in trained.alt
    assert "1 device-battery-low" in trained.alt
    page = str(section.html())
    assert "20:00" in page
    assert page.count("<tr>") == 1 + 3


def test_runs_without_phones_have_no_such_section(tmp_path):
    config = {"seed": 7, "clients": {"count": 10}, "devices": {}}
    assert devices(write(tmp_path / "run", [], config)) is None
    config["devices"] = {"high": "many"}
    assert devices(write(tmp_path / "odd", [], config)) is None


@pytest.mark.slow
def test_personal_private_phones_under_a_secure_sum_run_from_the_docs_yaml(tmp_path):
    page = DOCS.read_text(encoding="utf-8").partition("## On phones, with private records")[2]
    config = tmp_path / "private-phones.yaml"
    config.write_text(page.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    told = play(str(config), tmp_path, "clients.count=8", "simulation.supernodes=2")["metrics"]
    assert [r["accepted"] > 4 for r in told[1:]] == [True] * 3
    assert 0 < told[-1]["epsilon"] <= 8
