"""Optional loggers: the numbers of every round in TensorBoard or MLflow.

The run folder has everything already; these only show it elsewhere. Both packages are extras and
imported on first use.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from qsfl_flower.errors import ConfigError
from qsfl_flower.simulations.runs import number

_LOG = logging.getLogger(__name__)
_RUN_TAG = "qsfl.run"
_MOST_PARAMETERS = 100
_LONGEST_VALUE = 500
_LONGEST_NAME = 250


class RoundLogger(Protocol):
    """Told about every round."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Take the record of one round (a line of ``metrics.jsonl``)."""

    def close(self) -> None:
        """Write what is still held back."""


class TensorBoardLogger:
    """Writes every number of a round as a scalar.

    Parameters
    ----------
    folder : Path
        Where the event files go. A resumed run uses the same folder again: what TensorBoard has
        of the rounds that are repeated is dropped.

    Raises
    ------
    ConfigError
        If TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard", "tensorboard", error) from error
        self._folder = folder
        self._writer_class: Any = SummaryWriter
        self._writer: Any = None

    def log(self, record: Mapping[str, Any]) -> None:
        """Write the scalars of one round, and make them visible at once."""
        step = int(record["round"])
        if self._writer is None:
            self._writer = self._writer_class(str(self._folder), purge_step=step)
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class MlflowLogger:
    """Writes every number of a round as a metric of one MLflow run.

    A tracking server that stops answering does not end the training: a warning is logged and
    MLflow is told no more, while the run folder stays complete.

    Parameters
    ----------
    uri : str
        MLflow's tracking URI, for example ``sqlite:///mlflow.db`` or ``http://localhost:5000``.
    experiment : str
        Name of the MLflow experiment, created if it does not exist.
    run : str
        Name of the run; one that exists in the experiment (a resumed run) is continued.
    config : mapping
        Resolved configuration; its values become parameters of the MLflow run.

    Raises
    ------
    ConfigError
        If MLflow is not installed, or cannot use the URI.
    """

    def __init__(self, uri: str, experiment: str, run: str, config: Mapping[str, Any]) -> None:
        # MLflow reports its use to its makers unless told not to; a privacy suite asks it not to.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        try:
            from mlflow.entities import Metric
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise _missing("mlflow", "mlflow", error) from error
        self._metric: Any = Metric
        try:
            self._client: Any = MlflowClient(tracking_uri=uri)
            self._run = self._opened(experiment, run, config)
        except Exception as error:
            raise ConfigError(
                f"output.mlflow: MLflow cannot use the tracking URI {uri!r}: {error}"
            ) from error
        self._broken = False

    def log(self, record: Mapping[str, Any]) -> None:
        """Write the metrics of one round."""
        if self._broken:
            return
        now, step = time.time_ns() // 1_000_000, int(record["round"])
        metrics = [self._metric(name, value, now, step) for name, value in scalars(record)]
        try:
            self._client.log_batch(self._run, metrics=metrics[:1000])
        except Exception as error:
            self._broken = True
            _LOG.warning("rounds from %d on are not logged to MLflow: %s", step, error)

    def close(self) -> None:
        """Mark the MLflow run as ended."""
        if self._broken:
            return
        try:
            self._client.set_terminated(self._run)
        except Exception as error:
            _LOG.warning("the end of the run could not be logged to MLflow: %s", error)

    def _opened(self, experiment: str, run: str, config: Mapping[str, Any]) -> str:
        found = self._client.get_experiment_by_name(experiment)
        where = self._client.create_experiment(experiment) if found is None else found.experiment_id
        for old in self._client.search_runs([where], f"tags.`{_RUN_TAG}` = '{run}'", max_results=1):
            self._client.update_run(old.info.run_id, status="RUNNING")
            return str(old.info.run_id)
        made = self._client.create_run(where, run_name=run, tags={_RUN_TAG: run})
        for name, value in list(_parameters(config))[:_MOST_PARAMETERS]:
            self._client.log_param(made.info.run_id, name, value)
        return str(made.info.run_id)


def scalars(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a record, nested ones as ``outer/inner``; the round is no scalar.

    Parameters
    ----------
    record : mapping
        A line of ``metrics.jsonl``. Names may come from clients; characters that a logger could
        refuse become underscores.
    prefix : str
        Put before every name.

    Yields
    ------
    tuple of str and float
        Name and value.
    """
    for key, value in record.items():
        name = prefix + (re.sub(r"[^\w.\- ]", "_", str(key)).strip(". ") or "_")
        if isinstance(value, Mapping):
            yield from scalars(value, f"{name}/")
        elif (found := number(value)) is not None and name != "round":
            yield name[:_LONGEST_NAME], found


def _parameters(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _parameters(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"[:_LONGEST_NAME], str(value)[:_LONGEST_VALUE]


def _missing(option: str, extra: str, error: ImportError) -> ConfigError:
    return ConfigError(
        f"output.{option}: a package is missing ({error}); "
        f"install it with: pip install 'qsfl-flower[{extra}]'"
    )
