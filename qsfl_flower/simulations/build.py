"""From a validated experiment to the objects that run it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from qsfl_flower import plugins
from qsfl_flower.clients.data import Dataset, load_writers
from qsfl_flower.clients.dpsgd import DPSGD, GradientSums
from qsfl_flower.clients.mobile_session import Device
from qsfl_flower.clients.models import set_arrays
from qsfl_flower.clients.partition import (
    Dirichlet,
    Iid,
    Shards,
    by_writer,
    label_counts,
    partition,
    split,
)
from qsfl_flower.clients.personal import PersonalClient
from qsfl_flower.clients.scaffold import ScaffoldClient
from qsfl_flower.clients.trainer import TrainingClient, evaluate_model
from qsfl_flower.errors import DataError
from qsfl_flower.mechanisms.robust.core.attacks import build_attack
from qsfl_flower.personalization import Personalization
from qsfl_flower.simulations.asynchronous import clock_of, kind_of, monitor_of
from qsfl_flower.simulations.config import (
    DirichletSpec,
    Experiment,
    FedProxSpec,
    IidSpec,
    NaturalSpec,
    ShardsSpec,
    WriterSpec,
)
from qsfl_flower.simulations.materials import dataset_of, model_of, roles_of_model, training_of
from qsfl_flower.simulations.phones import device_of, phones_of
from qsfl_flower.simulations.privacy import evaluation_of, record_training
from qsfl_flower.simulations.root import root_rows
from qsfl_flower.simulations.stages import stages_of
from qsfl_flower.strategies import POLICIES, CheckpointStore, RunObserver, StableFedAvg
from qsfl_flower.wire import from_record


class _Common(TypedDict):
    seed: int
    client_id: int
    declare_labels: bool


class _How(TypedDict):
    records: DPSGD | GradientSums | None
    device: Device | None


Owners = NDArray[np.int32]
"""Which client owns each training example: shape (examples,), -1 for nobody."""


def owners_of(experiment: Experiment) -> Owners:
    """Divide the training examples among the clients; the same in every process."""
    data = dataset_of(experiment)
    labels = data.y_train if data.task == "classes" else np.zeros(len(data.y_train), np.int64)
    spec, root = experiment.data.partition, root_rows(experiment)
    owners = np.full(len(labels), -1, dtype=np.int32)
    count, seed = experiment.clients.count, experiment.seed
    if isinstance(spec, WriterSpec):
        folder = Path(experiment.data.root) if experiment.data.root else None
        parts = by_writer(load_writers(folder), count, seed)
    elif isinstance(spec, NaturalSpec):
        if data.owners is None:
            raise DataError(
                f"data.partition: {data.source} does not say whose an example is; name "
                "data.id_column, or put an array id_train into the archive"
            )
        parts = by_writer(data.owners, count, seed)
    else:
        free = np.setdiff1d(np.arange(len(labels)), root)
        parts = [free[rows] for rows in partition(labels[free], count, _scheme(spec), seed)]
    for client, rows in enumerate(parts):
        owners[rows] = client
    owners[root] = -1
    return owners


def _scheme(spec: IidSpec | DirichletSpec | ShardsSpec) -> Iid | Dirichlet | Shards:
    if isinstance(spec, IidSpec):
        return Iid()
    if isinstance(spec, DirichletSpec):
        return Dirichlet(spec.alpha, spec.min_size)
    return Shards(spec.shards_per_client)


def rows_of(
    experiment: Experiment, owners: Owners, client: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the training and the held-out rows of one client."""
    rows = np.flatnonzero(owners == client)
    return split(rows, experiment.data.test_fraction, (experiment.seed, client))


def describe_partition(experiment: Experiment, owners: Owners) -> dict[str, Any]:
    """Describe who owns what, for the run folder and the report."""
    data = dataset_of(experiment)
    clients = []
    for client in range(experiment.clients.count):
        train, held_out = rows_of(experiment, owners, client)
        counts = (
            label_counts(data.y_train, [train], data.num_classes)[0].tolist()
            if data.task == "classes"
            else []
        )
        clients.append(
            {
                "client": str(client),
                "num_train": len(train),
                "num_test": len(held_out),
                "label_counts": counts,
            }
        )
    return {
        "scheme": experiment.data.partition.scheme,
        "source": data.source,
        "num_classes": data.num_classes,
        "class_names": list(data.class_names) if data.class_names else None,
        "clients": clients,
    }


def poisoned(experiment: Experiment, client: int, view: Dataset) -> Dataset:
    """Return the data that a client trains on: its own, or what its attack makes of them."""
    attack = next((a for a in experiment.attacks if client in a.clients), None)
    if attack is None:
        return view
    rng = np.random.default_rng([experiment.seed, client])
    how = build_attack(attack.attack, **attack.parameters)
    x, y = how.poison(view.x_train, view.y_train, view.num_classes, rng)
    return replace(view, x_train=x, y_train=y)


def client_of(
    experiment: Experiment,
    owners: Owners,
    client: int,
    run_id: int = 0,
    state: RecordDict | None = None,
) -> TrainingClient:
    """Build one client with its own data.

    Parameters
    ----------
    experiment, owners, client
        What is run, who owns what, and which client it is.
    run_id : int
        Tells the devices of one run from another's.
    state : RecordDict, optional
        The client's memory, for what is personal.
    """
    torch.set_num_threads(experiment.simulation.threads_per_client)
    spec = experiment.clients
    config = training_of(experiment)
    view = poisoned(
        experiment,
        client,
        dataset_of(experiment).client_view(*rows_of(experiment, owners, client)),
    )
    model = model_of(experiment)
    memory = RecordDict() if state is None else state
    common = _Common(seed=experiment.seed, client_id=client, declare_labels=spec.declare_labels)
    own = plugins.added("algorithm").get(spec.algorithm)
    if isinstance(own, plugins.Extension):
        made = own.make(model, view, config, state=memory, **common, **spec.algorithm_options)
        return cast(TrainingClient, made)
    how = _How(records=record_training(experiment), device=None)
    if experiment.devices.simulate:
        phone = phones_of(experiment.devices, spec.count, experiment.seed)[client]
        folder = phone_folder(experiment, run_id) / f"client-{client}"
        how["device"] = device_of(experiment.devices, phone, folder)
    personal = None
    if experiment.personalization.method != "none":
        personal = Personalization(**experiment.personalization.model_dump())
    if experiment.strategy.name == "scaffold":
        return ScaffoldClient(
            model, view, config, personalization=personal, state=memory, **common, **how
        )
    if personal is None:
        return TrainingClient(model, view, config, **common, **how)
    return PersonalClient(
        model, view, config, personalization=personal, state=memory, **common, **how
    )


def phone_folder(experiment: Experiment, run_id: int) -> Path:
    """Return where the simulated devices of a run keep their checkpoints."""
    return Path(experiment.output.folder).expanduser() / ".devices" / str(run_id)


def evaluator_of(experiment: Experiment) -> Callable[[int, ArrayRecord], MetricRecord]:
    """Return the server's evaluation on the data set's test split."""
    data, model = dataset_of(experiment), model_of(experiment)
    name = training_of(experiment).loss

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        del server_round
        set_arrays(model, from_record(arrays))
        loss, accuracy = evaluate_model(
            model, data.x_test, data.y_test, data.normalization, loss=name
        )
        told = {"loss": loss} if math.isnan(accuracy) else {"loss": loss, "accuracy": accuracy}
        return MetricRecord({**told})

    return evaluate


def strategy_of(
    experiment: Experiment, checkpoints: CheckpointStore, observer: RunObserver
) -> StableFedAvg:
    """Build the strategy of an experiment."""
    clients, spec = experiment.clients, experiment.strategy
    evaluates = clients.fraction_evaluate > 0
    kind, options = kind_of(experiment)
    return kind(
        fraction_train=clients.fraction_train,
        fraction_evaluate=clients.fraction_evaluate,
        min_train_nodes=1,
        min_evaluate_nodes=1 if evaluates else 0,
        min_available_nodes=clients.count,
        stages=stages_of(experiment),
        proximal_mu=spec.proximal_mu if isinstance(spec, FedProxSpec) else 0.0,
        seed=experiment.seed,
        max_num_examples=spec.max_num_examples,
        max_weight_ratio=spec.max_weight_ratio,
        max_failed_rounds=spec.max_failed_rounds,
        monitor=monitor_of(spec.monitor),
        checkpoints=checkpoints,
        observer=observer,
        selection=POLICIES[clients.selection](**clients.selection_options),
        deadline=experiment.timing.deadline if experiment.timing else None,
        clock=clock_of(experiment),
        evaluation=evaluation_of(experiment),
        roles=roles_of_model(experiment),
        **options,
    )


@lru_cache(maxsize=4)
def fingerprint(experiment: Experiment) -> str:
    """Identify what determines the result of a run; longer runs and other machines keep it."""
    data = experiment.model_dump(mode="json", exclude={"output", "simulation", "rounds", "name"})
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
