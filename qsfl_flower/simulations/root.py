"""The server's own training examples, and the update that the rule fltrust compares with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from qsfl_flower.clients.models import get_arrays
from qsfl_flower.clients.trainer import TrainingClient, derive_seed
from qsfl_flower.errors import ConfigError
from qsfl_flower.mechanisms.robust.server import RootUpdate
from qsfl_flower.rounds.context import RoundContext
from qsfl_flower.simulations.config import Experiment, FedProxSpec
from qsfl_flower.simulations.materials import dataset_of, model_of, training_of

SERVER = "server"
"""In the place of a client's number: makes the server's random numbers its own."""


def root_rows(experiment: Experiment) -> NDArray[np.int64]:
    """Draw the training examples that belong to the server, each equally likely; often none.

    Raises
    ------
    ConfigError
        If no example is left for the clients.
    """
    stages = (s for s in experiment.strategy.stages if s.stage == "robust")
    wanted = next((s.root_examples or 0 for s in stages), 0)
    available = len(dataset_of(experiment).y_train)
    if wanted >= available:
        raise ConfigError(
            f"strategy.stages: root_examples is {wanted}, and data.dataset "
            f"{experiment.data.dataset!r} has {available} examples to train on, which the clients "
            "need as well; lower it"
        )
    drawn = np.random.default_rng(derive_seed(experiment.seed, SERVER, 0))
    return np.sort(drawn.choice(available, wanted, replace=False))


def root_update_of(experiment: Experiment) -> RootUpdate:
    """Return what trains the round's model on the server's examples, as a client would.

    The model, the trainer and its settings are those of the experiment's clients.
    """
    data = dataset_of(experiment).client_view(root_rows(experiment))
    model = model_of(experiment)
    first = get_arrays(model)
    training = training_of(experiment)
    client = TrainingClient(model, data, training, seed=experiment.seed, client_id=SERVER)
    strategy = experiment.strategy
    mu = strategy.proximal_mu if isinstance(strategy, FedProxSpec) else 0.0

    def root_update(context: RoundContext) -> NDArray[np.float64]:
        layout, before = context.layout, np.empty(context.layout.size)
        context.model.read(0, layout.size, before)
        given = {k: v.astype(first[k].dtype) for k, v in layout.views(before).items()}
        given |= {k: given[of] for k, of in layout.tied.items() if of in given}
        threads = torch.get_num_threads()
        # The number of threads changes sums, and must not depend on the server's machine.
        torch.set_num_threads(experiment.simulation.threads_per_client)
        try:
            trained, _, _ = client.fit(
                list((first | given).values()),
                {"server-round": context.server_round, "proximal-mu": mu},
            )
        finally:
            torch.set_num_threads(threads)
        after = dict(zip(first, trained, strict=True))
        return np.concatenate([after[k].ravel() for k in layout.slices]) - before

    return root_update
