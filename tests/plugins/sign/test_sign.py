"""The plugin as its user meets it: installed, and named in YAML alone."""

import json
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RUN = """
import json, sys
from pathlib import Path
import pytest
from tests.golden.runs import play
print(json.dumps(play(sys.argv[1], Path(sys.argv[2]))))
"""
TRAVEL = """
import sys, cloudpickle
from qsfl_flower.simulations.config import load_experiment
sys.stdout.buffer.write(cloudpickle.dumps(load_experiment(sys.argv[1])))
"""
ARRIVE = """
import sys, cloudpickle
from qsfl_flower.simulations.app import mods_of
from qsfl_flower.simulations.build import owners_of
experiment = cloudpickle.loads(bytes.fromhex(sys.argv[1]))
mods_of(experiment, owners_of(experiment))
from qsfl_flower.node.steps import STEPS
print("sign" in STEPS, experiment.strategy.stages[1])
"""


@pytest.fixture
def site(install):
    return install(HERE)


def test_what_is_decoded_has_the_signs_of_what_was_encoded(site, python):
    done = python(
        site,
        "-c",
        "import numpy as np; from sign_updates import *; o = SignOptions(); "
        "x = np.random.default_rng(0).normal(size=13); y = decode(encode(x, o), 13, o); "
        "assert (np.sign(x) == np.sign(y)).all(); assert np.allclose(abs(y), abs(x).mean())",
    )
    assert done.returncode == 0, done.stderr


def test_it_trains_from_yaml_alone(site, python, tmp_path):
    done = python(site, "-c", RUN, HERE / "sign.yaml", tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    rounds = result["metrics"]
    assert [one["accepted"] for one in rounds[1:]] == [10, 10, 10]
    assert rounds[-1]["eval_accuracy"] > rounds[0]["eval_accuracy"] + 0.2
    assert rounds[-1]["bytes_up"] < 0.1 * rounds[-1]["dense_up"]


@pytest.mark.parametrize("command", ["validate", pytest.param("explain", marks=pytest.mark.slow)])
def test_validate_and_explain_say_what_is_imported(site, qsfl, command):
    told = qsfl(site, command, HERE / "sign.yaml")
    assert "sign_updates (entry point 'sign' of sign-updates 1.0, for strategy.stages.1.stage)" in (
        " ".join(told.stdout.split())
    )


def test_a_module_that_nobody_asks_for_is_not_imported(site, qsfl):
    assert "sign_updates" not in qsfl(site, "validate", "plain").stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("strategy.stages.1.magnitude=max", "must be one of mean, median, got 'max'"),
        ("strategy.stages.1.largest=0", "strategy.stages.1.largest: must be a number > 0, got 0"),
        ("strategy.stages.1.larges=1", "did you mean 'largest'?"),
        ("strategy.stages.1.stage=sing", "did you mean 'sign'?"),
    ],
)
def test_mistakes_are_explained_like_any_other(site, qsfl, change, message):
    done = qsfl(site, "validate", HERE / "sign.yaml", "--set", change)
    assert done.returncode == 2
    assert message in done.stderr


def test_schema_and_tables_have_its_options(site, qsfl):
    schema = json.loads(qsfl(site, "schema", HERE / "sign.yaml").stdout)
    assert schema["$defs"]["SignSpec"]["properties"]["largest"]["exclusiveMinimum"] == 0
    table = qsfl(site, "schema", HERE / "sign.yaml", "--markdown").stdout
    assert "| `largest` | a number > 0 | `10.0` | Larger magnitudes are rejected. |" in table
    assert "SignSpec" not in json.loads(qsfl(site, "schema").stdout)["$defs"]


@pytest.mark.slow
def test_an_experiment_travels_to_another_process(site, python):
    sent = python(site, "-c", TRAVEL, HERE / "sign.yaml", text=False).stdout
    done = python(site, "-c", ARRIVE, sent.hex())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True stage='sign' magnitude='mean'")
