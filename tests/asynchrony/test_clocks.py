from __future__ import annotations

import json
import math
import random
import time

import pytest

from qsfl_flower.asynchrony import Availability, Device, VirtualClock, WallClock
from qsfl_flower.errors import CheckpointError, ConfigError


class Network:
    """Answers that become available at random, whatever the virtual time."""

    def __init__(self, seed=0, size=0, at_once=False):
        self.random, self.size, self.at_once, self.gone = random.Random(seed), size, at_once, set()

    def __call__(self, tasks):
        there = [t for t in tasks if t not in self.gone]
        self.random.shuffle(there)
        if not self.at_once:
            there = there[: self.random.randint(0, 2)]
        self.gone |= set(there)
        return dict.fromkeys(there, self.size)


def never(seconds):
    pytest.fail("waited in real time")


def no_pause(seconds):
    pass


def run_virtual(clock, network, tasks=40):
    """Keep all devices busy; return when each answer arrived."""
    log, number = [], 0
    for device in range(len(clock.devices)):
        clock.send(number, device, 0)
        number += 1
    owner = dict(enumerate(range(len(clock.devices))))
    while len(log) < tasks:
        (task,) = clock.receive(network, math.inf, no_pause)
        device = owner.pop(task)
        log.append((clock.now, task, device))
        clock.send(number, device, 0)
        owner[number] = device
        number += 1
    return log


def test_answers_arrive_in_the_order_of_virtual_time_whatever_the_real_one():
    devices = [Device(seconds=s, jitter=0.3, upload=9.0) for s in (1.0, 1.0, 1.0, 10.0)]
    networks = [*(Network(seed, size=4) for seed in range(5)), Network(size=4, at_once=True)]
    logs = [run_virtual(VirtualClock(devices, seed=3), network) for network in networks]
    assert all(log == logs[0] for log in logs)
    times = [at for at, *_ in logs[0]]
    assert times == sorted(times)
    assert sum(device == 3 for *_, device in logs[0]) < 4
    assert logs[0] != run_virtual(VirtualClock(devices, seed=4), Network())


def test_equal_times_are_released_in_the_order_of_sending():
    clock = VirtualClock([Device()] * 5)
    for task in range(5):
        clock.send(task, 4 - task, 0)
    order = [clock.receive(Network(1, at_once=True), math.inf, never)[0] for _ in range(5)]
    assert order == [0, 1, 2, 3, 4]


def test_the_upload_takes_as_long_as_the_answer_is_large():
    clock = VirtualClock([Device(upload=100.0), Device(seconds=2.0)])
    clock.send(0, 0, 0)
    clock.send(1, 1, 0)
    network = Network(size=200, at_once=True)
    assert [clock.receive(network, math.inf, never)[0], clock.now] == [1, 2.0]
    assert [clock.receive(network, math.inf, never)[0], clock.now] == [0, 3.0]


def test_time_passes_without_answers_and_late_ones_come_later():
    clock = VirtualClock([Device(seconds=5.0)])
    clock.send(0, 0, 0)
    assert clock.receive(Network(at_once=True), 3.0, never) == []
    assert clock.now == 3.0
    assert clock.receive(Network(at_once=True), 7.0, never)[0] == 0
    assert clock.now == 5.0
    assert clock.receive(Network(), math.inf, never) == []  # nobody is at work
    assert clock.now == 5.0


def test_nothing_sleeps():
    began = time.perf_counter()
    clock = VirtualClock([Device(seconds=3600.0, jitter=0.1)] * 50)
    run_virtual(clock, Network(at_once=True), 500)
    assert clock.now > 9 * 3600 * 0.5
    assert time.perf_counter() - began < 5


def test_thousands_of_devices():
    began = time.perf_counter()
    run_virtual(VirtualClock([Device(jitter=1.0)] * 5000), Network(at_once=True), 5000)
    assert time.perf_counter() - began < 20


def test_a_device_that_drops_out_never_answers():
    clock = VirtualClock([Device(dropout=1.0)])
    clock.send(0, 0, 0)
    assert clock.receive(never, 10.0, never) == []


def test_an_answer_that_does_not_come_in_reality_never_comes():
    real = iter(range(100))
    clock = VirtualClock([Device(), Device(seconds=2.0)], patience=5, source=lambda: next(real))
    clock.send(0, 0, 0)
    clock.send(1, 1, 0)

    def second_only(tasks):
        return {1: 0} if 1 in tasks else {}

    assert clock.receive(second_only, math.inf, no_pause)[0] == 1


def test_offline_devices_are_out_of_reach():
    night = Availability(((0.0, 6.0),), 24.0)
    clock = VirtualClock([Device(available=night), Device(seconds=8.0)])
    assert clock.online([0, 1]) == [0, 1]
    clock.send(0, 1, 0)
    clock.receive(Network(at_once=True), math.inf, never)
    assert clock.now == 8.0
    assert clock.online([1, 0]) == [1]
    assert clock.next_online([0]) == 24.0
    assert clock.next_online([0, 1]) == 8.0
    assert clock.next_online([]) == math.inf


def test_a_restored_clock_goes_on_alike():
    devices = [Device(seconds=s, jitter=0.5, upload=7.0) for s in (1.0, 2.0, 3.0)]

    def finish(clock, network):
        order = []
        for number in range(100, 130):
            (task,) = clock.receive(network, math.inf, no_pause)
            order.append((task, clock.now))
            clock.send(number, number % 3, 10)
        return order

    first = VirtualClock(devices)
    for task in range(3):
        first.send(task, task, 10)
    first.receive(Network(size=5, at_once=True), math.inf, no_pause)
    saved = json.loads(json.dumps(first.to_dict()))
    second = VirtualClock(devices)
    second.restore(saved)
    assert finish(second, Network(size=5)) == finish(first, Network(3, size=5))
    with pytest.raises(CheckpointError, match="clock"):
        second.restore({"now": 3})


def test_a_client_without_a_profile_is_named():
    with pytest.raises(ConfigError, match="client 2; there are 2"):
        VirtualClock([Device()] * 2).send(0, 2, 0)
    with pytest.raises(ConfigError, match="no devices"):
        VirtualClock([])


class Wall:
    """A clock that moves only when somebody sleeps."""

    def __init__(self):
        self.at, self.pauses = 100.0, []

    def __call__(self):
        return self.at

    def pause(self, seconds):
        self.pauses.append(seconds)
        self.at += seconds


def test_the_wall_clock_looks_ever_less_often_and_gives_up_in_time():
    wall = Wall()
    clock = WallClock(wall)
    assert clock.now == 0
    clock.send(0, 0, 0)
    assert clock.receive(lambda tasks: {}, 10.0, wall.pause) == []
    assert clock.now == pytest.approx(10.0)
    assert wall.pauses[0] == 0.02
    assert max(wall.pauses) == 0.5
    assert len(wall.pauses) < 40


def test_the_wall_clock_returns_what_is_there_and_asks_for_it_no_longer():
    wall, looked = Wall(), []
    clock = WallClock(wall)
    for task in range(3):
        clock.send(task, task, 0)

    def fetch(tasks):
        looked.append(list(tasks))
        return {t: 0 for t in tasks if t != 2}

    assert clock.receive(fetch, 9.0, wall.pause) == [0, 1]
    assert clock.receive(lambda tasks: looked.append(list(tasks)) or {}, 0.0, wall.pause) == []
    clock.forget([2])
    assert clock.receive(fetch, math.inf, wall.pause) == []
    assert looked == [[0, 1, 2], [2]]
    assert clock.to_dict() is None
    with pytest.raises(CheckpointError, match="VirtualClock"):
        clock.restore({})
