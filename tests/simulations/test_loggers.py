from __future__ import annotations

import logging
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.loggers import MlflowLogger, RoundLogger, TensorBoardLogger, scalars

RECORD = {
    "round": 3,
    "eval_accuracy": 0.5,
    "eval_loss": math.nan,
    "bytes_up": 1000,
    "epsilon": None,
    "skipped": "too few",
    "alarm": None,
    "good": True,
    "rejected": {"not-finite": 2},
    "stages": {"clip": {"share": 0.25}},
    "timing": {},
}


def test_scalars_are_the_numbers_of_a_record_by_path() -> None:
    found = dict(scalars(RECORD))
    assert math.isnan(found.pop("eval_loss"))
    assert found == {
        "eval_accuracy": 0.5,
        "bytes_up": 1000,
        "rejected/not-finite": 2,
        "stages/clip/share": 0.25,
    }


def test_scalar_names_from_clients_are_tamed() -> None:
    record = {"round": 1, "rejected": {"../../x": 1, "<b>": 2, "..": 3, "a" * 900: 4}}
    names = [name for name, _ in scalars(record)]
    assert names[:3] == ["rejected/_.._x", "rejected/_b_", "rejected/_"]
    assert len(names[3]) == 250


def test_tensorboard_shows_every_round_once_after_a_resume(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for steps in ((1, 2, 3), (3, 4)):
        logger: RoundLogger = TensorBoardLogger(tmp_path)
        for step in steps:
            logger.log(RECORD | {"round": step, "eval_accuracy": step / 10})
        logger.close()
    events = accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("eval_accuracy")]
    assert points == [(step, pytest.approx(step / 10)) for step in (1, 2, 3, 4)]
    assert "rejected/not-finite" in events.Tags()["scalars"]


def test_tensorboard_that_logged_nothing_closes(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    TensorBoardLogger(tmp_path / "none").close()
    assert not (tmp_path / "none").exists()


@pytest.fixture(name="uri")
def uri_fixture(tmp_path: Path) -> str:
    pytest.importorskip("mlflow")
    pytest.importorskip("alembic")
    return f"sqlite:///{tmp_path}/mlflow.db"


def test_mlflow_holds_metrics_and_settings_and_continues_a_resumed_run(uri: str) -> None:
    from mlflow.tracking import MlflowClient

    config = {"seed": 1, "data": {"dataset": "digits"}, "faults": []}
    for steps in ((1, 2), (3,)):
        logger: RoundLogger = MlflowLogger(uri, "trial", "run-1", config)
        for step in steps:
            logger.log(RECORD | {"round": step})
        logger.close()
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("trial")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1
    assert runs[0].info.status == "FINISHED"
    assert runs[0].data.params == {"seed": "1", "data.dataset": "digits", "faults": "[]"}
    history = client.get_metric_history(runs[0].info.run_id, "rejected/not-finite")
    assert [(metric.step, metric.value) for metric in history] == [(1, 2), (2, 2), (3, 2)]


def test_mlflow_that_stops_answering_does_not_stop_the_run(
    uri: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = MlflowLogger(uri, "trial", "run-1", {})
    calls = []

    def fail(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise OSError("gone")

    monkeypatch.setattr(logger._client, "log_batch", fail)
    with caplog.at_level(logging.WARNING, "qsfl_flower"):
        for step in (7, 8):
            logger.log(RECORD | {"round": step})
        logger.close()
    assert calls == [1]
    assert "rounds from 7 on are not logged to MLflow: gone" in caplog.text


def test_mlflow_refuses_a_bad_address(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    with pytest.raises(ConfigError, match=r"output\.mlflow: .* 'nonsense://x'"):
        MlflowLogger("nonsense://x", "trial", "run-1", {})


@pytest.mark.parametrize(
    ("module", "make", "extra"),
    [
        ("torch.utils.tensorboard", lambda: TensorBoardLogger(Path("unused")), "tensorboard"),
        ("mlflow.tracking", lambda: MlflowLogger("sqlite://", "e", "r", {}), "mlflow"),
    ],
)
def test_a_missing_package_names_the_extra(
    module: str, make: Any, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, module.split(".")[0] + ".entities", None)
    with pytest.raises(ConfigError) as caught:
        make()
    assert f"output.{extra}:" in str(caught.value)
    assert f"pip install 'qsfl-flower[{extra}]'" in str(caught.value)
