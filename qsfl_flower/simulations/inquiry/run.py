"""A run: the questions on Flower's Ray backend in this process, the answers in a folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from qsfl_flower.clients.analytics import analytics_app
from qsfl_flower.crypto.files import replace_file
from qsfl_flower.crypto.sources import random_bytes
from qsfl_flower.errors import QSFLError, RunError
from qsfl_flower.mechanisms.analytics.core.plan import needed_columns
from qsfl_flower.mechanisms.authentication.client import auth_mod
from qsfl_flower.privacy.policy import MinimumPolicy
from qsfl_flower.rounds.checkpoint import CheckpointStore
from qsfl_flower.simulations.config import Experiment, experiment_from_dict
from qsfl_flower.simulations.federation import client_credentials, server_credentials
from qsfl_flower.simulations.inquiry.config import InquiryOptions
from qsfl_flower.simulations.inquiry.report import write_page
from qsfl_flower.simulations.inquiry.tables import table_of
from qsfl_flower.simulations.ray_access import close_ray
from qsfl_flower.simulations.runner import backend_config, logging_to
from qsfl_flower.strategies.analytics import FederatedAnalytics

ANSWERS = "answers.json"
_TIMEOUT = 600.0


def run_inquiry(asked: InquiryOptions) -> tuple[Path, dict[str, Any]]:
    """Ask, and write answers and report.

    Returns
    -------
    tuple of Path and dict
        The folder, and what is in its ``answers.json``.

    Raises
    ------
    DataError
        If a table does not fit the questions; nobody has been asked then.
    RunError
        If there is no answer.
    """
    for client in range(asked.count if len(asked.tables) > 1 else 1):
        table_of(asked.tables, asked.count, client, needed_columns(asked.questions))
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    unique = random_bytes(2, "run folder").hex()
    folder = Path(asked.output).expanduser() / f"{asked.name}-{stamp}-{unique}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise RunError(f"output: {folder} cannot be made: {error.strerror}") from error
    began = time.perf_counter()
    with logging_to(folder / "log.txt"):
        found = _simulate(asked, folder)
    answers = {
        "name": asked.name,
        "clients": asked.count,
        "fewest_in_a_sum": asked.fewest,
        "unit": asked.privacy.unit,
        "seconds": time.perf_counter() - began,
        **found,
    }
    replace_file(folder / ANSWERS, (json.dumps(answers, indent=2) + "\n").encode(), 0o644)
    write_page(folder, answers)
    return folder, answers


def _simulate(asked: InquiryOptions, folder: Path) -> dict[str, Any]:
    from flwr.simulation import run_simulation

    close_ray()
    experiment = federation_of(asked)
    credentials = server_credentials(experiment)
    server = ServerApp()
    told: list[dict[str, Any]] = []
    errors: list[QSFLError] = []

    strategy = FederatedAnalytics(
        asked.inquiry,
        credentials=credentials,
        sums={} if asked.committee is None else {"committee": asked.committee},
        checkpoints=CheckpointStore(folder / "checkpoints"),
    )

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        try:
            told.append(strategy.ask(grid, _TIMEOUT).to_dict())
        except QSFLError as error:
            errors.append(error)

    run_simulation(
        server_app=server,
        client_app=client_app(asked, experiment),
        num_supernodes=asked.count,
        backend_config=backend_config(experiment),
    )
    if not told:
        raise errors[0] if errors else RunError(f"no answer; details in {folder / 'log.txt'}")
    return told[0]


def federation_of(asked: InquiryOptions) -> Experiment:
    """Return an experiment with as many clients, which says where keys are and what Ray gets."""
    values = {"clients": {"count": asked.count}, "output": {"folder": asked.output}}
    return experiment_from_dict(values, asked.name)


def client_app(asked: InquiryOptions, experiment: Experiment) -> ClientApp:
    """Return the app of all simulated clients: each has a table and keys of its own."""

    def table(context: Context, needs: Mapping[str, type]) -> Mapping[str, NDArray[Any]]:
        client = int(context.node_config["partition-id"])
        return table_of(asked.tables, asked.count, client, needs)

    told = asked.privacy
    return analytics_app(
        MinimumPolicy(epsilon=told.epsilon, delta=told.delta),
        table,
        columns=needed_columns(asked.questions),
        least_cohort=asked.fewest,
        mods=[auth_mod(lambda context: client_credentials(experiment, context, False))],
    )
