from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qsfl_flower.asynchrony import Availability, Device, DeviceClass, make_fleet
from qsfl_flower.errors import ConfigError

NIGHT = Availability(online=((0.0, 6.0), (22.0, 24.0)), period=24.0)


def test_a_trace_repeats_and_can_be_shifted():
    assert [NIGHT.next_online(t) for t in (0, 5.9, 6, 21, 23, 25, 30)] == [
        0,
        5.9,
        22,
        22,
        23,
        25,
        46,
    ]
    ahead = Availability(NIGHT.online, 24.0, shift=4.0)
    assert [ahead.next_online(t) for t in (0, 2, 17, 18)] == [0, 18, 18, 18]


def test_work_rests_while_the_device_is_offline():
    assert NIGHT.after_work(5.0, 1.0) == 6.0
    assert NIGHT.after_work(5.0, 2.0) == 23.0
    assert NIGHT.after_work(10.0, 8.0) == 30.0  # 22 to 24, and the first six hours of the next day
    assert NIGHT.after_work(0.0, 8.0) == 24.0
    assert NIGHT.after_work(0.0, 80.0) == 240.0
    assert NIGHT.after_work(6.0, 0.0) == 6.0  # an upload without delay ends with the work


@given(
    edges=st.lists(st.integers(0, 100), min_size=2, max_size=6, unique=True),
    shift=st.integers(0, 100),
    at=st.integers(0, 400),
    work=st.integers(1, 150),
)
def test_work_takes_as_many_seconds_online_as_it_takes(edges, shift, at, work):
    """Counted second by second."""
    edges = sorted(edges)[: len(edges) // 2 * 2]
    trace = Availability(tuple(zip(edges[::2], edges[1::2], strict=True)), 100.0, shift)

    def online(second):
        inside = (second + shift) % 100
        return any(a <= inside < b for a, b in trace.online)

    second, left = at, work
    while left:
        left -= online(second)
        second += 1
    assert trace.after_work(at, work) == pytest.approx(second)
    first = next(s for s in range(at, at + 101) if online(s))
    assert trace.next_online(at) == first


def test_a_task_takes_download_work_and_upload():
    device = Device(seconds=2.0, download=100.0, upload=10.0)
    done = device.done(1.0, 50, (0, 0, 1))
    assert done == 3.5
    assert device.arrival(done, 20) == 5.5


def test_variation_depends_on_the_key_alone_and_has_its_median():
    """Median of 2,001 log-normal draws: its logarithm has standard deviation 0.5 * 1.2533 / 44.7 =
    0.014; five of them (0.07) are exceeded once in 1.7 million runs, and the seeds are fixed."""
    device = Device(seconds=3.0, jitter=0.5)
    times = [device.done(0.0, 0, (1, 2, n)) for n in range(2001)]
    assert times == [device.done(0.0, 0, (1, 2, n)) for n in range(2001)]
    assert abs(math.log(np.median(times) / 3.0)) < 0.07
    assert np.std(np.log(times)) == pytest.approx(0.5, rel=0.1)


def test_some_tasks_are_never_answered():
    """2,000 draws with probability 0.3: within five standard deviations (0.051)."""
    device = Device(dropout=0.3)
    lost = sum(math.isinf(device.done(0.0, 0, (0, 0, n))) for n in range(2000))
    assert abs(lost / 2000 - 0.3) < 0.051


@given(
    shares=st.lists(st.floats(0.01, 1), min_size=1, max_size=5),
    count=st.integers(1, 200),
    seed=st.integers(0, 5),
)
def test_a_fleet_has_the_shares_that_were_asked_for(shares, count, seed):
    classes = [DeviceClass(s, Device(seconds=1.0 + i)) for i, s in enumerate(shares)]
    assume(count >= 1)
    fleet = make_fleet(classes, count, seed)
    assert len(fleet) == count
    for index, share in enumerate(shares):
        amount = sum(device.seconds == 1.0 + index for device in fleet)
        assert abs(amount - share / sum(shares) * count) < 1 + 1e-9
    assert fleet == make_fleet(classes, count, seed)


def test_the_devices_of_a_class_are_not_offline_all_at_once():
    fleet = make_fleet([DeviceClass(1.0, Device(available=Availability(((0, 12),), 24)))], 24, 0)
    for hour in range(24):
        online = sum(d.available.next_online(hour) == hour for d in fleet)
        assert online == 12


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Device(seconds=0), "seconds"),
        (lambda: Device(upload=-1), "upload"),
        (lambda: Device(dropout=1.1), "dropout"),
        (lambda: Device(jitter=-1), "jitter"),
        (lambda: Availability(()), "availability"),
        (lambda: Availability(((5, 3),)), "availability"),
        (lambda: Availability(((0, 5), (4, 6))), "availability"),
        (lambda: Availability(((0, 25),), 24), "availability"),
        (lambda: make_fleet([], 3, 0), "fleet"),
        (lambda: make_fleet([DeviceClass(0, Device())], 3, 0), "fleet"),
    ],
)
def test_impossible_profiles_are_named(make, named):
    with pytest.raises(ConfigError, match=named):
        make()
