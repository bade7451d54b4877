"""The kit itself: an attack that works is seen, what changes nothing changes nothing."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from qsfl_flower import testing
from qsfl_flower.stages import Clip, ServerMomentum
from qsfl_flower.testing import LocalFederation, NodeGrid, Tap


@pytest.fixture(scope="module")
def plain():
    return LocalFederation(clients=3, size=64)


def message(node, content=None):
    return Message(content or RecordDict(), node, "train")


def echo(asked):
    return Message(asked.content, reply_to=asked)


def test_it_needs_neither_torch_nor_pytest():
    told = "import sys, qsfl_flower.testing; print({'torch', 'pytest'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "set()"


def test_the_server_of_a_plain_federation_learns_every_update(plain):
    view = plain.watch()
    outcome = plain.run([Clip(1.0)])
    assert outcome.error is None
    np.testing.assert_allclose(outcome.model, plain.updates.mean(axis=0), rtol=1e-6)
    assert testing.learned(plain.updates, view.bytes_up()) == [0, 1, 2]


def test_a_client_sees_its_own_messages_alone(plain):
    view = plain.watch(clients=[1])
    plain.run([Clip(1.0)])
    assert testing.learned(plain.updates, view.bytes_up()) == [1]


def test_noise_hides_and_random_bytes_are_no_leak(plain):
    noisy = plain.updates + np.random.default_rng(99).normal(0, 1, plain.updates.shape)
    assert testing.learned(plain.updates, [noisy.astype(np.float32).tobytes()]) == []
    assert testing.learned(plain.updates, [np.random.default_rng(1).bytes(20_000)]) == []


@pytest.mark.parametrize("form", ["<f4", "<f8", "<f2", "fixed point", "field"])
def test_a_secret_is_found_in_any_form(plain, form):
    secret = plain.updates[1]
    if form == "fixed point":
        data = (secret * 2**20).astype("<i4").tobytes()
    elif form == "field":
        data = ((secret * 2**24).astype(np.int64) % ((1 << 61) - 1)).astype("<u8").tobytes()
    else:
        data = secret.astype(form).tobytes()
    assert testing.learned(plain.updates, [b"head" * 2 + data + b"tail"]) == [1]


def test_two_sums_give_their_difference_away():
    secrets = np.random.default_rng(0).normal(size=(5, 30))
    whole, less = secrets.sum(axis=0), secrets[:4].sum(axis=0)
    noise = np.random.default_rng(1).normal(size=30)
    rows = testing.coefficients(secrets, np.stack([whole, less, whole, noise]))
    assert testing.rank(rows) == 2
    assert testing.solves(rows) == [4]
    assert testing.solves(rows[:1]) == []
    assert testing.solves(rows[:1], known=[0, 1, 2, 3]) == [4], "what the coalition knows counts"
    assert testing.solves(rows[:1], known=[0, 1]) == []


def test_late_replies_wait_for_virtual_time():
    grid = NodeGrid({1: echo, 2: echo})
    grid.taps = {1: Tap(up=testing.delay(90.0)), 2: Tap(down=testing.delay(30.0))}
    ids = list(grid.push_messages([message(1), message(2)]))
    assert list(grid.pull_messages(ids)) == []
    grid.time.sleep(30.0)
    assert [m.metadata.src_node_id for m in grid.pull_messages(ids)] == [2]
    grid.time.sleep(60.0)
    assert [m.metadata.src_node_id for m in grid.pull_messages(ids)] == [1]


def test_messages_are_dropped_repeated_and_reordered():
    heard = []
    grid = NodeGrid({n: lambda m: heard.append(m.metadata.dst_node_id) for n in (1, 2, 3)})
    both = testing.reorder(2)
    grid.taps = {1: Tap(down=both), 2: Tap(down=both), 3: Tap(down=testing.repeat(2))}
    grid.push_messages([message(1), message(2), message(3)])
    assert heard == [2, 1, 3, 3]
    grid.taps[3] = Tap(down=testing.drop)
    grid.push_messages([message(3)])
    assert heard == [2, 1, 3, 3]


def test_what_is_altered_on_the_way_is_rejected_by_name(plain):
    def lie(content):
        return RecordDict({**content, "more": content["metrics"]})

    plain.grid.taps = {101: Tap(up=testing.alter(lie))}
    outcome = plain.run([Clip(1.0)], min_train_nodes=2)
    plain.grid.taps = {}
    assert outcome.rejected == {"bad-signature": 1}
    np.testing.assert_allclose(outcome.model, plain.updates[[0, 2]].mean(axis=0), rtol=1e-6)


def test_nobody_waits_for_a_silent_node(plain):
    """A node that never answers costs the whole timeout of the round, in virtual time."""
    plain.grid.taps = {102: Tap(up=testing.drop)}
    before = plain.grid.time.now
    outcome = plain.run([Clip(1.0), ServerMomentum(1.0)])
    plain.grid.taps = {}
    assert outcome.error is None
    assert plain.grid.time.now - before >= 60.0


def test_virtual_time_moves_on_however_little_is_waited():
    """Half of what a float can show at this time would be lost, and a loop would never end."""
    clock = testing.VirtualTime()
    clock.now = 120.905
    left = 0.5 * math.ulp(clock.now)
    assert clock.now + left == clock.now
    before = clock.now
    clock.sleep(left)
    assert clock.now > before
    clock.sleep(0.0)
    assert clock.now == before + math.ulp(before)
