"""The device client: refusals, adaptation, and interruption at every step with the same result."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, RecordDict

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.checkpoints import ClientCheckpoints
from qsfl_flower.clients.conditions import Conditions
from qsfl_flower.clients.data import Dataset, Normalization
from qsfl_flower.clients.device import DeviceClass, DeviceProfile, Reading, TraceMonitor
from qsfl_flower.clients.mobile import Device, MobileClient
from qsfl_flower.clients.models import build_model
from qsfl_flower.clients.trainer import TrainConfig, TrainingClient
from qsfl_flower.clients.workload import Workload
from qsfl_flower.crypto.secret import Secret
from qsfl_flower.strategies import RunObserver, StableFedAvg

FINE = Reading(battery=0.9, charging=True, metered=False, in_use=False, online=True)
BIG = DeviceProfile(2000.0, 4, DeviceClass.HIGH)
CONFIGS = {
    "sgd": {"momentum": 0.9, "learning_rate": 0.05},
    "adam": {"optimizer": "adam", "learning_rate": 0.01},
}
EVERY = {"batch_size": 8, "epochs": 2}
STEPS = 10  # 40 examples in batches of 8, twice


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the client runs after it."""


class Script:
    """A monitor that counts readings and does something at one of them."""

    def __init__(self, at: int | None = None, what: Any = None) -> None:
        self.at, self.what, self.reads, self.now, self.rested = at, what, -1, 0.0, 0.0

    def read(self) -> Reading:
        self.reads += 1
        if self.reads == self.at:
            if isinstance(self.what, Reading):
                return self.what
            raise self.what
        return FINE

    def seconds(self) -> float:
        return self.now

    def worked(self, examples: int) -> None:
        self.now += examples

    def rest(self, seconds: float) -> None:
        self.rested += seconds


def data(count: int = 40) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 6)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    return Dataset("npz", x, y, x, y, (6,), 2, None, "here", Normalization((0.0,) * 6, (1.0,) * 6))


def build(
    folder: Path | None = None,
    monitor: Any = None,
    optimizer: str = "sgd",
    key: Secret | None = None,
    examples: Dataset | None = None,
    config: dict[str, Any] | None = None,
    **device: Any,
) -> MobileClient:
    examples = examples or data()
    store = None if folder is None else ClientCheckpoints(folder, key=key)
    parts = {"profile": BIG, "checkpoint_every": 1, **device}
    return MobileClient(
        build_model("mlp", examples.input_shape, 2, 1, {"hidden": 5}),
        examples,
        TrainConfig(**{**EVERY, **CONFIGS[optimizer], **(config or {})}),
        seed=3,
        client_id=7,
        device=Device(monitor=monitor or Script(), checkpoints=store, **parts),
    )


def equal(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


START = [a + np.float32(0.01) for a in build().get_parameters({})]
ROUND = {"server-round": 4, "proximal-mu": 0.1}


@pytest.mark.parametrize("optimizer", sorted(CONFIGS))
def test_an_undisturbed_device_does_what_any_client_does(optimizer: str) -> None:
    examples, config = data(), TrainConfig(**EVERY, **CONFIGS[optimizer])
    model = build_model("mlp", (6,), 2, 1, {"hidden": 5})
    plain = TrainingClient(model, examples, config, seed=3, client_id=7)
    expected, count, _ = plain.fit(START, ROUND)
    arrays, examples_used, metrics = build(optimizer=optimizer).fit(START, ROUND)
    assert equal(arrays, expected)
    assert examples_used == count == 40
    assert metrics["staleness"] == metrics["resumed-step"] == 0
    assert metrics["micro-batch"] == 8


@pytest.mark.parametrize("optimizer", sorted(CONFIGS))
@pytest.mark.parametrize("step", range(1, STEPS))
def test_killed_after_any_step_the_result_is_the_same_on_another_machine(
    optimizer: str, step: int, tmp_path: Path
) -> None:
    expected, *_ = build(optimizer=optimizer).fit(START, ROUND)
    key = Secret(bytes(32)) if step % 2 else None
    with pytest.raises(Killed):
        build(tmp_path / "a", Script(step, Killed()), optimizer, key).fit(START, ROUND)
    shutil.move(tmp_path / "a", tmp_path / "b")
    arrays, count, metrics = build(tmp_path / "b", None, optimizer, key).fit(START, ROUND)
    assert metrics["resumed-step"] == step
    assert count == 40
    assert equal(arrays, expected)
    assert not list((tmp_path / "b").glob("*.ckpt"))


@pytest.mark.parametrize("step", [1, 4, 9])
def test_a_device_that_pauses_refuses_and_takes_up_again(step: int, tmp_path: Path) -> None:
    low = dataclasses.replace(FINE, battery=0.15)
    expected, *_ = build().fit(START, ROUND)
    paused = build(tmp_path, Script(step, low), checkpoint_every=10**6)
    arrays, count, metrics = paused.fit(START, ROUND)
    assert count == 0
    assert equal(arrays, START)
    assert metrics["refused"] == "device-battery-low"
    assert f"{step} of {STEPS} batches are done" in str(metrics["refused-detail"])
    arrays, _, metrics = build(tmp_path).fit(START, ROUND)
    assert metrics["resumed-step"] == step
    assert equal(arrays, expected)


def test_interrupted_again_and_again(tmp_path: Path) -> None:
    expected, *_ = build().fit(START, ROUND)
    for _ in range(STEPS - 1):
        with pytest.raises(Killed):
            build(tmp_path, Script(1, Killed())).fit(START, ROUND)
    arrays, _, metrics = build(tmp_path).fit(START, ROUND)
    assert metrics["resumed-step"] == STEPS - 1
    assert equal(arrays, expected)


KILL = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import test_mobile as t
from pathlib import Path

class Kills(t.Script):
    def read(self):
        reading = super().read()
        if self.reads == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)
        return reading

t.build(Path(sys.argv[2]), Kills()).fit(t.START, t.ROUND)
"""


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 6])
def test_a_killed_process_resumes_bit_for_bit(step: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILL, str(Path(__file__).parent), str(tmp_path), str(step)]
    died = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert died.returncode == -signal.SIGKILL, died.stderr
    expected, *_ = build().fit(START, ROUND)
    arrays, _, metrics = build(tmp_path).fit(START, ROUND)
    assert metrics["resumed-step"] == step
    assert equal(arrays, expected)


def test_training_for_an_older_model_is_put_on_top_of_the_new_one(tmp_path: Path) -> None:
    old, *_ = build().fit(START, ROUND)
    with pytest.raises(Killed):
        build(tmp_path, Script(5, Killed())).fit(START, ROUND)
    newer = [a + np.float32(1) for a in START]
    arrays, _, metrics = build(tmp_path).fit(newer, {**ROUND, "server-round": 6})
    assert metrics["staleness"] == 2
    for new, now, trained, start in zip(arrays, newer, old, START, strict=True):
        np.testing.assert_allclose(new - now, trained - start, atol=1e-6)


@pytest.mark.parametrize("later", [3, 7, 100])
def test_training_that_is_out_of_date_is_given_up(later: int, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        build(tmp_path, Script(5, Killed())).fit(START, ROUND)
    config = {**ROUND, "server-round": later}
    arrays, _, metrics = build(tmp_path).fit(START, config)
    assert metrics["resumed-step"] == 0
    assert equal(arrays, build().fit(START, config)[0])


@pytest.mark.parametrize("other", ["data", "config", "key"])
def test_somebody_elses_checkpoint_is_passed_over(
    other: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Killed):
        build(tmp_path, Script(5, Killed()), key=Secret(b"k" * 32)).fit(START, ROUND)
    changes: dict[str, Any] = {"key": Secret(b"k" * 32)}
    changes |= {
        "data": {"examples": data(48)},
        "config": {"config": {"learning_rate": 0.04}},
        "key": {"key": Secret(b"z" * 32)},
    }[other]
    _, _, metrics = build(tmp_path, **changes).fit(START, ROUND)
    assert metrics["resumed-step"] == 0
    assert "not usable" in caplog.text


def test_batches_that_do_not_fit_are_split_with_the_same_result() -> None:
    expected, *_ = build().fit(START, ROUND)
    need = build()._memory()
    small = DeviceProfile((need.needed(2) + 1) / 1e6, 1, DeviceClass.LOW)
    arrays, count, metrics = build(profile=small).fit(START, ROUND)
    assert metrics["micro-batch"] == 2
    assert count == 40
    for a, b in zip(arrays, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_device_without_room_for_one_example_refuses() -> None:
    arrays, count, metrics = build(profile=DeviceProfile(1e-6, 1, DeviceClass.LOW)).fit(
        START, ROUND
    )
    assert metrics["refused"] == "device-too-small"
    assert count == 0
    assert equal(arrays, START)


def test_epochs_by_class_and_deadline_bound_the_work() -> None:
    factors = {DeviceClass.HIGH: 1.0, DeviceClass.MID: 0.5, DeviceClass.LOW: 0.2}
    low = DeviceProfile(2000.0, 1, DeviceClass.LOW)
    monitor = Script()
    build(monitor=monitor, profile=low, workload=Workload(epochs=factors)).fit(START, ROUND)
    assert monitor.now == 40
    monitor = Script()
    _, count, metrics = build(monitor=monitor).fit(START, {**ROUND, "deadline": 30.0})
    assert monitor.now == metrics["seconds"] == 24
    assert count == 24


def test_throttled_devices_rest_or_do_half() -> None:
    expected, *_ = build().fit(START, ROUND)
    used = dataclasses.replace(FINE, in_use=True)
    soft = Conditions(throttle=True)
    monitor = Script(3, used)
    arrays, *_ = build(monitor=monitor, conditions=soft).fit(START, ROUND)
    assert monitor.rested == 8
    assert equal(arrays, expected)
    monitor = Script(0, used)
    build(monitor=monitor, conditions=soft).fit(START, ROUND)
    assert monitor.now == 40


def test_a_throttled_start_is_still_half_the_work_after_an_interruption(tmp_path: Path) -> None:
    soft = Conditions(throttle=True)

    class Both(Script):
        def read(self) -> Reading:
            if self.reads == -1:
                self.reads = 0
                return dataclasses.replace(FINE, in_use=True)
            return super().read()

    expected, *_ = build(monitor=Both(), conditions=soft).fit(START, ROUND)
    with pytest.raises(Killed):
        build(tmp_path, Both(2, Killed()), conditions=soft).fit(START, ROUND)
    arrays, *_ = build(tmp_path, conditions=soft).fit(START, ROUND)
    assert equal(arrays, expected)


def test_a_trace_is_played_back_by_the_work_done() -> None:
    monitor = TraceMonitor(lambda t: dataclasses.replace(FINE, battery=1 - t / 1000), 100.0, 2.0)
    _, count, metrics = build(monitor=monitor).fit(START, ROUND)
    assert count == 40
    assert metrics["seconds"] == 40.0  # 80 examples at 2 a second
    assert monitor.read().battery == pytest.approx(0.86)


def test_a_refusal_travels_to_the_strategy_as_a_rejection(fake_grid) -> None:
    low = dataclasses.replace(FINE, battery=0.1)
    contexts = {n: Context(1, n, {"partition-id": n}, RecordDict(), {}) for n in (1, 2, 3)}
    app = numpy_client_app(
        lambda context: build(monitor=Script(0, low) if context.node_id == 2 else None)
    )
    grid = fake_grid({n: lambda m, n=n: app(m, contexts[n]) for n in contexts})

    class Rounds(RunObserver):
        rows: tuple = ()

        def on_round(self, record, clients):
            self.record, self.rows = record, clients

    seen = Rounds()
    strategy = StableFedAvg(fraction_evaluate=0.0, observer=seen)
    model = ArrayRecord({f"a{i}": Array(a) for i, a in enumerate(START)})
    strategy.start(grid, model, num_rounds=1, timeout=1.0)
    assert seen.record.rejected == {"device-battery-low": 1}
    assert seen.record.accepted == 2
    row = next(r for r in seen.rows if r.status == "device-battery-low")
    assert row.client == "2"
    assert "10%" in row.detail
    assert row.bytes_up < 300


def test_a_made_up_reason_is_malformed(fake_grid) -> None:
    class Liar(MobileClient):
        def fit(self, parameters, config):
            return parameters, 0, {"refused": "accepted", "refused-detail": "hello"}

    app = numpy_client_app(
        lambda context: object.__new__(Liar) if context.node_id == 1 else build()
    )
    contexts = {n: Context(1, n, {}, RecordDict(), {}) for n in (1, 2)}
    grid = fake_grid({n: lambda m, n=n: app(m, contexts[n]) for n in contexts})
    strategy = StableFedAvg(fraction_evaluate=0.0)
    model = ArrayRecord({f"a{i}": Array(a) for i, a in enumerate(START)})
    strategy.start(grid, model, num_rounds=1, timeout=1.0)
    assert strategy.outcome.cohort.reasons() == {"malformed": 1}
