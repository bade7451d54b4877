"""The run folder: complete lines, honest numbers, nothing of a round twice."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest

from qsfl_flower.errors import RunError
from qsfl_flower.rounds.charges import Charge, Charges, write_charges
from qsfl_flower.simulations import folder as module
from qsfl_flower.simulations.config import experiment_from_dict
from qsfl_flower.simulations.folder import RunFolder, check_room, environment, new_folder
from qsfl_flower.simulations.runs import CHECKPOINTS
from qsfl_flower.strategies import ClientRow, RoundRecord

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def experiment(tmp_path):
    return experiment_from_dict({"name": "demo", "output": {"folder": str(tmp_path / "runs")}})


def record(server_round, **more):
    return replace(
        RoundRecord(server_round, bytes_up=10, bytes_down=20, eval_accuracy=0.5, eval_loss=1.0),
        **more,
    )


def lines(folder, name):
    return [json.loads(line) for line in (folder.path / name).read_text().splitlines()]


def test_a_round_is_one_line_and_rejections_go_into_the_security_log(experiment):
    told = []

    class Logger:
        def log(self, values):
            told.append(values["round"])

        def close(self):
            told.append("closed")

    run = RunFolder(new_folder(experiment, 1000), experiment, [Logger()])
    rows = (
        ClientRow(1, "0", "11", "accepted", num_examples=5.0, weight=1.0),
        ClientRow(1, "1", "12", "wrong-key", "not enrolled"),
    )
    run.add_round(record(1, rejected={"wrong-key": 1}, train_loss=float("nan")), rows)
    run.add_round(record(2, skipped="too few", alarm="loss doubled"), ())
    summary = run.finish("finished", 3.5, {"w": np.zeros(2)}, None)
    metrics = lines(run, "metrics.jsonl")
    assert [m["round"] for m in metrics] == [1, 2]
    assert metrics[0]["train_loss"] is None, "JSON has no NaN"
    assert [r["status"] for r in lines(run, "clients.jsonl")] == ["accepted", "wrong-key"]
    (entry,) = lines(run, "security.jsonl")
    assert (entry["round"], entry["client"], entry["reason"]) == (1, "1", "wrong-key")
    assert [e["kind"] for e in lines(run, "events.jsonl")] == ["skipped", "alarm"]
    assert told == [1, 2, "closed"]
    assert summary["bytes_up"] == 20
    assert summary["rejected"] == {"wrong-key": 1}
    assert (run.path / "model.safetensors").exists()


def test_a_resumed_run_has_every_round_once_and_no_half_line(experiment):
    run = RunFolder(new_folder(experiment, 1000), experiment, [])
    for server_round in range(4):
        run.add_round(
            record(server_round, rejected={"late-reply": 1}, skipped="x"),
            (ClientRow(server_round, "0", "1", "late-reply", "d"),),
        )
    for name in ("metrics.jsonl", "clients.jsonl", "events.jsonl", "security.jsonl"):
        with (run.path / name).open("a") as file:
            file.write('{"round": 4, "cut o')
    again = RunFolder(run.path, experiment, [])
    again.rewind(2)
    again.add_round(record(3), ())
    assert [m["round"] for m in lines(again, "metrics.jsonl")] == [0, 1, 2, 3]
    assert [r["round"] for r in lines(again, "security.jsonl")] == [0, 1, 2]
    assert [e["kind"] for e in lines(again, "events.jsonl")] == ["skipped"] * 3 + ["resumed"]
    summary = again.finish("finished", 1.0, None, None)
    assert summary["bytes_up"] == 40
    assert summary["rejected"] == {"late-reply": 3}


def test_a_full_disk_is_found_before_training(experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 10**6))
    with pytest.raises(RunError, match=r"has 1 MB free; this run needs about .*keep_checkpoints"):
        check_room(tmp_path, experiment, 1000)


def test_the_environment_names_what_matters(monkeypatch):
    found = environment()
    assert {"flwr", "torch", "numpy", "cryptography"} <= set(found["packages"])
    monkeypatch.setattr(module.subprocess, "run", lambda *a, **k: (_ for _ in ()).throw(OSError()))
    assert environment()["git"] == {"revision": None, "dirty": None}


def test_a_run_that_ends_right_after_it_was_resumed_keeps_what_it_knew(experiment):
    run = RunFolder(new_folder(experiment, 1000), experiment, [])
    for server_round in range(3):
        run.add_round(record(server_round), ())
    again = RunFolder(run.path, experiment, [])
    again.rewind(2)
    summary = again.finish("interrupted", 1.0, None, "asked to stop")
    assert (summary["rounds"], summary["accuracy"], summary["loss"]) == (2, 0.5, 1.0)


def test_the_summary_counts_a_round_that_was_begun_but_not_finished(experiment):
    run = RunFolder(new_folder(experiment, 1000), experiment, [])
    run.add_round(record(1, epsilon=0.5), ())
    event = {"noise_multiplier": 1.0, "sampling_rate": 1.0, "count": 2, "slack": 0.0}
    charge = Charge({"events": [event]}, 1e-5)
    write_charges(run.path / CHECKPOINTS, Charges(2, 2, "", {"record_dp": charge}))
    assert run.finish("interrupted", 1.0, None, None)["epsilon"] == charge.epsilon
