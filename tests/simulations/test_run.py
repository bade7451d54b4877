"""Whole runs on Flower's Ray backend: real processes, so marked slow (about ten seconds each)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from qsfl_flower.errors import RunInterrupted, TooFewReplies
from qsfl_flower.simulations.config import experiment_from_dict
from qsfl_flower.simulations.runner import run_experiment
from qsfl_flower.simulations.serve import Display

pytestmark = pytest.mark.slow


def experiment(folder, **changes):
    values = {
        "name": "test",
        "seed": 3,
        "rounds": 3,
        "data": {"dataset": "digits", "partition": {"scheme": "dirichlet", "alpha": 0.5}},
        "clients": {"count": 4, "batch_size": 32, "learning_rate": 0.1},
        "strategy": {
            "name": "fedadam",
            "eta": 0.05,
            "stages": [{"stage": "clip", "clip_norm": 3.0}],
        },
        "output": {"folder": str(folder)},
    }
    return experiment_from_dict({**values, **changes})


def model(summary):
    return load_file(f"{summary['folder']}/model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def lines(summary, name):
    text = Path(summary["folder"], name).read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_same_seed_same_bits_and_a_complete_folder(tmp_path):
    first = run_experiment(experiment(tmp_path))
    second = run_experiment(experiment(tmp_path, simulation={"actors": 1}))
    assert same(model(first), model(second))
    other = run_experiment(experiment(tmp_path, seed=4))
    assert not same(model(first), model(other))
    assert first["status"] == "finished"
    assert first["rounds"] == 3
    assert [r["round"] for r in lines(first, "metrics.jsonl")] == [0, 1, 2, 3]
    assert len(lines(first, "clients.jsonl")) == 12
    assert {r["client"] for r in lines(first, "clients.jsonl")} == {"0", "1", "2", "3"}
    html = (tmp_path / first["run"] / "report.html").read_text()
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_an_interrupted_run_goes_on_to_the_same_model(tmp_path):
    whole = run_experiment(experiment(tmp_path / "a"))

    class StopAfterOne(Display):
        def round_over(self, record, rounds, unused=()):
            if record.round == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RunInterrupted):
        run_experiment(experiment(tmp_path / "b"), display=StopAfterOne())
    (folder,) = (tmp_path / "b").iterdir()
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    resumed = run_experiment(experiment(tmp_path / "b"), resume=folder)
    assert same(model(whole), model(resumed))
    assert [r["round"] for r in lines(resumed, "metrics.jsonl")] == [0, 1, 2, 3]
    keys = ("eval_loss", "train_loss", "update_norm", "rejected", "bytes_up")
    for a, b in zip(lines(whole, "metrics.jsonl"), lines(resumed, "metrics.jsonl"), strict=True):
        assert [a[k] for k in keys] == [b[k] for k in keys]


def test_clients_that_fail_lie_or_die_do_not_end_the_run(tmp_path):
    faults = [
        {"client": 0, "kind": "raise", "rounds": [1]},
        {"client": 1, "kind": "garbage"},
        {"client": 2, "kind": "nan"},
        {"client": 3, "kind": "die", "rounds": [2]},
        {"client": 4, "kind": "huge-claim"},
    ]
    summary = run_experiment(
        experiment(tmp_path, faults=faults, clients={"count": 8, "learning_rate": 0.1})
    )
    assert summary["rounds"] == 3
    assert summary["rejected"] == {
        "client-crashed": 1,
        "client-error": 1,
        "missing-array": 3,
        "not-finite": 3,
    }
    rounds = lines(summary, "metrics.jsonl")
    assert [r["capped"] for r in rounds[1:]] == [1, 1, 1]
    detail = [r["detail"] for r in lines(summary, "clients.jsonl") if r["status"] == "client-error"]
    assert detail == ["this client fails on purpose (faults: raise)"]


def test_when_too_few_remain_the_run_ends_and_says_so(tmp_path):
    faults = [{"client": n, "kind": "raise"} for n in range(3)]
    with pytest.raises(TooFewReplies, match="3 x client-error"):
        run_experiment(experiment(tmp_path, faults=faults))
    (folder,) = tmp_path.iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "failed"
    assert "1 usable replies, at least 2 needed" in summary["error"]
    assert (folder / "report.html").exists()


def test_a_slow_client_is_left_behind(tmp_path):
    summary = run_experiment(
        experiment(
            tmp_path,
            rounds=1,
            faults=[{"client": 2, "kind": "slow"}],
            simulation={"round_timeout": 30.0, "actors": 2},
        )
    )
    assert summary["rejected"] == {"no-reply": 1}


def cli(*arguments, **options):
    environment = {**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "COLUMNS": "200"}
    command = [sys.executable, "-m", "qsfl_flower.simulations.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, **options
    )


def test_the_command_prints_rounds_and_one_line_of_json(tmp_path):
    done = cli("run", "plain", "--set", "rounds=1", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert list(last) == [
        "run", "rounds", "accuracy", "loss", "bytes_up", "bytes_down", "seconds", "epsilon",
        "rejected",
    ]  # fmt: skip
    assert last["rounds"] == 1
    assert last["epsilon"] is None
    assert (tmp_path / last["run"] / "report.html").exists()
    assert "round 1/1" in done.stdout
    noise = [line for line in done.stderr.splitlines() if line.strip()]
    assert noise == [], "Flower's and Ray's noise belongs into the log file"
    listed = cli("list", cwd=tmp_path)
    assert "finished" in listed.stdout


def test_ctrl_c_leaves_a_run_that_can_be_resumed(tmp_path):
    command = [
        sys.executable,
        "-m",
        "qsfl_flower.simulations.cli",
        "run",
        "plain",
        "--set",
        "rounds=60",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "round  2/60" in line:
            process.send_signal(signal.SIGINT)
            break
    start = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - start < 30
    done = cli("run", "--resume", "latest", "--set", "rounds=5", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["rounds"] == 5


def test_a_checkpoint_of_another_experiment_is_refused(tmp_path):
    summary = run_experiment(experiment(tmp_path, rounds=1))
    config = tmp_path / summary["run"] / "config.yaml"
    changed = {**yaml.safe_load(config.read_text()), "seed": 99}
    config.write_text(yaml.safe_dump(changed))
    done = cli("run", "--resume", tmp_path / summary["run"])
    assert done.returncode == 1
    assert "belongs to another experiment: its configuration differs from this one" in done.stderr
