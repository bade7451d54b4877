"""Roles of arrays: what is frozen stays, tied arrays stay equal, statistics stay statistics."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.client import NumPyClient

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.errors import CheckpointError, ConfigError
from qsfl_flower.mechanisms.broadcast.server import Broadcast
from qsfl_flower.mechanisms.compression.server import Compress
from qsfl_flower.mechanisms.privacy.server import CentralDP, LocalDP
from qsfl_flower.mechanisms.robust.server import Robust
from qsfl_flower.rounds.roles import fit_roles
from qsfl_flower.stages import Clip, ServerAdam, ServerMomentum, ServerYogi
from qsfl_flower.strategies import CheckpointStore, RunObserver, ScaffoldFedAvg, StableFedAvg
from qsfl_flower.wire import QSFL_RECORD, ROLES_KEY, from_record, to_record, with_keys

MODEL = {
    "back.weight": np.linspace(-1, 1, 6, dtype=np.float32),
    "norm.running_mean": np.zeros(2, np.float32),
    "norm.running_var": np.full(2, 1.0, np.float32),
    "norm.num_batches_tracked": np.array(0),
    "head.weight": np.linspace(0, 1, 4, dtype=np.float32),
    "head.again": np.linspace(0, 1, 4, dtype=np.float32),
}
ROLES = {
    "back.weight": "frozen",
    "norm.running_mean": "buffer",
    "norm.running_var": "buffer",
    "head.again": "tied:head.weight",
}
STATISTICS = tuple(name for name in MODEL if name.startswith("norm."))
COUNT = 5


class Mover(NumPyClient):
    """Moves every array, the frozen ones included; halves the variance."""

    def __init__(self, number):
        self.number = number

    def fit(self, parameters, config):
        arrays = dict(zip(MODEL, parameters, strict=False))
        moved = {k: v + v.dtype.type(self.number + 1) for k, v in arrays.items()}
        moved["norm.running_var"] = arrays["norm.running_var"] / 2
        return [*moved.values(), *parameters[len(MODEL) :]], 10, {"train-loss": 1.0}

    def evaluate(self, parameters, config):
        return 1.0, 10, {}


class Device:
    def __init__(self, client, mods):
        self.app = numpy_client_app(lambda context: client, mods=mods)
        self.context = Context(1, 7, {"partition-id": client.number}, RecordDict(), {})
        self.asked, self.sent = [], []

    def __call__(self, message):
        self.asked.append(message.content)
        try:
            reply = self.app(message, self.context)
        except Exception as error:
            return Message(Error(2, str(error)), reply_to=message)
        self.sent.append(reply.content)
        return reply


class Recorder(RunObserver):
    def __init__(self):
        self.rounds = []

    def on_round(self, record, clients):
        self.rounds.append(record)


@pytest.fixture
def run(fake_grid):
    def run(
        *stages, roles=ROLES, rounds=2, mods=(qsfl_mod,), clients=None, model=MODEL,
        kind=StableFedAvg, resume=None, **options,
    ):  # fmt: skip
        clients = [Mover(n) for n in range(COUNT)] if clients is None else clients
        devices = {100 + n: Device(client, list(mods)) for n, client in enumerate(clients)}
        recorder = Recorder()
        options = {"fraction_evaluate": 0.0, **options}
        strategy = kind(stages=stages, roles=roles, observer=recorder, **options)
        result = strategy.start(
            fake_grid(devices), to_record(model), rounds, timeout=1.0, resume=resume
        )
        return SimpleNamespace(
            arrays={k: np.array(v) for k, v in from_record(result.arrays).items()},
            rounds=recorder.rounds,
            devices=list(devices.values()),
            strategy=strategy,
        )

    return run


STAGES = {
    "mean": list,
    "central noise": lambda: [Clip(1.0), CentralDP(0.5, COUNT)],
    "local noise": lambda: [LocalDP(1.0, 0.5)],
    "compression": lambda: [Compress()],
    "median": lambda: [Robust("median", 1)],
    "adam": lambda: [ServerAdam()],
    "broadcast": lambda: [Broadcast(ratio=0.5)],
}


@pytest.mark.parametrize("stages", STAGES.values(), ids=STAGES)
def test_what_is_frozen_stays_and_tied_arrays_are_one(run, stages):
    arrays = run(*stages(), rounds=3).arrays
    assert arrays["back.weight"].tobytes() == MODEL["back.weight"].tobytes()
    assert arrays["head.again"].tobytes() == arrays["head.weight"].tobytes()
    assert not np.array_equal(arrays["head.weight"], MODEL["head.weight"])


@pytest.mark.parametrize("stages", [STAGES["central noise"], STAGES["local noise"]])
def test_statistics_stay_the_servers_own_where_noise_protects(run, stages):
    done = run(*stages())
    for name in STATISTICS:
        assert done.arrays[name].tobytes() == MODEL[name].tobytes()
    if any(isinstance(s, LocalDP) for s in done.strategy.chain.stages):
        sent = {name for d in done.devices for c in d.sent for name in c.array_records["arrays"]}
        assert not sent & {*STATISTICS[:2], "back.weight", "head.again"}


@pytest.mark.parametrize("roles", [None, ROLES], ids=["guessed", "declared"])
@pytest.mark.parametrize(
    "optimizer",
    [lambda: ServerMomentum(1.0, 0.95), lambda: ServerAdam(0.5), lambda: ServerYogi(0.5)],
)
def test_no_server_optimizer_steps_a_variance(run, optimizer, roles):
    """Halved 8 times by everybody; a momentum of the differences goes far below zero."""
    arrays = run(optimizer(), roles=roles, rounds=8).arrays
    np.testing.assert_allclose(arrays["norm.running_var"], np.full(2, 2.0**-8), rtol=1e-6)


def test_statistics_are_averaged_with_the_weights_of_the_model(run):
    arrays = run(rounds=1).arrays
    mean = np.mean(np.arange(COUNT) + 1)
    np.testing.assert_allclose(arrays["norm.running_mean"], np.full(2, mean, np.float32))
    assert arrays["norm.num_batches_tracked"] == round(mean)
    np.testing.assert_allclose(arrays["head.weight"], MODEL["head.weight"] + mean, rtol=1e-6)


@pytest.mark.parametrize("stages", [STAGES["mean"], lambda: [Clip(1.0)], STAGES["compression"]])
def test_what_is_not_read_is_not_sent(run, stages):
    done = run(*stages(), rounds=1)
    for device in done.devices:
        sent = {n for r in device.sent[0].array_records.values() for n in r}
        assert not sent & {"back.weight", "head.again"}
    without = run(*stages(), rounds=1, mods=()) if not stages() else None
    if without is not None:
        assert set(without.devices[0].sent[0].array_records["arrays"]) == set(MODEL)
        for name, array in without.arrays.items():
            assert array.tobytes() == done.arrays[name].tobytes()


class Bad(Mover):
    """Sends one array as it likes."""

    def __init__(self, number, name, value):
        super().__init__(number)
        self.name, self.value = name, value

    def fit(self, parameters, config):
        arrays, examples, metrics = super().fit(parameters, config)
        place = list(MODEL).index(self.name)
        arrays[place] = np.full_like(arrays[place], self.value)
        return arrays, examples, metrics


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_a_statistic_that_is_no_number_rejects_its_reply_by_name(run, value):
    clients = [*(Mover(n) for n in range(4)), Bad(4, "norm.running_var", value)]
    done = run(rounds=1, clients=clients)
    assert sum(done.rounds[-1].rejected.values()) == 1
    np.testing.assert_allclose(done.arrays["norm.running_var"], 0.5)


@pytest.mark.parametrize("stages", [lambda: [Clip(100.0)], STAGES["median"]])
def test_one_client_cannot_set_a_statistic(run, stages):
    clients = [*(Mover(n) for n in range(4)), Bad(4, "norm.running_var", -1e6)]
    assert (run(*stages(), rounds=1, clients=clients).arrays["norm.running_var"] == 0.5).all()


FEDBN = {**ROLES, **dict.fromkeys(STATISTICS, "local")}


class Watch(Mover):
    """Remembers what it was given."""

    def __init__(self, number):
        super().__init__(number)
        self.given, self.evaluated = [], []

    def fit(self, parameters, config):
        self.given.append(dict(zip(MODEL, map(np.array, parameters), strict=False)))
        return super().fit(parameters, config)

    def evaluate(self, parameters, config):
        self.evaluated.append(dict(zip(MODEL, map(np.array, parameters), strict=True)))
        return super().evaluate(parameters, config)


@pytest.mark.parametrize(
    "stages",
    [STAGES["mean"], STAGES["broadcast"], STAGES["compression"], lambda: [Clip(9.0), ServerAdam()]],
)
def test_local_statistics_stay_on_each_device(run, stages):
    clients = [Watch(n) for n in range(COUNT)]
    done = run(*stages(), roles=FEDBN, rounds=3, clients=clients, fraction_evaluate=1.0)
    for name in STATISTICS:
        assert done.arrays[name].tobytes() == MODEL[name].tobytes()
    for client, device in zip(clients, done.devices, strict=True):
        counts = [int(given["norm.num_batches_tracked"]) for given in client.given]
        assert counts == [0, client.number + 1, 2 * (client.number + 1)]
        assert client.evaluated[-1]["norm.running_var"][0] == 2.0**-3
        sent = {n for c in device.sent for r in c.array_records.values() for n in r}
        assert not sent & {*STATISTICS}


def test_masks_keep_what_is_no_number(run):
    mask = np.array([[0, -np.inf], [0, 0]], np.float32)
    roles = {**ROLES, "mask": "buffer"}
    arrays = run(rounds=2, model={**MODEL, "mask": mask}, roles=roles).arrays
    assert arrays["mask"].tobytes() == mask.tobytes()


def test_guessed_roles_are_logged_once_where_it_matters(run, caplog):
    with caplog.at_level(logging.WARNING, "qsfl_flower"):
        run(roles=None)
        assert "roles:" not in caplog.text
        run(ServerMomentum(1.0, 0.9), roles=None)
    assert caplog.text.count("roles: 2 arrays look like statistics") == 1
    assert "norm.running_mean" in caplog.text


def test_a_batch_norm_without_names_is_named_where_it_would_be_ruined(caplog):
    """A list of arrays, as Keras' ``get_weights`` gives it: scale, shift, mean, variance."""
    norm = [np.ones(3), np.zeros(3), np.zeros(3), np.ones(3)]
    model = {str(i): a for i, a in enumerate([np.full((2, 3), 0.5), *norm])}

    def warned(*stages, **options):
        return fit_roles(None, options.get("model", model), StableFedAvg(stages=stages).chain)[1]

    assert warned() == ""
    assert warned(Compress()).startswith("roles: arrays without names, of which '3' and '4'")
    assert "roles_of(model)" in warned(ServerMomentum(1.0, 0.9))
    assert warned(Compress(), model={**model, "1": np.full(3, 0.5)}) == ""
    assert warned(Compress(), model={f"n{k}": a for k, a in model.items()}) == ""


def test_no_roles_are_told_where_all_are_the_usual_ones(run):
    done = run(roles={}, rounds=1)
    assert QSFL_RECORD not in done.devices[0].asked[0]


def test_evaluation_gets_the_whole_model_without_the_suites_record(run):
    done = run(Broadcast(ratio=0.5), rounds=3, fraction_evaluate=1.0)
    assert all(r.client_eval_loss == 1.0 for r in done.rounds[1:])
    assert all(not r.rejected for r in done.rounds[1:])


def test_broadcast_sends_no_frozen_array_twice(run):
    """The steps take more bytes than a small model, so this one has a large frozen array."""
    model = {**MODEL, "back.weight": np.ones(50_000, np.float32)}
    done = run(Broadcast(ratio=0.5), rounds=2, model=model)
    assert "back.weight" in done.devices[0].asked[0].array_records["arrays"]
    assert "back.weight" not in done.devices[0].asked[1].array_records["arrays"]
    assert done.arrays["back.weight"].tobytes() == model["back.weight"].tobytes()


def tell(message, change):
    told = json.loads(message.content[QSFL_RECORD][ROLES_KEY])
    change(told)
    message.content = with_keys(message.content, {ROLES_KEY: json.dumps(told)})


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["roles"].pop("back.weight"),
        lambda told: told["roles"].update({"nobody": "frozen"}),
        lambda told: told["roles"].update({"head.weight": "master"}),
        lambda told: told.update(layout="0" * 64),
        lambda told: told.update(roles=[]),
    ],
)
def test_a_device_refuses_another_layout_before_it_trains(run, fake_grid, change):
    class Between(Device):
        def __call__(self, message):
            tell(message, change)
            return super().__call__(message)

    class Never(Mover):
        def fit(self, parameters, config):
            raise AssertionError("trained")

    recorder = Recorder()
    strategy = StableFedAvg(roles=ROLES, fraction_evaluate=0.0, observer=recorder)
    grid = fake_grid({100 + n: Between(Never(n), [qsfl_mod]) for n in range(2)})
    with pytest.raises(Exception, match="policy-roles"):
        strategy.start(grid, to_record(MODEL), 1, timeout=1.0)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"_module.head.weight": "frozen"}, "did you mean 'head.weight'"),
        ({"head.wieght": "frozen"}, "did you mean 'head.weight'"),
        ({"head.weight": "buffers"}, "allowed are trained, frozen, buffer, local and tied:NAME"),
        ({"norm.num_batches_tracked": "trained"}, "only floats can be trained"),
        ({"head.weight": None}, "head.weight' is None; allowed are"),
        (dict.fromkeys(MODEL, "frozen"), "none of the model's arrays is trained"),
        ({"head.again": "tied:nobody"}, "'nobody', which is unknown"),
        ({"head.again": "tied:back.weight"}, "which it is tied to, is float32"),
        ({"head.again": "tied:head.weight", "head.weight": "tied:head.again"}, "itself a tied"),
    ],
)
def test_roles_that_do_not_fit_are_refused_by_name(roles, message):
    with pytest.raises(ConfigError, match=message):
        StableFedAvg(roles=roles).layout_of(MODEL)


def test_a_checkpoint_with_other_roles_is_refused(run, tmp_path):
    store = CheckpointStore(tmp_path)
    run(ServerAdam(), rounds=1, checkpoints=store)
    with pytest.raises(CheckpointError, match="other roles"):
        run(ServerAdam(), rounds=2, resume=store.latest(), roles={})
    run(ServerAdam(), rounds=2, resume=store.latest())


def test_scaffold_moves_no_control_of_a_frozen_array(run):
    arrays = run(kind=ScaffoldFedAvg, rounds=2).arrays
    assert arrays["back.weight"].tobytes() == MODEL["back.weight"].tobytes()
    assert arrays["head.again"].tobytes() == arrays["head.weight"].tobytes()


def test_a_server_that_calls_a_weight_a_buffer_gets_nothing_past_the_noise(run):
    """The node's noise covers the vector: what is beside it must be the server's own."""
    done = run(LocalDP(1.0, 0.5), rounds=1, roles={**ROLES, "head.weight": "trained"})
    (device, *_) = done.devices
    content = device.asked[0]
    lie = done.strategy.layout_of(MODEL)
    lie = type(lie).of(MODEL, {**lie.declared, "head.weight": "buffer", "back.weight": "trained"})
    reply = device(Message(with_keys(content, {ROLES_KEY: lie.told}), 5, "train"))
    sent = from_record(reply.content.array_records["arrays"])
    assert sent["head.weight"].tobytes() == MODEL["head.weight"].tobytes()
