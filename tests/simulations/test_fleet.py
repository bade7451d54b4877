"""Many devices on few nodes: the strategy sees devices, the app sees one device at a time."""

import json
from functools import partial

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from safetensors.numpy import load_file

from qsfl_flower.errors import ConfigError, QSFLError
from qsfl_flower.simulations.config import experiment_from_dict
from qsfl_flower.simulations.fleet import FIRST_DEVICE, FleetGrid, fleet_mod
from qsfl_flower.strategies import RunObserver, StableFedAvg

DEVICES, HOSTS = 7, 3


def model():
    return ArrayRecord({"w": Array(np.zeros(4, np.float32))})


class Fleet:
    """Hosts that run scripted devices, with what every device remembers."""

    def __init__(self, fake_grid, device):
        self.contexts = {
            n: Context(1, n, {"partition-id": i, "num-partitions": HOSTS}, RecordDict(), {})
            for i, n in enumerate((31, 21, 11))
        }
        self.bundles = 0
        mod = fleet_mod(DEVICES)

        def host(node, message):
            self.bundles += 1
            return mod(message, self.contexts[node], device)

        self.inner = fake_grid({n: partial(host, n) for n in self.contexts})
        self.grid = FleetGrid(self.inner, DEVICES, HOSTS)


@pytest.fixture
def counting(trained):
    """A device that adds its number and counts its messages in its own memory."""

    def device(message, context):
        number = context.node_config["partition-id"]
        assert context.node_id == message.metadata.dst_node_id == FIRST_DEVICE + number
        assert context.node_config["num-partitions"] == DEVICES
        seen = context.state.get("seen", ConfigRecord({"n": 0}))["n"]
        context.state["seen"] = ConfigRecord({"n": seen + 1})
        if number == 5:
            raise ValueError("device 5 is broken")
        return trained(float(number))(message)

    return device


class Rows(RunObserver):
    def __init__(self):
        self.rows, self.records = [], []

    def on_round(self, record, clients):
        self.records.append(record)
        self.rows.append(clients)


def test_a_strategy_sees_one_node_per_device(fake_grid, counting):
    fleet, seen = Fleet(fake_grid, counting), Rows()
    strategy = StableFedAvg(fraction_evaluate=0, min_available_nodes=DEVICES, observer=seen)
    result = strategy.start(fleet.grid, model(), num_rounds=2, timeout=5.0)
    assert fleet.bundles == 2 * HOSTS
    assert [r.status for r in seen.rows[-1]] == ["accepted"] * 5 + ["client-error", "accepted"]
    assert "device 5 is broken" in seen.rows[-1][5].detail
    expected = (0 + 1 + 2 + 3 + 4 + 6) / 6 * 2
    np.testing.assert_allclose(result.arrays["w"].numpy(), expected, rtol=1e-6)


def test_every_device_has_a_memory_of_its_own(fake_grid, counting):
    fleet = Fleet(fake_grid, counting)
    strategy = StableFedAvg(fraction_evaluate=0, min_available_nodes=DEVICES)
    strategy.start(fleet.grid, model(), num_rounds=3, timeout=5.0)
    counts = {k: v["n"] for c in fleet.contexts.values() for k, v in c.state.items()}
    # What a device does before it fails is not kept.
    assert counts == {f"device-{i}/seen": 3 for i in range(DEVICES) if i != 5}


def test_what_all_devices_are_told_travels_once_per_host(fake_grid, counting):
    fleet = Fleet(fake_grid, counting)
    StableFedAvg(fraction_evaluate=0, min_available_nodes=DEVICES).start(
        fleet.grid, model(), num_rounds=1, timeout=5.0
    )
    sent = [sum(isinstance(r, ArrayRecord) for r in m.content.values()) for m in fleet.inner.pushed]
    assert sent == [1] * HOSTS


def test_a_host_gets_one_message_at_a_time(fake_grid, inside_run):
    silent = fake_grid({n: lambda message: None for n in (1, 2, 3)})
    grid = FleetGrid(silent, DEVICES, HOSTS)
    nodes = list(grid.get_node_ids())

    def push(node):
        (i,) = grid.push_messages([Message(RecordDict(), node, "train")])
        return i

    first, second = push(nodes[0]), push(nodes[3])  # both live on the first host
    push(nodes[1])
    assert len(silent.pushed) == 2
    assert grid.pull_messages([first, second]) == []
    done = silent.pushed[0]
    silent.ready[done.metadata.message_id] = Message(Error(8, "died"), reply_to=done)
    (reply,) = grid.pull_messages([first, second])
    assert reply.error.reason == "died"
    assert reply.metadata.reply_to_message_id == first
    assert len(silent.pushed) == 3


def test_unknown_devices_get_no_message_id(fake_grid, inside_run):
    grid = FleetGrid(fake_grid({1: lambda m: None}), 2, 1)
    assert list(grid.push_messages([Message(RecordDict(), FIRST_DEVICE, "train")])) == [""]
    list(grid.get_node_ids())
    assert list(grid.push_messages([Message(RecordDict(), FIRST_DEVICE + 2, "train")])) == [""]
    with pytest.raises(QSFLError, match="send_and_receive"):
        grid.send_and_receive([])


def test_no_device_before_all_hosts_are_there(fake_grid, inside_run):
    inner = fake_grid({1: lambda m: None})
    grid = FleetGrid(inner, 4, 2)
    assert list(grid.get_nodes()) == []
    inner.clients[2] = lambda m: None
    assert len(list(grid.get_nodes())) == 4


def test_messages_that_are_no_bundles_pass(inside_run):
    message = Message(RecordDict(), 5, "train")
    assert fleet_mod(3)(message, None, lambda m, c: m) is message


def test_more_hosts_than_clients_are_refused():
    with pytest.raises(ConfigError, match="supernodes 5 is more than"):
        experiment_from_dict({"clients": {"count": 4}, "simulation": {"supernodes": 5}})


@pytest.mark.slow
def test_a_fleet_gives_the_same_model_as_one_node_per_client(tmp_path):
    from qsfl_flower.simulations.runner import run_experiment

    def final(folder, **simulation):
        experiment = experiment_from_dict(
            {
                "rounds": 2,
                "clients": {"count": 12, "fraction_train": 0.5},
                "strategy": {"name": "fedavg", "stages": [{"stage": "authenticate"}]},
                "simulation": simulation,
                "output": {"folder": str(tmp_path)},
            }
        )
        return load_file(f"{run_experiment(experiment)['folder']}/model.safetensors")

    one, many = final("one"), final("many", supernodes=3)
    assert all(np.array_equal(one[k], many[k]) for k in one)


def test_a_device_cannot_change_what_later_devices_get(fake_grid, trained):
    """Device 0 writes into everything that it was handed; its host runs 3 and 6 after it."""

    def device(message, context):
        reply = trained(1.0)(message)
        if context.node_config["partition-id"] == 0:
            message.content["arrays"]["w"].data = b""
            message.content["arrays"]["w"] = Array(np.full(4, 100, np.float32))
            message.content["arrays"]["v"] = Array(np.zeros(1))
            message.content["config"]["server-round"] = 100
            message.content["mine"] = ConfigRecord({})
            context.run_config["mine"] = 1
        else:
            assert message.content["config"]["server-round"] in (1, 2)
            assert "mine" not in message.content
            assert "mine" not in context.run_config
        return reply

    fleet, seen = Fleet(fake_grid, device), Rows()
    strategy = StableFedAvg(fraction_evaluate=0, min_available_nodes=DEVICES, observer=seen)
    result = strategy.start(fleet.grid, model(), num_rounds=2, timeout=5.0)
    np.testing.assert_allclose(result.arrays["w"].numpy(), 2.0, rtol=1e-6)
    assert [r.accepted for r in seen.records] == [0, DEVICES, DEVICES]


BUNDLES = {
    "no bundle": {"x": ConfigRecord({"a": 1})},
    "nothing": {},
    "no index": {"qsfl-bundle": ConfigRecord({})},
    "an array": {"qsfl-bundle": ArrayRecord({"w": Array(np.zeros(1))})},
    "deep": {"qsfl-bundle": ConfigRecord({"index": "[" * 100_000})},
    "infinite": {"qsfl-bundle": ConfigRecord({"index": '{"1": [Infinity, ""], "4": [NaN, ""]}'})},
    "huge": {"qsfl-bundle": ConfigRecord({"index": '{"1": [' + "9" * 5000 + ', ""]}'})},
    "foreign": {"qsfl-bundle": ConfigRecord({"index": '{"0": {}, "1": {}, "4": {}}'})},
}


@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_hosts_malformed_bundle_rejects_its_own_devices_only(fake_grid, trained, bundle):
    fleet, seen = Fleet(fake_grid, lambda message, context: trained(1.0)(message)), Rows()
    fleet.inner.clients[21] = lambda message: Message(
        RecordDict({**BUNDLES[bundle]}), reply_to=message
    )
    strategy = StableFedAvg(fraction_evaluate=0, min_available_nodes=DEVICES, observer=seen)
    result = strategy.start(fleet.grid, model(), num_rounds=2, timeout=5.0)
    np.testing.assert_allclose(result.arrays["w"].numpy(), 2.0, rtol=1e-6)
    rejected = [n for n, row in enumerate(seen.rows[-1]) if row.status != "accepted"]
    assert rejected == [1, 4]


def test_one_malformed_part_rejects_its_device_only(fake_grid, trained):
    fleet, seen = Fleet(fake_grid, lambda message, context: trained(1.0)(message)), Rows()
    honest = fleet.inner.clients[21]

    def host(message):
        reply = honest(message)
        index = json.loads(reply.content["qsfl-bundle"]["index"])
        reply.content["qsfl-bundle"]["index"] = json.dumps({**index, "1": [float("inf"), ""]})
        return reply

    fleet.inner.clients[21] = host
    strategy = StableFedAvg(fraction_evaluate=0, min_available_nodes=DEVICES, observer=seen)
    strategy.start(fleet.grid, model(), num_rounds=1, timeout=5.0)
    assert [n for n, row in enumerate(seen.rows[-1]) if row.status != "accepted"] == [1]
