"""Devices with keys, and a federation of them, for the tests of hidden updates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.client import NumPyClient

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.crypto.federation import create_federation
from qsfl_flower.crypto.roster import open_roster
from qsfl_flower.mechanisms.authentication.client import auth_mod
from qsfl_flower.stages import Authenticate
from qsfl_flower.strategies import RunObserver
from qsfl_flower.wire import DETAIL_KEY, QSFL_RECORD, REFUSED_KEY
from qsfl_flower.wire.keys import TASK_KEY

NOW = 1_800_000_000
MODEL = {"w": np.zeros((2, 3), np.float32), "n": np.array(7), "b": np.zeros(2, np.float64)}
WIDTH = 8


def update_of(number: int) -> np.ndarray:
    """Return the difference of client `number`: distinctive, of norm below 1."""
    return np.random.default_rng(number).normal(size=WIDTH).astype(np.float32) / 8


def examples_of(number: int) -> int:
    return 100 * (number + 1)


def loss_of(number: int) -> float:
    return 0.37 + 0.11 * number


class Add(NumPyClient):
    """Adds a vector of its own, and pulls the model towards zero."""

    def __init__(self, number, update, pull=0.0, examples=None):
        self.number, self.update, self.pull = number, update, pull
        self.examples = examples or examples_of(number)

    def fit(self, parameters, config):
        w, n, b = parameters
        step = self.update - self.pull * np.concatenate([w.reshape(-1), b])
        arrays = [w + step[:6].reshape(2, 3).astype(w.dtype), n, b + step[6:]]
        return arrays, self.examples, {"train-loss": loss_of(self.number)}


LENIENT = Path(__file__).with_name("lenient.toml")


class Device:
    """A client with keys and state of its own; `attack(message, answer)` may interfere."""

    def __init__(self, number, identity, roster, attack=None, update=None, **options):
        config = {"partition-id": number, "qsfl-policy": str(LENIENT)}
        self.context = Context(1, 100 + number, config, RecordDict(), {})
        credentials = Credentials(identity, roster)
        update = update_of(number) if update is None else update
        self.app = numpy_client_app(
            lambda context: Add(number, update, **options),
            mods=[auth_mod(lambda context: credentials, lambda: NOW), qsfl_mod],
        )
        self.attack = attack

    def answer(self, message):
        try:
            return self.app(message, self.context)
        except Exception as error:
            return Message(Error(2, str(error)), reply_to=message)

    def __call__(self, message):
        return self.answer(message) if self.attack is None else self.attack(message, self.answer)


def task_of(message) -> str:
    record = message.content.config_records.get(QSFL_RECORD) or {}
    return record.get(TASK_KEY, "train")


def refusal_of(reply) -> str:
    """Return why a client refuses what it was asked."""
    told = reply.content.config_records[QSFL_RECORD]
    return f"{told[REFUSED_KEY]}: {told[DETAIL_KEY]}"


class Recorder(RunObserver):
    def __init__(self):
        self.rounds, self.rows = [], []

    def on_round(self, record, clients):
        self.rounds.append(record)
        self.rows.append({row.client: row for row in clients})


@pytest.fixture(scope="module")
def keys():
    return create_federation((str(n) for n in range(12)), now=NOW)


@pytest.fixture
def federation(keys, fake_grid):
    """Make a grid of `count` devices, with attacks and updates by client number."""
    roster = open_roster(keys.roster, keys.authority)

    def make(count, attacks=None, updates=None, pull=0.0, examples=lambda n: None):
        devices = {
            100 + n: Device(
                n,
                keys.clients[str(n)],
                roster,
                (attacks or {}).get(n),
                (updates or {}).get(n),
                pull=pull,
                examples=examples(n),
            )
            for n in range(count)
        }
        return fake_grid(devices), devices

    make.gate = Authenticate(Credentials(keys.server, roster), clock=lambda: NOW)
    make.credentials = Credentials(keys.server, roster)
    return make
