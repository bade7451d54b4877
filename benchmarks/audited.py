"""Whole federations with canaries, as an auditor runs them: for the audit table and for the tests.

Every canary changes one coordinate of the model, and is in by a coin; the auditor guesses from the
released model alone (Steinke, Nasr, Jagielski 2023). Noise comes from a fixed seed here, so that
each audit always has the same result; with fresh noise a true claim would fail once in twenty.
Under local noise the auditor is the server, which sees every reply.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.client import NumPyClient
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.data import Dataset, Normalization
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.clients.private_training import GradientSumClient, PrivateTrainingClient
from qsfl_flower.clients.train_config import TrainConfig
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.mechanisms.authentication.client import auth_mod
from qsfl_flower.privacy.audit import AuditResult, audit
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
    Stage,
)
from qsfl_flower.strategies import StableFedAvg
from qsfl_flower.testing.grid import NodeGrid
from qsfl_flower.wire import to_record

NOW = 1_800_000_000
CANARIES, GUESSES, DELTA, CONFIDENCE = 200, 60, 1e-5, 0.95
INCLUDED = np.random.default_rng(0).random(CANARIES) < 0.5
SILOS = 4
PLAIN = Normalization((0.0,), (1.0,))

Client = Callable[[int], Any]


class Canary(NumPyClient):
    """A client whose whole data is one canary; without it there is nothing to send."""

    def __init__(self, number: int) -> None:
        self.number = number

    def fit(self, parameters: Any, config: Any) -> Any:
        """Move the canary's coordinate far."""
        del config
        (w,) = parameters
        w = w.copy()
        w[self.number] += 5000.0 * INCLUDED[self.number]
        return [w], 1, {}


def _records(number: int, silos: int) -> np.ndarray:
    """Return a silo's share of the canaries, each a record with a feature of its own."""
    rows = np.flatnonzero(INCLUDED & (np.arange(CANARIES) % silos == number))
    return np.eye(CANARIES, dtype=np.float32)[rows] * 100


def _silo(make: Callable[..., Any], silos: int, number: int) -> Any:
    x = _records(number, silos)
    data = Dataset("toy", x, np.zeros(len(x), np.int64), x[:0], np.zeros(0, np.int64),
                   (CANARIES,), 2, None, "toy", PLAIN)  # fmt: skip
    return make(torch.nn.Linear(CANARIES, 2, bias=False), data, seed=0, client_id=number)


class OpacusClient(NumPyClient):
    """A client that trains for one step with Opacus' own engine."""

    def __init__(self, noise: float, clip: float, number: int) -> None:
        self.noise, self.clip, self.number = noise, clip, number

    def fit(self, parameters: Any, config: Any) -> Any:
        """Train, and say what was done as `clients.opacus` finds it."""
        from opacus import PrivacyEngine

        from qsfl_flower.clients.opacus import record_privacy, unwrapped

        del config
        x = torch.from_numpy(_records(self.number, 1))
        model = torch.nn.Linear(CANARIES, 2, bias=False)
        model.weight.data = torch.from_numpy(parameters[0].copy())
        engine = PrivacyEngine()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            private, optimizer, loader = engine.make_private(
                module=model,
                optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
                data_loader=DataLoader(
                    TensorDataset(x, torch.zeros(len(x), dtype=torch.long)), batch_size=len(x)
                ),
                noise_multiplier=self.noise,
                max_grad_norm=self.clip,
                noise_generator=torch.Generator().manual_seed(self.number),
            )
            for rows, labels in loader:
                optimizer.zero_grad()
                functional.cross_entropy(private(rows), labels).backward()
                optimizer.step()
        did = record_privacy(engine, optimizer, loader)
        return [unwrapped(private).weight.detach().numpy()], len(x), did.told()


@dataclass(frozen=True)
class Placement:
    """Who adds the noise, and how a federation with it is made.

    Parameters
    ----------
    words : str
        For the table.
    clients : int
        How many.
    stages : Callable
        From noise multiplier and clip norm to stages.
    client : Callable
        From noise multiplier and clip norm to what makes a client of its number.
    by_record : bool
        Whether single records are protected.
    proven : bool
        Whether clients have keys.
    by_reply : bool
        Whether the auditor is the server and guesses from each client's reply, not from the model.
    """

    words: str
    clients: int
    stages: Callable[[float, float], Sequence[Stage]]
    client: Callable[[float, float], Client]
    by_record: bool = False
    proven: bool = False
    by_reply: bool = False


def _privacy(noise: float, clip: float) -> RecordPrivacy:
    return RecordPrivacy(clip_norm=clip, noise_multiplier=noise, sampling_rate=1.0, steps=1)


def _batch(clip: float) -> RecordBatch:
    return RecordBatch(clip_norm=clip, sampling_rate=1.0, sum_norm=1e4)


def _secure(clients: int, clip: float) -> SecureSum:
    sizes = Committee(3, 2, min_clients=clients)
    return SecureSum(clip, sizes, bound=2e4, weighted=False, metrics=(), clock=lambda: NOW)


def _dp_sgd(noise: float, clip: float) -> Client:
    config = TrainConfig(learning_rate=1.0)
    make = partial(PrivateTrainingClient, config=config, privacy=_privacy(noise, clip))
    return partial(_silo, make, 1)


PLACEMENTS = {
    "central": Placement(
        "CentralDP, whole clients",
        CANARIES,
        lambda z, c: [Clip(c), CentralDP(z, CANARIES)],
        lambda z, c: Canary,
    ),
    "local": Placement(
        "LocalDP, whole clients",
        CANARIES,
        lambda z, c: [LocalDP(c, z)],
        lambda z, c: Canary,
        by_reply=True,
    ),
    "distributed": Placement(
        "DistributedDP, whole clients",
        CANARIES,
        lambda z, c: [_secure(CANARIES, c), DistributedDP(z, CANARIES)],
        lambda z, c: Canary,
        proven=True,
    ),
    "record": Placement(
        "RecordDP, DP-SGD of the suite",
        1,
        lambda z, c: [RecordDP(_privacy(z, c))],
        _dp_sgd,
        by_record=True,
    ),
    "opacus": Placement(
        "RecordDP, DP-SGD of Opacus",
        1,
        lambda z, c: [RecordDP(_privacy(z, c))],
        lambda z, c: partial(OpacusClient, z, c),
        by_record=True,
    ),
    "distributed-record": Placement(
        "DistributedDP, records",
        SILOS,
        lambda z, c: [_secure(SILOS, 1e4), DistributedDP(z, CANARIES, batch=_batch(c))],
        lambda z, c: partial(_silo, partial(GradientSumClient, batch=_batch(c)), SILOS),
        by_record=True,
        proven=True,
    ),
}


def audited(name: str, noise: float, clip: float = 1.0) -> AuditResult:
    """Return what the audit of one round of a federation finds."""
    placement = PLACEMENTS[name]
    made = create_federation((str(n) for n in range(placement.clients)), now=NOW)
    roster = open_roster(made.roster, made.authority)
    stages = list(placement.stages(noise, clip))
    if placement.proven:
        stages.append(Authenticate(Credentials(made.server, roster), clock=lambda: NOW))
    secret, replied = itertools.count(), np.zeros(CANARIES)

    def device(number: int) -> Callable[[Message], Message]:
        context = Context(1, 1000 + number, {"partition-id": number}, RecordDict(), {})
        credentials = Credentials(made.clients[str(number)], roster)
        mods = [qsfl_mod]
        if placement.proven:
            mods.insert(0, auth_mod(lambda context: credentials, lambda: NOW))
        client = placement.client(noise, clip)
        app = numpy_client_app(lambda context: client(number), mods=mods)

        def answer(message: Message) -> Message:
            try:
                reply = app(message, context)
            except Exception as error:
                return Message(Error(2, str(error)), reply_to=message)
            if placement.by_reply:
                (record,) = reply.content.array_records.values()
                replied[number] = next(iter(record.values())).numpy()[number]
            return reply

        return answer

    shape = (2, CANARIES) if placement.by_record else (CANARIES,)
    start = to_record({"weight": np.zeros(shape, np.float32)})
    known = classmethod(lambda cls: cls.seeded("audit", name, next(secret)))
    with patch.object(Keystream, "secure", known):
        strategy = StableFedAvg(
            fraction_evaluate=0.0,
            min_available_nodes=placement.clients,
            min_train_nodes=placement.clients,
            stages=stages,
            max_failed_rounds=1,
        )
        grid = NodeGrid({1000 + n: device(n) for n in range(placement.clients)}, seed=0)
        result = strategy.start(grid, start, 1, timeout=60)
    model = result.arrays["weight"].numpy().astype(np.float64)
    scores = replied if placement.by_reply else model[0] if placement.by_record else model
    return audit(scores, INCLUDED, delta=DELTA, guesses=GUESSES, confidence=CONFIDENCE)
