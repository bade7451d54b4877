"""Profiles, monitors and conditions: absent sensors are unknown, and unknown is never fine."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from qsfl_flower.clients import device
from qsfl_flower.clients.conditions import Conditions
from qsfl_flower.clients.device import DeviceClass, DeviceProfile, Reading, SystemMonitor
from qsfl_flower.errors import ConfigError

FINE = Reading(battery=0.8, metered=False, in_use=False, online=True, load=0.1)


def reading(**changes):
    return Reading(**{**vars(FINE), **changes})


def test_a_device_that_is_fine_starts_and_goes_on():
    assert Conditions().to_start(FINE).action == "go"
    assert Conditions().to_go_on(FINE).action == "go"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"battery": 0.19}, "device-battery-low"),
        ({"metered": True}, "device-metered"),
        ({"in_use": True}, "device-in-use"),
        ({"online": False}, "device-offline"),
        ({"battery": None}, "device-unknown"),
        ({"metered": None}, "device-unknown"),
        ({"in_use": None}, "device-unknown"),
    ],
)
def test_each_condition_refuses_for_itself(changes, reason):
    verdict = Conditions().to_start(reading(**changes))
    assert (verdict.action, verdict.reason) == ("stop", reason)
    assert verdict.detail


def test_a_start_needs_more_than_going_on():
    low = reading(battery=0.17)
    assert Conditions().to_start(low).action == "stop"
    assert Conditions().to_go_on(low).action == "go"
    assert Conditions().to_start(reading(battery=0.2)).action == "go"


@pytest.mark.parametrize("battery", [0.15, 0.1499, 0.0])
def test_training_stops_at_exactly_the_bound(battery):
    assert Conditions().to_go_on(reading(battery=battery)).reason == "device-battery-low"


def test_unknown_sensors_can_be_allowed_and_bad_ones_still_count():
    lenient = Conditions(unknown="allow")
    assert lenient.to_start(Reading()).action == "go"
    assert lenient.to_start(Reading(battery=0.1)).reason == "device-battery-low"
    assert Conditions(min_battery=0, stop_battery=0, unmetered=False, idle=False).to_start(
        Reading()
    ) == Conditions(unknown="allow").to_start(Reading())


def test_throttling_replaces_refusal_only_between_the_bounds_and_in_use():
    soft = Conditions(throttle=True)
    assert soft.to_start(reading(battery=0.17)).action == "throttle"
    assert soft.to_start(reading(battery=0.15)).action == "stop"
    assert soft.to_go_on(reading(in_use=True)).action == "throttle"
    assert soft.to_start(reading(metered=True)).action == "stop"


def test_the_load_counts_at_the_start_only():
    strict = Conditions(max_load=0.5)
    busy = reading(load=0.9)
    assert strict.to_start(busy).reason == "device-busy"
    assert strict.to_go_on(busy).action == "go"
    assert strict.to_start(reading(load=None)).reason == "device-unknown"


@pytest.mark.parametrize("online", [True, None])
def test_no_reading_with_an_unknown_sensor_is_better_than_the_same_with_a_bad_one(online):
    """Over all combinations: replacing a value by 'unknown' never turns a refusal into a go."""
    for battery, metered, in_use in itertools.product((0.1, 0.9), (True, False), (True, False)):
        known = Reading(battery, None, metered, in_use, online)
        for gone in ("battery", "metered", "in_use"):
            less = Reading(**{**vars(known), gone: None})
            assert Conditions().to_start(less).action == "stop"


@pytest.mark.parametrize(
    "bad",
    [{"min_battery": 0.1}, {"stop_battery": -1}, {"max_load": 0}, {"unknown": "hope"}],
)
def test_conditions_say_what_is_wrong(bad):
    with pytest.raises(ConfigError):
        Conditions(**bad)


def test_the_real_monitor_reports_this_machine_and_nothing_it_cannot_know(monkeypatch):
    monkeypatch.setattr(device.psutil, "sensors_battery", lambda: None, raising=False)
    monkeypatch.setattr(device.shutil, "which", lambda name: None)
    found = SystemMonitor().read()
    assert found.free_mb > 0
    assert 0 <= found.load <= 1
    assert (found.battery, found.charging, found.metered, found.in_use) == (None,) * 4


def test_the_real_monitor_reads_the_battery_once_per_age(monkeypatch):
    calls = []

    def battery():
        calls.append(1)
        return SimpleNamespace(percent=42.0, power_plugged=True)

    monkeypatch.setattr(device.psutil, "sensors_battery", battery, raising=False)
    monitor = SystemMonitor(in_use=lambda: False, metered=lambda: False, max_age=60)
    assert monitor.read() == monitor.read()
    assert monitor.read().battery == 0.42
    assert monitor.read().charging
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("text", "metered"),
    [
        ("100 (connected)\nno (guessed)\n\n30 (disconnected)\nunknown\n", False),
        ("100 (connected)\nno\n\n100 (connected)\nyes (guessed)\n", True),
        ("100 (connected)\nunknown\n", None),
        ("", None),
    ],
)
def test_network_manager_is_understood(monkeypatch, text, metered):
    monkeypatch.setattr(device.shutil, "which", lambda name: "/bin/" + name)
    monkeypatch.setattr(device.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=text))
    assert device.network_metered() is metered


def test_a_profile_can_be_measured(monkeypatch):
    profile = DeviceProfile.measure()
    assert profile.memory_mb > 0
    assert profile.cores >= 1
    monkeypatch.setattr(
        device.psutil, "virtual_memory", lambda: SimpleNamespace(available=500_000_000)
    )
    assert DeviceProfile.measure(0.1) == DeviceProfile(
        50.0, profile.cores, DeviceClass.LOW, profile.accelerator
    )
