"""A federation of six devices under pairwise masks, for the tests of `MaskedSum`."""

from types import SimpleNamespace

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.client import NumPyClient

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.mechanisms.authentication.client import auth_mod
from qsfl_flower.rounds.context import Exchange, task_content
from qsfl_flower.stages import Authenticate, MaskedSum
from qsfl_flower.strategies import RunObserver, StableFedAvg
from qsfl_flower.wire import QSFL_RECORD, to_record
from qsfl_flower.wire.keys import MASKED_SUM, TASK_KEY

NOW = 1_800_000_000
NAMES = tuple(str(n) for n in range(6))
MODEL = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(2, np.float64)}


class Add(NumPyClient):
    """Adds its own constant; client n has 100 (n + 1) examples."""

    def __init__(self, number):
        self.number = number

    def fit(self, parameters, config):
        step = 0.1 * (self.number + 1)
        arrays = [p + np.asarray(step, p.dtype) for p in parameters]
        return arrays, 100 * (self.number + 1), {"train-loss": float(self.number), "secret": 5.0}

    def evaluate(self, parameters, config):
        return 1.0, 5, {}


class Device:
    """A client with its own keys and state. `attack(message, answer)` may do something else."""

    def __init__(self, name, identity, roster, attack=None, config=None, clock=lambda: NOW):
        self.context = Context(
            1, 100 + int(name), {"partition-id": int(name), **(config or {})}, RecordDict(), {}
        )
        credentials = Credentials(identity, roster)
        self.app = numpy_client_app(
            lambda context: Add(int(name)),
            mods=[auth_mod(lambda context: credentials, clock), qsfl_mod],
        )
        self.attack = attack
        self.replies = []

    def answer(self, message):
        try:
            reply = self.app(message, self.context)
        except Exception as error:
            return Message(Error(2, str(error)), reply_to=message)
        self.replies.append(reply)
        return reply

    def __call__(self, message):
        if self.attack is None:
            return self.answer(message)
        return self.attack(message, self.answer)


def task_of(message):
    """Return ``"train"``, or the last part of a task's name."""
    record = message.content.config_records.get(QSFL_RECORD) or {}
    return record.get(TASK_KEY, message.metadata.message_type).rpartition(".")[2]


def vanish(*tasks, rounds=(1, 2, 3)):
    """Give no answer to some tasks of some rounds."""
    seen = {"round": 0}

    def attack(message, answer):
        task = task_of(message)
        seen["round"] += task == "train"
        return None if task in tasks and seen["round"] in rounds else answer(message)

    return attack


class Recorder(RunObserver):
    def __init__(self):
        self.rounds, self.rows = [], []

    def on_round(self, record, clients):
        self.rounds.append(record)
        self.rows.append({row.client: row for row in clients})


def run_federation(grid, keys, roster, rounds=2, attacks=None, config=None, stages=(), **options):
    """Run a federation of six devices, some of which attack."""
    attacks, recorder = attacks or {}, Recorder()
    strategy = options.pop("strategy", StableFedAvg)
    devices = options.pop("devices", None) or {
        100 + int(n): Device(n, keys.clients[n], roster, attacks.get(int(n)), config)
        for n in keys.clients
    }
    server = Credentials(keys.server, roster)
    gate = Authenticate(server, clock=lambda: NOW)
    masked = MaskedSum(server, clock=lambda: NOW, **{"colluding": 0.0, **options})
    strategy = strategy(fraction_evaluate=0.0, stages=[gate, masked, *stages], observer=recorder)
    grid = grid(devices)
    result = strategy.start(grid, to_record(MODEL), num_rounds=rounds, timeout=0.05)
    return SimpleNamespace(
        result=result, grid=grid, rounds=recorder.rounds[1:], rows=recorder.rows[1:],
        devices=devices, strategy=strategy,
    )  # fmt: skip


def refusal(message, fields, device, keys, roster):
    """Sign another question with the server's keys and return the reason of the refusal."""
    gate = Authenticate(Credentials(keys.server, roster), clock=lambda: NOW)
    task = message.content.config_records[QSFL_RECORD][TASK_KEY]
    content = task_content(task, **{MASKED_SUM: ConfigRecord(fields)})
    node = message.metadata.dst_node_id
    contents, _ = gate.instruct({node: content}, gate.init(None), Exchange("train", 1, 1, 5.0))
    question = Message(contents[node], node, "train")
    question.metadata.__dict__["_message_id"] = "another"
    reply = device.app(question, device.context)
    return reply.content.config_records[MASKED_SUM]["refused"]
