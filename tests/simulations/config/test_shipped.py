"""The configurations that come with the suite load, and teach what they should."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsfl_flower.simulations.config import (
    DirichletSpec,
    load_experiment,
    shipped_configs,
)

FOLDER = Path(__file__).parents[3] / "configs"
NAMES = sorted(shipped_configs())


def test_all_files_of_the_folder_are_shipped():
    questions = shipped_configs(questions=True)
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*NAMES, *questions}
    assert {"base", "quickstart", "mnist", "cifar10", "fedprox", "fedadam", "faults"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_loads_by_name_and_by_path_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = load_experiment(name)
    assert experiment == load_experiment(FOLDER / f"{name}.yaml")
    assert experiment.name == ("experiment" if name == "base" else name)


@pytest.mark.parametrize("name", NAMES)
def test_text_helps_newcomers_and_editors(name):
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").split("\n")
    assert lines[0] == "# yaml-language-server: $schema=schema.json"
    assert (FOLDER / "schema.json").is_file()
    assert lines[1].startswith("# ")
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("name", NAMES)
def test_editor_schema_accepts_it(name):
    jsonschema = pytest.importorskip("jsonschema")
    import yaml

    from qsfl_flower.simulations.config import json_schema

    data = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(json_schema()).validate(data)


def test_quickstart_is_the_chain_and_offline():
    experiment = load_experiment("quickstart")
    assert experiment.data.dataset == "digits"
    assert not experiment.data.download
    names = {stage.stage for stage in experiment.strategy.stages}
    assert names == {"authenticate", "record_dp", "shared_mask", "secure_krum"}
    assert experiment.attacks


def test_plain_is_offline_uneven_and_bounded():
    experiment = load_experiment("plain")
    assert experiment.data.dataset == "digits"
    assert not experiment.data.download
    assert isinstance(experiment.data.partition, DirichletSpec)
    assert experiment.clients.count == 10
    assert [stage.stage for stage in experiment.strategy.stages] == ["validate", "clip"]


@pytest.mark.parametrize(("name", "alpha"), [("mnist", 0.5), ("cifar10", 1.0)])
def test_picture_sets_find_their_folder_by_default(name, alpha):
    """No path of a machine, and nothing is downloaded without being asked."""
    data = load_experiment(name).data
    assert (data.dataset, data.root, data.download) == (name, None, False)
    assert data.partition == DirichletSpec(scheme="dirichlet", alpha=alpha)


def test_faults_leave_enough_clients():
    experiment = load_experiment("faults")
    kinds = {fault.kind for fault in experiment.faults}
    assert {"raise", "garbage", "die"} <= kinds
    misbehaving = {fault.client for fault in experiment.faults}
    assert experiment.clients.count - len(misbehaving) >= experiment.strategy.min_replies
