"""What plugins of every kind can be, when they are imported, and when they are not."""

import json
import shutil
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar, Literal

import numpy as np
import pytest
from torch import nn

from qsfl_flower import plugins
from qsfl_flower.clients import data, models
from qsfl_flower.clients.mods import _steps
from qsfl_flower.clients.trainer import TrainingClient
from qsfl_flower.errors import ConfigError, Refusal
from qsfl_flower.mechanisms.detection.core import DETECTORS
from qsfl_flower.mechanisms.detection.core.detector import Detector, Judgement
from qsfl_flower.mechanisms.robust.core.attacks import ATTACKS, Attack
from qsfl_flower.mechanisms.robust.core.registry import RULES
from qsfl_flower.node import steps
from qsfl_flower.plugins import Extension, Mechanism, Options, option
from qsfl_flower.rounds.policies import Policy
from qsfl_flower.simulations.build import client_of, owners_of, strategy_of
from qsfl_flower.simulations.config import asked_imports, experiment_from_dict, load_experiment
from qsfl_flower.simulations.materials import dataset_of, model_of
from qsfl_flower.simulations.stages import stages_of
from qsfl_flower.strategies import POLICIES, CheckpointStore, RunObserver
from qsfl_flower.wire import Plan, PlanItem

HOMES = (RULES, ATTACKS, DETECTORS, POLICIES, models.MODELS, data.SOURCES, steps.STEPS)


@pytest.fixture(autouse=True)
def nothing_stays():
    before = [dict(home) for home in HOMES]
    yield
    for home, values in zip(HOMES, before, strict=True):
        home.clear()
        home.update(values)
    for found in plugins._ADDED.values():
        found.clear()


@dataclass(frozen=True)
class Ones(Attack):
    """Send ones."""

    name = "ones"
    size: float = option("Every coordinate.", gt=0)

    def craft(self, view):
        return np.full_like(view.own, self.size)


class Always(Detector):
    """Suspect everybody a bit."""

    name = "always"

    def __init__(self, score: float = 0.25):
        self.score = score

    def judge(self, rows, reference, seed):
        return Judgement(np.full(len(rows), self.score), np.zeros_like(rows))


def deep(input_shape, num_classes, layers: int = 2):
    """Return a model of some layers."""
    size = int(np.prod(input_shape))
    return nn.Sequential(nn.Flatten(), *[nn.Linear(size, size) for _ in range(layers)],
                         nn.Linear(size, num_classes))  # fmt: skip


def blobs(count: int = 60, kind: Literal["grey", "colour"] = "grey"):
    """Return two classes of noise."""
    x = np.random.default_rng(0).normal(size=(count, 6)).astype(np.float32)
    y = np.arange(count) % 2
    return {"x_train": x, "y_train": y, "x_test": x[:10], "y_test": y[:10]}


class Lowest(Policy):
    """Ask the lowest ranks."""

    name = "lowest"
    made: ClassVar[list[int]] = []

    def __init__(self, first: int = 0):
        self.made.append(first)

    def pick(self, draw, history):
        raise NotImplementedError


class Twice(TrainingClient):
    """Train, with a factor."""

    def __init__(self, *args, factor: float = 2.0, state, **more):
        super().__init__(*args, **more)
        self.factor, self.state = factor, state


@pytest.fixture
def add(monkeypatch):
    def make(*found, name="my_plugin"):
        module = ModuleType(name)
        module.QSFL_PLUGINS = list(found)
        monkeypatch.setitem(sys.modules, name, module)
        return name

    return make


def test_attack_detector_model_data_set_selection_and_algorithm(add, tmp_path):
    name = add(
        Extension("attack", Ones),
        Extension("detector", Always),
        Extension("model", deep, "deep"),
        Extension("dataset", blobs, "blobs"),
        Extension("selection", Lowest),
        Extension("algorithm", Twice, "twice"),
    )
    values = {
        "plugins": [name],
        "data": {"dataset": "blobs", "options": {"count": 40}},
        "model": {"name": "deep", "options": {"layers": 3}},
        "clients": {
            "count": 4,
            "selection": "lowest",
            "selection_options": {"first": 1},
            "algorithm": "twice",
            "algorithm_options": {"factor": 3.0},
        },
        "strategy": {
            "name": "fedavg",
            "stages": [{"stage": "detect", "detector": "always", "options": {"score": 0.75}}],
        },
        "attacks": [{"attack": "ones", "clients": [0], "size": 2.0}],
    }
    exp = experiment_from_dict(values)
    assert len(dataset_of(exp).y_train) == 40
    assert sum(isinstance(one, nn.Linear) for one in model_of(exp)) == 4
    (stage,) = stages_of(exp)
    assert stage.detection.detector.score == 0.75
    strategy_of(exp, CheckpointStore(tmp_path), RunObserver())
    assert Lowest.made == [1]
    assert client_of(exp, owners_of(exp), 1).factor == 3.0
    assert ATTACKS[exp.attacks[0].attack](**exp.attacks[0].parameters) == Ones(2.0)
    assert asked_imports(exp) == ["my_plugin (plugins)"]
    assert hash(exp) == hash(experiment_from_dict(values))
    with pytest.raises(ConfigError, match=r"dataset 'blobs' has no option 'cuont'; did you mean"):
        experiment_from_dict({**values, "data": {"dataset": "blobs", "options": {"cuont": 1}}})
    with pytest.raises(ConfigError, match=r"option 'kind' must be one of grey, colour"):
        experiment_from_dict({**values, "data": {"dataset": "blobs", "options": {"kind": "red"}}})
    with pytest.raises(ConfigError, match=r"attacks\.0\.size: missing; must be a number > 0"):
        experiment_from_dict({**values, "attacks": [{"attack": "ones", "clients": [0]}]})
    with pytest.raises(ConfigError, match=r"algorithm 'twice' takes the place of what strategy"):
        experiment_from_dict({**values, "strategy": {"name": "scaffold"}})


def test_a_name_belongs_to_one_thing(add):
    add(Extension("attack", Ones), name="first")
    add(Extension("attack", Ones), name="again")
    add(Extension("attack", Ones, options=Options), name="second")
    add(Extension("rule", RULES["median"]), name="ours")
    experiment_from_dict({"plugins": ["first", "again"]})
    with pytest.raises(ConfigError, match=r"plugins\.0: there are two of attack 'ones'"):
        experiment_from_dict({"plugins": ["second"]})
    with pytest.raises(ConfigError, match="rule 'median' comes with the suite"):
        experiment_from_dict({"plugins": ["ours"]})


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("rules", "a", "kind is 'rules'; it must be one of rule, attack"),
        ("mechanism", "a", "kind is 'mechanism'"),
        ("rule", "a b", "rule: the name is 'a b'; it must be a word"),
    ],
)
def test_extensions_are_checked(kind, name, message):
    with pytest.raises(ConfigError, match=message):
        Extension(kind, dict, name)


@dataclass(frozen=True, kw_only=True)
class Some(Options):
    """Some options."""

    ratio: float = option("A share.", 0.5, gt=0, le=1)
    count: int = option("A number.", ge=1)
    names: tuple[str, ...] = option("Names.", ())
    kind: Literal["a", "b"] | None = option("A kind.", None)


def test_options_are_the_same_on_both_ends():
    one = Some(count=2, names=("x",), kind="a")
    assert Some.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": 0.0}, "ratio is 0.0; it must be a number > 0 and <= 1"),
        ({"ratio": float("nan")}, "ratio is nan"),
        ({"ratio": True}, "ratio is True"),
        ({"count": 1.5}, "count is 1.5"),
        ({"count": 0}, "count is 0; it must be a whole number >= 1"),
        ({"names": [1]}, "names is"),
        ({"kind": "c"}, "kind is 'c'"),
        ({"more": 1}, "found .*'more'"),
        (None, "found 5"),
    ],
)
def test_options_from_the_other_end_are_checked(change, message):
    values = 5 if change is None else {**Some(count=2).to_dict(), **change}
    with pytest.raises(ConfigError, match=message):
        Some.from_dict(values)


def test_a_step_does_not_take_the_place_of_another(add):
    module = ModuleType("thief")
    module.STEPS = {"clip": lambda update, parameters, context: update}
    sys.modules["thief"] = module
    try:
        with pytest.raises(ConfigError, match="there is a step 'clip' already"):
            steps.add_steps(Mechanism("thief", Some, "thief:Stage", "thief:STEPS"))
    finally:
        del sys.modules["thief"]


EVIL = """
import os
from pathlib import Path
Path(os.environ["MARK"]).write_text("imported")
QSFL_PLUGINS = []
def factory(shape, classes):
    raise SystemExit(7)
"""


@pytest.fixture
def evil(tmp_path, monkeypatch):
    """A run folder whose configuration asks for code, in both ways."""
    (tmp_path / "evil.py").write_text(EVIL)
    mark = tmp_path / "mark"
    monkeypatch.setenv("MARK", str(mark))
    plain = load_experiment("plain").model_dump(mode="json")

    def write(**changes):
        folder = tmp_path / "runs" / "plain-20260101-000000-abcd"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(json.dumps({**plain, **changes}))
        summary = {"run": folder.name, "name": "plain", "status": "interrupted", "rounds": 1}
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "metrics.jsonl").write_text(json.dumps({"round": 0}) + "\n")
        return folder

    write.mark = mark
    return write


ASKS = {
    "plugin": {"plugins": ["evil"]},
    "model": {"model": {"name": "evil:factory"}},
    "loss": {
        "strategy": {
            "name": "fedavg",
            "stages": [{"stage": "record_dp", "epsilon": 8.0, "loss": "evil:factory"}],
        }
    },
}


def test_run_folders_import_nothing(evil, qsfl, tmp_path):
    folder = evil(**{key: value for changes in ASKS.values() for key, value in changes.items()})
    for arguments in (("list",), ("report", folder), ("compare", folder, folder)):
        qsfl(tmp_path, *arguments)
        assert not evil.mark.exists(), arguments


@pytest.mark.parametrize("name", ASKS)
def test_a_run_goes_on_with_no_code_that_its_user_has_not_named(evil, qsfl, tmp_path, name):
    folder = evil(**ASKS[name])
    done = qsfl(tmp_path, "run", "--resume", folder)
    assert not evil.mark.exists()
    assert done.returncode == 2
    assert "asks for module 'evil', and a run folder imports nothing by itself" in done.stderr
    if name == "plugin":
        qsfl(tmp_path, "run", "--resume", folder, "--plugin", "evil")
        assert evil.mark.exists()  # the user has named it


def test_a_plan_of_a_server_imports_nothing(monkeypatch):
    """An unknown step is refused by name, whatever distributions are installed."""
    monkeypatch.setattr(plugins, "_module", lambda name: pytest.fail(f"{name} was imported"))
    with pytest.raises(Refusal, match="policy-unknown-step"):
        _steps(Plan((PlanItem("sign_updates"),)))


def test_the_door_costs_nothing_where_it_is_not_used(python, tmp_path):
    code = "import sys, qsfl_flower.simulations.config as c; c.load_experiment('plain'); "
    done = python(tmp_path, "-c", code + "print('numpy' in sys.modules, 'torch' in sys.modules)")
    assert done.stdout.split() == ["False", "False"], done.stderr
