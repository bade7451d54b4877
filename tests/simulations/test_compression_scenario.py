from __future__ import annotations

import json

import pytest

from qsfl_flower.errors import QSFLError
from qsfl_flower.mechanisms.compression.core import Scheme
from qsfl_flower.simulations.scenarios import compression
from qsfl_flower.simulations.scenarios.compression import (
    SCHEMES,
    SETTINGS,
    Setting,
    Way,
    compare,
    federate,
)
from qsfl_flower.stages import Compress, ServerMomentum
from qsfl_flower.strategies import StableFedAvg


def a_run(values, bytes_up):
    return {"accuracy": {4 * i: v for i, v in enumerate(values)}, "bytes_up": bytes_up}


def test_rows_compare_with_the_dense_run_of_the_same_momentum():
    runs = {
        "dense": a_run([0.1, 0.8, 0.9, 0.9, 0.9, 0.9, 0.9], 1000.0),
        "late": a_run([0.1, 0.5, 0.8, 0.89, 0.895, 0.895, 0.896], 5.0),
        "never": a_run([0.1, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3], 5.0),
        "fast dense": a_run([0.1, 0.94, 0.95, 0.95, 0.95, 0.95, 0.95], 2000.0),
        "fast": a_run([0.1, 0.9, 0.93, 0.945, 0.945, 0.945, 0.945], 5.0),
    }
    names = {"fast dense": "fast dense", "fast": "fast dense"}
    rows = compare(runs, {name: names.get(name, "dense") for name in runs})
    dense, late, never, faster, fast = rows
    assert (dense["points_lost"], dense["rounds"], dense["more_rounds"]) == (0, 8, 0)
    assert (late["points_lost"], late["rounds"], late["more_rounds"]) == (2.48, 12, 0.5)
    assert (never["rounds"], never["more_rounds"], never["share_of_dense"]) == (None, None, 0.005)
    assert (faster["points_lost"], faster["rounds"], faster["share_of_dense"]) == (0, 4, 1)
    assert (fast["against"], fast["points_lost"], fast["share_of_dense"]) == (
        "fast dense",
        0.8,
        0.0025,
    )
    assert (fast["rounds"], fast["more_rounds"]) == (12, 2)
    assert (dense["rounds_to"]["0.5"], dense["rounds_to"]["0.9"], never["rounds_to"]["0.3"]) == (
        4,
        8,
        8,
    )
    assert late["rounds_to"]["0.9"] is None


def test_rounds_of_means_are_not_won_by_one_lucky_evaluation():
    runs = {
        "dense": a_run([0.5, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9], 1.0),
        "lucky": a_run([0.9, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9], 1.0),
    }
    dense, lucky = compare(runs, dict.fromkeys(runs, "dense"))
    assert (lucky["rounds"], dense["rounds"]) == (0, 4)
    assert (lucky["rounds_of_means"], dense["rounds_of_means"]) == (24, 20)
    assert lucky["more_rounds_of_means"] == 0.2


def test_every_scheme_is_judged_against_a_dense_federation_with_its_momentum():
    for way in SCHEMES.values():
        dense = SCHEMES[way.against]
        corrected = 0.0 if way.scheme is None else way.scheme.momentum
        assert dense.scheme is None
        assert dense.momentum == way.momentum + corrected


def test_every_setting_compares_its_schemes_with_dense_federations_of_its_own():
    for setting in SETTINGS.values():
        assert {SCHEMES[title].against for title in setting.schemes} <= set(setting.schemes)


def test_a_setting_says_which_schemes_run_how_long_and_when_models_are_evaluated(
    monkeypatch, tmp_path
):
    short = Setting("plain", 4, 0.05, pictures=32, every=2, schemes=("dense", "10 %"))
    monkeypatch.setitem(compression.SETTINGS, "digits", short)
    monkeypatch.setattr(compression, "in_processes", lambda tasks: enumerate(t() for t in tasks))
    examples = []
    fit = compression.TrainingClient.fit

    def seen(self, parameters, config):
        found = fit(self, parameters, config)
        examples.append(found[1])
        return found

    monkeypatch.setattr(compression.TrainingClient, "fit", seen)
    tables = compression.run(tmp_path, settings=["digits"])
    assert examples == [32] * 2 * 4 * compression.CLIENTS
    assert [row["scheme"] for row in tables["digits"]] == ["dense", "10 %"]
    kept = json.loads((tmp_path / "compression-digits.json").read_text())
    assert [list(run["accuracy"]) for run in kept.values()] == [["0", "2", "4"]] * 2
    assert compression.run(tmp_path, settings=["digits"]) == tables
    assert len(examples) == 2 * 4 * compression.CLIENTS


def test_the_servers_momentum_takes_part(monkeypatch):
    stages = []

    class Seen(StableFedAvg):
        def __init__(self, **options):
            stages.extend(type(stage) for stage in options["stages"])
            raise InterruptedError

    monkeypatch.setattr(compression, "StableFedAvg", Seen)
    monkeypatch.setitem(compression.SETTINGS, "digits", Setting("plain", 4, 0.05))
    for way in (Way(), Way(momentum=0.5), Way(Scheme())):
        with pytest.raises(InterruptedError):
            federate("digits", way)
    assert stages == [ServerMomentum, Compress]


@pytest.mark.slow
def test_compressed_rounds_learn_from_real_pictures():
    try:
        run = federate("mnist", SCHEMES["1 %"], rounds=12)
    except QSFLError as error:
        pytest.skip(f"no MNIST: {error}")
    accuracy = list(run["accuracy"].values())
    assert accuracy[-1] > accuracy[0] + 0.1
    assert run["bytes_up"] < 0.01 * run["bytes_down"]
