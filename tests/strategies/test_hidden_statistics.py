"""Statistics of normalization under hidden sums: averaged, but neither clipped nor compared."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
from flwr.client import NumPyClient

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.errors import RejectedUpdate, TooFewReplies
from qsfl_flower.mechanisms.authentication.client import auth_mod
from qsfl_flower.mechanisms.compression.core import Mask
from qsfl_flower.numerics import Layout
from qsfl_flower.rounds.chain import Chain
from qsfl_flower.secure.statistics import Statistics
from qsfl_flower.stages import (
    Authenticate,
    Clip,
    Committee,
    DistributedDP,
    MaskedSum,
    SecureKrum,
    SecureSum,
    ServerMomentum,
    SharedMask,
)
from qsfl_flower.strategies import BufferedAsync, StableFedAvg
from qsfl_flower.wire import from_record, to_record
from qsfl_flower.wire.content import AUTH_RECORD

from .conftest import NOW, Device, Recorder

COUNT = 7
MODEL = {
    "w": np.zeros(6, np.float32),
    "norm.running_mean": np.zeros(3, np.float32),
    "norm.running_var": np.ones(3, np.float64),
    "norm.num_batches_tracked": np.array(7),
    "mask": np.array([0, -np.inf], np.float32),
}
BUFFERS = tuple(MODEL)[1:]
STATISTICS = ("norm.running_mean", "norm.running_var", "mask")
ROLES = dict.fromkeys(STATISTICS, "buffer")


class Normed(NumPyClient):
    """Its statistics are a thousand times larger than its step, of norm below 1."""

    def __init__(self, number, given, change=None):
        self.number, self.given, self.change = number, given, change or {}

    def fit(self, parameters, config):
        arrays = dict(zip(MODEL, map(np.array, parameters), strict=True))
        self.given.append(arrays)
        moved = {
            **arrays,
            "w": arrays["w"] + np.float32(0.01 * (self.number + 1)),
            "norm.running_mean": np.full(3, -1.5 - self.number, np.float32),
            "norm.running_var": np.full(3, 1000.0 * (self.number + 1)),
            "norm.num_batches_tracked": arrays["norm.num_batches_tracked"] + 1,
            **self.change,
        }
        return list(moved.values()), 100 * (self.number + 1), {}


@pytest.fixture
def run(keys, fake_grid):
    roster = open_roster(keys.roster, keys.authority)
    server = Credentials(keys.server, roster)

    def run(make, *stages, rounds=1, changes=None, kind=StableFedAvg, **options):
        devices = {}
        for n in range(COUNT):
            device = devices[100 + n] = Device(n, keys.clients[str(n)], roster)
            own, device.given, device.sent = Credentials(keys.clients[str(n)], roster), [], []
            client = Normed(n, device.given, (changes or {}).get(n))
            device.app = numpy_client_app(
                lambda context, client=client: client,
                mods=[auth_mod(lambda context, own=own: own, lambda: NOW), qsfl_mod],
            )
            device.attack = lambda message, answer, sent=device.sent: (
                sent.append(answer(message)) or sent[-1]
            )
        seen = Recorder()
        options = {"roles": ROLES, "fraction_evaluate": 0.0, **options}
        gate = Authenticate(server, clock=lambda: NOW)
        strategy = kind(stages=[gate, make(server), *stages], observer=seen, **options)
        result = strategy.start(fake_grid(devices), to_record(MODEL), rounds, timeout=1.0)
        arrays = {k: np.array(v) for k, v in from_record(result.arrays).items()}
        return SimpleNamespace(
            arrays=arrays, devices=list(devices.values()), seen=seen, strategy=strategy
        )

    return run


def secure_sum(server, **options):
    return SecureSum(4.0, clock=lambda: NOW, metrics=(), **options)


def masked_sum(server, **options):
    return MaskedSum(server, clock=lambda: NOW, metrics=(), colluding=0.0, **options)


def secure_krum(server):
    return SecureKrum(4.0, 1, Committee(min_clients=3), clock=lambda: NOW, metrics=())


def enforced(server):
    return secure_sum(server, enforce_norm=True)


SUMS = {"secure_sum": (secure_sum, []), "masked_sum": (masked_sum, [Clip(4.0)])}
WEIGHTED_STEP = 0.01 * sum((n + 1) ** 2 for n in range(COUNT)) / sum(range(1, COUNT + 1))


@pytest.mark.parametrize(("make", "stages"), SUMS.values(), ids=SUMS)
def test_the_sum_covers_statistics_and_clips_none_of_them(run, make, stages):
    """With 9,000 in the vector, a clip norm of 4 would leave no step to speak of."""
    done = run(make, *stages)
    np.testing.assert_allclose(done.arrays["w"], WEIGHTED_STEP, rtol=1e-5)
    assert (done.arrays["norm.running_mean"] == -1.5 - 3).all()
    assert (done.arrays["norm.running_var"] == 4000.0).all()
    assert done.arrays["norm.running_mean"].dtype == np.float32
    assert done.arrays["mask"].tobytes() == MODEL["mask"].tobytes()
    assert done.arrays["norm.num_batches_tracked"] == 7


@pytest.mark.parametrize(("make", "stages"), SUMS.values(), ids=SUMS)
def test_no_array_of_a_client_is_sent_by_name(run, make, stages):
    done = run(make, *stages)
    for device in done.devices:
        for reply in device.sent:
            names = {n for r in reply.content.array_records.values() for n in r}
            assert not names & set(MODEL)
            assert set(reply.content) - {AUTH_RECORD}


@pytest.mark.parametrize(("make", "stages"), SUMS.values(), ids=SUMS)
def test_neither_a_mask_nor_an_optimizer_moves_a_statistic(run, make, stages):
    more = [SharedMask(Mask(ratio=0.5)), ServerMomentum(0.1, 0.9)]
    done = run(make, *stages, *more, rounds=3)
    assert (done.arrays["norm.running_var"] == 4000.0).all()


def test_asynchronous_sums_average_statistics_too(run):
    done = run(secure_sum, kind=BufferedAsync, buffer_size=COUNT, max_staleness=0, rounds=2)
    assert (done.arrays["norm.running_var"] == 4000.0).all()


@pytest.mark.parametrize("make", [secure_krum, enforced])
def test_sums_that_bound_or_compare_leave_statistics_on_the_devices(run, make, caplog):
    """One client could set them: no distance and no norm is opened of what lies behind."""
    with caplog.at_level(logging.WARNING, "qsfl_flower"):
        done = run(make, rounds=3, changes={0: {"norm.running_var": np.full(3, -9.0)}})
    assert caplog.text.count("roles: 2 buffers, the first is 'norm.running_mean', stay on") == 1
    assert not np.array_equal(done.arrays["w"], MODEL["w"])
    for name in BUFFERS:
        assert done.arrays[name].tobytes() == MODEL[name].tobytes()
    for number, device in enumerate(done.devices[1:], 1):
        assert device.given[-1]["norm.running_mean"][0] == -1.5 - number
        assert device.given[-1]["norm.num_batches_tracked"] == 9


@pytest.mark.parametrize(("make", "stages"), SUMS.values(), ids=SUMS)
@pytest.mark.parametrize("value", [np.nan, -2e6])
def test_a_statistic_without_room_excludes_its_client_and_tells_no_more(run, make, stages, value):
    changes = {6: {"norm.running_var": np.full(3, value)}}
    done = run(make, *stages, changes=changes)
    assert (done.arrays["norm.running_var"] == 3500.0).all()
    (text,) = [row.detail for row in done.seen.rows[-1].values() if row.status != "accepted"]
    assert text.startswith("out-of-range: ")
    assert "running_var" not in text  # which it is, and how large, depends on the records
    assert "2e+06" not in text


@pytest.mark.parametrize("make", [secure_sum, masked_sum])
def test_a_server_that_sums_statistics_beside_the_noise_gets_its_own_back(run, make):
    """The noise covers nothing of them; what the chain forgets, the device does not."""

    def wide(server):
        if make is masked_sum:
            return masked_sum(server, bound=200.0, min_clients=4)
        committee = Committee(min_clients=4)
        return secure_sum(server, committee=committee, bound=200.0, weighted=False)

    stages = [DistributedDP(1.0, expected_cohort=5.0, non_contributors=1)]
    stages += [Clip(4.0)] if make is masked_sum else []
    with patch.object(Chain, "keeps_carried", False):
        done = run(wide, *stages, max_num_examples=None)
    assert not np.array_equal(done.arrays["w"], MODEL["w"])
    for name in STATISTICS:
        assert done.arrays[name].tobytes() == MODEL[name].tobytes()


def test_sums_that_no_clients_can_make_are_refused():
    hidden = Statistics(Layout.of(MODEL, ROLES))
    own = {name: MODEL[name] for name in BUFFERS}
    sums = hidden.take(own, own) * 2
    read = hidden.read(sums, 2, own)
    assert {name: read[name].tobytes() for name in STATISTICS} == {
        name: MODEL[name].tobytes() for name in STATISTICS
    }
    sums[1] = 2**41 + 1
    with pytest.raises(RejectedUpdate, match=r"implausible-sum.*'norm\.running_mean'"):
        hidden.read(sums, 2, own)


def test_half_a_buffer_moves_half_the_way():
    hidden = Statistics(Layout.of(MODEL, ROLES))
    own = {name: MODEL[name] for name in BUFFERS}
    sums = hidden.take({**own, "norm.running_var": np.full(3, 5.0)}, own)
    assert (hidden.read(sums, 1, own, 0.5)["norm.running_var"] == 3.0).all()


@pytest.mark.parametrize("more", [2, -1])
def test_a_server_that_counts_coordinates_of_the_update_as_integers_gets_no_shares(run, more):
    """No norm and no distance would be that of the update then."""
    steps = SecureSum.client_steps

    def lying(stage, state, context):
        (clip, (phase, item)) = steps(stage, state, context)
        item.parameters["terms"]["extras"] += more
        return [clip, (phase, item)]

    with (
        patch.object(SecureSum, "client_steps", lying),
        pytest.raises(TooFewReplies, match="policy-terms"),
    ):
        run(enforced, max_failed_rounds=1)
