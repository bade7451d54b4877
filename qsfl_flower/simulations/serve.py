"""The server's part of a run: prepare everything, run the rounds, leave a complete folder."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from qsfl_flower.clients.models import get_arrays
from qsfl_flower.simulations.build import (
    Owners,
    describe_partition,
    evaluator_of,
    fingerprint,
    owners_of,
    phone_folder,
    strategy_of,
)
from qsfl_flower.simulations.config import Experiment
from qsfl_flower.simulations.examples import FirstExamples
from qsfl_flower.simulations.fleet import FleetGrid
from qsfl_flower.simulations.folder import RunFolder, check_room, new_folder
from qsfl_flower.simulations.loggers import MlflowLogger, RoundLogger, TensorBoardLogger
from qsfl_flower.simulations.materials import model_of
from qsfl_flower.simulations.runs import CHECKPOINTS
from qsfl_flower.strategies import CheckpointStore, ClientRow, RoundRecord, RunObserver, Snapshot
from qsfl_flower.wire import from_record, to_record

log = logging.getLogger("qsfl_flower")


class Display:
    """Shows a run to a person; the default shows nothing."""

    def progress(self, server_round: int, phase: str, done: int, total: int) -> None:
        """Replies arrived."""

    def round_over(self, record: RoundRecord, rounds: int, unused: Sequence[str] = ()) -> None:
        """A round is over; `unused` says which updates of it were not used and why."""


@dataclass
class Job(RunObserver):
    """One run: its experiment, its folder, and what is known of its progress.

    Parameters
    ----------
    experiment : Experiment
        What is run.
    folder : RunFolder
        Where it is written.
    owners : numpy.ndarray
        Who owns which example.
    initial : Mapping[str, numpy.ndarray]
        The first model.
    resume : Snapshot or None
        Checkpoint to go on from.
    display : Display
        Shows progress.
    stop : Callable[[], bool]
        True once the run shall end early.
    """

    experiment: Experiment
    folder: RunFolder
    owners: Owners
    initial: dict[str, NDArray[Any]]
    resume: Snapshot | None = None
    display: Display = field(default_factory=Display)
    stop: Callable[[], bool] = lambda: False
    started: float = field(default_factory=time.perf_counter)
    final: ArrayRecord | None = None
    over: threading.Event = field(default_factory=threading.Event)
    examples: FirstExamples = field(init=False)

    def __post_init__(self) -> None:
        self.examples = FirstExamples(self.folder.path / "log.txt")

    @property
    def checkpoints(self) -> CheckpointStore:
        """The run's checkpoints."""
        return checkpoint_store(self.folder.path, self.experiment)

    def should_stop(self) -> bool:
        """Pass the wish to stop on to the strategy."""
        return self.stop()

    def on_progress(self, server_round: int, phase: str, done: int, total: int) -> None:
        """Pass progress on to the display."""
        self.display.progress(server_round, phase, done, total)

    def on_round(self, record: RoundRecord, clients: tuple[ClientRow, ...]) -> None:
        """Write a round and show it."""
        self.folder.add_round(record, clients)
        unused = self.examples.of(record, clients)
        self.display.round_over(record, self.experiment.rounds, unused)

    def on_end(self, server_round: int, reason: str) -> None:
        """Write down that a privacy budget ended the run."""
        self.folder.event(
            "budget spent",
            f"Training ended before round {server_round}, with the model as it is: {reason}",
            round=server_round,
        )

    def finish(self, status: str, error: str | None) -> dict[str, Any]:
        """Write model and summary; return the summary."""
        arrays = None if self.final is None else from_record(self.final)
        seconds = time.perf_counter() - self.started
        return self.folder.finish(status, seconds, arrays, error)

    def report(self) -> None:
        """Write the report."""
        # matplotlib is heavy, and not needed before the end.
        from qsfl_flower.simulations.report import write_report

        write_report(self.folder.path)


def checkpoint_store(folder: Path, experiment: Experiment) -> CheckpointStore:
    """Return the checkpoints of a run folder."""
    return CheckpointStore(
        folder / CHECKPOINTS, experiment.output.keep_checkpoints, fingerprint(experiment)
    )


def prepare(experiment: Experiment, resume: Path | None = None) -> Job:
    """Do everything that can fail before training: data, model, folder, disk, loggers.

    Parameters
    ----------
    experiment : Experiment
        What is run.
    resume : Path, optional
        Run folder to go on with.

    Raises
    ------
    QSFLError
        With what is wrong and what is needed.
    """
    owners = owners_of(experiment)
    initial = get_arrays(model_of(experiment))
    size = sum(a.nbytes for a in initial.values())
    if resume is None:
        path = new_folder(experiment, size)
        snapshot = None
    else:
        path = resume
        check_room(path, experiment, size)
        snapshot = checkpoint_store(path, experiment).latest()
    folder = RunFolder(path, experiment, _loggers(experiment, path))
    if snapshot is None:
        folder.begin(describe_partition(experiment, owners))
    else:
        folder.rewind(snapshot.server_round)
    return Job(experiment, folder, owners, initial, snapshot)


def _loggers(experiment: Experiment, folder: Path) -> list[RoundLogger]:
    output = experiment.output
    loggers: list[RoundLogger] = []
    if output.tensorboard:
        loggers.append(TensorBoardLogger(folder / "tensorboard"))
    if output.mlflow is not None:
        config = experiment.model_dump(mode="json")
        loggers.append(MlflowLogger(output.mlflow, experiment.name, folder.name, config))
    return loggers


def serve(job: Job, grid: Grid) -> None:
    """Run the rounds on a grid; the final model is in ``job.final``."""
    try:
        _serve(job, grid)
    finally:
        job.over.set()


def _serve(job: Job, grid: Grid) -> None:
    experiment = job.experiment
    strategy = strategy_of(experiment, job.checkpoints, job)
    if experiment.simulation.supernodes is not None:
        grid = FleetGrid(grid, experiment.clients.count, experiment.simulation.supernodes)
    try:
        job.final = strategy.start(
            grid,
            to_record(job.initial),
            num_rounds=experiment.rounds,
            timeout=experiment.simulation.round_timeout,
            evaluate_fn=evaluator_of(experiment),
            resume=job.resume,
        ).arrays
    finally:
        shutil.rmtree(phone_folder(experiment, grid.run.run_id), ignore_errors=True)
