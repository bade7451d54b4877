"""What compression costs in accuracy and rounds, against dense federations.

Ten clients with uneven classes (Dirichlet 0.5), real pictures, the real strategy, mods, messages
and records, in one process. A round is short, so that rounds can be compared to within a few
percent: each client takes one step or five on pictures of its own, drawn anew in every round.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar

from qsfl_flower.clients.bridge import numpy_client_app
from qsfl_flower.clients.models import get_arrays
from qsfl_flower.clients.trainer import TrainConfig, TrainingClient
from qsfl_flower.crypto.files import replace_file
from qsfl_flower.mechanisms.compression.core import Scheme
from qsfl_flower.simulations.build import evaluator_of, owners_of
from qsfl_flower.simulations.config import Experiment, load_experiment
from qsfl_flower.simulations.materials import dataset_of, model_of
from qsfl_flower.simulations.report.figures import CYCLE, Plot, draw, legend
from qsfl_flower.simulations.scenarios.processes import in_processes
from qsfl_flower.stages import Compress, ServerMomentum, Stage
from qsfl_flower.strategies import RoundRecord, RunObserver, StableFedAvg
from qsfl_flower.testing import LocalGrid
from qsfl_flower.wire import to_record

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CLIENTS = 10
BATCH = 32
LEVELS = (0.3, 0.4, 0.5, 0.9, 0.95, 0.96, 0.97, 0.975, 0.98)
"""Accuracies that runs are timed to."""
STYLES = {"no feedback": "--", "momentum 0.5": ":", "warm-up": "-."}
"""Lines of one colour have the same share of the coordinates."""


@dataclass(frozen=True)
class Way:
    """What clients send, what the server does with it, and which run it is compared with.

    Parameters
    ----------
    scheme : Scheme or None
        What clients send; None: everything in float32.
    momentum : float
        Momentum of the server (`ServerMomentum`).
    against : str
        The dense one of `SCHEMES` with the same momentum, on the server or corrected on clients.
    """

    scheme: Scheme | None = None
    momentum: float = 0.0
    against: str = "dense"


SCHEMES = {
    "dense": Way(),
    "1 %": Way(Scheme(ratio=0.01)),
    "1 %, no feedback": Way(Scheme(ratio=0.01, feedback=False)),
    "0.1 %": Way(Scheme(ratio=0.001)),
    "0.1 %, no feedback": Way(Scheme(ratio=0.001, feedback=False)),
    "10 %": Way(Scheme(ratio=0.1)),
    "10 %, no feedback": Way(Scheme(ratio=0.1, feedback=False)),
    "1 %, warm-up": Way(Scheme(ratio=0.01, warmup_rounds=10)),
    "3 %, 2 bits": Way(Scheme(ratio=0.03, values="int2")),
    "dense, momentum 0.5": Way(momentum=0.5, against="dense, momentum 0.5"),
    "1 %, momentum 0.5": Way(Scheme(ratio=0.01, momentum=0.5), against="dense, momentum 0.5"),
}


@dataclass(frozen=True)
class Setting:
    """A data set with its model, how its clients train, and which of `SCHEMES` are compared.

    A client trains on ``pictures`` of its own in a round, `BATCH` a step; every ``every`` rounds
    the model is evaluated.
    """

    config: str
    rounds: int
    learning_rate: float
    momentum: float = 0.0
    pictures: int = 5 * BATCH
    every: int = 4
    schemes: Sequence[str] = tuple(SCHEMES)


SETTINGS = {
    "mnist": Setting("mnist", rounds=200, learning_rate=0.05),
    "mnist-long": Setting(
        "mnist",
        rounds=2000,
        learning_rate=0.025,
        pictures=BATCH,
        every=10,
        schemes=("dense", "1 %", "1 %, no feedback", "1 %, warm-up", "3 %, 2 bits"),
    ),
    "cifar10": Setting("cifar10", rounds=120, learning_rate=0.02, momentum=0.9),
}


@dataclass
class _Sampling(NumPyClient):
    """Trains on a few of the client's pictures, drawn from its number and the round."""

    train: Callable[[NDArrays, dict[str, Scalar]], Any]

    def fit(self, parameters: NDArrays, config: dict[str, Scalar]) -> Any:
        """Train as `TrainingClient` does."""
        return self.train(parameters, config)


@dataclass
class _Watch(RunObserver):
    records: list[RoundRecord] = field(default_factory=list)

    def on_round(self, record: RoundRecord, clients: Sequence[Any]) -> None:
        """Keep what is known about the round."""
        self.records.append(record)


def federate(name: str, way: Way, rounds: int | None = None, seed: int = 42) -> dict[str, Any]:
    """Run one federation.

    Parameters
    ----------
    name : str
        One of `SETTINGS`.
    way : Way
        One of `SCHEMES`, say.
    rounds : int, optional
        By default those of the setting.
    seed : int
        Of the partition, the first weights and everything that is drawn.

    Returns
    -------
    dict
        ``accuracy`` by round, and the payload bytes of one reply and one instruction.
    """
    logging.getLogger("flwr").setLevel(logging.ERROR)
    setting = SETTINGS[name]
    experiment = load_experiment(
        setting.config,
        [f"clients.count={CLIENTS}", "data.partition.alpha=0.5", f"seed={seed}"],
    )
    accuracy: dict[int, float] = {}
    evaluate = evaluator_of(experiment)

    def look(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round % setting.every:
            return None
        found = evaluate(server_round, arrays)
        accuracy[server_round] = float(found["accuracy"])  # type: ignore[arg-type]
        return found

    stages: list[Stage] = [] if way.scheme is None else [Compress(way.scheme, seed=seed)]
    if way.momentum:
        stages.append(ServerMomentum(server_momentum=way.momentum))
    watch = _Watch()
    strategy = StableFedAvg(
        fraction_evaluate=0,
        min_available_nodes=CLIENTS,
        stages=stages,
        seed=seed,
        observer=watch,
    )
    grid = LocalGrid(numpy_client_app(_clients(experiment, setting)), CLIENTS)
    start = to_record(get_arrays(model_of(experiment)))
    strategy.start(grid, start, num_rounds=rounds or setting.rounds, evaluate_fn=look)
    replies = sum(r.replies for r in watch.records)
    return {
        "accuracy": accuracy,
        "bytes_up": sum(r.bytes_up for r in watch.records) / replies,
        "bytes_down": sum(r.bytes_down for r in watch.records) / replies,
    }


def _clients(experiment: Experiment, setting: Setting) -> Callable[[Context], NumPyClient]:
    torch.set_num_threads(1)
    data, model, owners = dataset_of(experiment), model_of(experiment), owners_of(experiment)
    config = TrainConfig(
        batch_size=BATCH,
        learning_rate=setting.learning_rate,
        momentum=setting.momentum,
    )

    def client_of(context: Context) -> NumPyClient:
        client = int(context.node_config["partition-id"])
        mine = np.flatnonzero(owners == client)

        def train(parameters: NDArrays, told: dict[str, Scalar]) -> Any:
            drawn = np.random.default_rng((experiment.seed, client, int(told["server-round"])))
            chosen = np.sort(drawn.choice(mine, min(setting.pictures, mine.size), replace=False))
            view = data.client_view(chosen, chosen[:0])
            trainer = TrainingClient(model, view, config, seed=experiment.seed, client_id=client)
            return trainer.fit(parameters, told)

        return _Sampling(train)

    return client_of


def compare(runs: Mapping[str, dict[str, Any]], against: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return one row per run, compared with the dense run that `against` names.

    ``accuracy`` is the mean of the last five evaluations. ``rounds`` is the first evaluated round
    that reaches the dense accuracy minus one point, ``rounds_of_means`` the first where the mean of
    five evaluations does, ``rounds_to`` the first that reaches some other accuracies;
    ``more_rounds`` compares with the dense run.
    """
    final = {name: fmean(list(run["accuracy"].values())[-5:]) for name, run in runs.items()}
    rows = []
    for name, run in runs.items():
        dense = against[name]
        target = final[dense] - 0.01
        (mine, smooth), (its, its_smooth) = (
            [_reached(runs[one]["accuracy"], target, over) for over in (1, 5)]
            for one in (name, dense)
        )
        rows.append(
            {
                "scheme": name,
                "against": dense,
                "accuracy": round(final[name], 4),
                "points_lost": round(100 * (final[dense] - final[name]), 2),
                "rounds": mine,
                "more_rounds": _more(mine, its),
                "rounds_of_means": smooth,
                "more_rounds_of_means": _more(smooth, its_smooth),
                "rounds_to": {str(level): _reached(run["accuracy"], level, 1) for level in LEVELS},
                "reply_bytes": round(run["bytes_up"]),
                "share_of_dense": round(run["bytes_up"] / runs[dense]["bytes_up"], 5),
            }
        )
    return rows


def _reached(accuracy: Mapping[int, float], target: float, over: int) -> int | None:
    """Return the first round where the mean of so many evaluations reaches the target."""
    rounds, values = list(accuracy), list(accuracy.values())
    ends = range(over, len(values) + 1)
    return next((rounds[i - 1] for i in ends if fmean(values[i - over : i]) >= target), None)


def _more(mine: int | None, its: int | None) -> float | None:
    return None if not mine or not its else round(mine / its - 1, 3)


def run(folder: Path, *, settings: Sequence[str] = tuple(SETTINGS)) -> dict[str, Any]:
    """Run the schemes of all settings, write pictures, and return the tables.

    Every finished federation is kept in ``compression-SETTING.json`` in `folder`, so that an
    interrupted comparison goes on where it was.

    Parameters
    ----------
    folder : Path
        Where pictures and results go.
    settings : sequence of str
        Some of `SETTINGS`.

    Returns
    -------
    dict
        JSON values: for each setting the rows of `compare`, and the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables: dict[str, Any] = {"files": []}
    for name in settings:
        kept = folder / f"compression-{name}.json"
        runs: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
        missing = [title for title in SETTINGS[name].schemes if title not in runs]
        tasks = [partial(federate, name, SCHEMES[title]) for title in missing]
        for index, found in in_processes(tasks):
            runs[missing[index]] = found
            replace_file(kept, json.dumps(runs).encode())
        runs = {title: json.loads(kept.read_text())[title] for title in SETTINGS[name].schemes}
        for one in runs.values():
            one["accuracy"] = {int(r): value for r, value in one["accuracy"].items()}
        plot = _plot(name, runs)
        picture = folder / f"{plot.name}.png"
        picture.write_bytes(plot.png)
        tables[name] = compare(runs, {title: SCHEMES[title].against for title in runs})
        tables["files"] += [str(kept), str(picture)]
    return tables


def _plot(name: str, runs: dict[str, dict[str, Any]]) -> Plot:
    ends = {title: f"{list(r['accuracy'].values())[-1]:.3f}" for title, r in runs.items()}

    def paint(axes: Axes) -> None:
        colours: dict[str, str] = {}
        for title, one in runs.items():
            share, _, rest = title.partition(", ")
            colour = colours.setdefault(share, CYCLE[len(colours)])
            style = STYLES.get(rest, "-")
            rounds, errors = zip(*((r, 1 - v) for r, v in one["accuracy"].items()), strict=True)
            axes.plot(rounds, errors, linewidth=1.2, linestyle=style, color=colour, label=title)
        axes.set_yscale("log")
        axes.set_xlabel("round")
        axes.set_ylabel("error")
        legend(axes, columns=2)

    alt = f"Error by round on a logarithmic axis; accuracy at the end {ends}."
    return draw(f"compression-{name}", f"Compression on {name}", alt, paint, height=3.6)
