"""The Flower app: the same ServerApp and ClientApp for ``qsfl run`` and for ``flwr run .``.

``flwr run .`` reads the run config: ``config`` names an experiment file or a shipped one, ``set``
holds overrides separated by ``;`` (``set="rounds=3; clients.count=5"``), ``output`` is the folder
for run folders. ``qsfl run`` hands the experiment over directly.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from functools import lru_cache

from flwr.app import Context, Message
from flwr.client.mod.utils import make_ffn
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.serverapp import Grid, ServerApp

from qsfl_flower import mechanisms
from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.mods import qsfl_mod
from qsfl_flower.clients.privacy import policy_mod
from qsfl_flower.clients.trainer import TrainingClient
from qsfl_flower.crypto.credentials import Credentials
from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.authentication.client import auth_mod
from qsfl_flower.node.steps import add_steps
from qsfl_flower.rounds.exchange import wait_for_nodes
from qsfl_flower.simulations.attacks import attack_mod
from qsfl_flower.simulations.build import Owners, client_of, fingerprint, owners_of
from qsfl_flower.simulations.config import Experiment, load_experiment
from qsfl_flower.simulations.faults import fault_mod
from qsfl_flower.simulations.federation import authenticates, client_credentials
from qsfl_flower.simulations.fleet import fleet_mod, hosts_of
from qsfl_flower.simulations.privacy import policy_of
from qsfl_flower.simulations.progress import LogDisplay
from qsfl_flower.simulations.ray_access import is_open
from qsfl_flower.simulations.serve import Job, prepare, serve

log = logging.getLogger("flwr")  # the one that `flwr run` shows

DEFAULT = "quickstart"
"""The experiment that runs if the run config names none."""


def make_client_app(experiment: Experiment, owners: Owners) -> ClientApp:
    """Make the ClientApp of an experiment.

    Parameters
    ----------
    experiment : Experiment
        What is run.
    owners : numpy.ndarray
        Who owns which example; travels with the app, so that clients need not work it out.
    """

    def client_fn(context: Context) -> TrainingClient:
        client = int(context.node_config["partition-id"])
        return client_of(experiment, owners, client, context.run_id, context.state)

    return numpy_client_app(client_fn, mods=mods_of(experiment, owners))


def mods_of(experiment: Experiment, owners: Owners) -> list[Mod]:
    """Return the mods of an experiment's clients, the outermost first."""
    for stage in experiment.strategy.stages:
        if (mechanism := mechanisms.find(stage.stage)) is not None:
            add_steps(mechanism)
    mods: list[Mod] = [policy_mod(policy_of(experiment)), qsfl_mod]
    if experiment.attacks:
        mods.append(attack_mod(experiment, owners))
    if authenticates(experiment):
        mods.insert(0, auth_mod(lambda context: _credentials(experiment, context)))
    if experiment.faults:
        mods.insert(0, fault_mod(experiment))
    if experiment.simulation.supernodes is not None:
        mods.insert(0, fleet_mod(experiment.clients.count))
    return mods


def _credentials(experiment: Experiment, context: Context) -> Credentials:
    client = int(context.node_config["partition-id"])
    impostor = any(f.client == client and f.kind == "impostor" for f in experiment.faults)
    return client_credentials(experiment, context, impostor)


def make_server_app(job: Job) -> ServerApp:
    """Make the ServerApp of a prepared job."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        serve(job, grid)

    return app


def experiment_from_run_config(run_config: Mapping[str, object]) -> Experiment:
    """Read the experiment that the run config of ``flwr run`` names.

    Raises
    ------
    ConfigError
        If a key is not a text, or the experiment is not valid.
    """
    values: dict[str, str] = {}
    for key, default in (("config", DEFAULT), ("set", ""), ("output", "")):
        value = run_config.get(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"run config: {key} is {value!r}; it must be a text")
        values[key] = value
    overrides = [part.strip() for part in values["set"].split(";") if part.strip()]
    if values["output"]:
        overrides.append(f"output.folder={values['output']}")
    return load_experiment(values["config"], overrides)


def announcement(run_config: Mapping[str, object], experiment: Experiment) -> str:
    """Say which experiment runs, since Flower drops settings that it cannot read without a word."""
    overrides = run_config.get("set") or "none"
    return (
        f"configuration {run_config.get('config', DEFAULT)!r} (digest "
        f"{fingerprint(experiment)[:12]}), overrides: {overrides}. To choose another: --run-config "
        '\'config="mnist" set="rounds=3; seed=7"\', without spaces around the first ='
    )


@lru_cache(maxsize=2)
def _cached(items: tuple[tuple[str, object], ...]) -> tuple[Experiment, Owners]:
    experiment = experiment_from_run_config(dict(items))
    return experiment, owners_of(experiment)


def _of_context(context: Context) -> tuple[Experiment, Owners]:
    keys = ("config", "set", "output")
    return _cached(tuple((k, context.run_config[k]) for k in keys if k in context.run_config))


def _client_of_context(context: Context) -> TrainingClient:
    experiment, owners = _of_context(context)
    client = int(context.node_config["partition-id"])
    return client_of(experiment, owners, client, context.run_id, context.state)


def _mods_of_context(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    experiment, owners = _of_context(context)
    hosts = hosts_of(experiment)
    if int(context.node_config["num-partitions"]) != hosts:
        raise ConfigError(
            f"the federation has {context.node_config['num-partitions']} SuperNodes, the "
            f"experiment needs {hosts} (simulation.supernodes, else clients.count): start it with "
            f"--federation-config num-supernodes={hosts}"
        )
    return make_ffn(call_next, mods_of(experiment, owners))(message, context)


client_app = numpy_client_app(_client_of_context, mods=[_mods_of_context])
server_app = ServerApp()


@server_app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment of the run config and leave a run folder."""
    experiment = experiment_from_run_config(context.run_config)
    log.info("%s", announcement(context.run_config, experiment))
    if "ray" in sys.modules and is_open():
        log.warning(
            "Ray listens on every interface and asks for no token; set RAY_AUTH_MODE=token and "
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 before `flwr run`, see docs/threat-model.md"
        )
    job = prepare(experiment)
    job.display = LogDisplay()
    try:
        hosts = "clients.count"
        if experiment.simulation.supernodes is not None:
            hosts = "simulation.supernodes"
        needed = {f"{hosts} of {experiment.name}": hosts_of(experiment)}
        wait_for_nodes(grid, needed, experiment.simulation.round_timeout, job.should_stop)
        serve(job, grid)
    except Exception as error:
        job.finish("failed", str(error))
        job.report()
        raise
    job.finish("finished", None)
    job.report()
    log.info("report: %s", job.folder.path / "report.html")
