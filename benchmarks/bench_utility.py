"""Test accuracy of the shipped private experiments under the noise of before and of now."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.bench_multipliers import SHIPPED, before_and_now
from qsfl_flower.clients.models import get_arrays
from qsfl_flower.mechanisms.privacy.options import PrivacyOptions
from qsfl_flower.simulations.app import make_client_app
from qsfl_flower.simulations.build import evaluator_of, owners_of, strategy_of
from qsfl_flower.simulations.config import Experiment, load_experiment
from qsfl_flower.simulations.config.described import parameters_of
from qsfl_flower.simulations.materials import model_of
from qsfl_flower.strategies import CheckpointStore, RunObserver
from qsfl_flower.testing import LocalGrid
from qsfl_flower.wire import to_record

NAME = "utility"
DESCRIPTION = "accuracy of the shipped private experiments under the noise of before and now"

Row = dict[str, Any]


def run(quick: bool) -> list[Row]:
    """Return one row per shipped experiment: the same seeds for both; the noise is secret."""
    return [_row(name, range(1 if quick else 5)) for name in (SHIPPED[1:2] if quick else SHIPPED)]


def _row(name: str, seeds: range) -> Row:
    before, event, _ = before_and_now(name)
    row: Row = {"experiment": name}
    for when, noise in (("before", before), ("now", event.noise_multiplier)):
        scores = [_accuracy(_with_noise(name, noise, seed)) for seed in seeds]
        row |= {
            f"multiplier {when}": round(noise, 3),
            f"accuracy {when}": f"{mean(scores):.1%}",
            f"seeds {when}": ", ".join(f"{score:.1%}" for score in scores),
        }
    return row


def _with_noise(name: str, noise: float, seed: int) -> Experiment:
    experiment = load_experiment(name)
    stages = tuple(
        stage.model_copy(update={"noise_multiplier": noise})
        if isinstance(parameters_of(stage), PrivacyOptions)
        else stage
        for stage in experiment.strategy.stages
    )
    strategy = experiment.strategy.model_copy(update={"stages": stages})
    return experiment.model_copy(update={"strategy": strategy, "seed": seed})


def _accuracy(experiment: Experiment) -> float:
    """Return the test accuracy after all rounds in one process."""
    with tempfile.TemporaryDirectory() as folder:
        output = experiment.output.model_copy(update={"folder": folder})
        experiment = experiment.model_copy(update={"output": output})
        app = make_client_app(experiment, owners_of(experiment))
        strategy = strategy_of(experiment, CheckpointStore(Path(folder) / "at"), RunObserver())
        start = to_record(get_arrays(model_of(experiment)))
        grid = LocalGrid(app, experiment.clients.count)
        result = strategy.start(grid, start, experiment.rounds, timeout=600.0)
    return float(evaluator_of(experiment)(experiment.rounds, result.arrays)["accuracy"])
