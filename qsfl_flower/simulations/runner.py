"""``qsfl run``: an experiment on Flower's Ray backend in this process, from start to report."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from qsfl_flower.errors import QSFLError, RunError, RunInterrupted
from qsfl_flower.simulations.config import Experiment
from qsfl_flower.simulations.fleet import hosts_of
from qsfl_flower.simulations.serve import Display, Job, prepare

log = logging.getLogger("qsfl_flower")

_LOGGERS = ("flwr", "qsfl_flower", "ray", "py.warnings")


def run_experiment(
    experiment: Experiment, *, resume: Path | None = None, display: Display | None = None
) -> dict[str, Any]:
    """Run an experiment and return its summary; the report is in its run folder.

    Ctrl-C and SIGTERM end the run after the exchange that is under way, with a complete
    checkpoint; a second signal ends the process at once.

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
        The content of ``summary.json``, with ``folder`` added.

    Raises
    ------
    QSFLError
        If the run cannot begin, or ends without a usable result. The folder is complete up to the
        last finished round in either case, and the summary says why.
    """
    job = prepare(experiment, resume)
    if display is not None:
        job.display = display
    stopping = threading.Event()
    job.stop = stopping.is_set
    with _logging_to(job.folder.path / "log.txt"), _signals(stopping) as listen:
        error = _simulate(job, listen)
        if isinstance(error, RunInterrupted):
            summary = job.finish("interrupted", str(error))
        elif error is not None:
            log.error("the run failed", exc_info=error)
            summary = job.finish("failed", str(error))
        else:
            summary = job.finish("finished", None)
    summary["folder"] = str(job.folder.path)
    if isinstance(error, QSFLError):
        raise error
    if error is not None:
        raise RunError(
            f"the simulation ended with {type(error).__name__}: {error}; "
            f"details in {job.folder.path / 'log.txt'}"
        ) from error
    return summary


def _simulate(job: Job, listen: Callable[[], None]) -> BaseException | None:
    """Run Flower's simulation in a thread of its own, since Ray takes over signal handlers."""
    from flwr.simulation import run_simulation

    from qsfl_flower.simulations.app import make_client_app, make_server_app

    errors: list[BaseException] = []

    def target() -> None:
        try:
            run_simulation(
                server_app=make_server_app(job),
                client_app=make_client_app(job.experiment, job.owners),
                num_supernodes=hosts_of(job.experiment),
                backend_config=backend_config(job.experiment),
            )
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target, name="simulation", daemon=True)
    thread.start()
    while thread.is_alive():
        # Ray's core replaces the process's SIGTERM handler whenever it starts.
        listen()
        thread.join(0.2)
    if errors:
        return errors[0]
    if job.final is None:
        return RunError("the simulation ended without a result")
    return None


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
def _logging_to(path: Path) -> Iterator[None]:
    """Send the logs of Flower, Ray and the suite to a file instead of the terminal.

    The standard error of the process goes there too: Ray's core and its processes write to it.
    """
    file = path.open("a", encoding="utf-8")
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
        for logger, handlers, level, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
        logging.captureWarnings(False)
        file.close()


@contextmanager
def _signals(stopping: threading.Event) -> Iterator[Callable[[], None]]:
    """Turn the first SIGINT or SIGTERM into a wish to stop, the second into the end.

    Yields a function that takes the signals (again).
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    def listen() -> None:
        for number in before:
            signal.signal(number, ask)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    listen()
    try:
        yield listen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
