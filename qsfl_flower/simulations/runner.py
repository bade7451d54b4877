"""``qsfl run``: an experiment on Flower's Ray backend in this process, from start to report."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qsfl_flower.crypto.files import open_to_append
from qsfl_flower.errors import CheckpointError, QSFLError, RunError, RunInterrupted
from qsfl_flower.simulations.config import Experiment, asked_imports
from qsfl_flower.simulations.fleet import hosts_of
from qsfl_flower.simulations.ray_access import close_ray
from qsfl_flower.simulations.serve import Display, Job, prepare
from qsfl_flower.simulations.stopping import (
    Stop,
    in_time,
    signals,
    something_left,
    wait_for_the_last,
)

log = logging.getLogger("qsfl_flower")

_FOR_THE_ROUND = 2.0
_FOR_THE_REPORT = 4.0
"""Seconds after a signal in which the round may end, and the report may be written."""
_LOGGERS = ("flwr", "qsfl_flower", "ray", "py.warnings")


def run_experiment(
    experiment: Experiment, *, resume: Path | None = None, display: Display | None = None
) -> dict[str, Any]:
    """Run an experiment and return its summary; the report is in its run folder.

    Ctrl-C and SIGTERM end the run within seconds; what it knows at the end of the last finished
    round is in its folder. A second signal ends the process at once.

    Parameters
    ----------
    experiment : Experiment
        What is run.
    resume : Path, optional
        Run folder of an interrupted run of the same experiment.
    display : Display, optional
        Shows progress.

    Returns
    -------
    dict[str, Any]
        The content of ``summary.json``, with ``folder`` added, and ``report``: the page, or None if
        there was no time for it.

    Raises
    ------
    QSFLError
        If the run cannot begin, or ends without a usable result. The folder is complete up to the
        last finished round in either case, and the summary says why.
    """
    job = prepare(experiment, resume)
    if display is not None:
        job.display = display
    stop = Stop()
    job.stop = stop.asked
    with logging_to(job.folder.path / "log.txt"), signals(stop) as listen:
        error = _simulate(job, stop, listen)
        if isinstance(error, RunInterrupted):
            error = RunInterrupted(f"{error}; {_what_next(job)}")
            summary = job.finish("interrupted", str(error))
        elif error is not None:
            log.error("the run failed", exc_info=error)
            summary = job.finish("failed", str(error))
        else:
            summary = job.finish("finished", None)
        written, trouble = in_time(job.report, lambda: stop.left(_FOR_THE_REPORT) > 0, listen)
    if trouble is not None:
        raise trouble
    summary["report"] = str(job.folder.path / "report.html") if written else None
    summary["folder"] = str(job.folder.path)
    if isinstance(error, QSFLError):
        raise error
    if error is not None:
        raise RunError(
            f"the simulation ended with {type(error).__name__}: {error}; "
            f"details in {job.folder.path / 'log.txt'}"
        ) from error
    return summary


def _simulate(job: Job, stop: Stop, listen: Callable[[], None]) -> BaseException | None:
    """Run Flower's simulation in a thread of its own, since Ray takes over signal handlers."""
    close_ray()
    wait_for_the_last()

    def simulate() -> None:
        from flwr.simulation import run_simulation

        from qsfl_flower.simulations.app import make_client_app, make_server_app

        run_simulation(
            server_app=make_server_app(job),
            client_app=make_client_app(job.experiment, job.owners),
            num_supernodes=hosts_of(job.experiment),
            backend_config=backend_config(job.experiment),
        )

    def more_time() -> bool:
        return stop.left(_FOR_THE_ROUND) > 0 and not (stop.asked() and job.over.is_set())

    # Ray's core replaces the process's SIGTERM handler whenever it starts, hence `listen`.
    ended, error = in_time(simulate, more_time, listen)
    if error is not None:
        return error
    if job.final is not None:
        return None
    if ended:
        return RunError("the simulation ended without a result")
    return RunInterrupted("the run was asked to stop")


def _what_next(job: Job) -> str:
    """Say how an interrupted run goes on."""
    try:
        done = job.checkpoints.latest().server_round
    except CheckpointError:
        return "no round was finished, so there is nothing to resume: start the run again"
    named = [f" --plugin {one.partition(' ')[0]}" for one in asked_imports(job.experiment)]
    return (
        f"round {done} is finished; go on with: qsfl run --resume {job.folder.path}{''.join(named)}"
    )


def backend_config(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Return the settings of Flower's Ray backend for an experiment."""
    spec = experiment.simulation
    actors = spec.actors or max(1, (os.cpu_count() or 1) // spec.cpus_per_client)
    actors = min(actors, hosts_of(experiment))
    return {
        "init_args": {
            "num_cpus": actors * spec.cpus_per_client,
            "logging_level": "ERROR",
            "log_to_driver": False,
        },
        # Without restarts, an actor that died goes back into Flower's pool and fails everything
        # that it is given from then on; without a retry, so does one that is still restarting.
        "client_resources": {
            "num_cpus": spec.cpus_per_client,
            "num_gpus": 0,
            "max_restarts": -1,
            "max_task_retries": 1,
        },
    }


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Send the logs of Flower, Ray and the suite to a file instead of the terminal.

    The standard error of the process goes there too: Ray's core and its processes write to it.
    """
    file = open_to_append(path)
    handler = logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before: list[tuple[logging.Logger, list[logging.Handler], int, bool]] = []
    logging.captureWarnings(True)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        before.append((logger, logger.handlers[:], logger.level, logger.propagate))
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)
    sys.stderr.flush()
    terminal = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)
        if not something_left():  # which would go on logging
            for logger, handlers, level, propagate in before:
                logger.handlers, logger.propagate = handlers, propagate
                logger.setLevel(level)
            logging.captureWarnings(False)
            file.close()
