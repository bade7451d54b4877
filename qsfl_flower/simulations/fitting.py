"""Whether data, model and clients of an experiment go together, before anything runs."""

from __future__ import annotations

from tempfile import TemporaryDirectory

from qsfl_flower.clients.models import get_arrays
from qsfl_flower.clients.training import evaluate_model
from qsfl_flower.errors import MissingData
from qsfl_flower.simulations.build import client_of, owners_of
from qsfl_flower.simulations.config import Experiment
from qsfl_flower.simulations.materials import dataset_of, model_of, roles_of_model
from qsfl_flower.strategies import StableFedAvg


def check_fit(experiment: Experiment) -> str | None:
    """Build data, partition, model and one client as the run does, and evaluate two examples.

    Returns
    -------
    str or None
        Why nothing could be looked at, if the data set is not here yet.

    Raises
    ------
    QSFLError
        With what does not fit, where, and what is allowed.
    """
    with TemporaryDirectory() as folder:
        trial = experiment.model_copy(
            update={
                "data": experiment.data.model_copy(update={"download": False}),
                "output": experiment.output.model_copy(update={"folder": folder}),
            }
        )
        try:
            data = dataset_of(trial)
        except MissingData as error:
            return str(error)
        model = model_of(trial)
        roles = roles_of_model(trial)
        StableFedAvg(fraction_evaluate=0.0, roles=roles).layout_of(get_arrays(model))
        client_of(trial, owners_of(trial), 0)
        evaluate_model(model, data.x_test[:2], data.y_test[:2], data.normalization)
    return None
