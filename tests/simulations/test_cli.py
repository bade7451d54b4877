"""The command's own duties: exit codes, clear errors, nothing heavy for light commands."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from qsfl_flower.simulations import cli
from qsfl_flower.simulations.cli import app

runner = CliRunner()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run"], 2, "give either a configuration or --resume RUN"),
        (["run", "quickstart", "--resume", "x"], 2, "give either a configuration or --resume RUN"),
        (["run", "quickstrat"], 2, "did you mean 'quickstart'?"),
        (["run", "quickstart", "--set", "rounds=0"], 2, "rounds"),
        (["run", "quickstart", "--set", "data.dataset=npz"], 2, "dataset 'npz' needs a file"),
        (["run", "--resume", "nothing"], 1, "nothing"),
        (["validate", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["report", "latest"], 1, "runs"),
        (["compare", "one"], 2, "1 run given; two or more are needed"),
        (["scenario", "nothing"], 2, "drift"),
    ],
)
def test_mistakes_have_an_exit_code_and_words(arguments, code, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, arguments)
    assert result.exit_code == code, result.output
    assert words in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_missing_data_set_is_an_error_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QSFL_DATA_DIR", str(tmp_path / "empty"))
    result = runner.invoke(app, ["run", "mnist"])
    assert result.exit_code == 1
    for words in ("mnist", str(tmp_path / "empty"), "QSFL_DATA_DIR"):
        assert words in result.output.replace("\n", "")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_fails_before_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    result = runner.invoke(app, ["run", "quickstart", "--set", "output.folder=file/runs"])
    assert result.exit_code == 1
    assert "output.folder: the run folder" in result.output


def test_validate_prints_a_complete_configuration():
    result = runner.invoke(app, ["validate", "quickstart", "--set", "seed=5"])
    assert result.exit_code == 0
    values = yaml.safe_load(result.output)
    assert values["seed"] == 5
    assert values["output"]["keep_checkpoints"] == 2


def test_validate_says_when_it_has_not_seen_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("QSFL_DATA_DIR", str(tmp_path))
    result = runner.invoke(app, ["validate", "mnist", "--set", "data.download=true"])
    assert result.exit_code == 0
    assert result.output.startswith("# data and model are not checked: data set 'mnist' not found")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("model.frozen=[lin]", "model.frozen: the model has no layer, class of layers or array"),
        ("model.local=[Linaer]", "did you mean 'Linear'?"),
        ("model.frozen=[Linear]", "none of the model's arrays is trained"),
        ("data.file=x.npz", "3 examples are too few for 10 clients"),
    ],
)
def test_validate_looks_at_data_and_model_together(tmp_path, monkeypatch, change, told):
    monkeypatch.chdir(tmp_path)
    few = np.zeros((3, 4), np.float32), np.arange(3) % 2
    np.savez("x.npz", x_train=few[0], y_train=few[1], x_test=few[0], y_test=few[1])
    more = ["--set", "data.dataset=npz"] if "npz" in change else []
    result = runner.invoke(app, ["validate", "plain", "--set", change, *more])
    assert result.exit_code in (1, 2)
    assert told in result.stderr


def test_schema_is_json():
    result = runner.invoke(app, ["schema"])
    assert json.loads(result.output)["properties"]["rounds"]["maximum"] == 100_000


def test_an_empty_folder_has_no_runs(tmp_path):
    result = runner.invoke(app, ["list", "--folder", str(tmp_path)])
    assert result.exit_code == 0


def test_names_of_runs_are_whole(tmp_path):
    """Names differ at their ends: on one line in pipes, folded in terminals."""
    names = [f"a-configuration-with-a-long-name-20261130-12532{n}-d54{n}" for n in range(3)]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("name: demo\n")
    result = runner.invoke(app, ["list", "--folder", str(tmp_path)])
    assert [line.split()[0] for line in sorted(result.output.splitlines())[:3]] == names

    screen = Console(force_terminal=True, width=80, color_system=None, file=io.StringIO())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_out", screen)
        runner.invoke(app, ["list", "--folder", str(tmp_path)])
    shown = screen.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    for name in names:
        assert name[-4:] in shown


def test_light_commands_load_nothing_heavy():
    """``qsfl validate`` and ``qsfl keys`` answer at once."""
    code = (
        "import sys; from qsfl_flower.simulations import cli; "
        "print([m for m in ('torch', 'flwr', 'ray', 'matplotlib', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["quickstart", "secure_krum", "dp_central"])
def test_explain_says_who_learns_what_and_what_it_costs(name):
    result = runner.invoke(app, ["explain", name, "--set", "rounds=1"])
    assert result.exit_code == 0, result.output
    for heading in ("The server learns", "Against malicious clients", "Not covered", "Costs"):
        assert heading in result.output
    assert "time: about" in result.output


def test_explain_needs_the_data_to_know_the_model(tmp_path, monkeypatch):
    monkeypatch.setenv("QSFL_DATA_DIR", str(tmp_path))
    result = runner.invoke(app, ["explain", "mnist"])
    assert result.exit_code == 1
    assert "mnist" in result.output
