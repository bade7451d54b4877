"""Checkpoints: complete or not there, and never somebody else's."""

import json
import os
from unittest import mock

import numpy as np
import pytest

from qsfl_flower.errors import CheckpointError
from qsfl_flower.rounds.charges import Charge, Charges, write_charges
from qsfl_flower.stages import ServerAdam
from qsfl_flower.strategies import CheckpointStore, Snapshot, StableFedAvg
from qsfl_flower.wire import from_record, to_record


def snapshot(server_round=3):
    return Snapshot(
        server_round,
        {"z": np.arange(4, dtype=np.float16), "a": np.array(7), "empty": np.zeros((0, 2))},
        {"fedadam": {"m": np.linspace(0, 1, 5), "count": 3}, "validate": {}},
        {"history": {"train": {"1": {"loss": 0.1}}}, "failed": 1},
    )


def test_round_trip_bit_for_bit(tmp_path):
    store = CheckpointStore(tmp_path, fingerprint="f")
    store.save(snapshot())
    back = store.latest()
    expected = snapshot()
    assert back.server_round == 3
    assert list(back.arrays) == ["z", "a", "empty"]
    for name, array in expected.arrays.items():
        assert (back.arrays[name].dtype, back.arrays[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(back.arrays[name], array)
    np.testing.assert_array_equal(back.states["fedadam"]["m"], expected.states["fedadam"]["m"])
    assert back.states["fedadam"]["count"] == 3
    assert back.states["validate"] == {}
    assert back.progress == expected.progress


def test_stages_of_the_release_before_are_found_under_their_names(tmp_path):
    old = {"record-dp": {"asked": {"0": 2}}, "control-variates": {"sum": np.arange(3.0)}}
    store = CheckpointStore(tmp_path)
    store.save(Snapshot(1, {"w": np.zeros(3)}, old))
    charge = Charge({"asked": {"0": 3}}, 1e-5)
    write_charges(tmp_path, Charges(1, 2, "", {"record-dp": charge}))
    states = store.latest().states
    assert states.keys() == {"record_dp", "control_variates"}
    assert states["record_dp"]["asked"] == {"0": 3}
    np.testing.assert_array_equal(states["control_variates"]["sum"], np.arange(3.0))


def test_only_the_newest_stay_and_nothing_temporary(tmp_path):
    store = CheckpointStore(tmp_path, keep=2)
    for server_round in range(1, 6):
        store.save(snapshot(server_round))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "round-000004.json",
        "round-000004.safetensors",
        "round-000005.json",
        "round-000005.safetensors",
    ]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "round-000002.safetensors").unlink(),
        lambda folder: (folder / "round-000002.safetensors").write_bytes(b"x"),
        lambda folder: (folder / "round-000002.json").write_text("{"),
        lambda folder: (folder / "round-000002.json").write_text("{}"),
        lambda folder: (folder / "round-000002.json").write_text("[]"),
        lambda folder: flip(folder / "round-000002.safetensors"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, damage):
    store = CheckpointStore(tmp_path, keep=5)
    store.save(snapshot(1))
    store.save(snapshot(2))
    damage(tmp_path)
    assert store.latest().server_round == 1


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_nothing_usable_foreign_and_future_are_errors(tmp_path):
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        CheckpointStore(tmp_path / "nowhere").latest()
    CheckpointStore(tmp_path, fingerprint="a").save(snapshot())
    with pytest.raises(CheckpointError, match="belongs to another experiment"):
        CheckpointStore(tmp_path, fingerprint="b").latest()
    path = tmp_path / "round-000003.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(CheckpointError, match="format 2; this release reads 1"):
        CheckpointStore(tmp_path, fingerprint="a").latest()
    with pytest.raises(CheckpointError, match="at least one"):
        CheckpointStore(tmp_path, keep=0)


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(snapshot(1))
    full = OSError(28, "No space left on device")
    with (
        mock.patch.object(os, "fsync", side_effect=full),
        pytest.raises(CheckpointError, match=r"round 2 cannot be written .* No space left"),
    ):
        store.save(snapshot(2))
    assert store.latest().server_round == 1
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


def test_a_resumed_strategy_goes_on_bit_for_bit(fake_grid, trained, tmp_path):
    """Six rounds at once equal three, a checkpoint, and three more; state and history included."""
    start = to_record({"w": np.linspace(-1, 1, 9).astype(np.float32)})
    clients = {n: trained(0.1 * n - 0.25, 10 + n, {"train-loss": 0.1 * n}) for n in range(5)}

    def strategy(folder):
        return StableFedAvg(
            fraction_train=0.6,
            fraction_evaluate=0.0,
            seed=8,
            stages=[ServerAdam(eta=0.05)],
            checkpoints=CheckpointStore(folder),
        )

    whole = strategy(tmp_path / "whole").start(fake_grid(clients), start, num_rounds=6, timeout=1)
    strategy(tmp_path / "parts").start(fake_grid(clients), start, num_rounds=3, timeout=1)
    again = strategy(tmp_path / "parts")
    resumed = again.start(
        fake_grid(clients), start, num_rounds=6, timeout=1, resume=again.checkpoints.latest()
    )
    assert from_record(whole.arrays)["w"].tobytes() == from_record(resumed.arrays)["w"].tobytes()
    assert whole.train_metrics_clientapp == resumed.train_metrics_clientapp


@pytest.mark.parametrize(
    "change",
    [
        {"states": []},
        {"states": {"a": 5}},
        {"round": "x"},
        {"round": -1},
        {"round": True},
        {"round": 1e3},
        {"progress": [1]},
        {"charges": "9"},
        {"order": ["zz"]},
        {"order": 5},
    ],
)
def test_a_crafted_checkpoint_is_passed_over(tmp_path, change):
    store = CheckpointStore(tmp_path, keep=5)
    store.save(snapshot(1))
    store.save(snapshot(2))
    path = tmp_path / "round-000002.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert store.latest().server_round == 1


def test_a_deeply_nested_checkpoint_is_passed_over(tmp_path):
    store = CheckpointStore(tmp_path, keep=5)
    store.save(snapshot(1))
    (tmp_path / "round-000002.json").write_text("[" * 100_000)
    assert store.latest().server_round == 1


@pytest.mark.parametrize(
    "progress",
    [{}, {"selection": 5}, {"under_way": 7, "selection": {}}, {"history": [], "monitor": None}],
)
def test_a_checkpoint_without_progress_is_an_error_of_ours(tmp_path, fake_grid, trained, progress):
    saved = Snapshot(1, {"w": np.zeros(3)}, {}, progress)
    strategy = StableFedAvg(fraction_evaluate=0.0)
    grid = fake_grid({n: trained(0.1) for n in range(2)})
    with pytest.raises(CheckpointError, match="does not fit this run"):
        strategy.start(grid, to_record({"w": np.zeros(3)}), 2, timeout=1, resume=saved)


def test_files_are_private_and_never_written_through_links(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "checkpoints"
    old = os.umask(0)
    try:
        CheckpointStore(folder).save(snapshot(1))
        for name in ("round-000002.json", "round-000002.safetensors"):
            (folder / name).symlink_to(victim)
            (folder / f".{name}.{os.getpid()}.tmp").symlink_to(victim)
        CheckpointStore(folder).save(snapshot(2))
    finally:
        os.umask(old)
    assert victim.read_text() == "precious"
    assert folder.stat().st_mode & 0o777 == 0o700
    written = [p for p in folder.iterdir() if not p.is_symlink()]
    assert {p.stat().st_mode & 0o777 for p in written} == {0o600}
