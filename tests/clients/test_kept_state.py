"""A client's memory on disk: what a killed process leaves is what an undisturbed one would hold."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.checkpoints import ClientCheckpoints
from qsfl_flower.clients.data import Dataset, Normalization
from qsfl_flower.clients.device import DeviceClass, DeviceProfile, Reading
from qsfl_flower.clients.kept_state import KEPT, forgets, state_mod, training_alone
from qsfl_flower.clients.local import LOCAL_RECORD
from qsfl_flower.clients.mobile import Device, MobileClient
from qsfl_flower.clients.models import build_model, get_arrays
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.clients.personal import STATE as PERSONAL
from qsfl_flower.clients.scaffold import STATE as SCAFFOLD
from qsfl_flower.clients.trainer import TrainConfig
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.errors import Refusal
from qsfl_flower.mechanisms.compression.client import MEMORY_RECORD
from qsfl_flower.mechanisms.compression.core import Scheme
from qsfl_flower.node.policy import NodePolicy
from qsfl_flower.numerics import Layout
from qsfl_flower.strategies import CompressedFedAvg
from qsfl_flower.wire import (
    CHOOSE_STEP,
    MASK_STEP,
    PAYLOAD_RECORD,
    Plan,
    PlanItem,
    from_record,
    to_record,
)

FINE = Reading(battery=0.9, charging=True, metered=False, in_use=False, online=True)
PROFILE = DeviceProfile(2000.0, 4, DeviceClass.HIGH)
ROUNDS, INTERRUPTED = 4, 3


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the client runs after it."""


class Watch:
    """A monitor under which nothing is ever wrong, until a batch at which the process dies."""

    def __init__(self, dies_at: int | None) -> None:
        self.dies_at, self.reads = dies_at, -1

    def read(self) -> Reading:
        self.reads += 1
        if self.reads == self.dies_at:
            raise Killed
        return FINE

    def seconds(self) -> float:
        return float(self.reads)

    def worked(self, examples: int) -> None: ...

    def rest(self, seconds: float) -> None: ...


def net() -> Any:
    return build_model("mlp", (6,), 2, 1, {"hidden": 5})


def data() -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    return Dataset("npz", x, y, x, y, (6,), 2, None, "here", Normalization((0.0,) * 6, (1.0,) * 6))


class Node:
    """A SuperNode: its process holds the client state, and loses it when it dies."""

    def __init__(self, folder: Path | None, scheme: Scheme, key: Secret | None = None) -> None:
        self.folder, self.scheme, self.key = folder, scheme, key
        self.sent: list[bytes] = []
        self.dies_at: int | None = None
        self.restart()

    def restart(self) -> None:
        self.context = Context(1, 1, {"partition-id": 0}, RecordDict(), {})

    def answer(self, message: Message) -> Message:
        folder = self.folder
        mods = [qsfl_mod] if folder is None else [state_mod(folder, self.key), qsfl_mod]
        store = None if folder is None else ClientCheckpoints(folder, key=self.key)
        device = Device(PROFILE, Watch(self.dies_at), checkpoints=store, checkpoint_every=1)
        config = TrainConfig(batch_size=8, epochs=1, learning_rate=0.1, momentum=0.9)

        def client(context: Context) -> MobileClient:
            return MobileClient(net(), data(), config, seed=3, client_id=7, device=device)

        reply = numpy_client_app(client, mods)(message, self.context)
        (record,) = reply.content.array_records[PAYLOAD_RECORD].values()
        self.sent.append(record.data)
        return reply

    def federate(self, fake_grid: Any, disturb: Any = None) -> None:
        def client(message: Message) -> Message:
            server_round = int(message.content["config"]["server-round"])
            if disturb is not None:
                disturb(self, message, server_round)
            return self.answer(message)

        strategy = CompressedFedAvg(
            scheme=self.scheme, fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1
        )
        start = to_record(get_arrays(net()))
        strategy.start(fake_grid({1: client}), start, num_rounds=ROUNDS, timeout=1.0)


@pytest.mark.parametrize("scheme", [Scheme(ratio=0.2), Scheme(ratio=0.2, momentum=0.5)])
@pytest.mark.parametrize("step", [1, 4])
def test_killed_in_training_it_sends_the_same_record(
    scheme: Scheme, step: int, fake_grid: Any, tmp_path: Path
) -> None:
    undisturbed = Node(None, scheme)
    undisturbed.federate(fake_grid)

    def kill(node: Node, message: Message, server_round: int) -> None:
        if server_round == INTERRUPTED:
            node.dies_at = step
            with pytest.raises(Killed):
                node.answer(message)
            node.dies_at = None
            node.restart()

    node = Node(tmp_path, scheme, Secret(bytes(32)) if step == 1 else None)
    node.federate(fake_grid, kill)
    assert len(node.sent) == ROUNDS
    assert node.sent == undisturbed.sent
    for file in (tmp_path / "state").iterdir():
        assert file.stat().st_mode & 0o077 == 0 or os.name != "posix"


def test_without_the_file_the_record_after_a_restart_is_another(
    fake_grid: Any, tmp_path: Path
) -> None:
    """The other test would pass if the residual did not matter."""
    undisturbed, node = Node(None, Scheme(ratio=0.2)), Node(None, Scheme(ratio=0.2))
    undisturbed.federate(fake_grid)
    node.federate(fake_grid, lambda n, _, r: n.restart() if r == INTERRUPTED else None)
    assert node.sent[:2] == undisturbed.sent[:2]
    assert node.sent[2] != undisturbed.sent[2]


def test_killed_between_rounds_it_goes_on_as_if_nothing_had_happened(
    fake_grid: Any, tmp_path: Path
) -> None:
    undisturbed, node = Node(None, Scheme(ratio=0.2)), Node(tmp_path, Scheme(ratio=0.2))
    undisturbed.federate(fake_grid)
    node.federate(fake_grid, lambda n, _, r: n.restart())
    assert node.sent == undisturbed.sent


HIDDEN_ONLY = NodePolicy(hidden_only=True)


@pytest.mark.parametrize(
    ("layout", "item", "allowed"),
    [
        (Layout.of(get_arrays(net()), {"3.weight": "local"}), PlanItem("clip"), False),
        (Layout.of({"w": np.ones(1), "running_mean": np.ones(1)}, {"running_mean": "local"}),
         PlanItem("clip"), True),
        (None, PlanItem(MASK_STEP, {"mask": {"feedback": True}}), False),
        (None, PlanItem(MASK_STEP, {"mask": {"feedback": False}}), True),
        (None, PlanItem(CHOOSE_STEP, {"scheme": {"feedback": True}}), False),
    ],
)  # fmt: skip
def test_a_plan_that_needs_what_earlier_rounds_left_is_refused_under_hidden_only(
    layout: Layout | None, item: PlanItem, allowed: bool
) -> None:
    told = context()
    told.state[KEPT[0]] = ArrayRecord()
    for policy in (NodePolicy(), NodePolicy(hidden_only=True, kept_state=True)):
        with training_alone(told, policy, Plan((item,)), layout):
            assert KEPT[0] in told.state
            assert not forgets()
    with (
        nullcontext() if allowed else pytest.raises(Refusal, match=r"kept_state = true"),
        training_alone(told, HIDDEN_ONLY, Plan((item,)), layout),
    ):
        assert forgets()
        assert KEPT[0] not in told.state
    assert not forgets()


@pytest.mark.parametrize("name", [SCAFFOLD, PERSONAL])
def test_an_app_that_keeps_something_is_refused_under_hidden_only(name: str) -> None:
    told = context()
    with (
        pytest.raises(Refusal, match=name),
        training_alone(told, HIDDEN_ONLY, Plan(), None),
    ):
        told.state[name] = ArrayRecord()
    assert name not in told.state


def test_training_on_another_model_is_not_taken_up_under_hidden_only(tmp_path: Path) -> None:
    """A server sends all but one phone another model, and the honest one when they were stopped."""
    config = TrainConfig(batch_size=8, epochs=1, learning_rate=0.1)

    def fit(dies_at: int | None, model: list[np.ndarray]) -> dict[str, Any]:
        store = ClientCheckpoints(tmp_path)
        device = Device(PROFILE, Watch(dies_at), checkpoints=store, checkpoint_every=1)
        client = MobileClient(net(), data(), config, seed=3, client_id=7, device=device)
        return client.fit(model, {"server-round": 1})[2]

    honest = list(get_arrays(net()).values())
    with pytest.raises(Killed):
        fit(2, [np.zeros_like(a) for a in honest])
    with training_alone(context(), HIDDEN_ONLY, Plan(), None):
        assert fit(None, honest)["resumed-step"] == 0
    with pytest.raises(Killed):
        fit(2, [np.zeros_like(a) for a in honest])
    assert fit(None, honest)["resumed-step"] > 0


def run_mod(folder: Path, context: Context, writes: RecordDict | None = None) -> None:
    def app(message: Message, context: Context) -> Message:
        for name, record in (writes or RecordDict()).items():
            context.state[name] = record
        return message

    state_mod(folder)(Message(RecordDict(), 1, "train"), context, app)


def context(run: int = 1, partition: int = 0) -> Context:
    return Context(run, 1, {"partition-id": partition}, RecordDict(), {})


def test_every_kept_record_comes_back_in_its_order_and_nothing_else(
    inside_run: None, tmp_path: Path
) -> None:
    assert set(KEPT) == {MEMORY_RECORD, PERSONAL, SCAFFOLD, LOCAL_RECORD}
    arrays = {"z/w": np.ones((2, 3), np.float32), "a": np.arange(4)}
    records = {name: to_record(arrays) for name in (*KEPT, "qsfl-committee")}
    run_mod(tmp_path, context(), RecordDict(records))
    fresh = context()
    run_mod(tmp_path, fresh)
    assert set(fresh.state) == {*KEPT, "qsfl-run"}
    for name in KEPT:
        found = from_record(fresh.state[name])
        assert list(found) == list(arrays)
        assert all(np.array_equal(found[k], v) for k, v in arrays.items())


@pytest.mark.parametrize("other", [{"run": 2}, {"partition": 1}])
def test_the_memory_of_another_run_or_client_is_passed_over(
    other: dict[str, int], inside_run: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_mod(tmp_path, context(), RecordDict({KEPT[0]: to_record({"residual": np.ones(3)})}))
    elsewhere = context(**other)
    run_mod(tmp_path, elsewhere)
    assert set(elsewhere.state) == {"qsfl-run"}
    assert "another client" in caplog.text


def test_what_flower_still_holds_is_not_replaced(inside_run: None, tmp_path: Path) -> None:
    run_mod(tmp_path, context(), RecordDict({KEPT[0]: to_record({"residual": np.ones(3)})}))
    living = context()
    living.state[KEPT[0]] = record = to_record({"residual": np.zeros(3)})
    run_mod(tmp_path, living)
    assert living.state[KEPT[0]] is record


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_that_was_set_back_is_noticed_where_the_node_remembers(
    inside_run: None, tmp_path: Path, durable: bool
) -> None:
    def fresh() -> Context:
        made = context()
        if durable:
            made.node_config["qsfl-state"] = str(tmp_path / "node")
        return made

    def memory(value: float) -> RecordDict:
        return RecordDict({MEMORY_RECORD: to_record({"residual": np.full(3, value)})})

    run_mod(tmp_path, fresh(), memory(7.0))
    (file,) = (tmp_path / "state").glob("*.ckpt")
    old = file.read_bytes()
    run_mod(tmp_path, fresh(), memory(9.0))
    newest = fresh()
    run_mod(tmp_path, newest)
    assert from_record(newest.state[MEMORY_RECORD])["residual"][0] == 9.0
    file.write_bytes(old)
    later = fresh()
    run_mod(tmp_path, later)
    assert (MEMORY_RECORD in later.state) is not durable


def test_what_a_run_left_behind_does_not_reach_the_next(fake_grid: Any) -> None:
    """Flower keeps the client state over all runs of a series."""
    from flwr.app import Array, ArrayRecord, MetricRecord

    from qsfl_flower.stages import Compress
    from qsfl_flower.strategies import StableFedAvg

    states = [RecordDict() for _ in range(3)]

    def federate(run: int, states: list[RecordDict], size: int = 4) -> np.ndarray:
        def device(n: int) -> Any:
            def train(message: Message, context: Context) -> Message:
                (record,) = message.content.array_records.values()
                new = record["w"].numpy() + 0.1 * np.arange(1, size + 1) * (n + 1)
                metrics = MetricRecord({"num-examples": 10})
                content = {"arrays": ArrayRecord({"w": Array(new)}), "metrics": metrics}
                return Message(RecordDict(content), reply_to=message)

            where = Context(run, n, {"partition-id": n}, states[n], {})
            return lambda message: qsfl_mod(message, where, train)

        strategy = StableFedAvg(
            fraction_evaluate=0.0, min_available_nodes=3, stages=[Compress(Scheme(ratio=0.25))]
        )
        grid = fake_grid({n: device(n) for n in range(3)})
        start = ArrayRecord({"w": Array(np.zeros(size))})
        return strategy.start(grid, start, 1, timeout=5).arrays["w"].numpy()

    federate(1, states)
    assert all(MEMORY_RECORD in state for state in states)
    again = federate(2, states)
    assert np.array_equal(again, federate(3, [RecordDict() for _ in range(3)]))
    federate(4, states, size=6)  # another model


def test_the_folder_of_checkpoints_is_the_owners_alone(inside_run: None, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        memory = RecordDict({MEMORY_RECORD: to_record({"residual": np.ones(3)})})
        run_mod(tmp_path / "new", context(), memory)
    finally:
        os.umask(before)
    assert (tmp_path / "new" / "state").stat().st_mode & 0o777 == 0o700
