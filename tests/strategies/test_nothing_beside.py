"""Nothing leaves beside the mechanism: random modules, the noise set to zero, one unit changed.

Two federations that differ in one record, or in all records of one client, are run with the same
coins. What is released of parameters that are trained moves by the sensitivity at most, which the
noise would hide; everything else, buffers and integers, frozen weights and metrics, is the same in
both, bit by bit. A model of which that is not true is refused by name before training.
"""

from __future__ import annotations

import itertools
from unittest.mock import patch

import numpy as np
import pytest
import torch
from flwr.app import Context, Error, Message, RecordDict
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.data import Dataset, Normalization
from qsfl_flower.clients.models import get_arrays, roles_of
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.clients.private_training import GradientSumClient, PrivateTrainingClient
from qsfl_flower.clients.train_config import TrainConfig
from qsfl_flower.clients.trainer import TrainingClient
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.authentication.client import auth_mod
from qsfl_flower.privacy.randomness import Keystream
from qsfl_flower.privacy.record import RecordBatch, RecordPrivacy
from qsfl_flower.stages import (
    Authenticate,
    CentralDP,
    Clip,
    Committee,
    DistributedDP,
    LocalDP,
    RecordDP,
    SecureSum,
)
from qsfl_flower.strategies import StableFedAvg
from qsfl_flower.wire import from_record, to_record

NOW = 1_800_000_000
FEATURES, WIDTH, CLASSES = 5, 4, 3
CLIENTS, RECORDS = 3, 6
CLIP, RATE = 1.0, 0.5


class Writes(nn.Module):
    """Passes its input on, and writes into a buffer what it has seen."""

    def __init__(self, start, write):
        super().__init__()
        self.register_buffer("seen", start)
        self.write = write

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.seen.copy_(self.write(self.seen, x))
        return x


class Calls(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = linear(), linear()
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(self.one(x).tanh())


def linear():
    return nn.Linear(WIDTH, WIDTH)


LAYERS = {
    "linear": lambda: nn.Sequential(linear(), nn.Tanh()),
    "in place": lambda: nn.Sequential(linear(), nn.ReLU(inplace=True)),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "frozen": lambda: linear().requires_grad_(False),
    "tied": Tied,
    "spectral": lambda: nn.utils.parametrizations.spectral_norm(linear()),
    "dropout": lambda: nn.Dropout(0.2),
    "steps": lambda: Writes(torch.tensor(0), lambda seen, x: seen + 1),
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "mixing": lambda: nn.BatchNorm1d(WIDTH, track_running_stats=False),
    "centred": lambda: Calls(lambda x: x - x.mean(0)),
    "average": lambda: Writes(torch.zeros(WIDTH), lambda seen, x: 0.9 * seen + x.mean(0)),
    "double": lambda: Writes(torch.zeros(()).double(), lambda seen, x: x.double().sum()),
    "positive": lambda: Writes(torch.tensor(0), lambda seen, x: seen + (x > 0).sum()),
    "largest": lambda: Writes(torch.tensor(0, dtype=torch.int32), lambda seen, x: x.max().int()),
    "ever": lambda: Writes(torch.zeros(WIDTH).bool(), lambda seen, x: seen | (x > 1).any(0)),
    "bytes": lambda: Writes(torch.zeros(WIDTH).byte(), lambda seen, x: (x > 0).sum(0).byte()),
}  # fmt: skip


def module(layers):
    torch.manual_seed(0)
    middle = [LAYERS[name]() for name in layers]
    return nn.Sequential(nn.Linear(FEATURES, WIDTH), *middle, nn.Linear(WIDTH, CLASSES))


def trained(model):
    """The names of the arrays that are in the mechanism."""
    names = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in names if parameter.requires_grad}


def data(client, unit, changed):
    """One client's records; the first client's differ in one of them, or in all."""
    draw = np.random.default_rng(client)
    x = draw.normal(size=(RECORDS, FEATURES)).astype(np.float32)
    y = draw.integers(0, CLASSES, RECORDS)
    if changed and client == 0:
        rows = slice(0, 1) if unit == "record" else slice(None)
        x[rows], y[rows] = 30 * x[rows][:, ::-1] + 5, (y[rows] + 1) % CLASSES
    nothing = (x[:0], y[:0])
    return Dataset("toy", x, y, *nothing, (FEATURES,), CLASSES, None, "toy",
                   Normalization((0.0,), (1.0,)))  # fmt: skip


PRIVACY = RecordPrivacy(clip_norm=CLIP, noise_multiplier=1.0, sampling_rate=1.0, steps=1)
BATCH = RecordBatch(clip_norm=CLIP, sampling_rate=1.0, sum_norm=1e4)
CONFIG = TrainConfig(learning_rate=RATE, epochs=2, batch_size=4)


def ordinary(model, own, client):
    return TrainingClient(model, own, CONFIG, seed=0, client_id=client)


def by_record(model, own, client):
    return PrivateTrainingClient(model, own, CONFIG, PRIVACY, seed=0, client_id=client)


def sums(model, own, client):
    return GradientSumClient(model, own, BATCH, seed=0, client_id=client)


def secure(clip):
    sizes = Committee(3, 2, min_clients=CLIENTS)
    return SecureSum(clip, sizes, bound=2e4, weighted=False, metrics=(), clock=lambda: NOW)


PLACEMENTS = {
    "central": ("client", ordinary, lambda: [Clip(CLIP), CentralDP(1.0, CLIENTS)], 2 / CLIENTS),
    "local": ("client", ordinary, lambda: [LocalDP(CLIP, 1.0)], 2 / CLIENTS),
    "distributed": (
        "client", ordinary, lambda: [secure(CLIP), DistributedDP(1.0, CLIENTS)], 2 / CLIENTS,
    ),
    "record": ("record", by_record, lambda: [RecordDP(PRIVACY)], 2 * RATE / RECORDS / CLIENTS),
    "distributed records": (
        "record",
        sums,
        lambda: [secure(1e4), DistributedDP(1.0, CLIENTS * RECORDS, batch=BATCH)],
        2 / CLIENTS / RECORDS,
    ),
}  # fmt: skip
"""Unit, what makes a client, stages, and by how much one unit may move the released parameters:
twice the clip norm, since it is exchanged for another, over what the sum is divided by."""


class Device:
    """Keeps what it has sent besides its update: names of arrays to their bytes, and metrics."""

    def __init__(self, make, own, layers, number, mods):
        self.context = Context(1, 100 + number, {"partition-id": number}, RecordDict(), {})
        client = make(module(layers), own, number)
        self.app = numpy_client_app(lambda context: client, mods=mods)
        self.sent = []

    def __call__(self, message):
        try:
            reply = self.app(message, self.context)
        except Exception as error:
            return Message(Error(2, str(error)), reply_to=message)
        for record in reply.content.array_records.values():
            self.sent += [(name, array.data) for name, array in record.items()]
        for metrics in reply.content.metric_records.values():
            self.sent += [(k, v) for k, v in metrics.items() if k != "seconds"]
        return reply


def released(grid, placement, layers, changed, credentials):
    """Return the model after one round without noise, and what devices sent beside updates."""
    unit, make, stages, _ = PLACEMENTS[placement]
    made, roster = credentials
    stages, devices, coin = stages(), {}, itertools.count()
    keyed = placement.startswith("distributed")
    if keyed:
        stages.insert(0, Authenticate(Credentials(made.server, roster), clock=lambda: NOW))
    for n in range(CLIENTS):
        mods = [qsfl_mod]
        if keyed:
            own = Credentials(made.clients[str(n)], roster)
            mods.insert(0, auth_mod(lambda context, own=own: own, lambda: NOW))
        devices[100 + n] = Device(make, data(n, unit, changed), layers, n, mods)
    start = get_arrays(module(layers))
    strategy = StableFedAvg(
        fraction_evaluate=0.0, min_available_nodes=CLIENTS, stages=stages, max_failed_rounds=1,
        max_num_examples=RECORDS, roles=roles_of(module(layers)),
    )  # fmt: skip

    def silent(scale, count, source, drop=0):
        return np.zeros(count, np.int64)

    coins = patch.object(
        Keystream, "secure", classmethod(lambda cls: cls.seeded("beside", next(coin)))
    )
    noises = [
        patch(f"qsfl_flower.privacy.{name}.discrete_gaussian", silent)
        for name in ("gaussian", "distributed")
    ]
    with coins, noises[0], noises[1]:
        result = strategy.start(grid(devices), to_record(start), 1, timeout=60)
    sent = [] if keyed else [each for device in devices.values() for each in device.sent]
    return from_record(result.arrays), sent


def compare(grid, placement, layers, credentials):
    """Hold two runs against each other; return whether the model was let in."""
    model = module(layers)
    try:
        one, sent = released(grid, placement, layers, False, credentials)
    except ConfigError as error:
        found = str(error)
        if "layer '" in found and PLACEMENTS[placement][0] == "record":
            return False
        raise
    other, sent_too = released(grid, placement, layers, True, credentials)
    inside, tied = trained(model), roles_of(model)
    for name in set(one) - inside:
        assert one[name].tobytes() == other[name].tobytes(), name
    parameters = [name for name in inside if name not in tied]
    moved = [one[name].astype(np.float64) - other[name] for name in parameters]
    norm = np.sqrt(sum(float((part**2).sum()) for part in moved))
    assert norm <= PLACEMENTS[placement][3] * CLIP * (1 + 1e-3) + 1e-5
    start = get_arrays(model)
    assert any(not np.array_equal(one[name], start[name]) for name in parameters)
    if placement != "central":  # whose server sees everything
        beside = [[each for each in s if each[0] not in inside] for s in (sent, sent_too)]
        assert beside[0] == beside[1]
    return True


@pytest.fixture(scope="module")
def credentials():
    made = create_federation((str(n) for n in range(CLIENTS)), now=NOW)
    return made, open_roster(made.roster, made.authority)


WRITERS = [["positive", "average"], ["batch norm"], ["ever", "largest"], ["bytes", "double"]]
HARMLESS = [["linear", "frozen", "tied"], ["spectral", "steps"], ["layer norm", "in place"]]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_one_unit_moves_nothing_beside_the_mechanism(fake_grid, credentials, placement):
    few = settings(
        max_examples=4, derandomize=True, deadline=None, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )  # fmt: skip

    @few
    @given(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=3))
    def check(layers):
        compare(fake_grid, placement, layers, credentials)

    for layers in WRITERS:
        check = example(layers)(check)
    check()
    for layers in HARMLESS:
        assert compare(fake_grid, placement, layers, credentials), layers
