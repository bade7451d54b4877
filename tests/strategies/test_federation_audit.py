"""Whole federations are attacked with canaries: no claim is broken, and broken noise is noticed.

Every canary changes one coordinate of the model, and is in by a coin; the attacker guesses from the
released model alone (Steinke, Nasr, Jagielski 2023). Noise comes from a fixed seed here, so that
each test always has the same result; with fresh noise a true claim would fail once in twenty.
"""

from __future__ import annotations

import itertools
from unittest.mock import patch

import numpy as np
import pytest
import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.client import NumPyClient

from qsfl_flower.clients.authentication import auth_mod
from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.data import Dataset, Normalization
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.clients.private_training import GradientSumClient, PrivateTrainingClient
from qsfl_flower.clients.train_config import TrainConfig
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.privacy.audit import audit
from qsfl_flower.privacy.gaussian import gaussian_noise_multiplier
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.privacy.record import RecordBatch, RecordPrivacy
from qsfl_flower.strategies import (
    Authenticate,
    CentralDP,
    Clip,
    Committee,
    DistributedDP,
    LocalDP,
    RecordDP,
    SecureSum,
    StableFedAvg,
)
from qsfl_flower.wire import to_record

pytestmark = pytest.mark.slow

NOW = 1_800_000_000
CANARIES, EPSILON, DELTA, GUESSES = 200, 1.0, 1e-5, 60
NOISE = gaussian_noise_multiplier(EPSILON, DELTA)
INCLUDED = np.random.default_rng(0).random(CANARIES) < 0.5
SILOS = 4
PLAIN = Normalization((0.0,), (1.0,))


class Canary(NumPyClient):
    """A client whose whole data is one canary; without it there is nothing to send."""

    def __init__(self, number):
        self.number = number

    def fit(self, parameters, config):
        (w,) = parameters
        w = w.copy()
        w[self.number] += 5000.0 * INCLUDED[self.number]
        return [w], 1, {}


def silo(number, make):
    """Return a client that holds every fourth canary as a record with a feature of its own."""
    rows = np.flatnonzero(INCLUDED & (np.arange(CANARIES) % SILOS == number))
    x = np.eye(CANARIES, dtype=np.float32)[rows] * 100
    data = Dataset("toy", x, np.zeros(len(x), np.int64), x[:0], np.zeros(0, np.int64),
                   (CANARIES,), 2, None, "toy", PLAIN)  # fmt: skip
    return make(torch.nn.Linear(CANARIES, 2, bias=False), data)


def privacy_of(noise, clip):
    return RecordPrivacy(clip_norm=clip, noise_multiplier=noise, sampling_rate=1.0, steps=1)


def record_client(noise, clip):
    return lambda number: silo(
        number,
        lambda model, data: PrivateTrainingClient(
            model, data, TrainConfig(learning_rate=1.0), privacy_of(noise, clip), seed=0,
            client_id=number,
        ),
    )  # fmt: skip


def batch_of(clip):
    return RecordBatch(clip_norm=clip, sampling_rate=1.0, sum_norm=1e4)


def sum_client(noise, clip):
    return lambda number: silo(
        number,
        lambda model, data: GradientSumClient(
            model, data, batch_of(clip), seed=0, client_id=number
        ),
    )


def secure(clients, clip):
    sizes = Committee(3, 2, min_clients=clients)
    return SecureSum(clip, sizes, bound=2e4, weighted=False, metrics=(), clock=lambda: NOW)


PLACEMENTS = {
    "central": (CANARIES, lambda z, c: [Clip(c), CentralDP(z, CANARIES)], lambda z, c: Canary),
    "local": (CANARIES, lambda z, c: [LocalDP(c, z)], lambda z, c: Canary),
    "distributed": (
        CANARIES,
        lambda z, c: [secure(CANARIES, c), DistributedDP(z, CANARIES)],
        lambda z, c: Canary,
    ),
    "record": (SILOS, lambda z, c: [RecordDP(privacy_of(z, c))], record_client),
    "distributed-record": (
        SILOS,
        lambda z, c: [secure(SILOS, 1e4), DistributedDP(z, CANARIES, batch=batch_of(c))],
        sum_client,
    ),
}
"""Number of clients; from noise multiplier and clip norm to stages, and to what makes a client."""


def bound(fake_grid, placement, noise, clip=1.0):
    """Return the audit's lower bound on epsilon for one round of a federation."""
    count, stages_of, client_of = PLACEMENTS[placement]
    made = create_federation((str(n) for n in range(count)), now=NOW)
    roster = open_roster(made.roster, made.authority)
    stages = stages_of(noise, clip)
    if placement.startswith("distributed"):
        stages = [Authenticate(Credentials(made.server, roster), clock=lambda: NOW), *stages]
    secret = itertools.count()

    def device(number):
        context = Context(1, 1000 + number, {"partition-id": number}, RecordDict(), {})
        credentials = Credentials(made.clients[str(number)], roster)
        mods = [qsfl_mod]
        if placement.startswith("distributed"):
            mods.insert(0, auth_mod(lambda context: credentials, lambda: NOW))
        app = numpy_client_app(lambda context: client_of(noise, clip)(number), mods=mods)

        def answer(message):
            try:
                return app(message, context)
            except Exception as error:
                return Message(Error(2, str(error)), reply_to=message)

        return answer

    by_record = placement.endswith("record")
    shape = (2, CANARIES) if by_record else (CANARIES,)
    start = to_record({"weight": np.zeros(shape, np.float32)})
    fresh = patch.object(
        Keystream, "secure", classmethod(lambda cls: cls.seeded("audit", placement, next(secret)))
    )
    with fresh:
        strategy = StableFedAvg(
            fraction_evaluate=0.0, min_available_nodes=count, stages=stages, max_failed_rounds=1
        )
        grid = fake_grid({1000 + n: device(n) for n in range(count)})
        result = strategy.start(grid, start, 1, timeout=60)
    model = result.arrays["weight"].numpy().astype(np.float64)
    scores = model[0] if by_record else model
    return audit(scores, INCLUDED, delta=DELTA, guesses=GUESSES).epsilon


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_no_claim_is_broken(fake_grid, placement):
    assert bound(fake_grid, placement, NOISE) <= EPSILON


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_noise_that_is_as_good_as_off_is_noticed(fake_grid, placement):
    assert bound(fake_grid, placement, NOISE / 2000) > EPSILON


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_clipping_that_is_off_is_noticed(fake_grid, placement):
    """The noise is that for a clip norm of 1, and nothing is as long as the norm in force."""
    assert bound(fake_grid, placement, NOISE / 1e4, clip=1e4) > EPSILON
