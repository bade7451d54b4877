"""Tables, regression, several labels, folders of pictures and natural clients, end to end."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from qsfl_flower.errors import ConfigError, DataError
from qsfl_flower.simulations import serve as server
from qsfl_flower.simulations.app import make_client_app
from qsfl_flower.simulations.build import owners_of
from qsfl_flower.simulations.config import experiment_from_dict
from qsfl_flower.simulations.fitting import check_fit
from qsfl_flower.simulations.materials import dataset_of, model_of
from qsfl_flower.simulations.report import write_report
from qsfl_flower.testing import LocalGrid

NATURAL = {"partition": {"scheme": "natural"}, "id_column": "clinic"}
SUM = [
    {"stage": "authenticate"},
    {"stage": "validate"},
    {"stage": "secure_sum", "clip_norm": 20.0, "members": 3, "threshold": 2},
]


@pytest.fixture(name="file")
def file_of(tmp_path):
    """Write a table of patients of five clinics."""
    rng = np.random.default_rng(0)
    age, sex = rng.normal(50, 15, 400), rng.choice(["f", "m"], 400)
    dose = 0.02 * (age - 50) + 0.5 * (sex == "f")
    frame = pd.DataFrame(
        {
            "age": age,
            "sex": sex,
            "smoker": rng.random(400) < 0.3,
            "clinic": [f"clinic {n}" for n in rng.integers(5, size=400)],
            "dose": dose + rng.normal(0, 0.1, 400),
            "ill": np.where(dose > 0.2, "yes", "no"),
            "tired": (dose > 0).astype(int),
            "cough": (age > 60).astype(int),
        }
    )
    path = tmp_path / "patients.csv"
    frame.to_csv(path, index=False)
    return path


def made(folder, data, *, model=None, clients=None, **more):
    return experiment_from_dict(
        {
            "rounds": 4,
            "data": data,
            "model": {"name": "linear", **(model or {})},
            "clients": {"count": 5, "learning_rate": 0.3, "epochs": 3, **(clients or {})},
            "output": {"folder": str(folder / "runs")},
            **more,
        }
    )


def table(file, *targets, drop=("dose", "ill", "tired", "cough"), **more):
    frame = pd.read_csv(file)
    path = file.with_name("-".join(targets) + file.suffix)
    frame.drop(columns=[c for c in drop if c not in targets]).to_csv(path, index=False)
    return {"dataset": "table", "file": str(path), "targets": list(targets), **NATURAL, **more}


def played(exp):
    """Run in this process; return run and rounds."""
    job = server.prepare(exp)
    server.serve(job, LocalGrid(make_client_app(exp, job.owners), exp.clients.count))
    job.finish("finished", None)
    lines = (job.folder.path / "metrics.jsonl").read_text().splitlines()
    return job, [json.loads(line) for line in lines]


def test_classes_of_a_table_with_natural_clients(file, tmp_path):
    exp = made(tmp_path, table(file, "ill"))
    data = dataset_of(exp)
    assert data.input_shape == (4,)  # age, smoker, and sex in two columns
    assert data.class_names == ("no", "yes")
    assert sorted(set(owners_of(exp))) == [0, 1, 2, 3, 4]
    clinics = pd.read_csv(file)["clinic"].to_numpy()
    for client in range(5):
        assert len({data.owners[row] for row in np.flatnonzero(owners_of(exp) == client)}) == 1
    assert len(np.unique(data.owners)) == len(np.unique(clinics))
    assert check_fit(exp) is None
    assert played(exp)[1][-1]["eval_accuracy"] > 0.85


def test_a_regression_has_a_loss_and_no_accuracy(file, tmp_path):
    data = table(file, "dose", task="values", test_fraction=0.2)
    exp = made(tmp_path, data, model={"loss": "huber"}, clients={"fraction_evaluate": 1.0})
    job, rounds = played(exp)
    assert rounds[-1]["eval_loss"] < 0.3 * rounds[0]["eval_loss"]
    assert rounds[-1]["train_loss"] < rounds[1]["train_loss"]
    accuracies = ("eval_accuracy", "train_accuracy", "client_eval_accuracy")
    assert {rounds[-1][key] for key in accuracies} == {None}
    assert rounds[-1]["client_eval_loss"] > 0
    assert "not measured" in write_report(job.folder.path).read_text()


def test_several_labels_under_a_secure_sum(file, tmp_path):
    data = table(file, "tired", "cough", task="labels")
    exp = made(tmp_path, data, strategy={"name": "fedavg", "stages": SUM})
    assert model_of(exp)[-1].out_features == 2
    _, rounds = played(exp)
    assert rounds[-1]["eval_accuracy"] > 0.85 > rounds[0]["eval_accuracy"]
    assert rounds[-1]["train_accuracy"] > 0.85


def test_records_of_a_regression_are_private(file, tmp_path):
    dp = {
        "stage": "record_dp",
        "epsilon": 500.0,
        "delta": 1e-5,
        "clip_norm": 1.0,
        "sampling_rate": 0.5,
    }
    data = table(file, "dose", task="values")
    exp = made(tmp_path, data, strategy={"name": "fedavg", "stages": [dp, {"stage": "validate"}]})
    _, rounds = played(exp)
    assert rounds[-1]["eval_loss"] < rounds[0]["eval_loss"]


@pytest.mark.parametrize("method", ["ditto", "per-fedavg"])
def test_a_regression_is_personalized(file, tmp_path, method):
    data = table(file, "dose", task="values", test_fraction=0.3)
    exp = made(
        tmp_path,
        data,
        clients={"fraction_evaluate": 1.0},
        personalization={"method": method},
        rounds=2,
    )
    assert played(exp)[1][-1]["client_metrics"]["personal-loss"] >= 0


def test_parquet_is_a_table_too(file, tmp_path):
    path = tmp_path / "patients.parquet"
    pd.read_csv(file).to_parquet(path)
    data = {"dataset": "table", "file": str(path), "targets": ["ill"]}
    assert dataset_of(made(tmp_path, data)).input_shape[0] == 4 + 3 + 5  # and clinics as texts


def pictures(root, size=lambda n: (20, 20)):
    rng = np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for n in range(15):
            pixels = rng.integers(90, size=(*size(n), 3)) + 120 * label
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{n}.png")


def test_folders_of_pictures(tmp_path):
    pictures(tmp_path / "pets")
    data = {"dataset": "images", "root": str(tmp_path / "pets")}
    exp = made(tmp_path, data, rounds=2, clients={"count": 2})
    assert dataset_of(exp).input_shape == (3, 20, 20)
    assert dataset_of(exp).class_names == ("cat", "dog")
    assert len(dataset_of(exp).y_test) == 6
    assert played(exp)[1][-1]["eval_accuracy"] == 1.0


def test_folders_for_training_and_testing_with_pictures_of_many_sizes(tmp_path):
    pictures(tmp_path / "train", lambda n: (20 + n, 30))
    pictures(tmp_path / "test")
    data = {"dataset": "images", "root": str(tmp_path)}
    with pytest.raises(DataError, match="several sizes"):
        dataset_of(made(tmp_path, data))
    found = dataset_of(made(tmp_path, {**data, "picture_size": 16}))
    assert (found.x_train.shape, found.x_test.shape) == ((30, 3, 16, 16), (30, 3, 16, 16))


@pytest.mark.parametrize("shape", [(13, 20, 20), (20, 20, 13), (4, 16, 16), (16, 16, 2)])
def test_pictures_of_any_number_of_channels(tmp_path, shape):
    x, y = np.zeros((20, *shape), np.float32), np.arange(20) % 2
    np.savez(tmp_path / "x.npz", x_train=x, y_train=y, x_test=x, y_test=y, id_train=y.astype(str))
    data = {"dataset": "npz", "file": str(tmp_path / "x.npz"), "partition": {"scheme": "natural"}}
    exp = made(tmp_path, data, model={"name": "mnist-cnn"}, clients={"count": 2})
    assert dataset_of(exp).input_shape[0] == min(shape)
    assert check_fit(exp) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ["doze"]}, "no column 'doze'"),
        ({"targets": ["ill"], "task": "values"}, "target 'ill' must hold numbers"),
        ({"targets": ["dose"], "task": "labels"}, "must hold 0 and 1"),
        ({"id_column": "ward"}, "no column 'ward'"),
        ({"file": "patients.txt"}, "neither a .csv nor a .parquet"),
    ],
)
def test_files_that_do_not_fit_are_named(file, tmp_path, change, message):
    data = {"dataset": "table", "file": str(file), "targets": ["ill"], **change}
    with pytest.raises(DataError, match=message):
        check_fit(made(tmp_path, data))


def test_a_picture_that_is_none_is_named(tmp_path):
    pictures(tmp_path / "pets")
    (tmp_path / "pets" / "cat" / "0.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match=r"cat/0\.png cannot be read"):
        dataset_of(made(tmp_path, {"dataset": "images", "root": str(tmp_path / "pets")}))


def test_a_folder_without_pictures_is_named(tmp_path):
    for name, message in (("none", "no folder of a class"), ("empty", "no picture of 'cat'")):
        if name == "empty":
            (tmp_path / "empty" / "cat").mkdir(parents=True)
        data = {"dataset": "images", "root": str(tmp_path / name)}
        with pytest.raises(DataError, match=message):
            dataset_of(made(tmp_path, data))


def test_a_value_that_is_missing_is_named(file, tmp_path):
    frame = pd.read_csv(file)
    frame.loc[3, "age"] = None
    frame.to_csv(file, index=False)
    with pytest.raises(DataError, match="column 'age' has no value in 1 of 400 rows"):
        dataset_of(made(tmp_path, {"dataset": "table", "file": str(file), "targets": ["ill"]}))


TABLE = {"dataset": "table", "file": "x.csv", "targets": ["a"]}


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        ({"dataset": "table", "file": "x.csv"}, {}, "data.targets"),
        ({"dataset": "table", "targets": ["a"]}, {}, "data.file"),
        ({**TABLE, "targets": ["a", "b"]}, {}, "hold no single class"),
        ({**TABLE, "partition": {"scheme": "natural"}}, {}, "data.id_column"),
        ({"task": "values"}, {}, "have one class each"),
        ({**TABLE, "task": "values", "partition": {"scheme": "shards", "shards_per_client": 2}}, {},
         "divides classes"),
        (TABLE, {"model": {"loss": "mse"}}, "does not fit task 'classes'"),
        ({**TABLE, "task": "values"}, {"attacks": [{"attack": "label-flip", "clients": [0]}]},
         "is about classes"),
        ({**TABLE, "task": "values"}, {"clients": {"declare_labels": True}}, "is about classes"),
        ({"dataset": "images"}, {}, "data.root"),
        ({"dataset": "digits", "picture_size": 8}, {}, "only pictures of dataset 'images'"),
        ({"dataset": "digits", "id_column": "a"}, {}, "has no columns"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(tmp_path, data, more, message):
    with pytest.raises(ConfigError, match=message):
        made(tmp_path, data, **more)
